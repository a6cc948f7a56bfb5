"""A Q/DQ graph computed in float64, one node at a time, by onnx's reference implementation: an oracle that shares no code with the runtime."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator


def differences(
    proto: onnx.ModelProto, feed: Mapping[str, np.ndarray], produced: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return, per graph output, how far `produced` is from the emulation: in steps of its scale, or relative to its size where it has none.

    What was produced replaces what was emulated before the next node is computed, so that a tie that fell the other way counts once.
    """
    opset = next(item.version for item in proto.opset_import if item.domain == "")
    values = {item.name: _wide(numpy_helper.to_array(item)) for item in proto.graph.initializer}
    values |= {name: _wide(item) for name, item in feed.items()}
    results = {value.name for value in proto.graph.output}
    found = {}
    for node in proto.graph.node:
        inputs = [values[name] if name else None for name in node.input]
        outputs = _compute(node, inputs, opset)
        for name, value in zip(node.output, outputs, strict=False):
            values[name] = value
            if name in results and name in produced:
                step = inputs[1] if node.op_type == "DequantizeLinear" else max(np.abs(value).max(), 1e-30)
                found[name] = np.abs(produced[name] - value) / step
                values[name] = _wide(produced[name])
    return found


def _wide(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64) if values.dtype == np.float32 else values


def _compute(node: onnx.NodeProto, inputs: list[np.ndarray | None], opset: int) -> list[np.ndarray]:
    axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
    if node.op_type == "QuantizeLinear":
        x, scale, zero = inputs
        limits = np.iinfo(zero.dtype)
        return [np.clip(np.rint(x / scale) + zero.astype(int), limits.min, limits.max).astype(zero.dtype)]
    if node.op_type == "DequantizeLinear":
        codes, scale, zero = inputs
        shape = [1] * codes.ndim
        if scale.ndim:
            shape[axis] = -1
        return [(codes.astype(np.float64) - zero.astype(np.float64).reshape(shape)) * scale.reshape(shape)]
    return _reference(node, inputs, opset)


def _reference(node: onnx.NodeProto, inputs: list[np.ndarray | None], opset: int) -> list[np.ndarray]:
    names = dict.fromkeys(name for name in node.input if name)
    feed = {name: value for name, value in zip(node.input, inputs, strict=True) if name}
    kinds = {name: helper.np_dtype_to_tensor_dtype(np.asarray(feed[name]).dtype) for name in names}
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return [np.asarray(value) for value in ReferenceEvaluator(model).run(None, feed)]
