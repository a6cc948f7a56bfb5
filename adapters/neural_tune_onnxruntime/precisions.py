"""Which float formats the installed runtime really computes in on this processor, found out by trying.

A graph in fp16 runs everywhere: where the runtime has no such kernel it converts to float32 around every op, which only costs time. So a tiny model
is optimized, and what counts is the type of the weight that the kernel is handed in the end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
from onnx import TensorProto, helper

from neural_tune.errors import AdapterError
from neural_tune.values import DType
from neural_tune_onnxruntime import session

KINDS = (DType.FP16, DType.BF16)
ELEM_TYPES = {DType.FP16: TensorProto.FLOAT16, DType.BF16: TensorProto.BFLOAT16}
TYPES = ("Conv", "MatMul", "Gemm")
# Op type -> shapes of the weight and of the input of the trial.
_SHAPES: Mapping[str, tuple[tuple[int, ...], tuple[int | str, ...]]] = MappingProxyType(
    {
        "Conv": ((8, 4, 3, 3), ("n", 4, 8, 8)),
        "MatMul": ((64, 32), ("n", 64)),
        "Gemm": ((64, 32), ("n", 64)),
    }
)
_OPSET = 17


def computes_in(op_type: str, kind: DType) -> bool:
    """Return whether the runtime has a kernel for `op_type` that takes inputs and weights in `kind`."""
    return not why_not(op_type, kind)


@cache
def why_not(op_type: str, kind: DType) -> str:
    """Return why the runtime does not compute `op_type` in `kind`; "" when it does."""
    if op_type not in _SHAPES:
        return f"{op_type}: not tried in {kind.value}"
    try:
        optimized = _optimized(_probe(op_type, kind))
    except AdapterError as error:
        return f"{kind.value}: {error}"
    handed = {item.name: item.data_type for item in optimized.graph.initializer}
    kernels = [node for node in optimized.graph.node if node.op_type.endswith(op_type)]
    if kernels and all(any(handed.get(name) == ELEM_TYPES[kind] for name in node.input) for node in kernels):
        return ""
    return f"{kind.value}: the runtime converts to float32 around {op_type}, it has no {kind.value} kernel for this processor"


def as_bytes(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]], kind: DType) -> bytes:
    """Return `values` in `kind`, rounded to nearest even, as little-endian bytes."""
    if kind is DType.FP16:
        return values.astype("<f2").tobytes()
    words = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = words + (((words >> 16) & 1) + 0x7FFF)
    rounded = np.where(np.isnan(values), words | 0x400000, rounded)
    return (rounded >> 16).astype("<u2").tobytes()


def _probe(op_type: str, kind: DType) -> onnx.ModelProto:
    weight, shape = _SHAPES[op_type]
    target = ELEM_TYPES[kind]
    values = np.random.default_rng(0).standard_normal(weight).astype(np.float32)
    constant = TensorProto(name="w", data_type=target, dims=weight, raw_data=as_bytes(values, kind))
    nodes = [
        helper.make_node("Cast", ["x"], ["cast"], to=target),
        helper.make_node(op_type, ["cast", "w"], ["result"], name="kernel"),
        helper.make_node("Cast", ["result"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [constant],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)


def _optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory(prefix="neural_tune-probe-") as folder:
        path = Path(folder) / "optimized.onnx"
        chosen = session.options(1)
        chosen.optimized_model_filepath = str(path)
        session.start(model.SerializeToString(), chosen)
        return onnx.load(str(path))
