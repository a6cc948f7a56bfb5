"""Small networks that the tests of this folder share; loaded through the `networks` fixture of conftest.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

RANDOM_STATE = 20


class Small(nn.Module):
    """conv-bn-relu, conv-bn-add-relu, pool, conv, mean, linear; wide enough that weights count."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.conv2, self.bn2 = nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.conv3 = nn.Conv2d(24, 32, 1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.bn2(self.conv2(x)))
        x = F.relu(self.conv3(F.max_pool2d(x, 2)))
        return self.fc(self.drop(x.mean((2, 3))))


class Perceptron(nn.Module):
    """Three linears over two inputs; forward takes them by position or by keyword."""

    def __init__(self, width=48):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(16, width), nn.Linear(16, width), nn.Linear(width, 4)

    def forward(self, left, right):
        return {"logits": self.out(torch.tanh(self.first(left) + self.second(right))), "sum": left.sum(1)}


def small():
    """Return a `Small` in eval mode with batch statistics that are not trivial."""
    torch.manual_seed(RANDOM_STATE)
    network = Small()
    with torch.no_grad():
        for norm in (network.bn1, network.bn2):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2.0)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
    return network.eval()


def perceptron():
    """Return a `Perceptron` in eval mode."""
    torch.manual_seed(RANDOM_STATE)
    return Perceptron().eval()


def images(count=4, batches=1, size=8, seed=RANDOM_STATE + 1):
    """Return batches of random images as numpy arrays."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 3, size, size, generator=generator).numpy() for _ in range(batches)]
