"""The ladder: candidates from the cheapest to the most accurate, each with a few more groups in float than the one before.

Every rung minimises cost + weight x error for some weight: the convex part of the (error, cost) front of HAWQ-V3 (Yao et al. 2021) and
ModelOpt, which solve the same problem as an integer program. Here it is a minimum cut, because the costs of float/int8 borders
and damage booked on tensors are submodular: exact, and nested (a larger weight only adds floats; Gallo, Grigoriadis and Tarjan 1989), so a
search along the ladder is a search along one line. What does not pay in cost is float on the first rung already.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from neural_tune.values import FrozenMap
from neural_tune_strategies.auto.costs import Costs
from neural_tune_strategies.auto.cut import Labelling
from neural_tune_strategies.auto.ranking import ErrorModel

_Floats = frozenset[str]
# Steps by which the error falls more than this are filled in, each with at most so many points.
_LARGE_STEP = 1.25
_MOST_TAKEN_BACK = 8
# All float must be cheaper than full int8 by this share to be believed.
_DOUBT = 0.15


@dataclass(frozen=True, slots=True)
class Rung:
    """One point of the front.

    Attributes:
        floats: Names of the groups in float; never all of them.
        error: Predicted divergence of the outputs.
        cost: Predicted cost, in the unit of the costs.
    """

    floats: frozenset[str]
    error: float
    cost: float


def ladder(model: ErrorModel, costs: Costs) -> tuple[Rung, ...]:
    """Return the rungs from the cheapest candidate to the one with a single group left in int8.

    Errors fall and costs rise along the ladder, up to the groups of which the model expects no harm: they come last, one by one.
    """
    everything = frozenset(model.own)
    costs, _ = guiding(model.own, costs)
    sets = _refined(_hull(everything, model, costs), model, costs)
    rungs = _undominated(_rung(floats, model, costs) for floats in sets if floats != everything)
    rungs = _undominated([*rungs, *_between(rungs, model, costs)])
    floats = rungs[-1].floats if rungs else frozenset()
    for name in sorted(everything - floats, key=lambda name: (-model.own[name], costs.extra[name], name))[:-1]:
        floats |= {name}
        rungs.append(_rung(floats, model, costs))
    return tuple(rungs)


def guiding(groups: Iterable[str], costs: Costs) -> tuple[Costs, _Floats]:
    """Return the costs that a search goes by, and the float groups of its cheapest candidate.

    Where all float is the cheapest, but not by much, int8 gets the benefit of the doubt, which a short profile on a busy machine leaves: float groups cost
    a little more then. Where that keeps less than half in int8, int8 pays nowhere: groups are counted instead, and the cheapest candidate is full int8.
    """
    names = tuple(groups)
    everything = frozenset(names)
    found = _cheapest_of_all(costs, everything)
    if not names or found != everything:
        return costs, found
    charge = _DOUBT * costs.base / len(names)
    doubted = replace(costs, extra=FrozenMap({name: extra + charge for name, extra in costs.extra.items()}))
    found = _cheapest_of_all(doubted, everything)
    if charge > 0.0 and 2 * len(found) <= len(names):
        return doubted, found
    return Costs(unit="ops", extra=FrozenMap(dict.fromkeys(names, 1.0))), frozenset()


def _cheapest_of_all(costs: Costs, everything: _Floats) -> _Floats:
    return cheapest(ErrorModel(own=FrozenMap(dict.fromkeys(everything, 0.0))), costs, 0.0, frozenset(), everything)


def _rung(floats: _Floats, model: ErrorModel, costs: Costs) -> Rung:
    return Rung(floats, model.predict(floats), costs.predict(floats))


def cheapest(model: ErrorModel, costs: Costs, weight: float, least: _Floats, most: _Floats) -> _Floats:
    """Return the float groups, between `least` and `most`, that minimise cost + `weight` x error; of several sets the smallest."""
    labels = Labelling(int8=frozenset(model.own) - most, floats=least | {""})
    free = most - least
    for name in free:
        labels.prefer(name, if_float=costs.extra[name], if_int8=weight * model.own[name])
    for border in costs.borders:
        if not border.is_around(free):
            continue  # decided by what is fixed
        crossing, returning = ("float", border), ("int8", border)
        labels.charge(border.producer, crossing, border.leave)
        labels.charge(returning, border.producer, border.enter)
        for consumer in border.consumers:
            labels.charge(crossing, consumer, None)  # one conversion serves every float consumer ...
            labels.charge(consumer, returning, None)  # ... and one every int8 consumer
    for companion, writer in costs.needs:
        if companion in free or writer in free:
            labels.charge(companion, writer, None)  # int8 beside a float writer, it would run in float all the same
    for shared in model.shared:
        labels.prefer(shared, if_float=0.0, if_int8=weight * shared.damage)
        for name in shared.groups:
            labels.charge(name, shared, None)
    return least | {node for node in labels.solve() if isinstance(node, str)}


def _hull(everything: _Floats, model: ErrorModel, costs: Costs) -> list[_Floats]:
    """Return the nested corners of the convex front, from the cheapest set to all float."""
    start = cheapest(model, costs, 0.0, frozenset(), everything)
    corners, open_pairs = {start, everything}, [(start, everything)]
    while open_pairs:
        low, high = open_pairs.pop()
        saved = model.predict(low) - model.predict(high)
        spent = costs.predict(high) - costs.predict(low)
        if saved <= 0.0 or spent <= 0.0:
            continue
        # Between the two, a corner lies below the line that joins them.
        middle = cheapest(model, costs, spent / saved, low, high)
        if middle not in corners:
            corners.add(middle)
            open_pairs += [(low, middle), (middle, high)]
    return sorted(corners, key=len)


def _refined(corners: Sequence[_Floats], model: ErrorModel, costs: Costs) -> list[_Floats]:
    """Insert single steps where one corner adds several groups: the most damage per cost first, groups around a bad tensor together."""
    sets = list(corners[:1])
    for low, high in itertools.pairwise(corners):
        floats = low
        for unit in _units(high - low, model, costs):
            floats |= unit
            sets.append(floats)
    return sets


def _units(added: _Floats, model: ErrorModel, costs: Costs) -> list[_Floats]:
    """Split `added` into single groups and families of a bad tensor, the most rewarding first."""
    order = [name for name in reversed(tuple(model.own)) if name in added]
    units: list[_Floats] = []
    for shared in sorted(model.shared, key=lambda shared: -shared.damage):
        members = (shared.groups & added) - _union(units)
        if len(members) > 1:
            units.append(members)
    units += [frozenset({name}) for name in order if name not in _union(units)]

    def reward(unit: _Floats) -> float:
        shared = sum(damage.damage for damage in model.shared if damage.groups & unit)
        damage = shared + sum(model.own[name] for name in unit)
        return damage / max(sum(costs.extra[name] for name in unit), 1e-9)

    return sorted(units, key=reward, reverse=True)


def _union(units: Iterable[_Floats]) -> _Floats:
    return frozenset().union(*units)


def _between(rungs: Sequence[Rung], model: ErrorModel, costs: Costs) -> list[Rung]:
    """Return points off the convex front, where a step of the ladder is large.

    A large step adds something dear that takes away much error. With it, what was added before may be needless: it is quantized again, the
    least harm per cost first, as long as the error stays below that of the rung before.
    """
    found = []
    for low, high in itertools.pairwise(rungs):
        if low.error <= _LARGE_STEP * high.error:
            continue
        floats = high.floats
        for unit in reversed(_units(low.floats & high.floats, model, costs)[-_MOST_TAKEN_BACK:]):
            if costs.predict(floats - unit) < costs.predict(floats) and model.predict(floats - unit) < low.error:
                floats -= unit
                found.append(_rung(floats, model, costs))
    return found


def _undominated(rungs: Iterable[Rung]) -> list[Rung]:
    """Leave out rungs that another one beats in error and cost, and doubles."""
    kept: list[Rung] = []
    for rung in sorted(rungs, key=lambda rung: (rung.cost, rung.error, len(rung.floats))):
        if not kept or rung.error < kept[-1].error:
            kept.append(rung)
    return kept
