"""Every way to take a quantization range from the statistics of a tensor; pure functions, no data needed any more.

| observer | idea | source |
|---|---|---|
| minmax | everything observed is representable | |
| percentile | a fixed share of the values is kept, the rest clipped | McKinstry et al. 2018, arXiv:1809.04191 |
| kl | the clipped and quantized distribution tells most about the original one | Migacz, "8-bit inference with TensorRT", GTC 2017 |
| mse | the expected squared error, rounding and clipping together, is smallest | Choukroun et al. 2019, arXiv:1902.06822; Banner et al. 2019 |

Two conventions hold for all of them. A quantized range always holds zero, so an asymmetric search runs over `low <= 0 <= high`; the
result is then cut to what was observed. And values that are exactly zero cost nothing in any range (zero is a
level), so kl and mse leave them out: after a Relu they would drown the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from neural_tune.errors import ConfigError
from neural_tune.numerics.histogram import BINS, Histogram, Values
from neural_tune.values import Observer

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Integers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Range: TypeAlias = tuple[float, float]

DEFAULT_PERCENTILE = 99.99
# A distribution of fewer values than this per level is noise: kl then keeps the whole range.
_VALUES_PER_LEVEL = 4
# mse looks for each end over this many powers of two below the observed bound, down to this spacing (2 %).
_OCTAVES = 10.0
_FINEST_OCTAVE = 1.0 / 32.0
# kl tries this many thresholds per end, and turns between the two ends this often.
_THRESHOLDS = 256
_SWEEPS = 4
# kl clips at most this share of the values at each end.
_CLIPPED_MOST = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """What was seen of one tensor: all that an observer needs to know.

    Attributes:
        minimum: Smallest value, exactly as float32 held it.
        maximum: Largest value, exactly as float32 held it.
        zeros: Number of values that are exactly zero (after a Relu often half).
        histogram: Counts of all values, zeros included.
    """

    minimum: float
    maximum: float
    zeros: int
    histogram: Histogram

    @classmethod
    def of(cls, values: Values, minimum: float | None = None, maximum: float | None = None) -> Observed:
        """Return what one array shows.

        Args:
            values: float32 or float16, any shape, not empty, finite.
            minimum: The smallest of `values`, where the caller knows it already.
            maximum: The largest of `values`, where the caller knows it already.

        Raises:
            DataError: a value is not finite.
        """
        low = float(values.min()) if minimum is None else minimum
        high = float(values.max()) if maximum is None else maximum
        zeros = int(values.size - np.count_nonzero(values))
        return cls(low, high, zeros, Histogram.of(values, low, high))

    def merge(self, other: Observed) -> Observed:
        """Return what both have seen; exact, associative and commutative."""
        return Observed(
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            self.zeros + other.zeros,
            self.histogram.merge(other.histogram),
        )

    @property
    def count(self) -> int:
        """Number of values."""
        return self.histogram.count


def find_range(
    observed: Observed, observer: Observer, *, percentile: float | None = None, symmetric: bool, levels: int
) -> Range:
    """Return the (low, high) that `observer` takes.

    Args:
        observed: Statistics of the tensor.
        observer: Which of the ways above.
        percentile: For the percentile observer: share of the values that is kept, in percent; None means 99.99.
        symmetric: True gives (-t, t) with t at most the largest |x|; False stays within minimum and maximum.
        levels: Number of integers of the quantized type, at least 2.

    Raises:
        ConfigError: `levels` or `percentile` is out of its domain.
    """
    if levels < 2:
        raise ConfigError(f"levels={levels}: a quantized type has at least 2 integers (256 for 8 bits)")
    share = DEFAULT_PERCENTILE if percentile is None else percentile
    if not 50.0 < share <= 100.0:
        raise ConfigError(f"percentile={share}: expected a share in percent, above 50 and at most 100")
    search: dict[Observer, Callable[[], Range]] = {
        Observer.MINMAX: partial(_minmax, observed, symmetric=symmetric),
        Observer.PERCENTILE: partial(_percentile, observed, share / 100.0, symmetric=symmetric),
        Observer.KL: partial(_kl, observed, symmetric=symmetric, levels=levels),
        Observer.MSE: partial(_mse, observed, symmetric=symmetric, levels=levels),
    }
    if observer not in search:
        raise ConfigError(
            f"observer {observer.value!r}: it is for weights; an activation takes one of {', '.join(search)}"
        )
    low, high = search[observer]()
    bottom, top = _minmax(observed, symmetric=symmetric)
    return max(low, bottom), min(high, top)


def _minmax(observed: Observed, *, symmetric: bool) -> Range:
    if symmetric:
        bound = max(abs(observed.minimum), abs(observed.maximum))
        return -bound, bound
    return observed.minimum, observed.maximum


def _is_plain(observed: Observed, levels: int) -> bool:
    """Return whether a histogram has nothing to say: a point, only zeros, or more levels than bins (16-bit types)."""
    return levels > BINS or observed.minimum == observed.maximum or observed.histogram.count <= observed.zeros


# --- percentile ----------------------------------------------------------------------------------------------------------


def _percentile(observed: Observed, share: float, *, symmetric: bool) -> Range:
    """Symmetric: the quantile of |x| at `share`. Asymmetric: (1 - share) / 2 is clipped at each end, so `share` is kept.

    Exact to within one bin. A range that would shrink below one bin (a tensor that is nearly always zero) keeps the
    minimum and maximum: everything that tensor says would be clipped away.
    """
    if symmetric:
        magnitudes = observed.histogram.of_magnitudes()
        bound = _quantile(magnitudes, share)
        low, high = -bound, bound
    else:
        low, high = (_quantile(observed.histogram, part) for part in ((1.0 - share) / 2.0, (1.0 + share) / 2.0))
    if min(max(high, 0.0), observed.maximum) - max(min(low, 0.0), observed.minimum) <= observed.histogram.width:
        return _minmax(observed, symmetric=symmetric)
    return low, high


def _quantile(histogram: Histogram, share: float) -> float:
    """Return the value below which `share` of the values lie, taking them as even within a bin."""
    total = np.cumsum(histogram.counts)
    wanted = share * float(total[-1])
    position = min(int(np.searchsorted(total, wanted, side="left")), total.size - 1)
    inside = float(histogram.counts[position])
    before = float(total[position]) - inside
    part = (wanted - before) / inside if inside else 0.0
    return (histogram.start + position + min(max(part, 0.0), 1.0)) * histogram.width


# --- mse -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Running sums of 1, x and x^2 over a histogram, with x in bins; exact where values are even within a bin.

    Attributes:
        start: Index of the first bin.
        counts: float64, shape (bins,), exact zeros left out.
        zeroth: float64, shape (bins + 1,): number of values below each edge.
        first: float64, shape (bins + 1,): their sum.
        square: Sum of x^2 over all values.
    """

    start: int
    counts: Floats
    zeroth: Floats
    first: Floats
    square: float

    @classmethod
    def of(cls, histogram: Histogram, zeros: int) -> Moments:
        """Return the sums for `histogram`, which must span zero."""
        counts = _without_zeros(histogram, zeros)
        edges = np.arange(histogram.start, histogram.start + counts.size + 1, dtype=np.float64)
        square = float((counts * np.diff(edges**3) / 3.0).sum())
        return cls(histogram.start, counts, _running(counts), _running(counts * np.diff(edges**2) / 2.0), square)

    def below(self, points: Floats) -> tuple[Floats, Floats]:
        """Return the number and the sum of the values below each of `points` (in bins, any shape)."""
        inside = np.clip(points, self.start, self.start + self.counts.size)
        position = np.minimum((inside - self.start).astype(np.int64), self.counts.size - 1)
        edge = (position + self.start).astype(np.float64)
        part = inside - edge
        number = self.counts[position] * part
        return self.zeroth[position] + number, self.first[position] + number * (edge + part / 2.0)


def expected_error(moments: Moments, lows: Floats, highs: Floats, levels: int) -> Floats:
    """Return the total squared error of quantizing to `levels` integers over each range, rounding and clipping together.

    The grid is the runtime's: step = (high - low) / (levels - 1), zero_point = round(-low / step), so that zero is a level. The
    level at v gathers the values nearer to it than to its neighbours, the outer two also everything beyond. With the
    running sums of 1, x and x^2, a level costs `sum x^2 - 2 v sum x + v^2 sum 1`, whatever the number of bins under it.

    Args:
        moments: Of the tensor.
        lows: float64, shape (ranges,), at most 0, in bins.
        highs: float64, shape (ranges,), at least 0 and above `lows`, in bins.
        levels: Number of integers.

    Returns:
        float64, shape (ranges,), in squared bins.
    """
    step = ((highs - lows) / (levels - 1))[:, None]
    zero_point = np.clip(np.rint(-lows[:, None] / step), 0, levels - 1)
    value = (np.arange(levels) - zero_point) * step
    number, total = moments.below(value[:, 1:] - step / 2.0)
    squares = _per_level(number, moments.zeroth[-1]) * value * value
    products = _per_level(total, moments.first[-1]) * value
    errors: Floats = moments.square + (squares - 2.0 * products).sum(axis=1)
    return errors


def _per_level(below: Floats, total: float) -> Floats:
    """Return what falls to every level, from what lies below each border between two levels."""
    return np.diff(below, axis=1, prepend=0.0, append=total)


def _mse(observed: Observed, *, symmetric: bool, levels: int) -> Range:
    """Search both ends on a geometric grid (clipping pays over octaves, not over steps), then on finer ones around the best."""
    if _is_plain(observed, levels):
        return _minmax(observed, symmetric=symmetric)
    histogram = observed.histogram.spanning_zero()
    moments = Moments.of(histogram, observed.zeros)
    low, high = (bound / histogram.width for bound in _minmax(observed, symmetric=symmetric))
    low, high = min(low, 0.0), max(high, 0.0)
    best, spacing = (0.0, 0.0), 0.5
    octaves = np.arange(0.0, _OCTAVES, spacing)
    while True:
        lows, highs = (np.clip(octaves + center, 0.0, None) for center in best)
        shifts = (
            np.stack([highs, highs]) if symmetric else _pairs(lows if low else lows[:1], highs if high else highs[:1])
        )
        errors = expected_error(moments, low * np.exp2(-shifts[0]), high * np.exp2(-shifts[1]), levels)
        best = tuple(shifts[:, int(errors.argmin())].tolist())
        if spacing <= _FINEST_OCTAVE:
            break
        octaves, spacing = np.arange(-1.0, 1.5, 0.5) * spacing, spacing / 2.0
    return low * 2.0 ** -best[0] * histogram.width, high * 2.0 ** -best[1] * histogram.width


def _pairs(lows: Floats, highs: Floats) -> Floats:
    return np.stack([grid.reshape(-1) for grid in np.meshgrid(lows, highs, indexing="ij")])


# --- kl ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Density:
    """Running sums over a histogram that make the divergence of any window cost O(levels).

    Attributes:
        counts: float64, shape (bins,), exact zeros left out.
        mass: float64, shape (bins + 1,): values below each edge.
        filled: int64, shape (bins + 1,): bins below each edge that are not empty.
        entropy: float64, shape (bins + 1,): sum of c log c below each edge.
    """

    counts: Floats
    mass: Floats
    filled: Integers
    entropy: Floats

    @classmethod
    def of(cls, counts: Floats) -> Density:
        """Return the sums for `counts`."""
        filled = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts > 0)])
        return cls(counts, _running(counts), filled, _running(_x_log_x(counts)))


def divergence(density: Density, first: Integers, last: Integers, levels: int) -> Floats:
    """Return KL(P || Q) in nats for each window of bins [first, last).

    P is the histogram within the window, with everything outside added to the window's outermost bins, as clipping does.
    Q is the histogram within the window (nothing added), merged into `levels` equal groups of bins and spread
    evenly over those bins of a group that are not empty. Both are normalised.

    Args:
        density: Of the tensor.
        first: int64, shape (windows,). The bin `first`, and `last - 1`, must not be empty where anything lies beyond it.
        last: int64, shape (windows,), at least `first + levels`.
        levels: Number of groups.
    """
    borders = first[:, None] - (-np.arange(levels + 1) * (last - first)[:, None]) // levels
    mass, filled = np.diff(density.mass[borders], axis=1), np.diff(density.filled[borders], axis=1)
    spread = np.log(np.where(mass > 0, mass, 1.0) / np.maximum(filled, 1))
    total, inside = density.mass[-1], density.mass[last] - density.mass[first]
    under, over = density.mass[first], total - density.mass[last]
    own = density.entropy[last] - density.entropy[first]
    for edge, outside in ((first, under), (last - 1, over)):
        own = own + _x_log_x(density.counts[edge] + outside) - _x_log_x(density.counts[edge])
    cross = (mass * spread).sum(axis=1) + under * spread[:, 0] + over * spread[:, -1]
    nats: Floats = (own - cross) / total + np.log(inside / total)
    return nats


def _kl(observed: Observed, *, symmetric: bool, levels: int) -> Range:
    """Search the window that minimises the divergence: one threshold on |x|, or both ends in turn until neither moves.

    A window holds at least one bin per level, as in Migacz's scheme, so an 8-bit range is never clipped below 1/16 to 1/8 of what was
    observed. And each end clips at most 1 % of the values: without that, a window that holds next to nothing would
    win (all of P and all of Q in one bin: no divergence), for instance on values that lie far from zero.
    """
    histogram = observed.histogram.of_magnitudes() if symmetric else observed.histogram.spanning_zero()
    groups = max(levels // 2, 2) if symmetric else levels
    counts = _without_zeros(histogram, observed.zeros)
    if _is_plain(observed, levels) or counts.size <= groups or counts.sum() < _VALUES_PER_LEVEL * groups:
        return _minmax(observed, symmetric=symmetric)
    density, zero = Density.of(counts), -histogram.start
    least, most = np.searchsorted(density.mass, density.mass[-1] * np.array([_CLIPPED_MOST, 1.0 - _CLIPPED_MOST]))
    negative, positive = np.flatnonzero(counts[:zero]), np.flatnonzero(counts[zero:]) + zero + 1
    starts = negative[negative < least] if negative.size else np.zeros(1, np.int64)
    ends = positive[positive >= most] if positive.size else np.full(1, counts.size)
    # The divergence has local minima in two dimensions: descend from the widest and from the tightest window.
    descents = [_descend(density, starts, ends, groups, last) for last in (int(ends[-1]), int(ends[0]))]
    first, last = min(descents, key=lambda window: window[0])[1:]
    low, high = ((edge + histogram.start) * histogram.width for edge in (first, last))
    return (-high, high) if symmetric else (low, high)


def _descend(density: Density, starts: Integers, ends: Integers, groups: int, last: int) -> tuple[float, int, int]:
    """Return (divergence, first, last) where neither end can be moved alone any more, beginning with the best start for `last`."""
    first, least = int(starts[0]), np.inf
    for _ in range(_SWEEPS):
        before = least
        options = _thinned(starts[starts <= last - groups])
        if options.size:
            costs = divergence(density, options, np.full_like(options, last), groups)
            first, least = int(options[costs.argmin()]), float(costs.min())
        options = _thinned(ends[ends >= first + groups])
        if options.size:
            costs = divergence(density, np.full_like(options, first), options, groups)
            last, least = int(options[costs.argmin()]), float(costs.min())
        if least == before:
            break
    return least, first, last


def _thinned(candidates: Integers) -> Integers:
    """Return at most _THRESHOLDS of the candidates, evenly chosen, both outermost ones included."""
    if candidates.size <= _THRESHOLDS:
        return candidates
    return candidates[np.linspace(0, candidates.size - 1, _THRESHOLDS).astype(np.int64)]


# --- common --------------------------------------------------------------------------------------------------------------


def _without_zeros(histogram: Histogram, zeros: int) -> Floats:
    """Return the counts with exact zeros taken out of the bin they fall into; `histogram` must span zero."""
    counts = histogram.counts.astype(np.float64)
    if zeros:
        counts[-histogram.start] -= zeros
    return counts


def _running(values: Floats) -> Floats:
    return np.concatenate([np.zeros(1), np.cumsum(values)])


def _x_log_x(values: Floats) -> Floats:
    return values * np.log(np.where(values > 0, values, 1.0))
