"""Several models in turn, in blocks: after a change of model the first run is not counted, it finds the other's threads and caches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_BLOCK = 4
_LEAST = 12


def interleaved(runs: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, np.ndarray]:
    """Return label -> milliseconds of every counted run; takes about `seconds`, at least `_LEAST` runs each."""
    times: dict[str, list[float]] = {label: [] for label in runs}
    for run in runs.values():
        run(), run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < _LEAST:
        for label, run in runs.items():
            run()
            for _ in range(_BLOCK):
                start = time.perf_counter()
                run()
                times[label].append((time.perf_counter() - start) * 1e3)
    return {label: np.array(values) for label, values in times.items()}


def shown(values: np.ndarray) -> str:
    """Return median and quartiles."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"
