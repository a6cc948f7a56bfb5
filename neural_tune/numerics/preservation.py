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
    """Return the largest relative L2 difference of an output, batch by batch.

    Values that are not finite (the infinities of a mask) must be the same; infinite where they are not, and where there was no batch to prove it on.
    """
    pairs = [
        (one, two)
        for expected, found in zip(before, after, strict=True)
        for one, two in zip(expected, found, strict=True)
    ]
    return max(
        (_distance(np.asarray(one, np.float64), np.asarray(two, np.float64)) for one, two in pairs),
        default=float("inf"),
    )


def _distance(exact: NDArray[np.float64], changed: NDArray[np.float64]) -> float:
    finite = np.isfinite(exact)
    if not np.array_equal(exact[~finite], changed[~finite], equal_nan=True) or not np.isfinite(changed[finite]).all():
        return float("inf")
    distance = float(np.linalg.norm(changed[finite] - exact[finite]))
    return distance / max(float(np.linalg.norm(exact[finite])), float(np.finfo(np.float64).tiny))
