"""The networks of the PyTorch benchmarks, with random weights: ResNet-18, ResNet-50, BERT and a perceptron."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 as a bottleneck."""

    def __init__(self, before: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        after = width * 4 if bottleneck else width
        kernels = ((1, 1), (3, stride), (1, 1)) if bottleneck else ((3, stride), (3, 1))
        layers: list[nn.Module] = []
        channels = before
        for number, (kernel, step) in enumerate(kernels):
            out = after if number == len(kernels) - 1 else width
            layers += [nn.Conv2d(channels, out, kernel, step, kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        self.body = nn.Sequential(*layers[:-1])
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.skip = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the features behind the block."""
        return self.relu(self.body(x) + self.skip(x))


class ResNet(nn.Module):
    """He et al. 2015, for 224x224 images and 1000 classes."""

    def __init__(self, depths: tuple[int, ...], *, bottleneck: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        blocks: list[nn.Module] = []
        channels = 64
        for stage, depth in enumerate(depths):
            width = 64 << stage
            for number in range(depth):
                stride = 2 if number == 0 and stage else 1
                blocks.append(Block(channels, width, stride, bottleneck=bottleneck))
                channels = width * 4 if bottleneck else width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.fc(self.pool(self.blocks(self.stem(x))).flatten(1))


def resnet(layers: int) -> nn.Module:
    """Return ResNet-18 or ResNet-50 with batch statistics that are not trivial."""
    torch.manual_seed(0)
    network = ResNet((2, 2, 2, 2), bottleneck=False) if layers == 18 else ResNet((3, 4, 6, 3), bottleneck=True)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    return network.eval()


def bert(*, small: bool = False) -> nn.Module:
    """Return BERT-base, or a small one of 4 layers, as a sequence classifier."""
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    config = transformers.BertConfig(num_labels=2, **(sizes if small else {}))
    return transformers.BertForSequenceClassification(config).eval()


def perceptron() -> nn.Module:
    """Return 512-1024-1024-1024-10."""
    torch.manual_seed(0)
    sizes = (512, 1024, 1024, 1024)
    hidden = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(1024, 10)).eval()


def images(count: int, size: int = 224, seed: int = 0) -> Tensor:
    """Return random images."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def rows(seed: int = 0, count: int = 16) -> Tensor:
    """Return a batch for the perceptron."""
    return torch.randn(count, 512, generator=torch.Generator().manual_seed(seed))


def tokens(count: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Return random token ids with a full mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 30000, (count, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
