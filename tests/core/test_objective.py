"""Objectives: gains, the weighted score, the Pareto front; and when a search stops."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_tune.errors import ConfigError
from neural_tune.values import Objective, Objectives

positive = st.floats(min_value=1e-3, max_value=1e6)
SPEED_AND_SIZE = Objectives((Objective("latency"), Objective("size")))
points = st.lists(st.fixed_dictionaries({"latency": positive, "size": positive}), max_size=12)


def test_gain_counts_how_many_times_better():
    assert Objective("latency").gain(5.0, 10.0) == 2.0
    assert Objective("throughput").gain(30.0, 10.0) == 3.0
    assert Objective("bleu", higher_is_better=True).gain(5.0, 10.0) == 0.5
    assert math.isnan(Objective("latency").gain(0.0, 10.0))
    assert math.isnan(Objective("latency").gain(1.0, math.nan))


def test_inc_names_are_aliases():
    assert [Objective(name).name for name in ("performance", "modelsize", "footprint")] == ["latency", "size", "memory"]
    assert Objective("performance") == Objective("latency")


def test_score_is_the_weighted_mean_of_log_gains():
    both = Objectives((Objective("latency", 3.0), Objective("size", 1.0)))
    score = both.score({"latency": 5.0, "size": 25.0}, {"latency": 10.0, "size": 100.0})
    assert score == pytest.approx((3 * math.log(2) + math.log(4)) / 4)


@given(positive, positive, positive, positive)
def test_score_does_not_depend_on_the_scale_of_weights_or_units(latency, size, base_latency, base_size):
    values, baseline = {"latency": latency, "size": size}, {"latency": base_latency, "size": base_size}
    half = Objectives((Objective("latency", 0.5), Objective("size", 0.5)))
    score = SPEED_AND_SIZE.score(values, baseline)
    assert half.score(values, baseline) == pytest.approx(score, abs=1e-9)
    scaled = SPEED_AND_SIZE.score({**values, "size": size * 1024}, {**baseline, "size": base_size * 1024})
    assert scaled == pytest.approx(score, abs=1e-9)


@given(positive, positive)
def test_float_scores_zero_and_faster_scores_above(latency, size):
    baseline = {"latency": latency, "size": size}
    assert SPEED_AND_SIZE.score(baseline, baseline) == 0.0
    assert SPEED_AND_SIZE.score({**baseline, "latency": latency / 2}, baseline) > 0.0


def test_an_objective_that_was_not_measured_scores_last():
    assert SPEED_AND_SIZE.score({"latency": 1.0}, {"latency": 1.0, "size": 1.0}) == -math.inf
    assert SPEED_AND_SIZE.score({"latency": 1.0, "size": 1.0}, {"latency": 1.0}) == -math.inf


@given(points)
def test_front_holds_exactly_the_points_that_nobody_dominates(found):
    front = set(SPEED_AND_SIZE.front(found))
    for index, point in enumerate(found):
        beaten = any(
            other["latency"] <= point["latency"]
            and other["size"] <= point["size"]
            and (other["latency"] < point["latency"] or other["size"] < point["size"])
            for other in found
        )
        assert (index in front) == (not beaten)
    assert bool(front) == bool(found)


@given(points)
def test_front_knows_the_direction(found):
    faster = Objectives((Objective("throughput"), Objective("size")))
    turned = [{"throughput": 1.0 / point["latency"], "size": point["size"]} for point in found]
    distinct = len({point["latency"] for point in found}) == len({point["throughput"] for point in turned})
    if distinct:
        assert faster.front(turned) == SPEED_AND_SIZE.front(found)


@given(points)
def test_no_point_dominates_itself_and_domination_is_one_way(found):
    for one in found:
        assert not SPEED_AND_SIZE.dominates(one, one)
        for other in found:
            assert not (SPEED_AND_SIZE.dominates(one, other) and SPEED_AND_SIZE.dominates(other, one))


@pytest.mark.parametrize("weight", [0, -1.0, math.nan, math.inf])
def test_weights_must_be_positive(weight):
    with pytest.raises(ConfigError, match="expected a number above 0"):
        Objective("latency", weight)


def test_a_users_objective_must_say_its_direction():
    with pytest.raises(
        ConfigError, match=r"objective 'energy' is none of \['latency', 'memory', 'size', 'throughput'\]"
    ):
        Objective("energy")


@pytest.mark.parametrize("items", [(), (Objective("latency"), Objective("performance"))])
def test_objectives_are_at_least_one_and_none_twice(items):
    with pytest.raises(ConfigError, match="expected at least one and none twice"):
        Objectives(items)
