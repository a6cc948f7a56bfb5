"""Full int8 first, then the options, then float fallback op by op: the stages of INC 2.x's `basic`, repaired.

On a space of N groups and T options (`options.options_of`) the stages and their trials are:

1. the preferred precision everywhere, full int8: 1
2. each option on all groups that offer it, one option at a time: T. The best of stages 1 and 2 is the start.
3. each group alone back to float, anchors before companions, the last first: N
4. fallbacks accumulated in the order of the slack that each gained alone in stage 3, until accepted: at most N - 2
   (the first one was stage 3's, and all of them together would be the float model)
5. prune back: every accumulated group, the least useful first, is quantized again and stays so where that is accepted:
   at most N - 2 (taking back the last one is a trial of stage 4)

Worst case 3 N + T - 3 trials for N > 1, 1 + T for N = 1. INC multiplied the options instead of adding them (36 trials before
the first fallback on a CNN), ranked fallbacks by metrics whose direction it ignored, and never pruned back, which ended in
models without a single int8 op (reference: INC 2.6 on a CNN with two bad convolutions, 67 trials).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from neural_tune.protocols import Forecast
from neural_tune.space import OpGroup, TuningSpace
from neural_tune.values import FLOAT, Candidate, History, Proposal, Role, TrialResult
from neural_tune_strategies.options import options_of


class Basic:
    """INC's stages as strategy `basic`; see the module for the stages and their cost.

    The seed plays no part. With several workers, the trials of stages 2 and 3 run side by side and are those of a
    single worker; stage 4 runs ahead of its pending trials; stages 1 and 5 wait for each result. An accepted model ends
    the stages early only through `is_content`: with a time budget, stages 2 and 3 are completed, because an option or
    a fallback may also be the faster model.
    """

    name = "basic"
    needs_exact_metrics = True
    wants: frozenset[str] = frozenset()

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._memo: _Plan | None = None

    def propose(self, space: TuningSpace, history: History) -> Proposal | None:
        """Return the next candidate of the stages; None when they are over or a pending result decides how to go on."""
        return _locate(self._plan(space), _Book(history)).proposal

    def is_content(self, space: TuningSpace, history: History) -> bool:
        """Return whether a candidate of stages 1 to 3 was accepted, or a later one was and has been pruned back."""
        if not history.accepted:
            return False
        stage = _locate(self._plan(space), _Book(history)).stage
        return stage is None or stage <= _LAST_EARLY_STAGE

    def forecast(self, space: TuningSpace) -> Forecast:
        """Return the trials up to the end of stage 3 (one op is to blame), and those of all stages."""
        groups = len(space.groups)
        starts = 1 + len(self._plan(space).options) if groups else 0
        if groups < 2:
            return Forecast(expected=starts, worst=starts)
        return Forecast(expected=starts + groups, worst=starts + groups + 2 * (groups - 2))

    def _plan(self, space: TuningSpace) -> _Plan:
        # A memo only: a proposal is the same with a fresh object.
        if self._memo is None or self._memo.space is not space:
            self._memo = _Plan(space)
        return self._memo


_LAST_EARLY_STAGE = 3


@dataclass(frozen=True, slots=True)
class _Batch:
    """Candidates of one stage that do not depend on each other's results.

    Attributes:
        stage: Number of the stage.
        proposals: The candidates, in order.
        is_race: True when the first accepted one makes those behind it pointless.
    """

    stage: int
    proposals: Sequence[Proposal]
    is_race: bool = False


@dataclass(frozen=True, slots=True)
class _Position:
    """Where a search stands: what to try next, if anything, and in which stage; no stage means that it is over."""

    proposal: Proposal | None
    stage: int | None


class _Book:
    """The history, looked up by candidate."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._results: dict[Candidate, TrialResult] = {}
        for result in history.results:
            self._results.setdefault(result.trial.candidate, result)
        self._pending = {trial.candidate for trial in history.pending}

    def is_pending(self, candidate: Candidate) -> bool:
        return candidate in self._pending and candidate not in self._results

    def is_done(self, candidate: Candidate) -> bool:
        return candidate in self._results

    def is_accepted(self, candidate: Candidate) -> bool:
        result = self._results.get(candidate)
        return result is not None and result.is_accepted

    def slack(self, candidate: Candidate) -> float:
        """Return how near `candidate` came to the criterion, higher is better; -inf when its trial failed."""
        slack = self._history.slack(self._results[candidate])
        return -math.inf if math.isnan(slack) else slack


class _Plan:
    """What follows from the space alone: the options, the order of fallbacks, and candidates built once."""

    def __init__(self, space: TuningSpace) -> None:
        self.space = space
        self.options = options_of(space)
        anchors = [group for group in space.groups if group.role is Role.ANCHOR]
        companions = [group for group in space.groups if group.role is not Role.ANCHOR]
        self.order = (*reversed(anchors), *reversed(companions))
        self.starts = self._starts()
        self._fallbacks: dict[tuple[Candidate, frozenset[str]], Candidate] = {}

    def fall_back(self, start: Candidate, groups: Sequence[OpGroup]) -> Candidate:
        """Return `start` with `groups` in float; the same object every time, so that its hash is computed once."""
        key = (start, frozenset(group.name for group in groups))
        if key not in self._fallbacks:
            self._fallbacks[key] = start.with_ops({name: FLOAT for group in groups for name in group.ops})
        return self._fallbacks[key]

    def _starts(self) -> tuple[Proposal, ...]:
        """Return full int8 and, behind it, full int8 with one option each."""
        preferred = {group.name: group.choices[0] for group in self.space.groups}
        variations = [
            Proposal(
                self.space.candidate({**preferred, **option.configs}), f"{option.label} on {', '.join(option.types)}"
            )
            for option in self.options
        ]
        return (
            Proposal(self.space.preferred(), f"full {self.space.precision}: the preferred precision of every op"),
            *variations,
        )


def _locate(plan: _Plan, book: _Book) -> _Position:
    """Replay the stages against the book up to the first candidate without a result."""
    for batch in _stages(plan, book):
        is_waiting = False
        for proposal in batch.proposals:
            if book.is_pending(proposal.candidate):
                is_waiting = True
            elif not book.is_done(proposal.candidate):
                return _Position(proposal, batch.stage)
            elif batch.is_race and book.is_accepted(proposal.candidate):
                break
        if is_waiting:
            return _Position(None, batch.stage)
    return _Position(None, None)


def _stages(plan: _Plan, book: _Book) -> Iterator[_Batch]:
    """Yield the search, batch by batch; when it is resumed, every result that matters is in the book."""
    if not plan.space.groups:
        return
    yield _Batch(1, plan.starts[:1])
    yield _Batch(2, plan.starts[1:])
    start = max((proposal.candidate for proposal in plan.starts), key=book.slack)  # the first of equals
    if len(plan.order) == 1:
        return
    alone = {group.name: plan.fall_back(start, [group]) for group in plan.order}
    yield _Batch(3, [Proposal(alone[group.name], f"{group.name} alone in float") for group in plan.order])
    if any(map(book.is_accepted, (*(proposal.candidate for proposal in plan.starts), *alone.values()))):
        return
    # Every one of them starts from the same candidate: ordering by slack is ordering by slack gained. sorted() is stable.
    ranked = sorted(plan.order, key=lambda group: book.slack(alone[group.name]), reverse=True)
    piles = [ranked[:count] for count in range(2, len(ranked))]
    yield _Batch(4, [_accumulated(plan, start, pile) for pile in piles], is_race=True)
    fallen = next((pile for pile in piles if book.is_accepted(plan.fall_back(start, pile))), None)
    if fallen is not None:
        yield from _prune(plan, book, start, fallen)


def _accumulated(plan: _Plan, start: Candidate, pile: Sequence[OpGroup]) -> Proposal:
    reason = f"{len(pile)} groups in float by measured impact, now also {pile[-1].name}"
    return Proposal(plan.fall_back(start, pile), reason)


def _prune(plan: _Plan, book: _Book, start: Candidate, fallen: Sequence[OpGroup]) -> Iterator[_Batch]:
    """Yield one candidate at a time: all that is left in float but one group, the least useful first."""
    left = list(fallen)
    for group in reversed(fallen):
        fewer = [other for other in left if other is not group]
        candidate = plan.fall_back(start, fewer)
        yield _Batch(5, [Proposal(candidate, f"{group.name} quantized again, {len(fewer)} groups in float")])
        if book.is_accepted(candidate):
            left = fewer
