"""Predicted against measured latency of random candidates of the PyTorch adapter's pt2e backend, at one thread: ResNet-18 and a small BERT.

    python benchmarks/pytorch/bench_predict.py [--models resnet18 small-bert] [--candidates 4] [--seed 1] [--seconds 2]

The profile is taken once per model, from float and full int8. Each candidate is then compiled and compared with float run by run (`neural_tune.measure.compare_speed`); the
measured latency is the float latency at the time of the profile over the measured ratio, because the speed of a shared machine drifts by more than the model
errs. Exit code 1 if one is off by more than 20 %.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import networks
import torch

from neural_tune.measure import compare_speed
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE, Candidate
from neural_tune_pytorch.adapter import PyTorchAdapter

TOLERANCE = 0.20
MODELS = {
    "resnet18": (lambda: networks.resnet(18), lambda seed: networks.images(1, seed=seed), "static"),
    "small-bert": (lambda: networks.bert(small=True), lambda seed: networks.tokens(1, 128, seed), "static"),
    "small-bert-dynamic": (lambda: networks.bert(small=True), lambda seed: networks.tokens(1, 128, seed), "dynamic"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--candidates", type=int, default=4, help="random candidates per model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="measuring time per candidate")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    return int(max(measure(name, arguments) for name in arguments.models) > TOLERANCE)


def measure(name: str, arguments: argparse.Namespace) -> float:
    """Print one line per candidate; return the largest relative error."""
    make, batch, approach = MODELS[name]
    adapter, inputs = PyTorchAdapter(), batch(0)
    hold = adapter.load(make(), AdapterOptions(approach=approach, example=inputs))
    offered = adapter.query(hold)
    full = TuningSpace.of(offered).preferred()
    with tempfile.TemporaryDirectory(prefix="nt-bench-") as folder:
        cached = adapter.calibrate(hold, [batch(seed) for seed in range(4)], Path(folder))
    begin = time.process_time()
    profile = adapter.profile(hold, full, cached, inputs, 1)
    print(f"{name}: {len(full.ops)} ops, profiled in {time.process_time() - begin:.1f} CPU s, two compiles among them")
    reference, float_ms = adapter.build(hold, FLOAT_CANDIDATE, None, 1), profile.predict(offered, ())
    rng, errors = random.Random(arguments.seed), []
    for number in range(arguments.candidates + 1):
        share = rng.choice((0.25, 0.5, 0.75)) if number else 1.0
        candidate = Candidate.of({op: config for op, config in full.ops.items() if rng.random() < share})
        ratio = _ratio(adapter, reference, adapter.build(hold, candidate, cached, 1), inputs, arguments.seconds)
        predicted, measured = profile.predict(offered, candidate.ops), float_ms / ratio
        errors.append(predicted / measured - 1)
        print(
            f"  {len(candidate.ops):3} ops int8   predicted {predicted:7.3f}   measured {measured:7.3f} ms   {errors[-1]:+6.1%}   ({ratio:.2f}x of float)",
            flush=True,
        )
    worst, mean = max(map(abs, errors)), statistics.fmean(map(abs, errors))
    verdict = "PASS" if worst <= TOLERANCE else "FAIL"
    print(f"  mean |error| {mean:.1%}, worst {worst:.1%} (target {TOLERANCE:.0%}) {verdict}", flush=True)
    return worst


def _ratio(adapter: PyTorchAdapter, reference: Any, built: Any, inputs: Any, seconds: float) -> float:
    return compare_speed(
        functools.partial(adapter.run, reference, inputs),
        functools.partial(adapter.run, built, inputs),
        batch_size=1,
        threads=1,
        seconds=seconds,
    ).ratio


if __name__ == "__main__":
    sys.exit(main())
