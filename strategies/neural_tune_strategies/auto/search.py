"""Which rung of the ladder to try next, from the verdicts on the rungs so far.

Rejections are cheap (5 to 40 % of a pass, exact), an acceptance costs a whole pass. So the search comes from below, in as many steps as
the pass budget has room for, and takes the first rung that is accepted. The steps are not equal: each
covers the same share of what is believed, before the search, about where the first acceptable rung lies. One half of that belief is
on rungs where the predicted error falls steeply, the other half on ladders' beginnings (an equal share for 1, 2-3, 4-7 ... floats),
because rankings are noisy and few bad ops are the rule.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

# Below this share of the error of full int8 a further fall means nothing.
_NEGLIGIBLE = 1e-3
# Loss grows with this power of the error of the outputs until two trials tell (measured on two image tasks: 2.5 where full int8 fails badly,
# 1 near the criterion); powers outside the limits are noise.
_FIRST_EXPONENT = 0.5
_LEAST_POWER, _MOST_POWER = 0.5, 4.0
# Steps are this much finer than the budget has room for if all of them were rejected: few searches climb to the top.
_FINER = 2.5
# Within a bracket, accept with this probability: an acceptance costs as much as about eight rejections.
_BIAS = 1 / 3


def belief(errors: Sequence[float], *, is_informed: bool) -> list[float]:
    """Return for every rung the probability (not normalised) that it is the first acceptable one; 0 for rung 0."""
    by_count = [math.log((rung + 1) / rung) for rung in range(1, len(errors))]
    floor = _NEGLIGIBLE * max(errors, default=0.0)
    if not is_informed or floor <= 0.0 or len(errors) < 2:
        return [0.0, *by_count]
    by_error = [max(0.0, math.log((one + floor) / (other + floor))) for one, other in itertools.pairwise(errors)]
    count, error = math.fsum(by_count), math.fsum(by_error) or 1.0
    return [0.0, *(a / count + b / error for a, b in zip(by_count, by_error, strict=True))]


def gallop(beliefs: Sequence[float], rejected: int, probes_left: int) -> int:
    """Return the next rung above `rejected` when none is accepted yet.

    `probes_left` rejections fit into the budget; the next step covers one share in `probes_left` + 1 of the belief that is left.
    """
    return _quantile(beliefs, rejected, len(beliefs) - 1, 1.0 / (_FINER * probes_left + 1))


def bisect(beliefs: Sequence[float], rejected: int, accepted: int) -> int | None:
    """Return a rung between the two, nearer to the rejected one; None when there is none."""
    if accepted - rejected < 2:
        return None
    return min(_quantile(beliefs, rejected, accepted, _BIAS), accepted - 1)


def aim(errors: Sequence[float], losses: Mapping[int, float]) -> int:
    """Return the next rung when whole metrics are known: `losses` holds rejected rungs and their losses in tolerable ones, above 1.

    A power law through the two highest of them says at which error the loss is tolerable; from one alone a square, because metrics saturate
    where the error is large.
    """
    last = max(losses)
    before = max((rung for rung in losses if rung < last and losses[rung] > losses[last] > 0.0), default=None)
    power = 1.0 / _FIRST_EXPONENT
    if before is not None and errors[before] > errors[last] > 0.0:
        power = math.log(losses[before] / losses[last]) / math.log(errors[before] / errors[last])
    target = errors[last] / max(losses[last], 1.0) ** (1.0 / min(max(power, _LEAST_POWER), _MOST_POWER))
    return next((rung for rung in range(last + 1, len(errors)) if errors[rung] <= target), len(errors) - 1)


def _quantile(beliefs: Sequence[float], after: int, last: int, share: float) -> int:
    wanted = share * math.fsum(beliefs[after + 1 : last + 1])
    covered = 0.0
    for rung in range(after + 1, last):
        covered += beliefs[rung]
        if covered >= wanted:
            return rung
    return last
