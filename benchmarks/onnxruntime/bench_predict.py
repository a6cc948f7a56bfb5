"""Predicted against measured latency of random candidates, at one thread: resnet20 (real weights), a MobileNetV2-like and a BERT-like graph.

    python benchmarks/onnxruntime/bench_predict.py [--candidates 5] [--seed 1] [--batch 1]

The profile is taken once per model. Each candidate is then built and compared with float run by run (`neural_tune.measure.compare_speed`); the measured
latency is the float latency at the time of the profile over the measured ratio, because the speed of a shared machine drifts by more
than the model errs. Exit code 1 if one is off by more than 20 %.
"""

from __future__ import annotations

import argparse
import functools
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import small_networks
from bench_speed import DEVIATION, MEAN, SHARED_DATA
from numpy.typing import NDArray
from timing import machine

from neural_tune.measure import compare_speed
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE, Candidate
from neural_tune_onnxruntime.adapter import OnnxRuntimeAdapter

TOLERANCE = 0.20


@dataclass(frozen=True)
class Case:
    """One float model with data for it."""

    name: str
    source: Path | onnx.ModelProto
    calibration: list[NDArray[np.float32]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=5, help="random candidates per model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="measuring time per candidate")
    arguments = parser.parse_args()
    print(f"{machine()}; onnxruntime {onnxruntime.__version__}; 1 thread, batch {arguments.batch}")
    worst = [measure(case, arguments) for case in cases()]
    return 0 if max(worst) <= TOLERANCE else 1


def cases() -> Iterator[Case]:
    """Yield what can be measured here; resnet20 needs the real models beside the project."""
    if SHARED_DATA.is_dir():
        with np.load(SHARED_DATA / "cifar10.npz") as data:
            pictures = (data["x_calib"][:64] / 255.0 - MEAN) / DEVIATION
        x = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), np.float32)
        yield Case("resnet20", SHARED_DATA / "resnet20_cifar10.onnx", [x])
    else:
        print("resnet20: not measured, no folder ../shared/data beside the project")
    for name in ("mobilenet", "transformer"):
        model = getattr(small_networks, name)()
        yield Case(name, model, small_networks.batches(model, 2, 8))


def measure(case: Case, arguments: argparse.Namespace) -> float:
    """Print one line per candidate; return the largest relative error."""
    adapter = OnnxRuntimeAdapter()
    model = adapter.load(case.source, AdapterOptions())
    with tempfile.TemporaryDirectory(prefix="nt-bench-") as folder:
        statistics = adapter.calibrate(model, case.calibration, Path(folder))
        offered = adapter.query(model)
        full = TuningSpace.of(offered).preferred()
        x = np.resize(case.calibration[0], (arguments.batch, *case.calibration[0].shape[1:]))
        feed = {model.input_names[0]: x}
        start = time.perf_counter()
        profile = adapter.profile(model, full, statistics, feed, 1)
        print(f"{case.name}: {len(full.ops)} ops, profiled in {time.perf_counter() - start:.1f} s")
        reference = adapter.build(model, FLOAT_CANDIDATE, None, 1)
        float_ms = profile.predict(offered, ())
        rng, errors = random.Random(arguments.seed), []
        for _ in range(arguments.candidates):
            share = rng.choice((0.25, 0.5, 0.75))
            candidate = Candidate.of({name: config for name, config in full.ops.items() if rng.random() < share})
            built = adapter.build(model, candidate, statistics, 1)
            found = compare_speed(
                functools.partial(reference.session.run, None, feed),
                functools.partial(built.session.run, None, feed),
                batch_size=arguments.batch,
                threads=1,
                repeats=5000,
                seconds=arguments.seconds,
            )
            predicted, measured = profile.predict(offered, candidate.ops), float_ms / found.ratio
            errors.append(predicted / measured - 1)
            print(
                f"  {len(candidate.ops):3} ops int8   predicted {predicted:7.3f}   measured {measured:7.3f} ms   {errors[-1]:+6.1%}"
                f"   ({found.ratio:.2f}x of float [{found.low:.2f}, {found.high:.2f}])"
            )
    worst = max(map(abs, errors))
    mean = float(np.mean(np.abs(errors)))
    print(
        f"  mean |error| {mean:.1%}, worst {worst:.1%} (target {TOLERANCE:.0%}) {'PASS' if worst <= TOLERANCE else 'FAIL'}"
    )
    return worst


if __name__ == "__main__":
    sys.exit(main())
