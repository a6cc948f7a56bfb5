"""The order of the steps: ladder from below, bracket, prune back; first with the recipes that help, then without."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from neural_tune.errors import ConfigError
from neural_tune.protocols import Forecast
from neural_tune.space import TuningSpace
from neural_tune.values import (
    FrozenMap,
    History,
    Insight,
    ProbeRequest,
    Proposal,
    Trial,
    TrialResult,
    TrialStatus,
    count_passes,
)
from neural_tune_strategies.auto import search
from neural_tune_strategies.auto.book import Book, Family, Floats
from neural_tune_strategies.auto.costs import Costs, costs_of
from neural_tune_strategies.auto.front import Rung, guiding, ladder
from neural_tune_strategies.auto.ranking import ErrorModel, error_model
from neural_tune_strategies.auto.tensors import families

# What an exact early rejection costs before the first one was seen, in passes.
_REJECTION = 0.12
_FEWEST_PROBES, _MOST_PROBES = 3, 12
# How often the search starts over when even one group in int8 is too much: that group is then kept in float.
_ROUNDS = 4
# Trials per group that left-over time is spent on after the first acceptance, before exchanges end.
_IMPROVEMENTS = 2


class Auto:
    """Few evaluations, fastest accepted model, as strategy `auto`.

    1. The cheapest candidate: full int8, or less where the profile says that int8 does not pay; with the recipes that
       lowered the divergence. Accepted: done, in two passes over the data with the baseline. Only a search that goes on asks for divergences.
    2. Gallop up the ladder (`front`, `search`) until a rung is accepted. The accepted trial is the certificate.
    3. With passes left: bisect between the last rejected and the accepted rung, then prune back: single groups, the most
       profitable per predicted error first, are quantized again and stay so where that is accepted. With time left after that: a group in
       float for another one that costs less.
    4. Nothing accepted: what is alone in int8 on the last rung is to blame (the ranking was wrong); it stays in float and the search
       starts over, at most three times. Then the same without recipes.

    The budget of passes, baseline included, is 2 + 0.3 log2(N) on N groups, rounded down, and 3 at least; it ends step 3 when nothing
    else does (`is_content`). Without divergences every group counts the same and the budget is 4 + log2(N). Only verdicts decide, so hopeless candidates are
    rejected early; where the whole metric is known all the same (an opaque eval_func), it sets the length of the step. Nothing is random.

    Several workers: each verdict decides the next candidate, so what one worker would do next is found by repeating its search from the start
    with the results there are. Where a result is still missing, a rejection is assumed and the candidate after it is run ahead. So the
    trials of one worker are always among those of many, in the same order, with the same verdict at the end.

    Args:
        seed: Plays no part.
        fallback_only: Leave recipes alone.
        max_prunes: Trials to spend on step 3, whatever the budget says; None lets the budget decide.

    Raises:
        ConfigError: an option has the wrong type.
    """

    name = "auto"
    needs_exact_metrics = False

    def __init__(self, seed: int = 0, *, fallback_only: bool = False, max_prunes: int | None = None) -> None:
        if not isinstance(fallback_only, bool):
            raise ConfigError(f"strategy 'auto': fallback_only: found {fallback_only!r}, expected true or false")
        if max_prunes is not None and (
            isinstance(max_prunes, bool) or not isinstance(max_prunes, int) or max_prunes < 0
        ):
            raise ConfigError(
                f"strategy 'auto': max_prunes: found {max_prunes!r}, expected an integer, 0 or more, or null"
            )
        self.seed = seed
        self.fallback_only = fallback_only
        self.max_prunes = max_prunes
        self.wants = frozenset({"latency"} if fallback_only else {"latency", "recipes"})
        self._memo: tuple[TuningSpace, object, tuple[_Track, ...]] | None = None

    def propose(self, space: TuningSpace, history: History) -> Proposal | ProbeRequest | None:
        """Return the next candidate, or the probe without which there is none; None when the search is over."""
        step, _, ahead = self._replayed(space, history, is_ahead=True)
        if not isinstance(step, _Step) or step.proposal is None:
            return step if isinstance(step, ProbeRequest) else None
        if not ahead:
            return step.proposal
        return replace(step.proposal, reason=f"{step.proposal.reason}; run ahead of {ahead} verdicts")

    def is_content(self, space: TuningSpace, history: History) -> bool:
        """Return whether something was accepted and a further pass would exceed the budget (or nothing is left to try)."""
        if not history.accepted:
            return False
        step, path, _ = self._replayed(space, history, is_ahead=False)
        if step is None:
            return True
        if isinstance(step, ProbeRequest) or not step.is_improvement:
            return False
        if step.proposal is None or step.is_exchange:
            return True
        if self.max_prunes is not None:
            return step.spent >= self.max_prunes
        return count_passes(path.baseline, path.results) + 1.0 > step.budget

    def forecast(self, space: TuningSpace) -> Forecast:
        """Return the usual number of trials (a few rejections and one acceptance), and a bound that broken rankings may come near."""
        groups = len(space.groups)
        tracks = 2 if space.optional_recipes and not self.fallback_only else 1
        if groups < 2:
            return Forecast(expected=groups, worst=groups * tracks)
        worst = min(space.size * tracks, tracks * (_ROUNDS + _IMPROVEMENTS) * groups)
        return Forecast(expected=min(worst, 2 + math.ceil(math.log2(groups) / 2)), worst=worst)

    def _replayed(
        self, space: TuningSpace, history: History, *, is_ahead: bool
    ) -> tuple[_Step | ProbeRequest | None, History, int]:
        """Return what a search by a single worker, repeated with the results there are, does next; its history; and the results assumed.

        Results that it does not come across were run ahead in vain, or are somebody else's.
        """
        known: dict[object, TrialResult] = {}
        for result in history.results:
            known.setdefault(result.trial.candidate, result)
        pending = {trial.candidate: trial for trial in history.pending} if is_ahead else {}
        path, assumed = replace(history, results=(), pending=()), 0
        while True:
            step = self._next(space, path)
            if not isinstance(step, _Step) or step.proposal is None:
                return step, path, assumed
            candidate = step.proposal.candidate
            if candidate in known:
                result = known[candidate]
            elif candidate in pending:
                result, assumed = _rejected(pending[candidate]), assumed + 1
            else:
                return step, path, assumed
            path = replace(path, results=(*path.results, result))

    def _next(self, space: TuningSpace, history: History) -> _Step | ProbeRequest | None:
        for track in self._tracks(space, history):
            step = track.next(Book(track.family, history), history)
            if step is not None:
                return step
        return None

    def _tracks(self, space: TuningSpace, history: History) -> tuple[_Track, ...]:
        # A memo only: it holds what follows from the space, the insight and the objectives, not from the trials.
        key = (history.insight, history.objectives)
        if self._memo is None or self._memo[0] is not space or self._memo[1] != key:
            self._memo = (space, key, tuple(_make_tracks(space, history, self.fallback_only)))
        return self._memo[2]


def _rejected(trial: Trial) -> TrialResult:
    return TrialResult(trial=trial, status=TrialStatus.REJECTED, passes=_REJECTION)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """What to do next.

    Attributes:
        proposal: The candidate; None when the search is over.
        is_improvement: True when something is accepted already.
        is_exchange: True for an improvement that only left-over time is spent on.
        spent: Trials spent on improvements so far.
        budget: Passes that the search may take.
    """

    proposal: Proposal | None
    is_improvement: bool = False
    is_exchange: bool = False
    spent: int = 0
    budget: float = 0.0


class _Track:
    """One ladder and what is needed to walk it.

    Args:
        space: The tuning space.
        recipes: Those of all its candidates.
        insight: What is known; None when there is nobody to ask.
        costs: What float groups cost.
        probe: The probe that ranks its groups.
    """

    def __init__(
        self, space: TuningSpace, recipes: Sequence[str], insight: Insight | None, costs: Costs, probe: str
    ) -> None:
        self.family = Family(space, tuple(sorted(set(recipes))))
        self.costs, self._cheapest = guiding((group.name for group in space.groups), costs)
        self._space = space
        self._probe = probe
        self._is_unasked = insight is not None and probe not in insight.answered
        self._divergence = _divergence(insight or Insight(), probe)

    @cached_property
    def model(self) -> ErrorModel:
        """The errors of candidates."""
        return error_model((group.name for group in self._space.groups), families(self._space), self._divergence)

    @cached_property
    def rungs(self) -> tuple[Rung, ...]:
        """The ladder, the cheapest candidate first."""
        found = ladder(self.model, self.costs) if self._space.groups else ()
        if (
            found and found[0].floats != self._cheapest
        ):  # another one costs the same, but was not known before the divergences
            return (self._rung(self._cheapest), *(rung for rung in found if rung.floats != self._cheapest))
        return found

    @property
    def budget(self) -> float:
        """Passes over the data, baseline included, after which an accepted model is good enough."""
        doublings = math.log2(max(len(self.model.own), 2))
        return max(3, math.floor(2 + 0.3 * doublings)) if self.model.is_informed else 4 + doublings

    def next(self, book: Book, history: History) -> _Step | ProbeRequest | None:
        """Return the next step; None when this ladder has come to nothing."""
        if not self._space.groups:
            return None
        if not book.is_known(self._cheapest) and not book.accepted:
            return _Step(proposal=Proposal(self.family.candidate(self._cheapest), self._at_first()))
        if self._cheapest in book.accepted:
            return _Step(proposal=None, is_improvement=True)
        if self._is_unasked:
            return ProbeRequest((self._probe,))
        if book.accepted:
            return self._improve(book)
        for rungs in self._rounds(book):
            rung = self._climb(rungs, book, history)
            if rung is not None:
                return self._step(book, rungs[rung].floats, self._on_rung(rungs, rung))
        return None

    def _rounds(self, book: Book) -> Iterator[tuple[Rung, ...]]:
        """Yield the ladder, and after its last rung was rejected the ladder above what that rung had in int8."""
        base, everything = frozenset[str](), frozenset(self.model.own)
        rungs = self.rungs
        for _ in range(_ROUNDS):
            if not rungs:
                return
            yield rungs
            base |= everything - rungs[-1].floats
            if not (book.is_rejected(rungs[-1].floats)):
                return
            sets = dict.fromkeys(rung.floats | base for rung in self.rungs)
            rungs = tuple(self._rung(floats) for floats in sets if floats != everything)

    def _rung(self, floats: Floats) -> Rung:
        return Rung(floats, self.model.predict(floats), self.costs.predict(floats))

    def _climb(self, rungs: Sequence[Rung], book: Book, history: History) -> int | None:
        """Return the next rung to try; None when the last one was tried in vain."""
        rejected = max((place for place, rung in enumerate(rungs) if book.is_rejected(rung.floats)), default=-1)
        if rejected == len(rungs) - 1:
            return None
        if rejected < 0:
            return 0
        errors = [rung.error for rung in rungs]
        losses = {place: loss for place, rung in enumerate(rungs) if (loss := book.loss(rung.floats)) is not None}
        if rejected in losses and self.model.is_informed:
            return search.aim(errors, losses)
        beliefs = search.belief(errors, is_informed=self.model.is_informed)
        return search.gallop(beliefs, rejected, self._probes_left(book, history))

    def _probes_left(self, book: Book, history: History) -> int:
        """Return how many rejections fit into the budget before the pass that accepts."""
        left = self.budget - 1.0 - count_passes(history.baseline, history.results)
        each = max(book.passes_of_a_rejection or 0.0, _REJECTION)
        return min(max(math.floor(left / each), _FEWEST_PROBES), _MOST_PROBES)

    def _improve(self, book: Book) -> _Step:
        found = self._between(book) or self._pruned(book)
        if found is not None:
            return self._step(book, *found)
        exchanged = self._exchanged(book)
        return (
            replace(self._step(book, *exchanged), is_exchange=True)
            if exchanged
            else _Step(proposal=None, is_improvement=True)
        )

    def _step(self, book: Book, floats: Floats, reason: str) -> _Step:
        return _Step(
            proposal=Proposal(self.family.candidate(floats), reason),
            is_improvement=bool(book.accepted),
            spent=book.trials_since_acceptance,
            budget=self.budget,
        )

    def _between(self, book: Book) -> tuple[Floats, str] | None:
        """Return a rung between a rejected and an accepted one of the same round."""
        for rungs in self._rounds(book):
            accepted = next((place for place, rung in enumerate(rungs) if rung.floats in book.accepted), None)
            if accepted is not None:
                below = (place for place in range(accepted) if book.is_rejected(rungs[place].floats))
                beliefs = search.belief([rung.error for rung in rungs], is_informed=self.model.is_informed)
                middle = search.bisect(beliefs, max(below, default=-1), accepted)
                if middle is None:
                    return None if self.model.is_informed else self._last_alone(rungs, accepted, book)
                return rungs[middle].floats, f"between two rungs: {self._on_rung(rungs, middle)}"
        return None

    def _last_alone(self, rungs: Sequence[Rung], accepted: int, book: Book) -> tuple[Floats, str] | None:
        """Return what the last step added, alone: without a ranking, all before it may have been in vain."""
        floats = rungs[accepted].floats - (rungs[accepted - 1].floats if accepted else frozenset())
        if not accepted or floats in book.accepted or book.is_rejected(floats):
            return None
        return floats, f"only {_listed(floats)} in float"

    def _pruned(self, book: Book) -> tuple[Floats, str] | None:
        """Return the cheapest accepted candidate with one group fewer in float: the least harm per gain that was not ruled out."""
        best = self._best(book)
        error, cost = self.model.predict(best), self.costs.predict(best)
        offers = []
        for name in sorted(best):
            floats = best - {name}
            gain = cost - self.costs.predict(floats)
            if gain > 0.0 and not book.is_rejected(floats) and floats not in book.accepted:
                offers.append(((self.model.predict(floats) - error) / gain, name))
        if not offers:
            return None
        _, name = min(offers)
        return best - {name}, f"{name} quantized again, {len(best) - 1} groups in float"

    def _exchanged(self, book: Book) -> tuple[Floats, str] | None:
        """Return the cheapest accepted candidate with one float group for another: the least predicted error of all that cost less."""
        if book.trials_since_acceptance >= _IMPROVEMENTS * len(self.model.own):
            return None
        best = self._best(book)
        cost = self.costs.predict(best)
        offers = []
        for back in sorted(best):
            for name in sorted(frozenset(self.model.own) - best):
                floats = best - {back} | {name}
                if self.costs.predict(floats) < cost and not book.is_rejected(floats) and floats not in book.accepted:
                    offers.append((self.model.predict(floats), self.costs.predict(floats), name, back))
        if not offers:
            return None
        _, _, name, back = min(offers)
        return best - {back} | {name}, f"{back} quantized again, {name} in float for it"

    def _best(self, book: Book) -> Floats:
        return min(book.accepted, key=lambda floats: (self.costs.predict(floats), len(floats), sorted(floats)))

    def _at_first(self) -> str:
        if not self._cheapest:
            return f"full {self._space.precision}{self._with_recipes}"
        told = f"{self._space.precision}{self._with_recipes} where the profile says that it pays"
        return f"{told}; in float: {_listed(self._cheapest)}"

    def _on_rung(self, rungs: Sequence[Rung], place: int) -> str:
        floats = rungs[place].floats
        cost = f", predicted {rungs[place].cost:.3g} ms" if self.costs.unit == "ms" else ""
        return f"{len(floats)} groups in float by predicted error{self._with_recipes}{cost}: {_listed(floats)}"

    @property
    def _with_recipes(self) -> str:
        return f" with {', '.join(self.family.recipes)}" if self.family.recipes else ""


def _listed(floats: Floats) -> str:
    names = sorted(floats)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _divergence(insight: Insight, probe: str) -> FrozenMap[float]:
    if probe == "divergence_with_recipes" and insight.divergence_with_recipes:
        return insight.divergence_with_recipes
    return insight.divergence


def _make_tracks(space: TuningSpace, history: History, fallback_only: bool) -> Iterator[_Track]:
    insight = history.insight
    offered = insight.recipes if insight and not fallback_only else ()
    chosen = tuple(name for name in offered if name in space.optional_recipes)
    costs = costs_of(space, history.objectives, insight)
    if chosen:
        yield _Track(space, (*space.recipes, *chosen), insight, costs, "divergence_with_recipes")
    yield _Track(space, space.recipes, insight, costs, "divergence")
