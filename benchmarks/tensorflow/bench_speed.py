"""Speed and size of full int8 against the canonical float graph (batch norm folded), and beside LiteRT.

    python benchmarks/tensorflow/bench_speed.py [--threads 1] [--batch N] [--seconds 20] [network ...]

All contestants take turns in one process; ratios are those of medians. Prints one row per contestant and PASS or FAIL per bar, and ends with exit code 1 if
a bar is missed. Bars are those of one thread, and for the encoder at two threads "at most 1.3 times the time of LiteRT dynamic".
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from networks import NETWORKS
from timing import interleaved, shown

from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE, Candidate, FrozenMap
from neural_tune_tensorflow.adapter import TensorFlowAdapter
from neural_tune_tensorflow.rewrite.plan import SUM_FUSION

FLOAT, INT8, SUMS, LITERT = "float", "onednn int8", "onednn int8, fused sums", "litert dynamic"
BARS = {
    ("resnet50", INT8): 3.2,
    ("mobilenet_v2", INT8): 2.8,
    ("encoder", INT8): 2.8,
    ("encoder", LITERT): 3.3,
    ("mlp", INT8): 3.6,
}
SMALLER = 3.6
BEHIND_LITERT = 1.3
_BAR_THREADS = 1


def measure(name: str, batch: int | None, threads: int, seconds: float) -> bool:
    """Print the rows of one network; return whether every bar is met."""
    model, inputs = NETWORKS[name]() if batch is None else NETWORKS[name](batch)
    built = _contestants(name, model, inputs, threads)
    runs: dict[str, Callable[[], Any]] = {
        label: lambda item=item: item.run({item.inputs[0].name: inputs}) for label, item in built.items()
    }
    times = interleaved(runs, seconds)
    median = {label: float(np.median(values)) for label, values in times.items()}
    passed = True
    for label, item in built.items():
        size = built[FLOAT].size() / item.size()
        verdicts = list(_verdicts(name, label, threads, median, size))
        passed = passed and all(verdict.endswith("PASS") for verdict in verdicts)
        figures = f"{shown(times[label])} ms | {median[FLOAT] / median[label]:.2f}x | {size:.2f}x smaller"
        print(f"| {name}, {len(inputs)} | {threads} | {label} | {figures} | {'; '.join(verdicts)} |", flush=True)
    return passed


def _contestants(name: str, model: Any, inputs: Any, threads: int) -> dict[str, Any]:
    adapter = TensorFlowAdapter()
    hold = adapter.load(model, AdapterOptions(recipes=FrozenMap({SUM_FUSION: True})))
    full = TuningSpace.of(adapter.query(hold)).preferred()
    with tempfile.TemporaryDirectory() as folder:
        statistics = adapter.calibrate(hold, [inputs], Path(folder))
    built = {
        FLOAT: adapter.build(hold, FLOAT_CANDIDATE, None, threads),
        INT8: adapter.build(hold, full, statistics, threads),
    }
    if name == "resnet50":
        fused = Candidate.of(full.ops, (), (SUM_FUSION,))
        built[SUMS] = adapter.build(hold, fused, statistics, threads)
    if name == "encoder":
        light = adapter.load(model, AdapterOptions(approach="dynamic", backend="litert"))
        built[LITERT] = adapter.build(light, TuningSpace.of(adapter.query(light)).preferred(), None, threads)
    return built


def _verdicts(name: str, label: str, threads: int, median: dict[str, float], size: float) -> Iterator[str]:
    bar = BARS.get((name, label))
    if bar is not None and threads == _BAR_THREADS:
        yield f"bar {bar}x {_word(median[FLOAT] / median[label] >= bar)}"
    if label != FLOAT:
        yield f"size {SMALLER}x {_word(size >= SMALLER)}"
    if label == INT8 and LITERT in median and threads > _BAR_THREADS:
        behind = median[label] / median[LITERT]
        yield f"{behind:.2f} times LiteRT's time, at most {BEHIND_LITERT} {_word(behind <= BEHIND_LITERT)}"


def _word(is_met: bool) -> str:
    return "PASS" if is_met else "FAIL"


def main() -> None:
    """Measure the networks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="network", help=", ".join(NETWORKS))
    parser.add_argument("--batch", type=int, default=None, help="rows per run; each network has its own default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    names = arguments.networks or list(NETWORKS)
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        parser.error(f"found {', '.join(unknown)}, expected {', '.join(NETWORKS)}")
    results = [measure(name, arguments.batch, arguments.threads, arguments.seconds) for name in names]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
