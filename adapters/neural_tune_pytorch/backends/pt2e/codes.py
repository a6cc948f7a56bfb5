"""Scales and zero points in the arithmetic of torch's own observers (float32), so that equal ranges give equal models bit for bit.

real = scale * (code - zero_point). Activations are uint8: the only codes whose convolutions and linears Inductor runs in int8 on x86 (int8 activations make a convolution
fail at its first call). Weights are int8, symmetric, one scale per output channel: any other scheme is silently computed in float.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neural_tune.errors import CapabilityError
from neural_tune.values import DType, Granularity, QuantSpec

WEIGHT_FIRST, WEIGHT_LAST = -127, 127  # -128 stays unused, so that both sides of zero reach equally far
_TINY = float(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True, slots=True)
class Codes:
    """The uint8 codes of an activation.

    Attributes:
        scale: Width of a step.
        zero: Code of the real value 0.
        last: The largest code in use: 255, or 127 with reduce_range.
    """

    scale: float
    zero: int
    last: int = 255

    @classmethod
    def of(cls, low: float, high: float, spec: QuantSpec) -> Codes:
        """Return the codes over [low, high], which is widened to hold zero."""
        last = last_code(spec)
        bounds = torch.tensor([min(low, 0.0), max(high, 0.0)], dtype=torch.float32)
        if spec.symmetric:
            reach = torch.maximum(-bounds[0], bounds[1])
            scale = torch.clamp_min(reach / (float(last) / 2), _TINY)
            return cls(float(scale), (last + 1) // 2, last)
        scale = torch.clamp_min((bounds[1] - bounds[0]) / float(last), _TINY)
        zero = -torch.round(bounds[0] / scale).to(torch.int64)
        return cls(float(scale), int(zero.clamp(0, last)), last)

    def fake_quantized(self, values: Tensor) -> Tensor:
        """Return what remains of `values` after quantizing and dequantizing: the arithmetic of the Q/DQ ops, in one pass."""
        inverse = 1.0 / self.scale
        codes = torch.clamp(torch.round(values * inverse) + self.zero, 0, self.last)
        return (codes - self.zero) * self.scale


def last_code(spec: QuantSpec) -> int:
    """Return the largest code of an activation spec.

    Raises:
        CapabilityError: Inductor has no int8 kernel for it.
    """
    if spec.dtype is not DType.UINT8 or spec.granularity is not Granularity.PER_TENSOR:
        raise CapabilityError(f"activation {spec.describe()}: Inductor lowers uint8 per_tensor only")
    return 127 if spec.reduce_range else 255


def levels(spec: QuantSpec) -> int:
    """Return the number of codes of an activation spec."""
    return last_code(spec) + 1


def quantized_weight(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return int8 codes, float32 scales and int64 zero points (0) of a weight whose first axis is the output channel."""
    others = tuple(range(1, weight.ndim))
    low, high = weight.amin(others).clamp_max(0.0), weight.amax(others).clamp_min(0.0)
    reach = torch.maximum(-low, high)
    scale = reach / (float(WEIGHT_LAST - WEIGHT_FIRST) / 2)
    scale = torch.where(reach > 0, scale.clamp_min(_TINY), torch.ones_like(scale))
    zero = torch.zeros(scale.shape, dtype=torch.int64)
    codes = torch.ops.quantized_decomposed.quantize_per_channel(
        weight, scale, zero, 0, WEIGHT_FIRST, WEIGHT_LAST, torch.int8
    )
    return codes, scale, zero


def packed_groups(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return a matrix in 4 bits: two codes per byte (uint8, rows x columns / 2) and one float32 scale per `group` columns (rows x groups x 1).

    Codes are -8 ... 7 in steps of reach / 7.5, stored with 8 added, so that zero is exact and no value is further than half a step from its code.
    """
    grouped = weight.reshape(weight.shape[0], -1, group)
    reach = grouped.abs().amax(-1, keepdim=True)
    scale = torch.where(reach > 0, (reach / 7.5).clamp_min(_TINY), torch.ones_like(reach))
    values = (torch.clamp(torch.round(grouped / scale), -8, 7) + 8).to(torch.uint8).reshape(weight.shape)
    return values[:, 0::2] | (values[:, 1::2] << 4), scale
