"""Scales and zero points: how a real range is laid over integer codes.

real = scale * (code - zero_point). The arithmetic (float64 for the scale, then float32; ties to even) is the one of
ONNX Runtime's own tool, so that models built from equal ranges are equal bit for bit. Scheme: Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 2.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from neural_tune.errors import CapabilityError
from neural_tune.values import DType, QuantSpec

Floats: TypeAlias = NDArray[np.float32]
Codes: TypeAlias = NDArray[Any]

_FULL = {DType.UINT8: (0, 255), DType.INT8: (-128, 127), DType.UINT16: (0, 65535), DType.INT16: (-32768, 32767)}
# Symmetric int8 leaves out -128, so that the range is as wide on both sides of zero.
_SYMMETRIC = {DType.UINT8: (0, 255), DType.INT8: (-127, 127), DType.UINT16: (0, 65535), DType.INT16: (-32767, 32767)}
# Seven bits: two products of uint8 and int8 then fit into the int16 of processors without VNNI.
_REDUCED = {DType.UINT8: (0, 127), DType.INT8: (-64, 64)}
_STORED: Mapping[DType, np.dtype[Any]] = {
    DType.UINT8: np.dtype(np.uint8),
    DType.INT8: np.dtype(np.int8),
    DType.UINT16: np.dtype(np.uint16),
    DType.INT16: np.dtype(np.int16),
}
_TINY = float(np.finfo(np.float32).tiny)
_INT32_SPAN = np.float64(2.0**32 - 2.0)
# The code of the bias of a dead channel: half of what int32 holds.
_FULL_BIAS = 2.0**30


@dataclass(frozen=True, slots=True)
class Parameters:
    """One scale and zero point.

    Attributes:
        scale: Positive float32.
        zero: Code of the real value 0.
        dtype: Number format of the codes.
    """

    scale: np.float32
    zero: int
    dtype: DType

    def code_of(self, value: float) -> float:
        """Return the code of a real value before saturation."""
        return float(np.round(np.float32(value) / self.scale)) + self.zero

    @property
    def first(self) -> int:
        """The smallest code of the format."""
        return _FULL[self.dtype][0]

    @property
    def last(self) -> int:
        """The largest code of the format."""
        return _FULL[self.dtype][1]


def code_range(spec: QuantSpec) -> tuple[int, int]:
    """Return the first and last code that `spec` uses.

    Raises:
        CapabilityError: the number format has no kernel here.
    """
    if spec.dtype not in _FULL or (spec.reduce_range and spec.dtype not in _REDUCED):
        message = f"dtype {spec.dtype.value}: no integer arithmetic is written for it, expected uint8 or int8 (or 16 bits, in full range)"
        raise CapabilityError(message)
    table = _REDUCED if spec.reduce_range else _SYMMETRIC if spec.symmetric else _FULL
    return table[spec.dtype]


def levels(spec: QuantSpec) -> int:
    """Return the number of codes that `spec` uses."""
    first, last = code_range(spec)
    return last - first + 1


def storage(dtype: DType) -> np.dtype[Any]:
    """Return the numpy type of the codes."""
    return _STORED[dtype]


def activation_parameters(low: float, high: float, spec: QuantSpec) -> Parameters:
    """Return scale and zero point for an activation whose values lie in [low, high]."""
    scale, zero = _lay_out(np.float32(low), np.float32(high), spec)
    return Parameters(np.float32(scale[()]), int(zero[()]), spec.dtype)


def weight_parameters(weight: NDArray[np.floating[Any]], axis: int | None, spec: QuantSpec) -> tuple[Floats, Codes]:
    """Return the scales and zero points of a constant: scalars for per_tensor, one per index of `axis` otherwise."""
    if weight.size == 0:
        shape = () if axis is None else (weight.shape[axis],)
        return np.ones(shape, np.float32), np.zeros(shape, storage(spec.dtype))
    others = tuple(dim for dim in range(weight.ndim) if dim != axis) if axis is not None else None
    scale, zero = _lay_out(weight.min(axis=others), weight.max(axis=others), spec)
    return scale, zero.astype(storage(spec.dtype))


def quantize(values: NDArray[np.floating[Any]], scale: Floats, zero: Codes, axis: int | None, dtype: DType) -> Codes:
    """Return the codes of `values`: round(x / scale) to even, plus zero_point, saturated."""
    if axis is not None:
        shape = [1] * values.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    codes = values.astype(np.float32) / scale
    np.round(codes, out=codes)
    codes += zero.astype(np.float32)
    np.clip(codes, *_FULL[dtype], out=codes)
    return codes.astype(storage(dtype))


def bias_codes(bias: Floats, input_scale: np.float32, weight_scale: Floats) -> tuple[NDArray[np.int32], Floats]:
    """Return a bias as int32 with its scale input_scale * weight_scale (zero point 0)."""
    scale = np.asarray(input_scale * weight_scale, np.float32)
    codes = np.round(bias.astype(np.float64) / scale.astype(np.float64))
    limits = np.iinfo(np.int32)
    return np.clip(codes, limits.min, limits.max).astype(np.int32), scale


def dead_channels(codes: Codes, scale: Floats, zero: Codes, axis: int | None) -> NDArray[np.bool_]:
    """Return, shaped as `scale`, which channels are all zero and have the scale 1 that stands for "no range"."""
    candidates = np.asarray(scale == np.float32(1.0))
    if not candidates.any():
        return candidates
    if axis is None:
        return np.asarray(candidates & np.all(codes == zero))
    rows = np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1)
    return np.asarray(candidates & np.all(rows == zero.reshape(-1, 1), axis=1))


def scale_of_dead_channels(
    bias: Floats, input_scale: np.float32, weight_scale: Floats, dead: NDArray[np.bool_]
) -> Floats | None:
    """Return weight scales that give the bias of an all-zero channel 31 bits; None when there is no such bias.

    Any weight scale serves such a channel, and with it goes the step of its bias. ONNX Runtime's own tool takes 1, so that the bias is rounded to
    multiples of the input scale, as coarse as an activation. This is the one place where we leave it: the channel's result is its bias.
    """
    magnitude: Any = np.abs(bias.astype(np.float64))
    if weight_scale.ndim == 0:
        magnitude = np.float64(magnitude.max(initial=0.0))
    free = dead & (magnitude > 0.0)
    if not np.any(free):
        return None
    steps = np.maximum(magnitude / _FULL_BIAS, _TINY) / np.float64(input_scale)
    return np.asarray(np.where(free, steps.astype(np.float32), weight_scale), np.float32)


def widened_for_bias(bias: Floats, input_scale: np.float32, weight_scale: Floats) -> Floats | None:
    """Return weight scales just wide enough for an int32 bias; None when they already are.

    The accumulator of an integer kernel is int32, and so is the bias. Where a channel's weights are tiny beside its bias, the
    product of the scales is too fine to hold the bias, which would saturate without a word.
    """
    magnitude: Any = np.abs(bias)
    if weight_scale.ndim == 0:
        magnitude = np.float64(magnitude.max(initial=0.0))
    needed = 1.0001 * (2.0 * magnitude) / _INT32_SPAN
    found = np.float64(input_scale) * weight_scale.astype(np.float64)
    narrow = (found < needed) & (found > 0.0)
    if not np.any(narrow):
        return None
    ratio = np.divide(needed, found, out=np.ones_like(found), where=found > 0.0)
    widened = (weight_scale.astype(np.float64) * ratio).astype(np.float32)
    return np.asarray(np.where(narrow, widened, weight_scale), np.float32)


def _lay_out(low: Any, high: Any, spec: QuantSpec) -> tuple[Floats, NDArray[np.float64]]:
    first, last = code_range(spec)
    low = np.minimum(np.asarray(low, np.float32), np.float32(0))
    high = np.maximum(np.asarray(high, np.float32), np.float32(0))
    if spec.symmetric:
        high = np.maximum(-low, high)
        low = -high
    scale = (high.astype(np.float64) - low.astype(np.float64)) / (last - first)
    # A constant zero has no range: any scale will do, and its code is 0 as long as 0 is the zero point.
    flat = scale < _TINY
    scale = np.where(flat, 1.0, scale)
    zero = np.full(scale.shape, np.round((first + last) / 2.0)) if spec.symmetric else np.round(first - low / scale)
    return scale.astype(np.float32), np.where(flat, 0.0, zero)
