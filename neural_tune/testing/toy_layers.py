"""The layers of a built toy model: float ones, and integer ones with the arithmetic of a real int8 kernel.

An integer layer multiplies uint8 (or int8) activations by int8 weights, accumulates in int32, adds an int32 bias and hands
on: to an integer layer as that layer's activations (requantization by one multiplier per channel, Relu as a clamp at the
zero_point), to a float layer as float32. Scheme and rounding are those of Jacob et al., CVPR 2018, with the multiplier in
floating point.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from neural_tune.calibration import Statistics
from neural_tune.testing.toy_model import Floats
from neural_tune.values import DType, Granularity, Observer, OpConfig, QuantSpec

Integers: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Grid:
    """The integers that stand for an activation tensor: real = scale * (integer - zero_point), low <= integer <= high."""

    scale: float
    zero_point: int
    low: int
    high: int

    @classmethod
    def of(
        cls, spec: QuantSpec, seen: Statistics, tensor: str, observer: Observer, percentile: float | None = None
    ) -> Grid:
        """Return the grid of `spec` over the range that `observer` takes of what was seen of `tensor`; 0 is always on it."""
        bits = 7 if spec.reduce_range else 8
        is_symmetric = spec.dtype is DType.INT8
        low, top = seen.range_of(tensor, observer, percentile, symmetric=is_symmetric, levels=2**bits)
        minimum, maximum = min(low, 0.0), max(top, 0.0)
        if is_symmetric:
            high = 2 ** (bits - 1) - 1
            return cls(max(-minimum, maximum) / high or 1.0, 0, -high, high)
        high = 2**bits - 1
        scale = (maximum - minimum) / high or 1.0
        return cls(scale, int(np.rint(-minimum / scale)), 0, high)

    def quantize(self, values: Floats) -> Integers:
        """Return the nearest integers, half to even, saturated."""
        return self.clamp(np.rint(values / np.float32(self.scale)) + self.zero_point)

    def clamp(self, values: Any) -> Integers:
        """Return `values` saturated, in the 8-bit type of the grid."""
        saturated: Integers = np.clip(values, self.low, self.high).astype(np.int8 if self.low < 0 else np.uint8)
        return saturated


@dataclass(frozen=True, eq=False, slots=True)
class FloatDense:
    """A Dense layer as in the float model."""

    name: str
    weight: Floats
    bias: Floats
    config: OpConfig
    fault: str = ""

    def accumulate(self, values: Any) -> Floats:
        """Return inputs times weights plus bias, before the Relu."""
        return np.asarray(values @ self.weight + self.bias, dtype=np.float32)


@dataclass(frozen=True, eq=False, slots=True)
class IntegerDense:
    """A Dense layer in int8.

    Attributes:
        name: Op name.
        weight: int8, shape (inputs, outputs).
        bias: int32, shape (outputs,), in units of grid.scale * weight_scale.
        weight_scale: float32, shape (outputs,) or (1,).
        grid: The integers of its input.
        config: What was asked for.
        fault: "nan" or "segv" for a layer that breaks on purpose.
    """

    name: str
    weight: Integers
    bias: Integers
    weight_scale: Floats
    grid: Grid
    config: OpConfig
    fault: str = ""

    @classmethod
    def of(cls, layer: FloatDense, config: OpConfig, grid: Grid, fault: str = "") -> IntegerDense:
        """Quantize the constants of a float layer, symmetrically."""
        weight, bias = layer.weight, layer.bias
        spec = config.weight
        per_channel = spec is not None and spec.granularity is Granularity.PER_CHANNEL
        high = 63 if spec is not None and spec.reduce_range else 127
        extent = np.abs(weight).max(axis=0) if per_channel else np.abs(weight).max(keepdims=True).reshape(1)
        scale = np.where(extent > 0, extent / high, 1.0).astype(np.float32)
        integers = np.clip(np.rint(weight / scale), -high, high).astype(np.int8)
        limit = 2**30  # leaves the other half of int32 to the products: 255 * 127 * inputs
        units = np.clip(np.rint(bias.astype(np.float64) / (grid.scale * scale)), -limit, limit).astype(np.int32)
        return cls(layer.name, integers, units, scale, grid, config, fault)

    def accumulate(self, values: Integers) -> Integers:
        """Return the int32 accumulators, shape (samples, outputs)."""
        return (values.astype(np.int32) - self.grid.zero_point) @ self.weight.astype(np.int32) + self.bias

    def dequantize(self, sums: Integers) -> Floats:
        """Return the float32 values of accumulators."""
        return np.asarray(sums * (np.float32(self.grid.scale) * self.weight_scale), dtype=np.float32)

    def requantize(self, sums: Integers, grid: Grid) -> Integers:
        """Return accumulators on the grid of the next integer layer, the Relu between them included."""
        integers = (
            np.rint(sums * (self.grid.scale * self.weight_scale.astype(np.float64) / grid.scale)) + grid.zero_point
        )
        return grid.clamp(np.maximum(integers, grid.zero_point))


Dense: TypeAlias = FloatDense | IntegerDense


@dataclass(frozen=True, eq=False, slots=True)
class ToyBuilt:
    """A runnable toy model; calling it with float32 inputs of shape (samples, features) returns float32 logits.

    Attributes:
        layers: The Dense layers in order; a Relu stands between two of them.
    """

    layers: tuple[Dense, ...]
    features: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", self.layers[0].weight.shape[0])

    def __call__(self, inputs: Floats) -> Floats:
        """Return the logits of one batch."""
        values: Any = np.asarray(inputs, dtype=np.float32)
        for layer, following in zip(self.layers, (*self.layers[1:], None), strict=True):
            _crash_on_purpose(layer)
            values = _step(layer, following, values)
        poison = np.nan if any(layer.fault == "nan" for layer in self.layers) else 1.0
        return np.asarray(values * poison, dtype=np.float32)


def _step(layer: Dense, following: Dense | None, values: Any) -> Any:
    """Run one layer; `values` are integers on its grid exactly when the layer before it was an integer one, too."""
    if isinstance(layer, FloatDense):
        floats = layer.accumulate(values)
        return floats if following is None else np.maximum(floats, 0.0)
    if values.dtype.kind == "f":
        values = layer.grid.quantize(values)
    sums = layer.accumulate(values)
    if isinstance(following, IntegerDense):
        return layer.requantize(sums, following.grid)
    floats = layer.dequantize(sums)
    return floats if following is None else np.maximum(floats, 0.0)


def _crash_on_purpose(layer: Dense) -> None:
    if layer.fault == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
