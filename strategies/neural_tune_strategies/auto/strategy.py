"""The order of the steps: ladder from below, bracket, prune back; first with the recipes that help, then without."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from neural_tune.errors import ConfigError
from neural_tune.protocols import Forecast
from neural_tune.space import TuningSpace
from neural_tune.values import FrozenMap, History, Insight, Proposal, count_passes
from neural_tune_strategies.auto import search
from neural_tune_strategies.auto.book import Book, Family, Floats
from neural_tune_strategies.auto.costs import Costs, costs_of
from neural_tune_strategies.auto.front import Rung, ladder
from neural_tune_strategies.auto.ranking import ErrorModel, error_model
from neural_tune_strategies.auto.tensors import families

# What an exact early rejection costs before the first one was seen, in passes.
_REJECTION = 0.12
_FEWEST_PROBES, _MOST_PROBES = 3, 12
# How often the search starts over when even one group in int8 is too much: that group is then kept in float.
_ROUNDS = 4


class Auto:
    """Few evaluations, fastest accepted model, as strategy `auto`.

    1. The cheapest rung of the ladder (`front`): full int8, or less where the profile says that int8 does not pay; with the recipes that
       lowered the divergence. Accepted: done, in two passes over the data with the baseline.
    2. Gallop up the ladder (`search`) until a rung is accepted. The accepted trial is the certificate.
    3. With passes left: bisect between the last rejected and the accepted rung, then prune back: single groups, the most
       profitable per predicted error first, are quantized again and stay so where that is accepted.
    4. Nothing accepted: what is alone in int8 on the last rung is to blame (the ranking was wrong); it stays in float and the search
       starts over, at most three times. Then the same without recipes.

    The budget of passes, baseline included, is 2 + 0.3 log2(N) on N groups, rounded down, and 3 at least; it ends step 3 when nothing
    else does (`is_content`). Without divergences every group counts the same and the budget is 4 + log2(N). Only verdicts decide, so hopeless candidates are
    rejected early; where the whole metric is known all the same (an opaque eval_func), it sets the length of the step. The search is
    sequential: with several workers it waits, because a trial run ahead would cost a pass whenever the one before it is accepted. Nothing is random.

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
        self.wants = frozenset({"divergence", "latency"} if fallback_only else {"divergence", "latency", "recipes"})
        self._memo: tuple[TuningSpace, object, tuple[_Track, ...]] | None = None

    def propose(self, space: TuningSpace, history: History) -> Proposal | None:
        """Return the next candidate; None when the search is over or a pending result decides how to go on."""
        found = self._next(space, history)
        return found.proposal if found else None

    def is_content(self, space: TuningSpace, history: History) -> bool:
        """Return whether something was accepted and a further pass would exceed the budget (or nothing is left to try)."""
        if not history.accepted:
            return False
        found = self._next(space, history)
        if found is None or not found.is_improvement:
            return True
        if self.max_prunes is not None:
            return found.spent >= self.max_prunes
        return count_passes(history.baseline, history.results) + 1.0 > found.budget

    def forecast(self, space: TuningSpace) -> Forecast:
        """Return the usual number of trials (a few rejections and one acceptance), and a bound that broken rankings may come near."""
        groups = len(space.groups)
        tracks = 2 if space.optional_recipes and not self.fallback_only else 1
        if groups < 2:
            return Forecast(expected=groups, worst=groups * tracks)
        worst = min(space.size * tracks, tracks * (_ROUNDS + 2) * groups)
        return Forecast(expected=min(worst, 2 + math.ceil(math.log2(groups) / 2)), worst=worst)

    def _next(self, space: TuningSpace, history: History) -> _Step | None:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """What to do next.

    Attributes:
        proposal: The candidate; None to wait for a pending one, or when the search is over.
        is_improvement: True when something is accepted already.
        spent: Trials spent on improvements so far.
        budget: Passes that the search may take.
    """

    proposal: Proposal | None
    is_improvement: bool = False
    spent: int = 0
    budget: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Track:
    """One ladder and what is needed to walk it."""

    family: Family
    model: ErrorModel
    costs: Costs
    rungs: tuple[Rung, ...]

    @property
    def budget(self) -> float:
        """Passes over the data, baseline included, after which an accepted model is good enough."""
        doublings = math.log2(max(len(self.model.own), 2))
        return max(3, math.floor(2 + 0.3 * doublings)) if self.model.is_informed else 4 + doublings

    def next(self, book: Book, history: History) -> _Step | None:
        """Return the next step; None when this ladder has come to nothing."""
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
            rungs = tuple(
                Rung(floats, self.model.predict(floats), self.costs.predict(floats))
                for floats in sets
                if floats != everything
            )

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
        if found is None:
            return _Step(proposal=None)
        return self._step(book, *found)

    def _step(self, book: Book, floats: Floats, reason: str) -> _Step:
        proposal = None if floats in book.pending else Proposal(self.family.candidate(floats), reason)
        return _Step(
            proposal=proposal,
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
        best = min(book.accepted, key=lambda floats: (self.costs.predict(floats), len(floats), sorted(floats)))
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

    def _on_rung(self, rungs: Sequence[Rung], place: int) -> str:
        floats = rungs[place].floats
        with_recipes = f" with {', '.join(self.family.recipes)}" if self.family.recipes else ""
        if not floats:
            return f"full int8{with_recipes}"
        if place == 0 and rungs is self.rungs:
            return f"int8{with_recipes} where the profile says that it pays; in float: {_listed(floats)}"
        cost = f", predicted {rungs[place].cost:.3g} ms" if self.costs.unit == "ms" else ""
        return f"{len(floats)} groups in float by predicted error{with_recipes}{cost}: {_listed(floats)}"


def _listed(floats: Floats) -> str:
    names = sorted(floats)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _make_tracks(space: TuningSpace, history: History, fallback_only: bool) -> Iterator[_Track]:
    insight = history.insight or Insight()
    chosen = () if fallback_only else tuple(name for name in insight.recipes if name in space.optional_recipes)
    costs = costs_of(space, history.objectives, history.insight)
    if chosen:
        yield _track(space, (*space.recipes, *chosen), insight.divergence_with_recipes or insight.divergence, costs)
    yield _track(space, space.recipes, insight.divergence, costs)


def _track(space: TuningSpace, recipes: Sequence[str], divergence: FrozenMap[float], costs: Costs) -> _Track:
    model = error_model((group.name for group in space.groups), families(space), divergence)
    family = Family(space, tuple(sorted(set(recipes))))
    rungs = ladder(model, costs) if space.groups else ()
    return _Track(family=family, model=model, costs=costs, rungs=rungs)
