"""The stages of `mse` and `conservative`, trial by trial."""

from __future__ import annotations

from dataclasses import replace

import pytest

from neural_tune.testing import begin, drive
from neural_tune.testing.spaces import op, space_of
from neural_tune.values import FLOAT, AccuracyCriterion, FrozenMap, Insight, Role
from neural_tune_strategies.conservative import Conservative
from neural_tune_strategies.mse import Mse

ABSOLUTE = AccuracyCriterion(criterion="absolute", tolerable_loss=0.0625)
FIVE = space_of(*(op(f"c{number}") for number in range(1, 6)))


def in_float(space, history):
    return [
        " ".join(group.name for group in space.groups if space.choice_of(result.trial.candidate, group) == FLOAT)
        for result in history.results
    ]


def in_int8(history):
    return [" ".join(result.trial.candidate.ops) for result in history.results]


def ranked(**divergence):
    return replace(begin(1.0, ABSOLUTE), insight=Insight(divergence=FrozenMap(divergence)))


def needs_float(*names):
    return lambda candidate: 0.5 if set(names) & set(candidate.ops) else 1.0


RANKING = {"c1": 3.0, "c2": 1.0, "c3": 5.0, "c4": 2.0, "c5": 4.0}


def test_mse_falls_back_the_worst_then_the_next_and_takes_back_what_was_needless():
    history = drive(Mse(), FIVE, needs_float("c3", "c1"), ranked(**RANKING))
    assert in_float(FIVE, history) == ["", "c3", "c3 c5", "c1 c3 c5", "c1 c3", "c1"]
    assert [result.is_accepted for result in history.results] == [False, False, False, True, True, False]
    assert Mse().is_content(FIVE, history)
    assert Mse().propose(FIVE, history) is None


def test_mse_is_not_content_before_it_has_gone_back():
    history = drive(Mse(), FIVE, needs_float("c3", "c1"), ranked(**RANKING), max_trials=4)
    assert history.accepted
    assert not Mse().is_content(FIVE, history)


def test_mse_stops_after_full_int8_if_that_is_accepted():
    assert in_float(FIVE, drive(Mse(), FIVE, lambda _: 1.0, ranked(**RANKING))) == [""]


def test_mse_tries_the_last_one_alone_when_it_is_the_only_culprit():
    history = drive(Mse(), FIVE, needs_float("c2"), ranked(**RANKING))
    assert in_float(FIVE, history)[-2:] == ["c1 c3 c4 c5", "c2"]
    assert history.accepted


def test_mse_without_divergences_takes_the_last_op_for_the_worst():
    history = drive(Mse(), FIVE, needs_float("c4"), begin(1.0, ABSOLUTE))
    assert in_float(FIVE, history) == ["", "c5", "c4 c5", "c4"]


def test_mse_ranks_nan_last_and_infinity_first():
    history = drive(
        Mse(), FIVE, lambda _: 0.5, ranked(**RANKING | {"c2": float("inf"), "c3": float("nan")}), max_trials=3
    )
    assert in_float(FIVE, history) == ["", "c2", "c2 c5"]
    worst = drive(Mse(), FIVE, lambda _: 0.5, ranked(**RANKING | {"c3": float("nan")}))
    assert in_float(FIVE, worst)[-1] == "c3"


@pytest.mark.parametrize(("groups", "worst"), [(0, 0), (1, 1), (2, 3), (3, 4), (10, 18)])
def test_mse_worst_case(groups, worst):
    space = space_of(*(op(f"c{number}") for number in range(groups)))
    assert Mse().forecast(space).worst == worst
    last = [f"c{number}" for number in range(1, groups)]

    def only_the_last_pile(candidate):
        return 0.5 if set(last) & set(candidate.ops) else 1.0

    history = drive(Mse(), space, only_the_last_pile, begin(1.0, ABSOLUTE))
    assert len(history.results) <= worst
    if groups > 2:
        assert len(history.results) == worst


MIXED = space_of(
    op("conv1"), op("add1", "Add", role=Role.COMPANION), op("conv2"), op("fc1", "Gemm"), op("conv3"), op("conv4")
)


def test_conservative_quantizes_type_by_type_with_anchors_first():
    history = drive(Conservative(), MIXED, lambda _: 1.0, begin(1.0, ABSOLUTE))
    assert in_int8(history) == [
        "conv1 conv2 conv3 conv4",
        "conv1 conv2 conv3 conv4 fc1",
        "add1 conv1 conv2 conv3 conv4 fc1",
    ]
    assert Conservative().is_content(MIXED, history)
    assert history.results[-1].trial.candidate == MIXED.preferred()


def test_conservative_goes_on_after_the_first_type_that_holds():
    history = drive(Conservative(), MIXED, lambda _: 1.0, begin(1.0, ABSOLUTE), max_trials=1)
    assert history.accepted
    assert not Conservative().is_content(MIXED, history)


def test_conservative_halves_a_type_down_to_the_op_that_does_not_hold():
    history = drive(Conservative(), MIXED, needs_float("conv2"), begin(1.0, ABSOLUTE))
    assert in_int8(history) == [
        "conv1 conv2 conv3 conv4",
        "conv1 conv2",
        "conv1",
        "conv1 conv3 conv4",
        "conv1 conv3 conv4 fc1",
        "add1 conv1 conv3 conv4 fc1",
    ]
    assert history.accepted
    assert Conservative().is_content(MIXED, history)


def test_conservative_accepts_nothing_when_nothing_holds():
    history = drive(Conservative(), MIXED, lambda _: 0.5, begin(1.0, ABSOLUTE))
    assert len(history.results) == 7 + 1 + 1 == Conservative().forecast(MIXED).worst
    assert not history.accepted
    assert not Conservative().is_content(MIXED, history)
    assert not any(result.trial.candidate.is_float for result in history.results)
