"""Second derivatives of the toy model, exactly: what `protocols.Differentiates` asks of an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neural_tune.testing.toy_layers import FloatDense, Grid, IntegerDense
from neural_tune.testing.toy_model import Floats, ToyModel
from neural_tune.values import Candidate, FrozenMap


def mean_traces(model: ToyModel, batches: Sequence[Floats]) -> FrozenMap[float]:
    """Return op -> trace of the Hessian of mean((z - z0) ** 2) / var(z0) by its weights, over their number.

    At the float weights z is z0, so the Hessian is 2 J^T J / (samples x classes x variance), and the trace of a Dense is a sum over samples and classes of
    |its input| ** 2 times |derivative of the logit by its sums| ** 2. Nothing is estimated.
    """
    inputs = np.concatenate(batches).astype(np.float64)
    entering = [inputs]
    for weight, bias in zip(model.weights[:-1], model.biases[:-1], strict=True):
        entering.append(np.maximum(entering[-1] @ weight + bias, 0.0))
    logits = entering[-1] @ model.weights[-1] + model.biases[-1]
    classes = logits.shape[1]
    # (samples, classes, outputs of the layer): the derivatives of every logit by the sums of the layer, from the last one backwards
    slopes: Any = np.broadcast_to(np.eye(classes), (len(inputs), classes, classes))
    traces = {}
    for place in reversed(range(len(model.weights))):
        squares = np.square(slopes).sum(axis=(1, 2)) * np.square(entering[place]).sum(axis=1)
        traces[model.dense_names[place]] = float(
            2.0 * squares.mean() / classes / logits.var() / model.weights[place].size
        )
        slopes = (slopes @ model.weights[place].T) * (entering[place] > 0)[:, None, :]
    return FrozenMap(traces)


def weight_errors(layers: Sequence[FloatDense], candidate: Candidate) -> FrozenMap[float]:
    """Return op -> squared distance of its weights from their int8 selves, for the ops that `candidate` quantizes."""
    errors = {}
    for layer in layers:
        config = candidate.config_of(layer.name)
        if not config.is_float:
            integer = IntegerDense.of(layer, config, Grid(1.0, 0, 0, 255))
            errors[layer.name] = float(
                np.square(integer.weight * integer.weight_scale - layer.weight.astype(np.float64)).sum()
            )
    return FrozenMap(errors)
