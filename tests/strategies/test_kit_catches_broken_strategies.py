"""The strategy kit fails on strategies that break one sentence of the protocol each."""

from __future__ import annotations

import itertools

import pytest

from neural_tune.protocols import Forecast
from neural_tune.testing import StrategyConformance
from neural_tune.testing.spaces import small_spaces
from neural_tune.values import FLOAT_CANDIDATE, Candidate, Proposal
from neural_tune_strategies.exhaustive import Exhaustive
from neural_tune_strategies.random import Random

KIT = StrategyConformance()
SPACE = small_spaces()["five ops"]


class ProposesFloat(Exhaustive):
    def propose(self, space, history):
        return super().propose(space, history) or (
            None if FLOAT_CANDIDATE.digest in history.seen else Proposal(FLOAT_CANDIDATE)
        )


class Repeats(Exhaustive):
    def propose(self, space, history):
        return Proposal(space.preferred()) if len(history.results) == 1 else super().propose(space, history)


class LeavesTheSpace(Exhaustive):
    def propose(self, space, history):
        if len(history.results) == 2:
            return Proposal(
                Candidate(space.preferred().ops, recipes=("x",)).with_ops({"no op": space.groups[0].choices[0]})
            )
        return super().propose(space, history)


class NeverEnds(Exhaustive):
    def propose(self, space, history):
        return super().propose(space, history) or Proposal(space.preferred())


class Stateful(Exhaustive):
    def __init__(self, seed=0):
        super().__init__(seed)
        self._all = None

    def propose(self, space, history):
        self._all = self._all or iter(space)
        candidate = next(self._all, None)
        return Proposal(candidate, "next") if candidate else None


class IgnoresTheSeed(Random):
    serial = itertools.count()

    def __init__(self, seed=0):
        super().__init__(next(IgnoresTheSeed.serial))


class ForgetsPending(Exhaustive):
    def propose(self, space, history):
        import dataclasses

        return super().propose(space, dataclasses.replace(history, pending=()))


class Optimist(Exhaustive):
    def forecast(self, space):
        return Forecast(expected=1, worst=1)


class Maximiser(Exhaustive):
    """Walks backwards after a metric below one half, whatever its direction."""

    def propose(self, space, history):
        if history.results and min(dict(history.results[-1].metrics).values(), default=0) < 0.5:
            return next((Proposal(c) for c in reversed(list(space)) if c.digest not in history.seen), None)
        return super().propose(space, history)


class AlwaysContent(Exhaustive):
    def is_content(self, space, history):
        return True


class GivesUpOnFailure(Exhaustive):
    def propose(self, space, history):
        if any(result.error for result in history.results):
            return None
        return super().propose(space, history)


class NoFallback(Exhaustive):
    def propose(self, space, history):
        return None if history.results else super().propose(space, history)


ONCE = "test_it_terminates_with_candidates_of_the_space_none_float_none_twice"


@pytest.mark.parametrize(
    ("broken", "test", "arguments"),
    [
        (ProposesFloat, ONCE, {"space": SPACE, "workers": 1}),
        (Repeats, ONCE, {"space": SPACE, "workers": 1}),
        (LeavesTheSpace, ONCE, {"space": SPACE, "workers": 1}),
        (NeverEnds, ONCE, {"space": SPACE, "workers": 1}),
        (Stateful, "test_a_fresh_strategy_continues_from_any_prefix", {"space": SPACE}),
        (Stateful, "test_equal_seeds_and_histories_give_equal_proposals", {"space": SPACE}),
        (IgnoresTheSeed, "test_equal_seeds_and_histories_give_equal_proposals", {"space": SPACE}),
        (ForgetsPending, "test_pending_trials_are_not_proposed_again", {"space": SPACE}),
        (Optimist, "test_forecast_is_an_upper_bound_when_everything_is_accepted_or_fails", {"space": SPACE}),
        (Maximiser, "test_direction_of_the_metric_comes_from_the_criterion", {"space": SPACE}),
        (AlwaysContent, "test_it_is_content_with_an_accepted_model_and_not_without", {"space": SPACE}),
        (GivesUpOnFailure, "test_failed_trials_do_not_end_the_search_early", {"space": SPACE}),
        (NoFallback, "test_the_fallback_of_a_single_bad_op_is_found", {"space": SPACE, "culprit": "conv2"}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_kit_fails(broken, test, arguments):
    with pytest.raises(AssertionError):
        getattr(KIT, test)(broken, **arguments)
    getattr(KIT, test)(Exhaustive, **arguments)
