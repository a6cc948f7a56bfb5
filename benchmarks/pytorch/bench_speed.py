"""Speed of int8 through PT2E and Inductor, against compiled and eager float: one thread, interleaved, CPU time of the calling thread, medians.

    python benchmarks/pytorch/bench_speed.py [--models resnet50 bert-static bert-dynamic perceptron] [--seconds 10]

Bars (against the compiled float of the same adapter; the perceptron against eager float, which is faster there): ResNet-50 >= 3.0x, BERT-base with 128 tokens >= 3.0x
static and dynamic, perceptron >= 3.5x; files >= 3.6x smaller. What is timed was saved and loaded back. The int8 kernels in the compiled code are counted. Exit code 1 if a bar
is missed. Compiling takes minutes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import torch

from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE
from neural_tune_pytorch.adapter import PyTorchAdapter

MODELS: dict[str, tuple[Callable[[], Any], Callable[[int], Any], str, str, float]] = {
    "resnet50": (lambda: networks.resnet(50), lambda seed: networks.images(1, seed=seed), "static", "compiled", 3.0),
    "bert-static": (networks.bert, lambda seed: networks.tokens(1, 128, seed), "static", "compiled", 3.0),
    "bert-dynamic": (networks.bert, lambda seed: networks.tokens(1, 128, seed), "dynamic", "compiled", 3.0),
    "perceptron": (networks.perceptron, networks.rows, "static", "eager", 3.5),
}
LEAST_ROUNDS = 11
SMALLER = 3.6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=10.0, help="measure for this long per model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    return int(sum(measure(name, arguments.seconds) for name in arguments.models) < len(arguments.models))


def measure(name: str, seconds: float) -> bool:
    """Print one row; return whether its bars are met."""
    make, batch, approach, rival, bar = MODELS[name]
    adapter, module, inputs = PyTorchAdapter(), make(), batch(0)
    hold = adapter.load(module, AdapterOptions(approach=approach, example=inputs))
    space = TuningSpace.of(adapter.query(hold))
    with tempfile.TemporaryDirectory(prefix="nt-bench-") as text:
        folder = Path(text)
        cached = adapter.calibrate(hold, [batch(seed) for seed in range(4)], folder / "statistics")
        small = adapter.save(adapter.build(hold, space.preferred(), cached, 1), folder / "int8")
        whole = adapter.save(adapter.build(hold, FLOAT_CANDIDATE, None, 1), folder / "float")
        quantized, compiled = adapter.restore(small, 1), adapter.restore(whole, 1)
        smaller = whole.stat().st_size / small.stat().st_size
    int8, fast = adapter.native(quantized), adapter.native(compiled)  # what users call
    runs: dict[str, Callable[[], Any]] = {
        "int8": lambda: int8(inputs),
        "compiled": lambda: fast(inputs),
        "eager": lambda: call(module, inputs),
    }
    times = interleaved(runs, seconds)
    ratio = times[rival] / times["int8"]
    counts = adapter.report(quantized).counts
    row = "  ".join(f"{key} {value * 1e3:.2f} ms" for key, value in times.items())
    kernels = f"{counts.get('int8_kernels', 0):.0f} of {counts['int8_kernels_expected']:.0f} int8 kernels"
    print(
        f"{name}: {row}  {ratio:.2f}x against {rival} (bar {bar}x)  file {smaller:.2f}x smaller  {kernels}", flush=True
    )
    return ratio >= bar and smaller >= SMALLER and counts.get("int8_kernels") == counts["int8_kernels_expected"]


def call(module: Any, inputs: Any) -> Any:
    """Run the caller's module as its user would."""
    with torch.no_grad():
        return module(**inputs) if isinstance(inputs, dict) else module(inputs)


def interleaved(runs: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Return the median CPU seconds of every contestant, taken in turns; every timed run follows an untimed one."""
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
    return {name: statistics.median(values) for name, values in found.items()}


if __name__ == "__main__":
    sys.exit(main())
