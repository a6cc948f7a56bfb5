"""A histogram that is read in one pass, adapts its range, and does not depend on the order of the data.

The bins lie on a dyadic grid: bin `i` covers `[i * width, (i + 1) * width)` with `width = 2 ** exponent`. The grid is anchored at zero, so
doubling the width joins bins `2 j` and `2 j + 1` into bin `j` *exactly*: no mass is ever split or smeared when the
range widens. The exponent is the smallest one for which the observed range fits into `CAPACITY` bins. From that follow:

* the histogram of a stream equals the histogram of all its data at once, whatever the order and the batch size
  (merging is associative and commutative, so shards can be merged too);
* every value is known to within one `width`, and `width < (maximum - minimum) / (BINS - 1)`: at least `BINS` bins cover the range
  (unless the range is so narrow that a bin would be finer than float32 itself);
* zero is an edge, so the histogram of |x| is the sum of the two halves, bin by bin.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from neural_tune.errors import DataError

Counts: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Values: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

BINS = 2048
CAPACITY = 2 * BINS
# Widths that float32 can divide by exactly without leaving its normal numbers.
_LOWEST_EXPONENT, _HIGHEST_EXPONENT = -120, 120
# Values are binned in pieces that stay in the processor's cache; memory stays flat for any size of activation.
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts on the dyadic grid, trimmed so that the first and the last bin are not empty.

    Attributes:
        exponent: The bins are `2 ** exponent` wide.
        start: Index of the first bin; its lower edge is `start * width`.
        counts: int64, shape (bins,); empty when nothing was counted.
    """

    exponent: int
    start: int
    counts: Counts

    @classmethod
    def empty(cls) -> Histogram:
        """Return the histogram of no value: the neutral element of `merge`."""
        return cls(_LOWEST_EXPONENT, 0, np.zeros(0, np.int64))

    @classmethod
    def of(cls, values: Values, minimum: float | None = None, maximum: float | None = None) -> Histogram:
        """Return the histogram of `values`, with the smallest exponent that fits them.

        Args:
            values: float32, any shape, finite.
            minimum: The smallest of `values`, where the caller knows it already.
            maximum: The largest of `values`, where the caller knows it already.

        Raises:
            DataError: a value is not finite.
        """
        if not values.size:
            return cls.empty()
        low = float(values.min()) if minimum is None else minimum
        high = float(values.max()) if maximum is None else maximum
        if not (math.isfinite(low) and math.isfinite(high)):
            raise DataError(f"a histogram needs finite values, found values between {low} and {high}")
        exponent = _fitting_exponent(low, high)
        start = _index(low, exponent)
        counts = np.zeros(_index(high, exponent) - start + 1, np.int64)
        for piece in _pieces(values.reshape(-1)):
            counts += _count(piece, exponent, start, counts.size)
        return cls(exponent, start, counts)

    @property
    def width(self) -> float:
        """Width of a bin, a power of two."""
        return math.ldexp(1.0, self.exponent)

    @property
    def edges(self) -> Floats:
        """The bins + 1 edges, as float64."""
        return np.arange(self.start, self.start + self.counts.size + 1, dtype=np.float64) * self.width

    @property
    def count(self) -> int:
        """Number of values counted."""
        return int(self.counts.sum())

    def coarsened(self, exponent: int) -> Histogram:
        """Return the histogram of the same values with bins of width `2 ** exponent`, which must not be finer than now."""
        if exponent == self.exponent or not self.counts.size:
            return self
        indices = (self.start + np.arange(self.counts.size)) >> (exponent - self.exponent)
        counts = np.zeros(int(indices[-1] - indices[0]) + 1, np.int64)
        np.add.at(counts, indices - indices[0], self.counts)
        return Histogram(exponent, int(indices[0]), counts)

    def at_most(self, bins: int) -> Histogram:
        """Return the histogram with the finest bins of which `bins` are enough."""
        found = self
        while found.counts.size > bins:
            found = found.coarsened(found.exponent + 1)
        return found

    def merge(self, other: Histogram) -> Histogram:
        """Return the histogram of the values of both; exact, associative and commutative."""
        if not self.counts.size or not other.counts.size:
            return self if self.counts.size else other
        exponent = max(self.exponent, other.exponent)
        while not self._fits_with(other, exponent):
            exponent += 1
        first, second = self.coarsened(exponent), other.coarsened(exponent)
        start = min(first.start, second.start)
        counts = np.zeros(max(part.start + part.counts.size for part in (first, second)) - start, np.int64)
        for part in (first, second):
            counts[part.start - start : part.start - start + part.counts.size] += part.counts
        return Histogram(exponent, start, counts)

    def spanning_zero(self) -> Histogram:
        """Return the histogram padded with empty bins to reach zero, coarsened as far as that needs.

        A quantized range always holds zero, so that zero stays exact; the observers search on this form.
        """
        zero = Histogram(self.exponent, 0, np.zeros(1, np.int64)).merge(self)
        if zero.start < 0 and zero.start + zero.counts.size == 1 and zero.counts[-1] == 0:
            return Histogram(zero.exponent, zero.start, zero.counts[:-1])
        return zero

    def of_magnitudes(self) -> Histogram:
        """Return the histogram of |x|, starting at zero (a value on an edge moves by at most one bin)."""
        whole = self.spanning_zero()
        negative, positive = whole.counts[: -whole.start][::-1], whole.counts[-whole.start :]
        counts = np.zeros(max(negative.size, positive.size), np.int64)
        counts[: negative.size] += negative
        counts[: positive.size] += positive
        return Histogram(whole.exponent, 0, counts)

    def _fits_with(self, other: Histogram, exponent: int) -> bool:
        parts = (self, other)
        first = min(part.start >> (exponent - part.exponent) for part in parts)
        last = max((part.start + part.counts.size - 1) >> (exponent - part.exponent) for part in parts)
        return last - first < CAPACITY


def _fitting_exponent(low: float, high: float) -> int:
    """Return the smallest exponent for which [low, high] takes at most CAPACITY bins, no finer than float32 is there."""
    finest = _exponent_above(max(abs(low), abs(high))) - 24
    exponent = max(finest, _exponent_above((high - low) / CAPACITY) - 1, _LOWEST_EXPONENT)
    while _index(high, exponent) - _index(low, exponent) >= CAPACITY and exponent < _HIGHEST_EXPONENT:
        exponent += 1
    return exponent


def _exponent_above(value: float) -> int:
    return math.frexp(value)[1] if value else _LOWEST_EXPONENT


def _index(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _pieces(flat: Values) -> Iterator[Values]:
    for begin in range(0, flat.size, _PIECE):
        yield flat[begin : begin + _PIECE]


def _count(piece: Values, exponent: int, start: int, bins: int) -> Counts:
    """Count one piece; every step is exact, because the width is a power of two and the indices stay below 2 ** 24."""
    # With bins wider than one, a tiny negative value would underflow to -0 in float32 and land in the wrong bin.
    exact = np.float32 if exponent <= 0 else np.float64
    scaled = piece * exact(math.ldexp(1.0, -exponent))
    np.floor(scaled, out=scaled)
    scaled -= exact(start)
    return np.bincount(scaled.astype(np.intp), minlength=bins).astype(np.int64, copy=False)
