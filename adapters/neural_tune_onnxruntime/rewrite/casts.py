"""Ops that compute in fp16 or bf16, between a cast of what they read and a cast of what they write.

Casts that meet, of two such ops in a row, are removed by the runtime.
"""

from __future__ import annotations

import numpy as np
import onnx

from neural_tune.errors import CapabilityError
from neural_tune.values import DType, OpConfig
from neural_tune_onnxruntime import precisions
from neural_tune_onnxruntime.graph import FLOAT32, Op
from neural_tune_onnxruntime.model import OnnxModel
from neural_tune_onnxruntime.rewrite.fragment import Fragment


def write(op: Op, config: OpConfig, inputs: list[str], outputs: list[str], model: OnnxModel) -> Fragment:
    """Return what stands for `op`: same inputs, same outputs."""
    if config.activation is None:  # unreachable: `forms.check` insists on it
        raise CapabilityError(f"op {op.name!r}: a cast needs an activation spec")
    kind = config.activation.dtype
    fragment = Fragment(f"{op.name}{model.mark}")
    target = precisions.ELEM_TYPES[kind]
    given = []
    for position, name in enumerate(inputs):
        original = op.inputs[position]
        if not name:
            given.append("")
        elif original in model.graph.constants:
            given.append(fragment.constant(f"{kind.value}_{position}", _constant(original, kind, model)))
        else:
            cast = f"{name}{model.mark}{kind.value}"
            fragment.nodes.append(onnx.helper.make_node("Cast", [name], [cast], f"{cast}_node", to=target))
            fragment.common.add(cast)
            given.append(cast)
    node = onnx.NodeProto()
    node.CopyFrom(op.node)
    node.input[:] = given
    node.output[0] = f"{fragment.stem}{kind.value}"
    fragment.nodes.append(node)
    fragment.add("Cast", [node.output[0]], outputs[0], to=FLOAT32)
    return fragment


def _constant(name: str, kind: DType, model: OnnxModel) -> onnx.TensorProto:
    """Return a float32 constant in `kind`; its bytes are written once."""
    values = np.asarray(model.store.array(name), np.float32)

    def make() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
        return {"words": np.frombuffer(precisions.as_bytes(values, kind), np.uint16).reshape(values.shape)}

    tensor = onnx.TensorProto()
    tensor.CopyFrom(model.store.kept(f"cast {kind.value}: {name}", make)["words"])
    tensor.data_type = precisions.ELEM_TYPES[kind]
    return tensor
