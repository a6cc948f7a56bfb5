"""Speed of full int8 against the canonical float graph (batch norm folded) and against the graph as Keras gives it.

    python benchmarks/tensorflow/bench_speed.py [--threads 1] [--seconds 20] [network ...]

All variants run in turn in one process; the figures are ratios of medians.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from networks import NETWORKS

from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE, Candidate, FrozenMap
from neural_tune_tensorflow.adapter import TensorFlowAdapter
from neural_tune_tensorflow.session import Runner

BARS = {"resnet50": 3.2, "mobilenet_v2": 2.8, "encoder": 2.8, "mlp": 3.6}


def measure(name: str, threads: int, seconds: float) -> None:
    adapter = TensorFlowAdapter()
    model, inputs = NETWORKS[name]()
    hold = adapter.load(model, AdapterOptions(recipes=FrozenMap({"sum_fusion": True})))
    space = TuningSpace.of(adapter.query(hold))
    with tempfile.TemporaryDirectory() as folder:
        statistics = adapter.calibrate(hold, [inputs], Path(folder))
    floats = adapter.build(hold, FLOAT_CANDIDATE, None, threads)
    int8 = adapter.build(hold, space.preferred(), statistics, threads)
    fused = adapter.build(hold, Candidate.of(space.preferred().ops, (), ("sum_fusion",)), statistics, threads)
    source = hold.source
    raw = Runner(source.graph_def, source.inputs, source.outputs, threads)
    feed = {hold.inputs[0].name: inputs}
    runs = {
        "as given": lambda: raw(feed),
        "canonical": lambda: floats.run(feed),
        "int8": lambda: int8.run(feed),
        "sums": lambda: fused.run(feed),
    }
    times = {label: [] for label in runs}
    for run in runs.values():
        run(), run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["int8"]) < 7:
        for label, run in runs.items():
            start = time.perf_counter()
            run()
            times[label].append(time.perf_counter() - start)
    median = {label: float(np.median(values)) * 1e3 for label, values in times.items()}
    ratio, bar = median["canonical"] / median["int8"], BARS[name]
    size = adapter.size(floats) / adapter.size(int8)
    verdict = "" if threads > 1 else f" (bar {bar}: {'met' if ratio >= bar else 'MISSED'})"
    print(
        f"{name:13} {threads} thread(s): as given {median['as given']:7.1f} ms, canonical {median['canonical']:7.1f} ms, "
        f"int8 {median['int8']:6.1f} ms = {ratio:.2f}x{verdict}, with fused sums {median['canonical'] / median['sums']:.2f}x, size {size:.2f}x, {dict(adapter.report(int8).counts)}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    for name in arguments.networks or NETWORKS:
        measure(name, arguments.threads, arguments.seconds)


if __name__ == "__main__":
    main()
