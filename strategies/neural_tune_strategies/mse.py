"""Fallback in the order of output error, then back to int8: the idea of INC 2.x's `mse` and `mse_v2`, repaired.

On N groups, ranked by the divergence that each causes alone in the model's outputs (`insight.divergence`):

1. full int8: 1 trial
2. the worst group to float, then the worst of those left as well, until accepted: at most N - 1
3. nothing accepted: the group that is alone in int8 on the last trial may be the only culprit, so it alone in float: 1
4. accepted: the least sensitive of the float groups is quantized again and stays so where that is accepted, then the next: at most
   N - 2 (taking back the last one that stage 2 added is a trial of stage 2)

Worst case 2 N - 2 trials, and N + 1 for N < 3 (stages 3 and 4 exclude each other). INC ranked by the error of the op's own output, which says nothing about the
model's (rank correlation near 0, measured), stored measured accuracies under wrong op names, reversed the order
for lower-is-better metrics, and ranked again after every step with a new pass over the calibration data; divergences of single
groups add up, so what is left needs no new ranking. Divergences are asked for when full int8 was rejected; without them the last op is taken as the worst.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from neural_tune.protocols import Forecast
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT, Candidate, FrozenMap, History, Insight, ProbeRequest, Proposal
from neural_tune_strategies.verdicts import Verdicts


class Mse:
    """One fallback at a time by output divergence, as strategy `mse`; see the module for the stages and their cost.

    Each trial decides the next, so it waits for pending ones. The seed plays no part.
    """

    name = "mse"
    needs_exact_metrics = False
    wants: frozenset[str] = frozenset()
    probe = "divergence"
    label = "output error"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def scores(self, insight: Insight) -> FrozenMap[float]:
        """Return group -> how much it hurts in int8."""
        return insight.divergence

    def propose(self, space: TuningSpace, history: History) -> Proposal | ProbeRequest | None:
        """Return the next candidate of the stages; None when they are over or a pending result decides how to go on."""
        verdicts = Verdicts(history)
        if space.groups and verdicts.is_done(space.preferred()) and not verdicts.is_accepted(space.preferred()):
            insight = history.insight
            if insight is not None and self.probe not in insight.answered:
                return ProbeRequest((self.probe,))
        ranked = _ranked(space, self.scores(history.insight or Insight()))
        return verdicts.first_open(_stages(space, ranked, self.label, verdicts))

    def is_content(self, space: TuningSpace, history: History) -> bool:
        """Return whether an accepted model has been taken back to int8 as far as it goes."""
        return bool(history.accepted) and self.propose(space, history) is None and not history.pending

    def forecast(self, space: TuningSpace) -> Forecast:
        """Return a quarter of the fallbacks and as many steps back, and the worst case of all stages."""
        groups = len(space.groups)
        if groups < 2:
            return Forecast(expected=groups, worst=groups)
        return Forecast(expected=1 + groups // 2, worst=max(groups + 1, 2 * groups - 2))


def _stages(space: TuningSpace, ranked: list[str], label: str, verdicts: Verdicts) -> Iterator[Proposal]:
    """Yield the search; when it is resumed, the verdict on what was yielded last is known."""
    if not space.groups:
        return
    full = space.preferred()
    yield Proposal(full, "full int8")
    if verdicts.is_accepted(full):
        return
    for count in range(1, len(ranked)):
        candidate = _in_float(space, ranked[:count])
        yield Proposal(candidate, f"{count} groups in float by {label}, now also {ranked[count - 1]}")
        if verdicts.is_accepted(candidate):
            yield from _steps_back(space, verdicts, ranked[:count])
            return
    if len(ranked) > 1:
        yield Proposal(_in_float(space, ranked[-1:]), f"{ranked[-1]} alone in float: it fails by itself")


def _steps_back(space: TuningSpace, verdicts: Verdicts, fallen: list[str]) -> Iterator[Proposal]:
    left = list(fallen)
    for name in reversed(fallen[:-1]):  # without the last one it was rejected
        fewer = [other for other in left if other != name]
        candidate = _in_float(space, fewer)
        yield Proposal(candidate, f"{name} quantized again, {len(fewer)} groups in float")
        if verdicts.is_accepted(candidate):
            left = fewer


def _ranked(space: TuningSpace, scores: Mapping[str, float]) -> list[str]:
    """Return the groups, the largest score first; unknown ones and equals in reverse execution order."""
    known = {name: value for name, value in scores.items() if not math.isnan(value)}
    names = [group.name for group in reversed(space.groups)]
    return sorted(names, key=lambda name: -known.get(name, 0.0))


def _in_float(space: TuningSpace, names: list[str]) -> Candidate:
    changes = {op: FLOAT for group in space.groups if group.name in names for op in group.ops}
    return space.preferred().with_ops(changes)
