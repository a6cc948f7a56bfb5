"""A small vision transformer, trained within minutes on a CPU: 18 blocks, 146 matrix products that can be quantized."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from digits import distorted, source
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """Sizes of the net. 8 products per block (q, k, v, scores, mixing, projection, two of the MLP), the patches and the head."""

    blocks: int = 18
    width: int = 64
    heads: int = 4
    mlp: int = 4
    patch: int = 8
    classes: int = 10
    epsilon: float = 1e-5

    @property
    def tokens(self) -> int:
        """Number of patches of a 32 x 32 picture."""
        return (32 // self.patch) ** 2

    @property
    def products(self) -> int:
        """Convolutions and matrix products."""
        return 8 * self.blocks + 2


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.norm1 = nn.LayerNorm(width, eps=shape.epsilon)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm2 = nn.LayerNorm(width, eps=shape.epsilon)
        self.up, self.down = nn.Linear(width, shape.mlp * width), nn.Linear(shape.mlp * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return float32 of the shape of `x`: (batch, tokens, width)."""
        batch, tokens, width = x.shape

        def split(z: torch.Tensor) -> torch.Tensor:
            return z.reshape(batch, tokens, self.heads, width // self.heads).transpose(1, 2)

        y = self.norm1(x)
        mixed = functional.scaled_dot_product_attention(split(self.q(y)), split(self.k(y)), split(self.v(y)))
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Patches, blocks, norm, mean over tokens, head; float32 (n, 1, 32, 32) in 0..1 -> logits (n, 10)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.patches = nn.Conv2d(1, shape.width, shape.patch, shape.patch)
        self.positions = nn.Parameter(torch.randn(1, shape.tokens, shape.width) * 0.02)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.blocks))
        self.norm = nn.LayerNorm(shape.width, eps=shape.epsilon)
        self.head = nn.Linear(shape.width, shape.classes)
        # Residual branches start small, so that 18 blocks learn from the first step (Zhang et al. 2019, Fixup, without its other parts).
        with torch.no_grad():
            for block in self.blocks:
                for linear in (block.out, block.down):
                    linear.weight.mul_(1 / math.sqrt(2 * shape.blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, (batch, classes)."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


@dataclass(frozen=True)
class Schedule:
    """How long to train. The depth grows: a third of the blocks first, then each of them three times.

    Attributes:
        shallow: Steps of the net with a third of the blocks.
        deep: Steps of the whole net.
        batch: Pictures per step.
        rate: Largest learning rate of the shallow part; the deep part takes half.
        seconds: Limit of CPU time for both together; the learning rate still decays to its end over the steps that time allows.
    """

    shallow: int = 2600
    deep: int = 900
    batch: int = 64
    rate: float = 1.5e-3
    seconds: float = 600.0


def train(shape: Shape, schedule: Schedule, *, seed: int, report: Callable[[str], None]) -> VisionTransformer:
    """Return the trained net in evaluation mode.

    A third of the depth learns the task at a third of the cost, then every block is repeated (Gong et al. 2019, progressive stacking, with
    residual branches divided by the repetitions, so that the deep net starts close to the shallow one).
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    repeats = 3 if shape.blocks % 3 == 0 else 1
    net = VisionTransformer(replace(shape, blocks=shape.blocks // repeats))
    _fit(net, schedule.shallow, schedule.batch, schedule.rate, 0.6 * schedule.seconds, generator, report)
    deep = _stacked(net, repeats)
    _fit(deep, schedule.deep, schedule.batch, schedule.rate / 2, 0.4 * schedule.seconds, generator, report)
    return deep.eval()


def _stacked(net: VisionTransformer, repeats: int) -> VisionTransformer:
    deep = VisionTransformer(replace(net.shape, blocks=net.shape.blocks * repeats))
    weights = {name: value for name, value in net.state_dict().items() if not name.startswith("blocks.")}
    for position in range(deep.shape.blocks):
        for name, value in net.blocks[position // repeats].state_dict().items():
            share = repeats if name.startswith(("out.", "down.")) else 1
            weights[f"blocks.{position}.{name}"] = value / share
    deep.load_state_dict(weights)
    return deep


def _fit(
    net: VisionTransformer,
    steps: int,
    batch: int,
    rate: float,
    seconds: float,
    generator: torch.Generator,
    report: Callable[[str], None],
) -> None:
    """Train in place: AdamW, warm-up, cosine decay, endless fresh distortions."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    pictures, labels = source()
    start, warm_up = time.process_time(), max(1, steps // 20)
    for step in range(steps):
        elapsed = time.process_time() - start
        progress = max(step / steps, elapsed / seconds)
        if progress >= 1:
            report(f"stopped after {step} of {steps} steps: {seconds:.0f} CPU s are over")
            break
        decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / warm_up) * decay
        chosen = torch.randint(len(pictures), (batch,), generator=generator)
        answers = net(distorted(pictures[chosen], generator))
        loss = functional.cross_entropy(answers, labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            report(f"{net.shape.blocks} blocks, step {step}: loss {loss.item():.3f}, {elapsed:.0f} CPU s")
