"""Has a model become worse? One-sided tests on the same samples, so that noise does not look like a regression."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from neural_tune.protocols import Array

_ROUNDS = 2000
_SIGNS_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """What two lists of values per sample say about each other.

    Attributes:
        worse: Samples that got worse.
        better: Samples that got better.
        drop: Mean loss; positive is worse.
        p: Probability of such a loss, or a larger one, if nothing had changed.
        method: The test.
    """

    worse: int
    better: int
    drop: float
    p: float
    method: str


def is_right_or_wrong(values: Array) -> bool:
    """Return whether every value is 0 or 1."""
    return bool(np.isin(values, (0.0, 1.0)).all())


def paired_test(before: Array, after: Array, *, higher_is_better: bool, seed: int = 0) -> PairedTest:
    """Return the one-sided paired test of a loss.

    Right-or-wrong values: McNemar's exact test (Q. McNemar, Psychometrika 12, 1947): among the samples that changed, worse and better are
    equally likely if nothing changed. Other values: the sign-flip permutation test of the mean difference (R. A. Fisher, 1935), 2,000 draws.

    Args:
        before: Value per sample then, float (n,).
        after: Value per sample now, in the same order.
        higher_is_better: Direction of the values.
        seed: Of the draws.
    """
    drops = (before - after) if higher_is_better else (after - before)
    drops = np.where(np.isnan(drops), np.inf, drops)  # an output that became NaN is as bad as can be
    worse, better = int((drops > 0).sum()), int((drops < 0).sum())
    finite = drops[np.isfinite(drops)]
    drop = float(drops.mean()) if len(finite) == len(drops) else math.inf
    if is_right_or_wrong(before) and is_right_or_wrong(after):
        return PairedTest(worse=worse, better=better, drop=drop, p=mcnemar(worse, better), method="McNemar, exact")
    p = 0.0 if math.isinf(drop) else _sign_flips(drops, seed)
    return PairedTest(worse=worse, better=better, drop=drop, p=p, method="paired permutation")


def mcnemar(worse: int, better: int) -> float:
    """Return the probability of at least `worse` heads among `worse + better` throws of a fair coin."""
    throws = worse + better
    if worse <= better:  # the sum would only say that there is no loss
        return 1.0
    logs = [_log_choose(throws, heads) - throws * math.log(2) for heads in range(worse, throws + 1)]
    return min(1.0, math.fsum(math.exp(value) for value in logs))


def ratio_interval(before: Array, after: Array, *, seed: int = 0, level: float = 0.99) -> tuple[float, float, float]:
    """Return mean(after) / mean(before) and the ends of its paired bootstrap interval."""
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, len(before), (_ROUNDS, len(before)))
    low, high = np.quantile(
        _ratio(after[rows].mean(axis=1), before[rows].mean(axis=1)), [(1 - level) / 2, (1 + level) / 2]
    )
    return float(_ratio(after.mean(), before.mean())), float(low), float(high)


def _ratio(after: Array | np.floating, before: Array | np.floating) -> Array:
    floor = np.finfo(np.float64).tiny
    return np.asarray((after + floor) / (before + floor))


def _sign_flips(drops: Array, seed: int) -> float:
    changed = drops[drops != 0]
    if drops.mean() <= 0:
        return 1.0
    generator = np.random.default_rng(seed)
    observed = changed.sum()
    rounding = 1e-12 * float(np.abs(changed).sum())  # losses of 1e-15 per sample are losses, too
    # In blocks: all sign vectors of a large set would not fit into memory. The draws are the same for any size of a block.
    rows = max(1, _SIGNS_AT_ONCE // len(changed))
    hits = 0
    for begin in range(0, _ROUNDS, rows):
        signs = generator.choice((-1.0, 1.0), (min(rows, _ROUNDS - begin), len(changed)))
        hits += int(np.count_nonzero(signs @ changed >= observed - rounding))
    return (hits + 1) / (_ROUNDS + 1)


def _log_choose(total: int, chosen: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)
