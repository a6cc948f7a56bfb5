"""fake_quant with learned steps: rounding in the forward pass, straight-through gradients in the backward pass.

The step of a grid is trained with the weights (Esser et al., "Learned Step Size Quantization", ICLR 2020, arXiv:1902.08153), as a logarithm, so that one learning rate serves steps of any
size (Jain et al., "Trained Quantization Thresholds", MLSys 2020, arXiv:1903.08066). It starts at the range of calibration; without calibration, at what the first training batches show.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from neural_tune.errors import AdapterError
from neural_tune.values import QuantSpec
from neural_tune_pytorch.backends import swap
from neural_tune_pytorch.backends.swap import Grid, WeightGrid

# Without calibration: training batches whose range is followed before the step starts to learn.
_FOLLOWED = 16
_MOMENTUM = 0.1


class FakeQuant(nn.Module):
    """Rounds an activation to the codes of a grid whose step is learned; the zero_point stays where it started."""

    def __init__(self, grid: Grid | None, *, last: int, symmetric: bool = False, tensor: str = "") -> None:
        """Start at `grid`; None finds a range in the first training batches, over codes 0..last."""
        super().__init__()
        self.tensor = tensor
        self.last = last if grid is None else grid.last
        self.symmetric = symmetric
        self.log_step = nn.Parameter(torch.zeros(()))
        self.register_buffer("start", torch.tensor(1.0 if grid is None else grid.scale))
        self.register_buffer("zero", torch.tensor(0.0 if grid is None else float(grid.zero)))
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))
        self.left = _FOLLOWED if grid is None else 0
        self.is_known = grid is not None

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` as its codes would bring it back; `x` itself as long as no range is known."""
        if self.training and self.left:
            self._follow(x.detach())
        if not self.is_known:
            return x
        step = self.start * torch.exp(_scaled_gradient(self.log_step, x.numel() * self.last))
        codes = torch.clamp(_rounded(x / step) + self.zero, 0.0, float(self.last))
        return (codes - self.zero) * step

    def grid(self) -> Grid:
        """Return the grid as it was learned.

        Raises:
            AdapterError: no batch was ever seen, or the step is not finite.
        """
        if not self.is_known:
            raise AdapterError(
                f"tensor {self.tensor!r} has no range: nothing was calibrated, and no training batch reached it in train mode"
            )
        step = float(self.start * torch.exp(self.log_step.detach()))
        if not (math.isfinite(step) and step > 0.0):
            raise AdapterError(f"tensor {self.tensor!r}: training left a step of {step}; lower the learning rate")
        return Grid(scale=step, zero=int(self.zero), last=self.last)

    def _follow(self, x: Tensor) -> None:
        low, high = torch.clamp(x.min(), max=0.0), torch.clamp(x.max(), min=0.0)
        if self.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        if self.is_known:
            low, high = (torch.lerp(old, new, _MOMENTUM) for old, new in ((self.low, low), (self.high, high)))
        self.low.copy_(low)
        self.high.copy_(high)
        self.start.copy_(torch.clamp((high - low) / self.last, min=torch.finfo(torch.float32).tiny))
        self.zero.copy_(torch.round(-low / self.start))
        self.left -= 1
        self.is_known = True


class WeightFakeQuant(nn.Module):
    """Rounds a weight to symmetric codes, one step per output channel (axis 0).

    At 8 bits the step follows the largest weight of the channel, exactly as a build without training takes it, so that the trained float weights say everything. Below
    8 bits that would waste codes on outliers: there the step is learned.
    """

    def __init__(self, weight: Tensor, spec: QuantSpec, bits: int = 8) -> None:
        super().__init__()
        self.spec = spec
        self.bits = bits
        self.last = (1 << (bits - 1)) - 1
        self._shape = [-1] + [1] * (weight.dim() - 1)
        if bits < 8:
            widest = swap.weight_grid(weight, spec, bits).scale
            usual = 2.0 * weight.detach().abs().flatten(1).mean(1) / math.sqrt(self.last)
            self.register_buffer("start", torch.where(usual > 0, torch.minimum(widest, usual), widest))
            self.log_step = nn.Parameter(torch.zeros_like(self.start))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight as its codes would bring it back."""
        step = self._step(weight).reshape(self._shape)
        return torch.clamp(_rounded(weight / step), -float(self.last), float(self.last)) * step

    def grid(self, weight: Tensor) -> WeightGrid:
        """Return the steps as they were learned."""
        return WeightGrid(scale=self._step(weight).detach(), last=self.last)

    def _step(self, weight: Tensor) -> Tensor:
        if self.bits == 8:
            return swap.weight_grid(weight, self.spec).scale
        return self.start * torch.exp(_scaled_gradient(self.log_step, weight[0].numel() * self.last))


class Trained(nn.Module):
    """A Linear or convolution that computes with the fake_quant of its weight."""

    def __init__(self, module: nn.Module, spec: QuantSpec, *, bits: int = 8, relu: bool = False) -> None:
        super().__init__()
        self.module = module
        self.fake_quant = WeightFakeQuant(module.weight, spec, bits)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, Relu included where the kernel does it."""
        weight = self.fake_quant(self.module.weight)
        if isinstance(self.module, nn.Linear):
            y = nn.functional.linear(x, weight, self.module.bias)
        else:
            y = self.module._conv_forward(x, weight, self.module.bias)  # noqa: SLF001 - what its own forward calls
        return torch.relu(y) if self.relu else y


def check_finite(module: nn.Module) -> None:
    """Refuse a diverged training.

    Raises:
        AdapterError: a parameter is not finite.
    """
    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise AdapterError(f"training left values that are not finite in {name!r}; lower the learning rate")


def _rounded(x: Tensor) -> Tensor:
    """Round to even, with the gradient of the identity."""
    return x + (torch.round(x) - x).detach()


def _scaled_gradient(x: Tensor, count: int) -> Tensor:
    """Return `x`, its gradient divided by sqrt(count): a step gathers one gradient per element it rounds."""
    factor = 1.0 / math.sqrt(max(count, 1))
    return x * factor + (x - x * factor).detach()
