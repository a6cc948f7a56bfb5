"""Quantization-aware training of the toy: fake_quant in the forward pass, straight-through gradients in the backward pass.

Source: Jacob et al., CVPR 2018, section 3; straight-through estimator: Bengio et al. 2013, arXiv:1308.3432.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from neural_tune.calibration import Collector, Statistics
from neural_tune.errors import AdapterError
from neural_tune.testing.toy_layers import FloatDense, Grid, IntegerDense, ToyBuilt
from neural_tune.testing.toy_model import Floats, ToyModel
from neural_tune.values import Candidate, OpConfig

Finish = Callable[[ToyModel, Statistics], ToyBuilt]


class ToyTrainee:
    """What a `train_func` gets: a model that trains itself on (inputs, labels) with the integers of its layers in mind."""

    def __init__(
        self, model: ToyModel, tensors: tuple[str, ...], candidate: Candidate, ranges: Statistics | None
    ) -> None:
        self.model = model
        self.tensors = tensors
        self.ranges = ranges
        self._candidate = candidate

    def __call__(self, inputs: Floats) -> Floats:
        """Return the logits with fake_quant, shape (samples, classes)."""
        return self._forward(np.asarray(inputs, np.float32), None)[1]

    def fit(self, inputs: Floats, labels: Any, *, epochs: int = 4, rate: float = 0.01, seed: int = 0) -> None:
        """Train by stochastic gradient descent on the cross-entropy; every epoch takes the ranges that the one before saw."""
        generator = np.random.default_rng(seed)
        for _ in range(epochs):
            seen = Collector()
            for chosen in np.array_split(generator.permutation(len(labels)), max(1, len(labels) // 50)):
                self._step(inputs[chosen], labels[chosen], rate, seen)
            self.ranges = seen.statistics()

    def _step(self, inputs: Floats, labels: Any, rate: float, seen: Collector) -> None:
        layers, logits, used = self._forward(inputs, seen)
        seen.end_batch()
        slope = np.exp(logits - logits.max(axis=1, keepdims=True))
        slope /= slope.sum(axis=1, keepdims=True)
        slope[np.arange(len(labels)), labels] -= 1.0
        slope /= len(labels)
        for place in reversed(range(len(layers))):
            weight, bias = layers[place].T @ slope, slope.sum(axis=0)
            slope = (slope @ used[place].T) * (layers[place] > 0) if place else slope
            self.model.weights[place] -= (rate * weight).astype(np.float32)
            self.model.biases[place] -= (rate * bias).astype(np.float32)

    def _forward(self, values: Floats, seen: Collector | None) -> tuple[list[Floats], Floats, list[Floats]]:
        """Return the input of every layer, the logits, and the weights that were used."""
        layers: list[Floats] = []
        used: list[Floats] = []
        for place, name in enumerate(self.model.dense_names):
            tensor = self.tensors[place]
            if seen is not None and np.isfinite(values).all():  # a training that diverges is refused in the end
                seen.see(tensor, values)
            layer = FloatDense(
                name, self.model.weights[place], self.model.biases[place], self._candidate.config_of(name)
            )
            values, weight = _fake_quant(layer, self.ranges, tensor, values)
            layers.append(values)
            used.append(weight)
            values = values @ weight + layer.bias
            if place + 1 < len(self.tensors):
                values = np.maximum(values, 0.0)
        return layers, values, used


class ToyTraining:
    """Implements `neural_tune.protocols.Training`."""

    def __init__(self, trainee: ToyTrainee, finish: Finish) -> None:
        self.model = trainee
        self._finish = finish

    def finish(self, threads: int | None) -> ToyBuilt:  # noqa: ARG002 - protocol
        """Return the trained model in integers, on the ranges of the last epoch."""
        trainee = self.model
        if not all(np.isfinite(array).all() for array in (*trainee.model.weights, *trainee.model.biases)):
            raise AdapterError("training left weights that are not finite; lower the learning rate")
        if trainee.ranges is None or set(trainee.tensors) - set(trainee.ranges.tensors):
            raise AdapterError(
                "no activation range: nothing was calibrated, and train_func never called fit on its model"
            )
        return self._finish(trainee.model, trainee.ranges)


def _fake_quant(layer: FloatDense, seen: Statistics | None, tensor: str, values: Floats) -> tuple[Floats, Floats]:
    """Return inputs and weights on their grids; a range that is not known yet leaves the inputs as they are."""
    config: OpConfig = layer.config
    if config.is_float or config.activation is None:
        return values, layer.weight
    spec = config.activation
    if seen is None or tensor not in seen.tensors:
        return values, _on_grid(IntegerDense.of(layer, config, Grid(1.0, 0, 0, 255)))
    grid = Grid.of(spec, seen, tensor, spec.observer, spec.percentile)
    codes = grid.quantize(values).astype(np.float32)
    weight = _on_grid(IntegerDense.of(layer, config, grid))
    return (codes - grid.zero_point) * np.float32(grid.scale), weight


def _on_grid(integer: IntegerDense) -> Floats:
    """Return the weights that the integers stand for."""
    return integer.weight.astype(np.float32) * integer.weight_scale
