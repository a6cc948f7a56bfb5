"""Speed of int8 through PT2E and Inductor, against compiled and eager float: one thread, interleaved, CPU time of the calling thread, medians.

    python benchmarks/pytorch/bench_speed.py [--models resnet50 bert-static bert-dynamic perceptron] [--batch 1] [--seconds 10] [--keep FOLDER]

Bars: against the compiled float of the same adapter ResNet-50 >= 3.0x, BERT-base with 128 tokens >= 3.0x static and dynamic; against eager float ResNet-50 >= 4.3x, BERT-base
>= 3.3x, perceptron >= 3.5x (its batch is 16; eager is its fastest float); files >= 3.6x smaller. What is timed was saved and loaded back. The int8 kernels in the compiled code are
counted. Exit code 1 if a bar is missed.

Compiling takes minutes. With --keep the saved models stay in a folder and are found there the next time; the code that Inductor generated is in its own cache. So a first run
prepares, and a second one on a quiet machine measures within two minutes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networks
import torch

from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE
from neural_tune_pytorch.adapter import PyTorchAdapter


@dataclass(frozen=True, slots=True)
class Contest:
    """One row: a network, how it is quantized, and how many times faster than each form of float it must be.

    `inputs` takes the batch size and a seed.
    """

    network: Callable[[], Any]
    inputs: Callable[[int, int], Any]
    approach: str
    batch: int
    bars: dict[str, float]


def images(count: int, seed: int) -> Any:
    return networks.images(count, seed=seed)


def sentences(count: int, seed: int) -> Any:
    return networks.tokens(count, 128, seed)


def rows(count: int, seed: int) -> Any:
    return networks.rows(seed, count)


CONTESTS = {
    "resnet50": Contest(lambda: networks.resnet(50), images, "static", 1, {"compiled": 3.0, "eager": 4.3}),
    "bert-static": Contest(networks.bert, sentences, "static", 1, {"compiled": 3.0, "eager": 3.3}),
    "bert-dynamic": Contest(networks.bert, sentences, "dynamic", 1, {"compiled": 3.0, "eager": 3.3}),
    "perceptron": Contest(networks.perceptron, rows, "static", 16, {"eager": 3.5}),
}
LEAST_ROUNDS = 11
SMALLER = 3.6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(CONTESTS), default=list(CONTESTS))
    parser.add_argument("--batch", type=int, default=0, help="another batch size than the one of the bars")
    parser.add_argument("--seconds", type=float, default=10.0, help="measure for this long per model")
    parser.add_argument("--keep", type=Path, help="folder in which saved models stay")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="nt-bench-") as scratch:
        folder = arguments.keep or Path(scratch)
        met = [measure(name, folder / name, arguments.batch, arguments.seconds) for name in arguments.models]
    return int(not all(met))


def measure(name: str, folder: Path, batch: int, seconds: float) -> bool:
    """Print one row; return whether its bars are met."""
    contest = CONTESTS[name]
    adapter, module, inputs = PyTorchAdapter(), contest.network(), contest.inputs(batch or contest.batch, 0)
    small, whole = folder / "int8" / "model.pt2", folder / "float" / "model.pt2"
    if not (small.exists() and whole.exists()):
        save(adapter, module, contest, folder)
    quantized, compiled = adapter.restore(small, 1), adapter.restore(whole, 1)
    smaller = whole.stat().st_size / small.stat().st_size
    int8, fast = adapter.native(quantized), adapter.native(compiled)  # what users call
    runs: dict[str, Callable[[], Any]] = {
        "int8": lambda: call(int8, inputs),
        "compiled": lambda: call(fast, inputs),
        "eager": lambda: call(module, inputs),
    }
    times = interleaved(runs, seconds)
    ratios = {rival: [a / b for a, b in zip(times[rival], times["int8"], strict=True)] for rival in contest.bars}
    counts = adapter.report(quantized).counts
    kernels, expected = counts.get("int8_kernels", 0), counts["int8_kernels_expected"]
    met = {rival: statistics.median(found) >= contest.bars[rival] for rival, found in ratios.items()}
    is_met = all(met.values()) and smaller >= SMALLER and kernels == expected
    print(
        f"{name} (batch {batch or contest.batch}, {len(times['int8'])} rounds): "
        + ", ".join(f"{key} {statistics.median(found) * 1e3:.2f} ms" for key, found in times.items())
        + "; "
        + ", ".join(f"{told(found)} against {rival} (bar {contest.bars[rival]}x)" for rival, found in ratios.items())
        + f"; file {smaller:.2f}x smaller; {kernels:.0f} of {expected:.0f} int8 kernels: {'PASS' if is_met else 'FAIL'}",
        flush=True,
    )
    return is_met


def save(adapter: PyTorchAdapter, module: Any, contest: Contest, folder: Path) -> None:
    """Write both forms of the model below `folder`."""
    example = contest.inputs(contest.batch, 0)
    hold = adapter.load(module, AdapterOptions(approach=contest.approach, example=example))
    space = TuningSpace.of(adapter.query(hold))
    batches = [contest.inputs(contest.batch, seed) for seed in range(4)]
    cached = adapter.calibrate(hold, batches, folder / "statistics")
    adapter.save(adapter.build(hold, space.preferred(), cached, 1), folder / "int8")
    adapter.save(adapter.build(hold, FLOAT_CANDIDATE, None, 1), folder / "float")


def call(module: Any, inputs: Any) -> Any:
    """Run a module as its user would."""
    with torch.no_grad():
        return module(**inputs) if isinstance(inputs, dict) else module(inputs)


def interleaved(runs: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Return the CPU seconds of every contestant, taken in turns; every timed run follows an untimed one."""
    for run in runs.values():
        for _ in range(3):
            run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while len(found["int8"]) < LEAST_ROUNDS or time.perf_counter() < end:
        for name, run in runs.items():
            run()  # the others' weights leave the cache: a network that serves finds its own there
            begin = time.thread_time()
            run()
            found[name].append(time.thread_time() - begin)
    return found


def told(ratios: list[float]) -> str:
    """Return median and quartiles."""
    first, middle, third = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f}x [{first:.2f}, {third:.2f}]"


if __name__ == "__main__":
    sys.exit(main())
