"""Several models against each other: latency, throughput, size and memory, measured interleaved in one process.

In every round each model runs one batch, and the order rotates, so that another job on the machine slows all alike. A model's ratio is that
of neighbouring runs, with a bootstrap interval; a latency from another day is never compared with one from here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_LEAST_ROUNDS = 10
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One model among several.

    Attributes:
        name: The model.
        ms: Median milliseconds per batch.
        ms_low: Lower end of the 95 % bootstrap interval of `ms`.
        ms_high: Upper end.
        throughput: Samples per second, from `ms`.
        ratio: How many times faster than the first model: median over rounds.
        ratio_low: Lower end of its interval.
        ratio_high: Upper end.
        rounds: Measured rounds.
    """

    name: str
    ms: float
    ms_low: float
    ms_high: float
    throughput: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int


def contest(
    runs: Sequence[tuple[str, Callable[[], object]]],
    *,
    batch_size: int,
    warmup: int = 5,
    repeats: int = 200,
    seconds: float = 5.0,
) -> tuple[Standing, ...]:
    """Measure all models alternately; the first one is what the others are compared with."""
    for _ in range(max(1, warmup)):
        for _, run in runs:
            run()
    rows: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(rows) < repeats and (len(rows) < _LEAST_ROUNDS or time.perf_counter() < end):
        rows.append(_round(runs, len(rows)))
    times = np.asarray(rows)
    draws = np.random.default_rng(0).integers(0, len(times), (_RESAMPLES, len(times)))
    return tuple(
        _standing(name, times[:, place], times[:, 0], draws, batch_size) for place, (name, _) in enumerate(runs)
    )


def _round(runs: Sequence[tuple[str, Callable[[], object]]], number: int) -> list[float]:
    """Return the seconds of one batch of each model; round by round another one begins, and the direction alternates."""
    order = [(place + number // 2) % len(runs) for place in range(len(runs))]
    taken = [0.0] * len(runs)
    for place in order if number % 2 else reversed(order):
        start = time.perf_counter()
        runs[place][1]()
        taken[place] = max(time.perf_counter() - start, 1e-9)
    return taken


def _standing(name: str, own: np.ndarray, first: np.ndarray, draws: np.ndarray, batch_size: int) -> Standing:
    ratios = first / own
    ms_low, ms_high = np.quantile(np.median(own[draws], axis=1), [0.025, 0.975]) * 1e3
    low, high = np.quantile(np.median(ratios[draws], axis=1), [0.025, 0.975])
    middle = float(np.median(own))
    return Standing(
        name=name,
        ms=middle * 1e3,
        ms_low=float(ms_low),
        ms_high=float(ms_high),
        throughput=batch_size / middle,
        ratio=float(np.median(ratios)),
        ratio_low=float(low),
        ratio_high=float(high),
        rounds=len(own),
    )
