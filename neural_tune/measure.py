"""Speed, size and memory, measured on the real runtime.

Speed is always a comparison: float and candidate run alternately in one process, after a warm-up, and the reported ratio is the median of the
ratios of neighbouring runs, so that another job on the machine slows both alike. A latency from another run on another day is
never compared with one from here.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neural_tune.errors import AdapterError

_LEAST_ROUNDS = 10
# From so many rounds on, the interval of the ratio may end a comparison: when its half width is below this share of it.
_SETTLED_ROUNDS = 30
_SETTLED = 0.01
# Looking again and again makes chance look like a difference: where a 95 % interval without 1 ended a comparison, 9 to 15 of 100 equal models were told apart
# (simulated, times with 1 to 3 % of noise). With this many deviations it is 7 to 9, with a single look at 200 rounds 7.
_FAR = 3.2
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedComparison:
    """Float against candidate.

    Attributes:
        float_ms: Median milliseconds per batch of the float model.
        ms: Median milliseconds per batch of the candidate.
        ratio: How many times faster the candidate is: the median over rounds of float time / candidate time.
        low: Lower end of the 95 % bootstrap interval of `ratio`.
        high: Upper end.
        rounds: Measured rounds.
        batch_size: Samples per batch.
        threads: Threads of the runtime.
    """

    float_ms: float
    ms: float
    ratio: float
    low: float
    high: float
    rounds: int
    batch_size: int
    threads: int


def compare_speed(
    run_float: Callable[[], object],
    run_candidate: Callable[[], object],
    *,
    batch_size: int,
    threads: int,
    warmup: int = 5,
    repeats: int = 200,
    seconds: float = 2.0,
) -> SpeedComparison:
    """Measure both callables alternately and return the comparison.

    It ends before `repeats` rounds or `seconds` where the ratio is known well enough: to 1 %, and on which side of 1 it lies.
    The order inside a round alternates, so that neither side always runs on the other's warm caches.
    """
    for _ in range(max(1, warmup)):
        run_float()
        run_candidate()
    rows: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(rows) < repeats and (len(rows) < _LEAST_ROUNDS or time.perf_counter() < end):
        if len(rows) >= _SETTLED_ROUNDS and len(rows) % _LEAST_ROUNDS == 0 and _is_settled(rows):
            break
        if len(rows) % 2:
            candidate, reference = _timed(run_candidate), _timed(run_float)
        else:
            reference, candidate = _timed(run_float), _timed(run_candidate)
        rows.append((reference, candidate))
    times = np.asarray(rows)
    ratios = times[:, 0] / times[:, 1]
    draws = np.random.default_rng(0).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), [0.025, 0.975])
    return SpeedComparison(
        float_ms=float(np.median(times[:, 0]) * 1e3),
        ms=float(np.median(times[:, 1]) * 1e3),
        ratio=float(np.median(ratios)),
        low=float(low),
        high=float(high),
        rounds=len(rows),
        batch_size=batch_size,
        threads=threads,
    )


def size_on_disk(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())


def peak_memory(framework: str, artifact: Path, inputs: Path, threads: int) -> int:
    """Return the peak resident bytes of a fresh process that loads `artifact` and runs the batch stored in `inputs`.

    Args:
        framework: Name of the adapter.
        artifact: What the adapter saved.
        inputs: An .npz file with one array per model input, by name.
        threads: Threads of the runtime.

    Raises:
        AdapterError: the process failed; the message carries the end of its output.
    """
    command = [sys.executable, "-m", "neural_tune.memory_probe", framework, str(artifact), str(inputs), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ.copy())  # noqa: S603
    if done.returncode != 0:
        raise AdapterError(
            f"measuring peak memory of {artifact.name} failed (exit {done.returncode}): {done.stderr[-500:]}"
        )
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def _is_settled(rows: list[tuple[float, float]]) -> bool:
    """Return whether the 95 % interval of the median ratio (by order statistics) is narrow and 1 lies far outside, unless it is 1 all the same."""
    ratios = sorted(reference / candidate for reference, candidate in rows)
    low, high = _interval(ratios, 1.96)
    width = (high - low) / 2
    far_low, far_high = _interval(ratios, _FAR)
    is_sure = not far_low <= 1.0 <= far_high
    return width <= _SETTLED * ratios[len(ratios) // 2] and (is_sure or width <= _SETTLED / 2)


def _interval(ratios: list[float], deviations: float) -> tuple[float, float]:
    """Return the order statistics that hold the median, of sorted values, with so many standard deviations on both sides."""
    middle, reach = len(ratios) / 2, deviations * math.sqrt(len(ratios)) / 2
    return ratios[max(math.floor(middle - reach), 0)], ratios[min(math.ceil(middle + reach), len(ratios)) - 1]


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return max(time.perf_counter() - start, 1e-9)
