"""The one pass over the calibration data: activations go by and leave their statistics, in memory that does not grow."""

from __future__ import annotations

import logging
import math
from typing import Any, TypeAlias

import numpy as np

from neural_tune.calibration.statistics import Statistics
from neural_tune.errors import DataError
from neural_tune.numerics.observers import Observed

_LOG = logging.getLogger(__name__)

Activation: TypeAlias = np.ndarray[Any, np.dtype[Any]]
# These are binned as they are; everything else is turned into single precision first.
_EXACT = (np.dtype(np.float16), np.dtype(np.float32))


class Collector:
    """Folds activations into statistics as they come; nothing of an activation is kept.

    The order of the batches, and how a batch is cut into parts, change nothing.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Observed] = {}
        self._infinite: set[str] = set()
        self._batches = 0

    def see(self, tensor: str, values: Activation) -> None:
        """Take in one activation (any shape, any real type; it may be empty).

        Raises:
            DataError: a value is NaN. (An infinity is what a mask is made of: such a tensor gets no range, and the statistics say so.)
        """
        if not values.size:
            return
        if values.dtype not in _EXACT:
            with np.errstate(over="ignore"):  # what single precision cannot hold is infinite, as below
                values = values.astype(np.float32)
        low, high = float(values.min()), float(values.max())
        if math.isnan(low):  # NaN wins over everything, infinities too
            raise DataError(
                f"calibration batch {self._batches + 1}: tensor {tensor!r} holds {int(np.isnan(values).sum())} NaN; "
                "the float model itself breaks on this input: check the preprocessing (and the checkpoint), or leave the batch out"
            )
        if tensor in self._infinite or math.isinf(low) or math.isinf(high):
            self._infinite.add(tensor)
            self._seen.pop(tensor, None)
            return
        found = Observed.of(values, low, high)
        known = self._seen.get(tensor)
        self._seen[tensor] = found if known is None else known.merge(found)

    def end_batch(self) -> None:
        """Count one batch."""
        self._batches += 1

    def statistics(self) -> Statistics:
        """Return what was gathered.

        Raises:
            DataError: no batch was read.
        """
        if not self._batches:
            raise DataError(
                "calibration got no batch: the iterable is empty (or was used up); give at least one batch of inputs"
            )
        if self._infinite:
            names = ", ".join(sorted(self._infinite)[:5])
            _LOG.info("%d tensors take infinite values and get no range: %s", len(self._infinite), names)
        return Statistics(dict(self._seen), self._batches, frozenset(self._infinite))
