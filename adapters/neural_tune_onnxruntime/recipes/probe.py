"""A look at the float model on the calibration inputs, with the summary computed inside the graph, so that no activation leaves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from neural_tune.calibration.spool import Spool, length_of
from neural_tune.errors import AdapterError
from neural_tune.numerics.factors import Moments
from neural_tune_onnxruntime import session
from neural_tune_onnxruntime.model import OnnxModel

# Enough for the choice of factors and for means. The ranges themselves are taken from all samples, once the choice is made.
SAMPLES = 128
_REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceMean")


def moments(model: OnnxModel, axes: Mapping[str, int], spool: Spool) -> dict[str, Moments]:
    """Return what every channel of some activations looks like, over the first kept samples.

    Args:
        model: The float model.
        axes: Tensor -> channel axis.
        spool: The calibration inputs.
    """
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, onnx.TensorProto] = {}
    results: list[str] = []
    for tensor, axis in axes.items():
        stem = f"{tensor}{model.mark}moment"
        nodes.append(helper.make_node("Mul", [tensor, tensor], [f"{stem}_squared"], f"{stem}_squared"))
        sources = (tensor, tensor, tensor, f"{stem}_squared")
        for number, (kind, source) in enumerate(zip((*_REDUCTIONS, "ReduceMean"), sources, strict=True)):
            name = f"{stem}_{number}"
            nodes.append(reduction(kind, source, name, model, tensor, axis, constants))
            results.append(name)
    lows: dict[str, Any] = {}
    for found, weight in run(model, nodes, list(constants.values()), results, spool, SAMPLES):
        for tensor, (low, high, mean, square) in zip(axes, zip(*[iter(found)] * 4, strict=True), strict=True):
            kept = lows.setdefault(tensor, [np.inf, -np.inf, 0.0, 0.0, 0])
            kept[0], kept[1] = np.minimum(kept[0], low), np.maximum(kept[1], high)
            kept[2], kept[3] = kept[2] + weight * mean, kept[3] + weight * square
            kept[4] += weight
    return {tensor: Moments(low, high, mean / n, square / n) for tensor, (low, high, mean, square, n) in lows.items()}


def reduction(
    kind: str,
    source: str,
    name: str,
    model: OnnxModel,
    tensor: str,
    axis: int,
    constants: dict[str, onnx.TensorProto],
) -> onnx.NodeProto:
    """Return a node that reduces `source`, shaped as `tensor`, to one value per channel; adds the axes to `constants`."""
    rank = model.graph.ranks[tensor]
    others = [item for item in range(rank) if item != axis % rank]
    if model.opset < 18:
        return helper.make_node(kind, [source], [name], name, axes=others, keepdims=0)
    listed = f"axes{model.mark}{'_'.join(map(str, others))}"
    constants[listed] = numpy_helper.from_array(np.array(others, np.int64), listed)
    return helper.make_node(kind, [source, listed], [name], name, keepdims=0)


def run(
    model: OnnxModel,
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[onnx.TensorProto],
    results: Sequence[str],
    spool: Spool,
    most: int | None,
) -> Any:
    """Yield the results as float64 arrays, and the number of samples, for every kept batch.

    Raises:
        AdapterError: the runtime breaks.
    """
    started = model.session_for_outputs(list(results), nodes=nodes, constants=constants)
    for feed in spool.feeds(most):
        try:
            found: list[NDArray[Any]] = started.run(None, feed)
        except session.RUNTIME_ERRORS as error:
            message = f"the runtime breaks on a calibration batch: {session.first_line(error)}"
            raise AdapterError(message) from error
        yield [np.asarray(item, np.float64) for item in found], length_of(feed)
