"""A tiny model in int8, for the question what the installed torch lowers to int8 kernels."""

from __future__ import annotations

import torch
from torch import fx, nn

from neural_tune.protocols import AdapterOptions
from neural_tune_pytorch import model as models
from neural_tune_pytorch.backend import Feed
from neural_tune_pytorch.backends.pt2e import build
from neural_tune_pytorch.backends.pt2e.capture import capture
from neural_tune_pytorch.backends.pt2e.codes import Codes
from neural_tune_pytorch.backends.pt2e.plan import Plan


class _Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.static = nn.Linear(8, 8)
        self.dynamic = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return numbers; only the kernels matter."""
        return self.dynamic(torch.tanh(self.static(torch.tanh(self.conv(x).mean((2, 3))))))


def sample() -> tuple[fx.GraphModule, Feed]:
    """Return a Q/DQ graph with a static convolution, a static linear and a dynamic linear, and a batch for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, batch = _Tiny(), torch.rand(2, 3, 6, 6)
    source = models.take(module, AdapterOptions(example=batch))
    captured = capture(source, AdapterOptions())
    nodes = {op.name: op.node for op in captured.ops}
    static = {(nodes["conv"], 0): Codes(1 / 128, 128), (nodes["static"], 0): Codes(1 / 128, 128)}
    planned = Plan(
        static=static,
        dynamic={(nodes["dynamic"], 0): 255},
        weights=frozenset(nodes[name] for name in ("conv", "static", "dynamic")),
    )
    return build.write(captured, planned), source.example
