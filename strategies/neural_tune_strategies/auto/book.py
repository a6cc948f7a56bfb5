"""What the history says about one family of candidates: the preferred precisions, some groups in float, one set of recipes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT, Candidate, History, TrialResult, TrialStatus

Floats = frozenset[str]


@dataclass(frozen=True, slots=True)
class Family:
    """All candidates that differ from full int8, with `recipes`, in nothing but float groups."""

    space: TuningSpace
    recipes: tuple[str, ...]
    _memo: dict[Candidate, Floats | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def candidate(self, floats: Floats) -> Candidate:
        """Return the candidate whose float groups are `floats`."""
        chosen = {group.name: group.choices[0] for group in self.space.groups if group.name not in floats}
        return Candidate.of(self.space.candidate(chosen).ops, (), self.recipes)

    def floats(self, candidate: Candidate) -> Floats | None:
        """Return the float groups of a member; None for any other candidate."""
        if candidate not in self._memo:
            self._memo[candidate] = self._floats(candidate)
        return self._memo[candidate]

    def _floats(self, candidate: Candidate) -> Floats | None:
        if candidate.ranges or candidate.recipes != self.recipes or candidate.is_float:
            return None
        found = {group.name for group in self.space.groups if self.space.choice_of(candidate, group) == FLOAT}
        member = self.candidate(frozenset(found))
        return frozenset(found) if member == candidate else None


class Book:
    """The verdicts on the members of a family."""

    def __init__(self, family: Family, history: History) -> None:
        self._history = history
        self._results: dict[Floats, TrialResult] = {}
        for result in history.results:
            floats = family.floats(result.trial.candidate)
            if floats is not None:
                self._results.setdefault(floats, result)
        self.accepted = frozenset(floats for floats, result in self._results.items() if result.is_accepted)
        self._inaccurate = frozenset(
            floats
            for floats, result in self._results.items()
            if not result.is_accepted and result.status is not TrialStatus.FAILED
        )

    def is_known(self, floats: Floats) -> bool:
        """Return whether it was tried."""
        return floats in self._results

    def is_rejected(self, floats: Floats) -> bool:
        """Return whether it was tried in vain, or must miss the criterion because one with more floats did."""
        if floats in self._results:
            return not self._results[floats].is_accepted
        return any(floats < other for other in self._inaccurate)

    def loss(self, floats: Floats) -> float | None:
        """Return the loss in units of the tolerable loss, the worst over the metrics; None unless it is known and finite."""
        result = self._results.get(floats)
        verdict = self._history.verdict(result) if result and result.status is TrialStatus.COMPLETE else None
        if verdict is None:
            return None
        rules = self._history.criterion.constraints(self._history.baseline.metrics)
        losses = [(loss, rules[name].tolerable_loss) for name, loss in verdict.losses.items()]
        worst = max((loss / tolerable if tolerable else math.inf for loss, tolerable in losses), default=math.inf)
        return worst if math.isfinite(worst) else None

    @property
    def passes_of_a_rejection(self) -> float | None:
        """Mean passes of the trials that were rejected before the end; None when there was none."""
        passes = [result.passes for result in self._results.values() if result.status is TrialStatus.REJECTED]
        return math.fsum(passes) / len(passes) if passes else None

    @property
    def trials_since_acceptance(self) -> int:
        """Number of trials that ended after the first accepted one."""
        verdicts = [result.is_accepted for result in self._results.values()]
        return len(verdicts) - verdicts.index(True) - 1 if True in verdicts else 0
