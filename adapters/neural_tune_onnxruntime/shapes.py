"""Types and shapes of every tensor, from the first source that knows them.

The runtime's fusions need `value_info` (dropping it changed the logits of a BERT), and so does the question whether a
tensor is float at all. Cheap and safe sources come first: onnx, then the runtime itself, which knows its contrib ops, then symbolic
inference, the tool that users report most failures of.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
from onnx import helper, shape_inference

from neural_tune_onnxruntime import session

logger = logging.getLogger(__name__)

_ELEM_TYPES = {
    "tensor(float)": onnx.TensorProto.FLOAT,
    "tensor(double)": onnx.TensorProto.DOUBLE,
    "tensor(float16)": onnx.TensorProto.FLOAT16,
    "tensor(bfloat16)": onnx.TensorProto.BFLOAT16,
    "tensor(bool)": onnx.TensorProto.BOOL,
    "tensor(string)": onnx.TensorProto.STRING,
    "tensor(int8)": onnx.TensorProto.INT8,
    "tensor(int16)": onnx.TensorProto.INT16,
    "tensor(int32)": onnx.TensorProto.INT32,
    "tensor(int64)": onnx.TensorProto.INT64,
    "tensor(uint8)": onnx.TensorProto.UINT8,
    "tensor(uint16)": onnx.TensorProto.UINT16,
    "tensor(uint32)": onnx.TensorProto.UINT32,
    "tensor(uint64)": onnx.TensorProto.UINT64,
}


def infer(model: onnx.ModelProto, folder: Path) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return `model` with the types and shapes that could be found, and notes about what could not.

    Args:
        model: A model whose large initializers are external, so that no step carries them along; never changed.
        folder: Where they lie.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    steps: Sequence[tuple[str, Callable[[onnx.ModelProto, Path], onnx.ModelProto]]] = (
        ("onnx", _by_onnx),
        ("runtime", _by_runtime),
        ("symbolic", _by_symbols),
    )
    failures: list[str] = []
    for name, step in steps:
        if not _unknown(result):
            break
        try:
            _merge(result, step(result, folder))
        except Exception as error:  # noqa: BLE001 - the tools raise what they like (asserts, KeyError); the ladder goes on
            failures.append(f"{name}: {type(error).__name__} {session.first_line(error)[:120]}")
    missing = _unknown(result)
    if not missing:
        return result, ()
    logger.info("no shape for %d tensors: %s", len(missing), "; ".join(failures))
    shown = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
    reasons = f" ({'; '.join(failures)})" if failures else ""
    return result, (f"type or shape unknown for {len(missing)} tensors: {shown}{reasons}; ops around them stay float",)


def _unknown(model: onnx.ModelProto) -> list[str]:
    graph = model.graph
    known = {value.name for value in (*graph.input, *graph.value_info, *graph.output) if _is_known(value)}
    return [name for node in graph.node for name in node.output if name and name not in known]


def _is_known(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return value.type.WhichOneof("value") is not None  # sequences and maps are none of our business
    return kind.elem_type != 0 and kind.HasField("shape")


def _merge(model: onnx.ModelProto, other: onnx.ModelProto) -> None:
    """Take over what `other` knows of tensors that `model` knows less of; graph inputs and outputs keep their own."""
    graph = model.graph
    made = {name for node in graph.node for name in node.output} - {value.name for value in graph.output}
    ours = {value.name: value for value in graph.value_info}
    for value in other.graph.value_info:
        if value.name not in made:
            continue
        if value.name not in ours:
            graph.value_info.append(value)
        elif not _is_known(ours[value.name]):
            ours[value.name].CopyFrom(value)
    results = {value.name: value for value in other.graph.output}
    for value in graph.output:
        if not _is_known(value) and value.name in results and _is_known(results[value.name]):
            value.type.CopyFrom(results[value.name].type)


def _by_onnx(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    del folder
    return shape_inference.infer_shapes(model, data_prop=True)


def _by_symbols(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference  # noqa: PLC0415 - needs sympy, half a second

    del folder
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # The tool's own entry point writes a file into the working directory when it stays incomplete, and then raises. Its steps, called
    # one by one, leave what they did find; an opset that they refuse raises here too.
    inference = SymbolicShapeInference(2**31 - 1, auto_merge=True, guess_output_rank=False, verbose=0)
    inference._preprocess(copy)  # noqa: SLF001
    while inference.run_:
        inference._infer_impl()  # noqa: SLF001
    inference._update_output_from_vi()  # noqa: SLF001
    inferred: onnx.ModelProto = inference.out_mp_
    return inferred


def _by_runtime(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Ask the runtime for the tensors that nobody knew, as outputs; it tells their types without running anything.

    (The graph that it writes out, optimized or not, holds no `value_info`.)
    """
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    results = {value.name for value in model.graph.output}
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in _unknown(model) if name not in results)
    started = session.start(asked.SerializeToString(), session.options(1, optimize=False, folder=folder))
    found = onnx.ModelProto()
    for value in started.get_outputs():
        kind = _ELEM_TYPES.get(value.type)
        if kind is not None:
            # No dimensions can mean a scalar or an unknown rank here: only the type is sure.
            shape = value.shape or None
            target = found.graph.output if value.name in results else found.graph.value_info
            target.append(helper.make_tensor_value_info(value.name, kind, shape))
    return found
