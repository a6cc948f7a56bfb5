"""The proof that a change of constants leaves the float function as it is: outputs before and after, up to the rounding of float32."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Outputs: TypeAlias = Sequence[NDArray[Any]]

TOLERANCE = 1e-5
"""Relative L2 difference of an output that float32 rounding alone may make."""
SAMPLES = 32
"""Calibration samples on which it is shown."""


def difference(before: Iterable[Outputs], after: Iterable[Outputs]) -> float:
    """Return the largest relative L2 difference of an output, batch by batch; infinite where the outputs after the change are not finite."""
    worst = 0.0
    for expected, found in zip(before, after, strict=True):
        for one, two in zip(expected, found, strict=True):
            exact, changed = np.asarray(one, np.float64), np.asarray(two, np.float64)
            distance = float(np.linalg.norm((changed - exact).ravel())) if np.isfinite(changed).all() else float("inf")
            worst = max(worst, distance / max(float(np.linalg.norm(exact.ravel())), np.finfo(np.float64).tiny))
    return worst
