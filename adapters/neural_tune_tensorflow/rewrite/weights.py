"""Weights as 8-bit codes, computed once per layer and granularity and then only referred to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from neural_tune.numerics import qparams
from neural_tune.values import DType, Granularity, QuantSpec
from neural_tune_tensorflow.graph import Graph, constant_node
from neural_tune_tensorflow.rewrite.units import Unit
from neural_tune_tensorflow.runtime import tf

Floats: TypeAlias = NDArray[np.float32]
_MOST = np.float32(127.0)
_SPEC = QuantSpec(dtype=DType.INT8)


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """One quantized weight.

    Attributes:
        values: int8, shaped as the weight.
        scale: float32, a scalar or one per output channel.
    """

    values: NDArray[np.int8]
    scale: Floats

    @property
    def bound(self) -> Floats:
        """The largest real value that has a code, shaped as the scale: what the fused ops call the maximum."""
        return np.asarray(self.scale * _MOST, np.float32)


@dataclass(slots=True)
class WeightStore:
    """Quantized weights of one model, by layer and granularity."""

    graph: Graph
    _codes: dict[tuple[str, bool], Codes] = field(default_factory=dict)
    _nodes: dict[tuple[str, bool], Any] = field(default_factory=dict)

    def codes(self, unit: Unit, granularity: Granularity) -> Codes:
        """Return the weight of `unit` in int8, symmetric."""
        key = (unit.name, granularity is Granularity.PER_CHANNEL)
        if key not in self._codes:
            self._codes[key] = quantized(np.asarray(self.graph.value(unit.weight)), unit.kind, per_channel=key[1])
        return self._codes[key]

    def node(self, unit: Unit, granularity: Granularity, name: str) -> Any:
        """Return the constant node of these codes: serialized once, shared by all candidates."""
        key = (unit.name, granularity is Granularity.PER_CHANNEL)
        if key not in self._nodes:
            self._nodes[key] = constant_node(name, self.codes(unit, granularity).values, tf.qint8)
        return self._nodes[key]


def quantized(weight: NDArray[np.float32], kind: str, *, per_channel: bool) -> Codes:
    """Return a weight in int8, symmetric; the channels of a depthwise convolution are its last two axes."""
    flat = weight.reshape(*weight.shape[:2], -1) if kind == "DepthwiseConv2dNative" else weight
    axis = flat.ndim - 1 if per_channel else None
    scale, zero = qparams.weight_parameters(flat, axis, _SPEC)
    scale = _without_dead(flat, scale, axis)
    codes = qparams.quantize(flat, scale, zero, axis, DType.INT8)
    return Codes(codes.reshape(weight.shape), np.asarray(scale, np.float32))


def _without_dead(weight: Floats, scale: Floats, axis: int | None) -> Floats:
    """Give all-zero channels the scale of the others: the kernel rounds biases to multiples of it, and 1 would be coarse."""
    if axis is None:
        return scale
    dead = ~weight.any(axis=tuple(range(weight.ndim - 1)))
    if not dead.any():
        return scale
    alive = scale[~dead]
    return np.where(dead, np.float32(alive.mean() if alive.size else 1.0 / 127.0), scale).astype(np.float32)
