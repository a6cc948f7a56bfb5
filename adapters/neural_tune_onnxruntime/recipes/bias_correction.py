"""Empirical bias correction: what rounding the weights does to the mean of every output channel is put right in the bias.

Quantizing W to W_q moves the mean output by E[W_q x] - E[W x] (Nagel et al. 2019, arXiv:1906.04721, section 4.2; Banner et al. 2019, arXiv:1810.05723). Rounding
errors of one channel do not average out when the inputs are all positive, as behind a Relu. The mean of op(x, W - W_q) is taken on the calibration inputs
with the op itself, so that padding, strides and groups are accounted for exactly, and is added to the bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from neural_tune.calibration import Statistics
from neural_tune.calibration.spool import Spool
from neural_tune.errors import AdapterError
from neural_tune.numerics.rescaling import Change
from neural_tune.values import Mode, OpConfig, QuantSpec
from neural_tune_onnxruntime.graph import Op
from neural_tune_onnxruntime.kernels import Kernel
from neural_tune_onnxruntime.model import OnnxModel
from neural_tune_onnxruntime.recipes import probe

NAME = "bias_correction"
_SHIFTS = ("mean shifts",)
# Both round the weight itself to the codes of its spec; blocks of 4 bits do not come from it.
_ROUNDED = (Mode.STATIC, Mode.DYNAMIC)

Shift: TypeAlias = NDArray[np.float64]
Key: TypeAlias = tuple[str, QuantSpec]


def is_offered(model: OnnxModel) -> bool:
    """Return whether the model has an op with a weight and a place for a bias."""
    return any(bias_of(op, model) for op in model.graph.ops)


def bias_of(op: Op, model: OnnxModel) -> tuple[str, int] | None:
    """Return the op and the position of its input that hold the bias of `op`; None where there is no place for one.

    A convolution or Gemm has a place for a bias of its own. A product has none, but often an addition of a constant behind it.
    """
    kernel = model.kernels[op.name]
    if kernel.weight is None or not kernel.is_quantizable or _channels(op, kernel, model) is None:
        return None
    if op.type in ("Conv", "Gemm"):
        return op.name, 2
    follower = model.graph.sole_consumer(op.outputs[0])
    if follower is None or follower.type != "Add":
        return None
    position = 1 - follower.inputs.index(op.outputs[0])
    constant = model.graph.constants.get(follower.inputs[position])
    fits = constant is not None and constant.shape == (_channels(op, kernel, model),)
    return (follower.name, position) if fits else None


def propose(model: OnnxModel, spool: Spool) -> Change:
    """Return a bias of its own for every op that can have one; what is put into it depends on the candidate."""
    del spool
    ops = {op.name: op for op in model.graph.ops}
    edits: dict[tuple[str, int], NDArray[Any]] = {}
    refused: dict[str, str] = {}
    for op in model.graph.ops:
        place, kernel = bias_of(op, model), model.kernels[op.name]
        if place is not None:
            owner, position = place
            found = ops[owner].input(position)
            shape = (_channels(op, kernel, model) or 0,)
            values = model.store.array(found) if found else np.zeros(shape)
            edits[place] = np.broadcast_to(np.asarray(values, np.float32).reshape(-1), shape).copy()
        elif kernel.weight is not None and kernel.is_quantizable:
            refused[op.name] = "has no bias, and an addition behind it would cost an op"
    return Change(edits=edits, refused=refused, note=f"{NAME}: {len(edits)} ops")


def corrected(model: OnnxModel, configs: Mapping[str, OpConfig], statistics: Statistics) -> OnnxModel:
    """Return `model` with the biases of the int8 ops corrected; weights, graph and names stay.

    Args:
        model: What `propose` was applied to.
        configs: Op -> config, for the ops that are int8.
        statistics: Hold the calibration inputs.

    Raises:
        AdapterError: the calibration inputs are gone, or the runtime breaks.
    """
    if statistics.inputs is None:
        raise AdapterError(f"recipe {NAME!r} looks at the calibration inputs, but there are none: calibrate first")
    ops = {op.name: op for op in model.graph.ops}
    wanted = {
        (name, config.weight): place
        for name, config in configs.items()
        if config.weight is not None and config.mode in _ROUNDED and (place := bias_of(ops[name], model)) is not None
    }
    shifts = _shifts(model, tuple(wanted), statistics.inputs)
    changes = {}
    for key, (owner, position) in wanted.items():
        bias = ops[owner].inputs[position]
        changes[bias] = (np.asarray(model.store.array(bias), np.float64) + shifts[key]).astype(np.float32)
    return replace(model, store=model.store.corrected(changes))


def _shifts(model: OnnxModel, wanted: tuple[Key, ...], spool: Spool) -> dict[Key, Shift]:
    """Return the mean of op(x, W - W_q) per output channel; remembered with the model, since it depends on op and weight spec only."""
    memory: dict[Any, Shift] = model.variants.made.setdefault(_SHIFTS, {})
    with model.variants.lock:
        missing = [key for key in wanted if key not in memory]
        if missing:
            memory.update(_measure(model, missing, spool))
    return {key: memory[key] for key in wanted}


def _measure(model: OnnxModel, wanted: list[Key], spool: Spool) -> dict[Key, Shift]:
    ops = {op.name: op for op in model.graph.ops}
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, onnx.TensorProto] = {}
    results: list[str] = []
    for number, (name, spec) in enumerate(wanted):
        op, kernel = ops[name], model.kernels[name]
        stem = f"{name}{model.mark}shift{number}"
        constants[f"{stem}_weight"] = numpy_helper.from_array(_rounding(op, kernel, spec, model), f"{stem}_weight")
        node = onnx.NodeProto()
        node.CopyFrom(op.node)
        node.name = stem
        node.input[:] = [op.inputs[0], f"{stem}_weight"]
        node.output[:] = [f"{stem}_output"]
        axis = 1 if op.type in ("Conv", "Gemm") else model.graph.ranks[op.outputs[0]] - 1
        nodes.append(node)
        nodes.append(
            probe.reduction("ReduceMean", f"{stem}_output", f"{stem}_mean", model, op.outputs[0], axis, constants)
        )
        results.append(f"{stem}_mean")
    total: list[Any] = [0.0] * len(wanted)
    samples = 0
    for found, weight in probe.run(model, nodes, list(constants.values()), results, spool, probe.SAMPLES):
        total = [before + weight * mean for before, mean in zip(total, found, strict=True)]
        samples += weight
    return {key: np.asarray(value / samples, np.float64) for key, value in zip(wanted, total, strict=True)}


def _rounding(op: Op, kernel: Kernel, spec: QuantSpec, model: OnnxModel) -> NDArray[np.float32]:
    """Return W - W_q."""
    operand = (op.inputs[kernel.weight or 0], kernel.axis)
    weight = np.asarray(model.store.array(operand[0]), np.float64)
    return (weight - model.store.dequantized(operand, spec)).astype(np.float32)


def _channels(op: Op, kernel: Kernel, model: OnnxModel) -> int | None:
    """Return the number of output channels; None where the shapes are not known."""
    shape = model.graph.constants[op.inputs[kernel.weight or 0]].shape
    if model.graph.ranks.get(op.outputs[0], 0) < 2 or len(shape) < 2:
        return None
    if op.type == "Conv":
        return shape[0]
    if op.type == "Gemm":
        return shape[0 if op.attribute("transB", 0) else 1]
    return shape[-1] if op.type == "MatMul" and len(shape) == 2 else None
