"""A small real network in numpy: the model that the toy adapter quantizes, and a task that it was trained for."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neural_tune.errors import ConfigError, DataError

Floats = np.ndarray[Any, np.dtype[np.float32]]

SUFFIX = ".toy.npz"


@dataclass(eq=False, slots=True)
class ToyModel:
    """A multi-layer perceptron: Dense layers with a Relu between two of them, logits at the end.

    It is mutable like a framework's model, which is what lets a test notice when somebody changes it.

    Attributes:
        weights: One float32 array of shape (inputs, outputs) per layer.
        biases: One float32 array of shape (outputs,) per layer.
    """

    weights: list[Floats]
    biases: list[Floats]

    @property
    def dense_names(self) -> tuple[str, ...]:
        """Names of the Dense layers: dense1, dense2 ..."""
        return tuple(f"dense{number}" for number in range(1, len(self.weights) + 1))

    def __call__(self, inputs: Floats) -> Floats:
        """Return the logits, shape (samples, classes), of `inputs`, shape (samples, features)."""
        hidden = np.asarray(inputs, dtype=np.float32)
        last = len(self.weights) - 1
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = hidden @ weight + bias
            if place != last:
                hidden = np.maximum(hidden, 0.0)
        return hidden

    def copy(self) -> ToyModel:
        """Return a model that shares no memory with this one."""
        return ToyModel([weight.copy() for weight in self.weights], [bias.copy() for bias in self.biases])

    def save(self, path: Path) -> Path:
        """Write the float model as a numpy archive; `path` must end in ".toy.npz"."""
        if not path.name.endswith(SUFFIX):
            raise ConfigError(f"{path.name}: expected a name that ends in {SUFFIX}")
        names = self.dense_names
        arrays: dict[str, Any] = {}
        for name, weight, bias in zip(names, self.weights, self.biases, strict=True):
            arrays |= {f"{name}.weight": weight, f"{name}.bias": bias}
        np.savez(path, **arrays)
        return path

    @classmethod
    def read(cls, path: Path) -> ToyModel:
        """Return the model that `save` wrote. Raises DataError when `path` holds something else."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                names = [f"dense{number}" for number in range(1, len(archive.files) // 2 + 1)]
                return cls([archive[f"{name}.weight"] for name in names], [archive[f"{name}.bias"] for name in names])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: no toy model ({error}); write one with ToyModel.save") from error


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class ToyTask:
    """A trained toy model with its data.

    Attributes:
        model: The trained float model.
        calibration: Inputs, float32 of shape (samples, features).
        inputs: Inputs of the evaluation set.
        labels: Their classes, int64 of shape (samples,).
    """

    model: ToyModel
    calibration: Floats
    inputs: Floats
    labels: np.ndarray[Any, np.dtype[np.int64]]

    def accuracy(self, model: Any) -> float:
        """Return the share of evaluation samples that `model`, a callable from inputs to logits, classifies correctly."""
        return float(np.mean(np.argmax(model(self.inputs), axis=1) == self.labels))

    def batches(self, size: int = 32) -> list[Floats]:
        """Return the calibration inputs in batches of `size`."""
        return [self.calibration[start : start + size] for start in range(0, len(self.calibration), size)]


def toy_task(seed: int = 0, hidden: Sequence[int] = (48, 48, 32)) -> ToyTask:
    """Return a task of 6 classes in 16 dimensions and an MLP trained on it, within a second and the same for every call.

    Each class has two Gaussian clusters, so that no linear model solves it and the float accuracy stays below 1. Training is
    plain stochastic gradient descent with momentum on the cross-entropy.

    Args:
        seed: Of data, weights and sample order.
        hidden: Widths of the hidden layers.
    """
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(12, 16)) * 1.1
    samples, labels = _clusters(generator, centers, 3200)
    model = _initial(generator, (16, *hidden, 6))
    _train(generator, model, samples[:2000], labels[:2000], epochs=12)
    return ToyTask(model=model, calibration=samples[2000:2200], inputs=samples[2200:], labels=labels[2200:])


def sabotage(model: ToyModel, op: str, factor: float = 256.0) -> ToyModel:
    """Return a model of the same function in which int8 is bad for `op` alone.

    Every second input channel of `op` is scaled up by `factor` where the previous layer writes it, and down again in the
    weights of `op`: Relu commutes with a positive scale. The one scale of the activation tensor must now cover the large
    channels, so the small ones drown, and the weights of the large channels round to zero. A power of two as `factor`
    keeps the float outputs equal bit by bit.

    Raises:
        ConfigError: `op` has no layer before it, or is unknown.
    """
    names = model.dense_names
    if op not in names[1:]:
        raise ConfigError(f"sabotage: found {op!r}, expected one of {', '.join(names[1:])}")
    place = names.index(op)
    changed = model.copy()
    scale = np.ones(changed.weights[place].shape[0], dtype=np.float32)
    scale[::2] = factor
    changed.weights[place - 1] *= scale
    changed.biases[place - 1] *= scale
    changed.weights[place] /= scale[:, None]
    return changed


def _clusters(generator: np.random.Generator, centers: Any, count: int) -> tuple[Floats, Any]:
    cluster = generator.integers(len(centers), size=count)
    samples = centers[cluster] + generator.normal(size=(count, centers.shape[1]))
    return samples.astype(np.float32), cluster % (len(centers) // 2)


def _initial(generator: np.random.Generator, widths: Sequence[int]) -> ToyModel:
    shapes = list(itertools.pairwise(widths))
    weights = [(generator.normal(size=shape) * np.sqrt(2.0 / shape[0])).astype(np.float32) for shape in shapes]
    return ToyModel(weights, [np.zeros(shape[1], dtype=np.float32) for shape in shapes])


def _train(generator: np.random.Generator, model: ToyModel, samples: Floats, labels: Any, epochs: int) -> None:
    parameters = [*model.weights, *model.biases]
    velocities = [np.zeros_like(parameter) for parameter in parameters]
    for _ in range(epochs):
        for chosen in np.array_split(generator.permutation(len(samples)), len(samples) // 50):
            gradients = _gradients(model, samples[chosen], labels[chosen])
            for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
                np.multiply(velocity, 0.9, out=velocity)
                np.subtract(velocity, 0.02 * gradient, out=velocity)
                np.add(parameter, velocity, out=parameter)


def _gradients(model: ToyModel, samples: Floats, labels: Any) -> list[Floats]:
    """Return the gradients of the mean cross-entropy, weights first, by backpropagation."""
    layers = [samples]
    for weight, bias in zip(model.weights[:-1], model.biases[:-1], strict=True):
        layers.append(np.maximum(layers[-1] @ weight + bias, 0.0))
    logits = layers[-1] @ model.weights[-1] + model.biases[-1]
    slope = np.exp(logits - logits.max(axis=1, keepdims=True))
    slope /= slope.sum(axis=1, keepdims=True)
    slope[np.arange(len(labels)), labels] -= 1.0
    slope /= len(labels)
    weights: list[Floats] = []
    biases: list[Floats] = []
    for place in reversed(range(len(layers))):
        weights.insert(0, layers[place].T @ slope)
        biases.insert(0, slope.sum(axis=0))
        if place:
            slope = (slope @ model.weights[place].T) * (layers[place] > 0)
    return [*weights, *biases]
