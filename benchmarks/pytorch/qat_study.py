"""Does quantization-aware training recover what post-training quantization loses? Five seeds, 4 and 3 bits, with an equal-epoch float control.

    python benchmarks/pytorch/qat_study.py [--seeds 5] [--epochs 10] [--json FILE]

A small CNN on scikit-learn's digits (1,797 pictures of 8 x 8; per seed another split, another start). Three parts that do not overlap: 900 pictures train, 400 are what `fit` accepts
or rejects on (and where the floor is kept), 497 test: every figure below is from those. At 8 bits nothing is lost here, so fewer bits are simulated (`options={"bits": 4}`,
backend "fx"). Per seed:

    float    the trained model
    ptq      post-training quantization of it
    qat      `fit(..., QuantizationAwareTrainingConfig, train_func=)`, trained for EPOCHS more epochs
    control  the float model trained for EPOCHS more epochs with the same optimizer, and then quantized: what the epochs alone are worth

Exit code 1 unless, at every width, mean(qat) recovers at least half of mean(float) - mean(ptq), and is at least mean(control).
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from neural_tune import (
    AccuracyCriterion,
    PerformanceConfig,
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    TuningCriterion,
    fit,
)

WIDTHS = (4, 3)
QUICK = PerformanceConfig(warmup=1, repeats=10, seconds=0.05, batch_size=32)


@dataclass(frozen=True)
class Row:
    """Test accuracies of one seed at one width."""

    bits: int
    seed: int
    float: float
    ptq: float
    qat: float
    control: float
    kept: str


@dataclass(frozen=True)
class Parts:
    """Pictures and labels: for training, for `fit`, and for the figures."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, seed: int) -> Parts:
        """Return the split of a seed."""
        digits = load_digits()
        pictures = torch.from_numpy(digits.images).float()[:, None] / 16
        labels = torch.from_numpy(digits.target)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        return cls(*((pictures[part], labels[part]) for part in (order[:900], order[900:1300], order[1300:])))


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, 10)),
    )


def trained(model: nn.Module, data: tuple[Tensor, Tensor], epochs: int, rate: float, seed: int) -> nn.Module:
    """Train in place: Adam, cosine decay, batches of 64."""
    pictures, labels = data
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    steps = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(labels) // 64))
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=generator).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(pictures[batch]), labels[batch]).backward()
            optimizer.step()
            steps.step()
    return model.eval()


def accuracy(model: Callable[[Tensor], Tensor], data: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float((model(data[0]).argmax(1) == data[1]).float().mean())


def tuned(model: nn.Module, parts: Parts, bits: int, train_func: Callable[[nn.Module], object] | None):
    kind = PostTrainingQuantConfig if train_func is None else QuantizationAwareTrainingConfig
    pictures = parts.train[0][:200].numpy()
    with tempfile.TemporaryDirectory() as folder:
        conf = kind(
            backend="fx",
            options={"bits": bits},
            workspace=str(Path(folder) / "w"),
            performance=QUICK,
            # A criterion that no quantized model of this task meets by chance: training is always tried.
            accuracy_criterion=AccuracyCriterion(True, "absolute", 1e-6),
            tuning_criterion=TuningCriterion(strategy="basic", max_trials=1),
        )
        more = {} if train_func is None else {"train_func": train_func}
        return fit(
            model,
            conf,
            calib_dataloader=[pictures[start : start + 50] for start in range(0, 200, 50)],
            eval_func=lambda candidate: accuracy(candidate, parts.validation),
            framework="pytorch",
            reporter="quiet",
            **more,
        )


def study(seed: int, epochs: int) -> list[Row]:
    parts = Parts.of(seed)
    model = trained(network(seed), parts.train, 15, 3e-3, seed)
    longer = trained(copy.deepcopy(model), parts.train, epochs, 3e-3, seed + 100)
    rows = []
    for bits in WIDTHS:
        ptq = tuned(model, parts, bits, None)
        qat = tuned(model, parts, bits, lambda trainee: trained(trainee, parts.train, epochs, 3e-3, seed + 100))
        control = tuned(longer, parts, bits, None)
        found = (accuracy(item, parts.test) for item in (model, ptq.model, qat.model, control.model))
        kept = next((notice for notice in qat.notices if "was kept" in notice or "not trained" in notice), "")
        row = Row(bits, seed, *found, kept=kept)
        print(
            f"{bits} bits, seed {seed}: float {row.float:.4f}  ptq {row.ptq:.4f}  qat {row.qat:.4f}  control {row.control:.4f}",
            flush=True,
        )
        rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for seed in range(arguments.seeds) for row in study(seed, arguments.epochs)]
    holds = True
    print(f"\n{'bits':>4} {'float':>8} {'ptq':>8} {'qat':>8} {'control':>8} {'recovered':>10} {'qat sd':>8}")
    for bits in WIDTHS:
        chosen = [row for row in rows if row.bits == bits]
        means = {
            name: float(np.mean([getattr(row, name) for row in chosen])) for name in ("float", "ptq", "qat", "control")
        }
        lost = means["float"] - means["ptq"]
        share = (means["qat"] - means["ptq"]) / lost if lost > 0 else float("nan")
        spread = float(np.std([row.qat for row in chosen], ddof=min(1, len(chosen) - 1)))
        print(
            f"{bits:>4} {means['float']:8.4f} {means['ptq']:8.4f} {means['qat']:8.4f} {means['control']:8.4f} {share:10.2f} {spread:8.4f}"
        )
        holds = holds and lost > 0 and share >= 0.5 and means["qat"] >= means["control"]
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print("holds" if holds else "DOES NOT HOLD")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
