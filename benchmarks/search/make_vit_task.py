"""Make the task t150: a vision transformer of 146 quantizable products on which plain int8 loses about 0.1 of accuracy.

    python benchmarks/search/make_vit_task.py [--target benchmarks/.cache/t150] [--data ../shared/data/tasks] [--seconds 600]

1. Train on scikit-learn's digits, enlarged to 32 x 32 and distorted anew in every step (seeded; minutes on one CPU core).
2. Re-scale the channels of ten norm -> linear edges by log-normal factors: the gain and shift of the LayerNorm times s, the columns of
   every linear that reads it divided by s. In exact arithmetic nothing changes; int8 activations see outlier channels.
3. Choose the strength of that by bisection, so that ONNX Runtime's plain QDQ int8 loses 0.1.

Writes t150.onnx and t150.json with what was measured. The validation pictures of ../shared/data/tasks are distortions of the same 1,797
digits, so the float accuracy is no measure of generalisation; for the drop under quantization that does not matter.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import plain_int8
import torch
import vit
import vit_onnx
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
EDGES, WANTED_DROP, CLOSE_ENOUGH = 10, 0.10, 0.02
CALIBRATION_SAMPLES = 300
Weights = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Pictures:
    """The shared calibration and validation data, as float32 in 0..1."""

    calibration: NDArray[np.float32]
    validation: NDArray[np.float32]
    labels: NDArray[np.int64]

    @classmethod
    def load(cls, folder: Path) -> Pictures:
        """Read the two npz files of `folder`."""
        with np.load(folder / "digits_calib.npz") as calibration, np.load(folder / "digits_val.npz") as validation:
            return cls(
                calibration["x"][:CALIBRATION_SAMPLES].astype(np.float32) / 255,
                validation["x"].astype(np.float32) / 255,
                validation["y"],
            )

    def accuracy(self, model: Path) -> float:
        """Return the share of right answers of an ONNX model on the validation pictures."""
        found = plain_int8.outputs(model, {"x": self.validation}).argmax(1)
        return float((found == self.labels).mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=HERE.parent / ".cache" / "t150")
    parser.add_argument("--data", type=Path, default=HERE.parents[2] / "shared" / "data" / "tasks")
    parser.add_argument("--seconds", type=float, default=600.0, help="limit of CPU time for the training")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not (arguments.data / "digits_val.npz").exists():
        print(
            f"{arguments.data}: no digits_val.npz there; expected the shared data beside the project", file=sys.stderr
        )
        return 2
    report = make(arguments.target, Pictures.load(arguments.data), arguments.seconds, arguments.seed)
    print(json.dumps(report, indent=1))
    return 0


def make(target: Path, pictures: Pictures, seconds: float, seed: int) -> dict[str, object]:
    """Train, re-scale, write; return (and write) what was measured."""
    target.mkdir(parents=True, exist_ok=True)
    shape = vit.Shape()
    cpu = time.process_time()
    weights = trained(target / "weights.npz", shape, seconds, seed)
    cpu = time.process_time() - cpu
    plain = write(target / "even.onnx", weights, shape)
    strength, uneven, drop = search_strength(weights, shape, pictures, seed)
    model = write(target / "t150.onnx", uneven, shape)
    change = (
        np.abs(
            plain_int8.outputs(model, {"x": pictures.validation})
            - plain_int8.outputs(plain, {"x": pictures.validation})
        ).max()
        / np.abs(plain_int8.outputs(plain, {"x": pictures.validation})).max()
    )
    accuracy = pictures.accuracy(model)
    measured: dict[str, object] = {
        "quantizable_products": shape.products,
        "blocks": shape.blocks,
        "width": shape.width,
        "seed": seed,
        "training_cpu_seconds": round(cpu, 1),
        "rescaled_edges": [edge for edge, _ in edges(shape, seed)],
        "strength": strength,
        "float_top1": accuracy,
        "plain_int8_top1": accuracy - drop,
        "plain_int8_top1_without_rescaling": int8_accuracy(weights, shape, pictures),
        "largest_relative_change_of_float_outputs": float(change),
        "bytes": model.stat().st_size,
    }
    (target / "t150.json").write_text(json.dumps(measured, indent=1) + "\n")
    return measured


def trained(path: Path, shape: vit.Shape, seconds: float, seed: int) -> Weights:
    """Return the trained weights; those of an earlier call are taken from `path`."""
    if not path.exists():
        torch.set_num_threads(1)  # two threads on two contended cores were three times slower than one
        net = vit.train(shape, vit.Schedule(seconds=seconds), seed=seed, report=print)
        np.savez(path, **{name: value.numpy() for name, value in net.state_dict().items()})
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def edges(shape: vit.Shape, seed: int) -> list[tuple[str, tuple[str, ...]]]:
    """Return the edges to re-scale: the norm, and every linear that reads it (GELU lies behind them, so nothing else does)."""
    every = [
        (f"blocks.{number}.{norm}", tuple(f"blocks.{number}.{reader}" for reader in readers))
        for number in range(shape.blocks)
        for norm, readers in (("norm1", ("q", "k", "v")), ("norm2", ("up",)))
    ]
    chosen = np.random.default_rng(seed).choice(len(every), EDGES, replace=False)
    return [every[position] for position in sorted(chosen)]


def rescaled(weights: Weights, shape: vit.Shape, strength: float, seed: int) -> Weights:
    """Return weights with the channels of `edges` multiplied by exp(strength * normal), and divided again by the readers."""
    changed = {name: value.copy() for name, value in weights.items()}
    generator = np.random.default_rng(seed + 1)
    for norm, readers in edges(shape, seed):
        factors = np.exp(strength * generator.standard_normal(shape.width)).astype(np.float32)
        for part in ("weight", "bias"):
            changed[f"{norm}.{part}"] *= factors
        for reader in readers:
            changed[f"{reader}.weight"] /= factors
    return changed


def search_strength(weights: Weights, shape: vit.Shape, pictures: Pictures, seed: int) -> tuple[float, Weights, float]:
    """Return the strength, its weights and the drop of plain int8: bisection until the drop is close to the wanted one."""
    with tempfile.TemporaryDirectory() as folder:
        float_accuracy = pictures.accuracy(write(Path(folder) / "float.onnx", weights, shape))

    def drop_at(strength: float) -> float:
        drop = float_accuracy - int8_accuracy(rescaled(weights, shape, strength, seed), shape, pictures)
        print(f"strength {strength:.3f}: plain int8 loses {drop:.4f}")
        return drop

    strength, drop = bisect(drop_at, 0.0, 3.0)
    return strength, rescaled(weights, shape, strength, seed), drop


def bisect(drop_at: Callable[[float], float], low: float, high: float, tries: int = 8) -> tuple[float, float]:
    """Return the argument whose drop came closest to the wanted one; the drop need not be monotone, the search assumes it."""
    tried: list[tuple[float, float, float]] = []
    for _ in range(tries):
        middle = (low + high) / 2
        drop = drop_at(middle)
        tried.append((abs(drop - WANTED_DROP), middle, drop))
        if tried[-1][0] <= CLOSE_ENOUGH:
            break
        low, high = (low, middle) if drop > WANTED_DROP else (middle, high)
    _, best, drop = min(tried)
    return best, drop


def int8_accuracy(weights: Weights, shape: vit.Shape, pictures: Pictures) -> float:
    """Return the accuracy of ONNX Runtime's plain int8 model."""
    with tempfile.TemporaryDirectory() as folder:
        model = write(Path(folder) / "float.onnx", weights, shape)
        target = Path(folder) / "int8.onnx"
        plain_int8.quantize(model, target, {"x": pictures.calibration})
        return pictures.accuracy(target)


def write(path: Path, weights: Weights, shape: vit.Shape) -> Path:
    """Write the net as ONNX and return the path."""
    onnx.save(vit_onnx.build(weights, shape), path)
    return path


if __name__ == "__main__":
    sys.exit(main())
