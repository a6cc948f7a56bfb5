"""Why int8 gains little from a second thread: what an encoder's threads do while it runs, in one session and in two.

    python benchmarks/tensorflow/bench_threads.py [--seconds 6]

One session with two threads splits every op and hands half of it to a sleeping thread; two sessions with one thread each take half of the batch and never
meet. Prints time, processor time per wall time (2 is ideal) and how often a thread went to sleep, per batch. No bar: it explains one.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from bench_speed import FLOAT, INT8, LITERT
from networks import encoder

from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE
from neural_tune_tensorflow.adapter import TensorFlowAdapter


def observe(label: str, run: Callable[[], Any], seconds: float) -> None:
    """Print what one way to compute a batch costs."""
    run(), run()
    before, processor, start = resource.getrusage(resource.RUSAGE_SELF), time.process_time(), time.perf_counter()
    times = []
    while time.perf_counter() < start + seconds:
        begin = time.perf_counter()
        run()
        times.append((time.perf_counter() - begin) * 1e3)
    busy = (time.process_time() - processor) / (time.perf_counter() - start)
    slept = (resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before.ru_nvcsw) / len(times)
    low, middle, high = np.percentile(times, (25, 50, 75))
    print(f"| {label} | {middle:.1f} ({low:.1f}-{high:.1f}) ms | {busy:.2f} | {slept:.0f} |", flush=True)


def halves(items: Sequence[Any], name: str, inputs: Any) -> Callable[[], Any]:
    """Return a run of both halves of a batch at once, each in a session of its own."""
    pool = ThreadPoolExecutor(2)
    parts = np.array_split(inputs, 2)
    return lambda: list(pool.map(lambda item, part: item.run({name: part}), items, parts))


def main() -> None:
    """Observe float, int8 and LiteRT."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0)
    seconds = parser.parse_args().seconds
    adapter, (model, inputs) = TensorFlowAdapter(), encoder()
    hold = adapter.load(model, AdapterOptions())
    light = adapter.load(model, AdapterOptions(approach="dynamic", backend="litert"))
    with tempfile.TemporaryDirectory() as folder:
        statistics = adapter.calibrate(hold, [inputs], Path(folder))
    candidates = {
        FLOAT: (hold, FLOAT_CANDIDATE, None),
        INT8: (hold, TuningSpace.of(adapter.query(hold)).preferred(), statistics),
        LITERT: (light, TuningSpace.of(adapter.query(light)).preferred(), None),
    }
    print("| | per batch of 2 | processors busy | sleeps per batch |\n|---|---|---|---|")
    for label, (source, candidate, known) in candidates.items():
        one, other, both = (adapter.build(source, candidate, known, threads) for threads in (1, 1, 2))
        name = one.inputs[0].name
        observe(f"{label}, one thread", lambda item=one, name=name: item.run({name: inputs}), seconds)
        observe(f"{label}, two threads", lambda item=both, name=name: item.run({name: inputs}), seconds)
        observe(f"{label}, two sessions of one thread", halves((one, other), name, inputs), seconds)


if __name__ == "__main__":
    main()
