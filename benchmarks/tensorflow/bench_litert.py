"""Speed of a dynamic (or static) LiteRT file against the canonical float graph of TensorFlow, both in one process and in turn.

python benchmarks/tensorflow/bench_litert.py [--threads 1] [--seconds 20] [--approach dynamic] [network ...]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from networks import NETWORKS
from timing import interleaved

from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE
from neural_tune_tensorflow.adapter import TensorFlowAdapter

BARS = {("encoder", "dynamic"): 3.3}


def measure(name: str, approach: str, threads: int, seconds: float) -> str:
    """Return one line of figures for a network."""
    adapter = TensorFlowAdapter()
    model, inputs = NETWORKS[name]()
    canonical = adapter.load(model, AdapterOptions())
    light = adapter.load(model, AdapterOptions(approach=approach, backend="litert"))
    statistics = None
    if approach in ("static", "auto"):
        with tempfile.TemporaryDirectory() as folder:
            statistics = adapter.calibrate(light, [inputs], Path(folder))
    built = {
        "TensorFlow float": adapter.build(canonical, FLOAT_CANDIDATE, None, threads),
        "LiteRT float": adapter.build(light, FLOAT_CANDIDATE, None, threads),
        approach: adapter.build(light, TuningSpace.of(adapter.query(light)).preferred(), statistics, threads),
    }
    runs: dict[str, Callable[[], Any]] = {
        label: lambda item=item: item.run({item.inputs[0].name: inputs}) for label, item in built.items()
    }
    reference, found = runs["TensorFlow float"]()[0], runs[approach]()[0]
    # Centred: a part of the signal that does not depend on the input would hide the error.
    signal, noise = (
        reference - reference.mean(axis=0),
        (found - found.mean(axis=0)) - (reference - reference.mean(axis=0)),
    )
    quality = 10.0 * np.log10((signal**2).sum() / max((noise**2).sum(), 1e-30))
    times = interleaved(runs, seconds)
    median = {label: float(np.median(values)) for label, values in times.items()}
    ratio = median["TensorFlow float"] / median[approach]
    bar = BARS.get((name, approach)) if threads == 1 else None
    verdict = "" if bar is None else f" (bar {bar}: {'met' if ratio >= bar else 'MISSED'})"
    size = built["LiteRT float"].size() / built[approach].size()
    parts = ", ".join(f"{label} {value:.1f} ms" for label, value in median.items())
    return f"{name} {threads} thread(s): {parts} = {ratio:.2f}x{verdict}, size {size:.2f}x, SQNR {quality:.1f} dB"


def main() -> None:
    """Measure the networks that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["encoder"])
    parser.add_argument("--approach", default="dynamic", choices=("dynamic", "static", "weight_only"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    for name in arguments.networks:
        print(measure(name, arguments.approach, arguments.threads, arguments.seconds), flush=True)


if __name__ == "__main__":
    main()
