"""The `Strategy` protocol, sentence by sentence, as tests to inherit."""
# ruff: noqa: S101, D102 - these are pytest tests; their names are the sentences

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest

from neural_tune import plugins
from neural_tune.errors import ConfigError
from neural_tune.plugins import StrategyPlugin
from neural_tune.protocols import Strategy
from neural_tune.space import TuningSpace
from neural_tune.testing.registered import installed
from neural_tune.testing.script import begin, drive, finish
from neural_tune.testing.spaces import small_spaces
from neural_tune.values import (
    FLOAT,
    FLOAT_CANDIDATE,
    AccuracyCriterion,
    Candidate,
    FrozenMap,
    History,
    Insight,
    Observer,
    Origin,
    ProbeRequest,
    Proposal,
    TensorRange,
    Trial,
)

MakeStrategy = Callable[[int], Strategy]

_SPACES = small_spaces()
_SMALL = pytest.mark.parametrize("space", _SPACES.values(), ids=_SPACES.keys())
_NOT_EMPTY = {name: space for name, space in _SPACES.items() if space.groups}
_TUNABLE = pytest.mark.parametrize("space", _NOT_EMPTY.values(), ids=_NOT_EMPTY.keys())
_BLAMABLE = [
    pytest.param(space, group.name, id=f"{name}: {group.name}")
    for name, space in _SPACES.items()
    if len(space.groups) > 1
    for group in space.groups
]


class StrategyConformance:
    """Subclass it in a test module, name the subclass Test..., and set `registered` (or override the fixture `make_strategy`).

    The kit drives the strategy over small spaces with scripted metrics. A strategy must be able to leave a small space:
    at the latest when every candidate was tried, it proposes None.

    Attributes:
        registered: Name of the strategy in the entry-point group "neural_tune.strategies"; "" where it is not registered.
    """

    registered = ""

    @pytest.fixture
    def plugin(self) -> StrategyPlugin | None:
        """The description the strategy is registered with; None skips its test, a missing requirement every test."""
        return installed(plugins.strategies(), self.registered) if self.registered else None

    @pytest.fixture
    def make_strategy(self, plugin: StrategyPlugin | None) -> MakeStrategy:
        """Return a function from a seed to a fresh strategy."""
        if plugin is None:
            raise NotImplementedError("set `registered`, or override the fixture `make_strategy`")
        return lambda seed: plugin.create(seed=seed)

    def test_plugin_creates_the_strategy_and_refuses_unknown_options(
        self, plugin: StrategyPlugin | None, make_strategy: MakeStrategy
    ) -> None:
        if plugin is None:
            pytest.skip("no plugin fixture")
        assert plugin.create(seed=3).name == plugin.name == make_strategy(3).name
        with pytest.raises(ConfigError, match="no_such_option"):
            plugin.create(seed=3, no_such_option=1)

    def test_strategy_has_a_name_and_says_whether_it_needs_exact_metrics(self, make_strategy: MakeStrategy) -> None:
        assert make_strategy(0).name
        assert isinstance(make_strategy(0).needs_exact_metrics, bool)

    @_SMALL
    @pytest.mark.parametrize("workers", [1, 3])
    def test_it_terminates_with_candidates_of_the_space_none_float_none_twice(
        self, make_strategy: MakeStrategy, space: TuningSpace, workers: int
    ) -> None:
        strategy = make_strategy(5)
        history = drive(strategy, space, _scattered, _begin(0.0), workers=workers, max_trials=space.size + 1)
        candidates = _candidates(history)
        assert len(candidates) <= min(space.size, strategy.forecast(space).worst)
        assert not history.pending
        assert _proposed(strategy, space, history) is None
        assert len(set(candidates)) == len(candidates)
        assert not any(candidate.is_float for candidate in candidates)
        assert all(space.contains(candidate) for candidate in candidates)

    @_SMALL
    def test_forecast_is_an_upper_bound_when_everything_is_accepted_or_fails(
        self, make_strategy: MakeStrategy, space: TuningSpace
    ) -> None:
        forecast = make_strategy(0).forecast(space)
        assert 0 <= forecast.expected <= forecast.worst
        for evaluate in (_accepted, _failed, _half_failed):
            for until_content in (True, False):
                history = drive(
                    make_strategy(0),
                    space,
                    evaluate,
                    _begin(0.0),
                    max_trials=space.size + 1,
                    until_content=until_content,
                )
                assert len(history.results) <= forecast.worst

    def test_an_empty_space_has_no_trial(self, make_strategy: MakeStrategy) -> None:
        strategy = make_strategy(0)
        assert _proposed(strategy, _SPACES["empty"], _begin(0.01)) is None
        assert strategy.forecast(_SPACES["empty"]).worst == 0

    @_TUNABLE
    def test_it_proposes_something_with_a_reason_at_first(
        self, make_strategy: MakeStrategy, space: TuningSpace
    ) -> None:
        proposal = _proposed(make_strategy(0), space, _begin(0.01))
        assert proposal is not None
        assert proposal.reason

    @_SMALL
    def test_equal_seeds_and_histories_give_equal_proposals(
        self, make_strategy: MakeStrategy, space: TuningSpace
    ) -> None:
        one, other = make_strategy(7), make_strategy(7)
        history = drive(one, space, _scattered, _begin(0.0), max_trials=20)
        assert drive(other, space, _scattered, _begin(0.0), max_trials=20) == history
        assert _proposed(one, space, history) == _proposed(one, space, history) == _proposed(other, space, history)

    @_SMALL
    def test_a_fresh_strategy_continues_from_any_prefix(self, make_strategy: MakeStrategy, space: TuningSpace) -> None:
        whole = drive(make_strategy(7), space, _scattered, _begin(0.0), max_trials=20)
        veteran = make_strategy(7)
        for cut in range(len(whole.results)):
            prefix = replace(whole, results=whole.results[:cut])
            resumed = drive(make_strategy(7), space, _scattered, prefix, max_trials=20)
            assert resumed == whole
            expected = whole.results[cut].trial.candidate
            for strategy in (veteran, make_strategy(7)):
                proposal = _proposed(strategy, space, prefix)
                assert proposal is not None
                assert proposal.candidate == expected

    @_TUNABLE
    def test_it_asks_for_no_probe_twice_and_goes_on_when_they_find_nothing(
        self, make_strategy: MakeStrategy, space: TuningSpace
    ) -> None:
        # `drive` refuses a request for what was answered already.
        history = replace(_begin(0.0), insight=Insight())
        end = drive(make_strategy(5), space, _scattered, history, max_trials=space.size + 1, until_content=False)
        assert end.results
        assert len(end.results) <= make_strategy(5).forecast(space).worst
        assert drive(make_strategy(5), space, _scattered, end, max_trials=space.size + 1, until_content=False) == end

    @_TUNABLE
    def test_pending_trials_are_not_proposed_again(self, make_strategy: MakeStrategy, space: TuningSpace) -> None:
        strategy = make_strategy(2)
        history = _begin(0.0)
        while (proposal := _proposed(strategy, space, history)) is not None:
            assert proposal.candidate.digest not in history.seen
            assert space.contains(proposal.candidate)
            history = history.with_pending(_trial(history, proposal.candidate))
        assert 0 < len(history.pending) <= strategy.forecast(space).worst

    @_TUNABLE
    def test_pending_results_in_any_order_end_in_a_valid_search(
        self, make_strategy: MakeStrategy, space: TuningSpace
    ) -> None:
        strategy = make_strategy(2)
        history = _begin(0.0)
        for _ in range(space.size + 1):
            while len(history.pending) < 2 and (proposal := _proposed(strategy, space, history)) is not None:
                assert proposal.candidate.digest not in history.seen
                history = history.with_pending(_trial(history, proposal.candidate))
            if not history.pending:
                break
            last = history.pending[-1]
            history = finish(history, last, _scattered(last.candidate))
        assert not history.pending
        assert len(history.results) <= strategy.forecast(space).worst

    @_TUNABLE
    def test_failed_trials_do_not_end_the_search_early(self, make_strategy: MakeStrategy, space: TuningSpace) -> None:
        strategy = make_strategy(1)
        history = drive(strategy, space, _failed, _begin(0.01), max_trials=space.size + 1)
        assert history.results
        assert not strategy.is_content(space, history)
        first = history.results[0].trial
        if strategy.forecast(space).worst > 1:
            after = _proposed(strategy, space, finish(_begin(0.01).with_pending(first), first, None))
            assert after is not None
            assert after.candidate != first.candidate

    @_TUNABLE
    def test_candidates_of_somebody_else_in_the_history_do_no_harm(
        self, make_strategy: MakeStrategy, space: TuningSpace
    ) -> None:
        tensor = TensorRange(tensor="t", observer=Observer.KL)
        foreign = (
            FLOAT_CANDIDATE,
            Candidate(space.preferred().ops, (tensor,)),
            Candidate(space.preferred().ops, recipes=("smooth",)),
            Candidate.of({"unknown": space.groups[0].choices[0]}),
        )
        history = _begin(0.0)
        for candidate in foreign:
            trial = _trial(history, candidate)
            history = finish(history.with_pending(trial), trial, 0.1)
        strategy = make_strategy(1)
        end = drive(strategy, space, _scattered, history, max_trials=len(foreign) + space.size + 1)
        own = _candidates(end)[len(foreign) :]
        assert own
        assert len(set(own)) == len(own)
        assert all(space.contains(candidate) and not candidate.is_float for candidate in own)

    @_TUNABLE
    def test_direction_of_the_metric_comes_from_the_criterion(
        self, make_strategy: MakeStrategy, space: TuningSpace
    ) -> None:
        def loss(candidate: Candidate) -> float:
            return 1.0 - _scattered(candidate)

        higher = AccuracyCriterion(criterion="absolute", tolerable_loss=0.25)
        lower = AccuracyCriterion(higher_is_better=False, criterion="absolute", tolerable_loss=0.25)
        up = drive(make_strategy(3), space, _scattered, begin(1.0, higher), max_trials=30, until_content=False)
        down = drive(make_strategy(3), space, loss, begin(0.0, lower), max_trials=30, until_content=False)
        assert _candidates(up) == _candidates(down)
        assert [result.is_accepted for result in up.results] == [result.is_accepted for result in down.results]

    @_TUNABLE
    def test_several_metrics_are_judged_together(self, make_strategy: MakeStrategy, space: TuningSpace) -> None:
        criterion = AccuracyCriterion(
            metrics=FrozenMap(
                {
                    "top1": AccuracyCriterion(),
                    "loss": AccuracyCriterion(higher_is_better=False, criterion="absolute", tolerable_loss=0.1),
                }
            )
        )

        def evaluate(candidate: Candidate) -> dict[str, float]:
            return {"top1": 0.9, "loss": 0.5 + 0.05 * len(candidate.ops), "ms": 3.0}

        history = begin({"top1": 0.9, "loss": 0.5, "ms": 9.0}, criterion)
        history = drive(make_strategy(3), space, evaluate, history, max_trials=space.size + 1)
        assert history.results
        assert all(result.is_accepted == (len(result.trial.candidate.ops) <= 2) for result in history.results)

    @_TUNABLE
    def test_it_is_content_with_an_accepted_model_and_not_without(
        self, make_strategy: MakeStrategy, space: TuningSpace
    ) -> None:
        strategy = make_strategy(4)
        assert not strategy.is_content(space, _begin(0.01))
        history = drive(strategy, space, _accepted, _begin(0.01), max_trials=space.size + 1)
        assert history.accepted
        assert strategy.is_content(space, history)
        rejected = drive(strategy, space, lambda _: 0.0, _begin(0.01), max_trials=space.size + 1)
        assert not strategy.is_content(space, rejected)

    @pytest.mark.parametrize(("space", "culprit"), _BLAMABLE)
    def test_the_fallback_of_a_single_bad_op_is_found(
        self, make_strategy: MakeStrategy, space: TuningSpace, culprit: str
    ) -> None:
        group = next(group for group in space.groups if group.name == culprit)

        def evaluate(candidate: Candidate) -> float:
            return 1.0 if space.choice_of(candidate, group) == FLOAT else 0.5

        strategy = make_strategy(6)
        history = drive(strategy, space, evaluate, _begin(0.01), max_trials=space.size + 1)
        assert history.accepted
        assert strategy.is_content(space, history)
        best = history.accepted[0].trial.candidate
        assert space.choice_of(best, group) == FLOAT
        assert not best.is_float


def _proposed(strategy: Strategy, space: TuningSpace, history: History) -> Proposal | None:
    """Return a proposal. Without an insight there is nobody to ask for probes."""
    found = strategy.propose(space, history)
    assert not isinstance(found, ProbeRequest)
    return found


def _begin(tolerable_loss: float) -> History:
    return begin(1.0, AccuracyCriterion(tolerable_loss=tolerable_loss))


def _trial(history: History, candidate: Candidate) -> Trial:
    return Trial(number=history.next_number, candidate=candidate, origin=Origin("kit"))


def _candidates(history: History) -> list[Candidate]:
    return [result.trial.candidate for result in sorted(history.results, key=lambda result: result.trial.number)]


def _scattered(candidate: Candidate) -> float:
    """Return a metric in [0, 1) that looks random and is the same everywhere; a multiple of 1/1024, exact in binary."""
    return int.from_bytes(hashlib.sha256(candidate.digest.encode()).digest()[:4], "big") % 1024 / 1024


def _accepted(candidate: Candidate) -> float:  # noqa: ARG001 - a script
    return 1.0


def _failed(candidate: Candidate) -> None:
    """Return nothing: a failed trial."""


def _half_failed(candidate: Candidate) -> float | None:
    metric = _scattered(candidate)
    return metric if metric < 0.5 else None
