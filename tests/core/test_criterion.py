"""`judge`: any sign of the baseline, both directions, the boundary, several metrics."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from neural_tune.errors import ConfigError
from neural_tune.values import AccuracyCriterion, FrozenMap, judge

values = st.floats(min_value=-1e6, max_value=1e6)
losses = st.floats(min_value=0, max_value=10)
criteria = st.builds(AccuracyCriterion, st.booleans(), st.sampled_from(["relative", "absolute"]), losses)


def is_met(criterion, value, baseline):
    return judge(criterion, {"m": value}, {"m": baseline}).is_met


@pytest.mark.parametrize(
    ("higher", "kind", "tolerable", "baseline", "accepted", "missed"),
    [
        (True, "relative", 0.01, 0.90, 0.891, 0.8909),
        (True, "absolute", 0.01, 0.90, 0.89, 0.8899),  # 0.90 - 0.89 is above 0.01 in binary
        (False, "relative", 0.01, 2.0, 2.02, 2.0201),
        (False, "absolute", 0.5, 2.0, 2.5, 2.5001),
        (True, "relative", 0.1, -2.0, -2.2, -2.21),  # measured against the magnitude: 0.2 may be lost
        (False, "relative", 0.1, -2.0, -1.8, -1.79),
        (True, "absolute", 0.1, -2.0, -2.1, -2.11),
        (True, "relative", 0.0, 0.5, 0.5, 0.4999),
        (True, "relative", 1.0, 0.5, 0.0, -0.0001),
        (True, "absolute", 0.1, 0.0, -0.1, -0.11),
    ],
)
def test_the_boundary_is_accepted_and_what_lies_beyond_is_not(higher, kind, tolerable, baseline, accepted, missed):
    criterion = AccuracyCriterion(higher, kind, tolerable)
    assert is_met(criterion, accepted, baseline)
    assert not is_met(criterion, missed, baseline)


def test_against_a_baseline_of_zero_every_relative_loss_is_infinite():
    criterion = AccuracyCriterion(tolerable_loss=0.5)
    assert criterion.loss(-0.1, 0.0) == math.inf
    assert criterion.loss(0.1, 0.0) == -math.inf
    assert criterion.loss(0.0, 0.0) == 0.0
    assert not is_met(criterion, -1e-9, 0.0)
    assert is_met(criterion, 0.0, 0.0)


@given(criteria, values)
def test_nan_is_never_met(criterion, baseline):
    verdict = judge(criterion, {"m": math.nan}, {"m": baseline})
    assert not verdict.is_met
    assert verdict.slack == -math.inf


@given(criteria, values)
def test_the_baseline_itself_is_always_met(criterion, baseline):
    verdict = judge(criterion, {"m": baseline}, {"m": baseline})
    assert verdict.is_met
    assert verdict.slack == criterion.tolerable_loss


@given(criteria, values, values, values)
def test_a_better_value_is_never_judged_worse(criterion, baseline, one, other):
    worse, better = sorted((one, other), reverse=not criterion.higher_is_better)
    low = judge(criterion, {"m": worse}, {"m": baseline})
    high = judge(criterion, {"m": better}, {"m": baseline})
    assert high.slack >= low.slack
    assert high.is_met or not low.is_met


@given(st.booleans(), st.sampled_from(["relative", "absolute"]), losses, losses, values, values)
def test_a_looser_criterion_accepts_all_that_a_stricter_one_does(higher, kind, one, other, value, baseline):
    strict, loose = sorted((one, other))
    assert is_met(AccuracyCriterion(higher, kind, loose), value, baseline) or not is_met(
        AccuracyCriterion(higher, kind, strict), value, baseline
    )


@given(st.sampled_from(["relative", "absolute"]), losses, values, values)
def test_directions_are_mirror_images(kind, tolerable, value, baseline):
    up, down = AccuracyCriterion(True, kind, tolerable), AccuracyCriterion(False, kind, tolerable)
    assert up.loss(value, baseline) == down.loss(-value, -baseline)
    assert is_met(up, value, baseline) == is_met(down, -value, -baseline)


@given(losses, values, values, st.sampled_from([0.5, 2.0, 1024.0]))
def test_a_relative_loss_does_not_depend_on_the_unit(tolerable, value, baseline, unit):
    assume(abs(baseline) > 1e-300)
    criterion = AccuracyCriterion(tolerable_loss=tolerable)
    assert criterion.loss(value * unit, baseline * unit) == pytest.approx(criterion.loss(value, baseline), rel=1e-9)


@given(criteria, values, values)
def test_slack_and_verdict_agree(criterion, value, baseline):
    verdict = judge(criterion, {"m": value}, {"m": baseline})
    assert verdict.is_met == (verdict.slack >= -1e-12)


def test_without_own_criteria_every_metric_is_constrained():
    criterion = AccuracyCriterion(tolerable_loss=0.1)
    verdict = judge(criterion, {"top1": 0.95, "top5": 0.5}, {"top1": 1.0, "top5": 1.0})
    assert not verdict.is_met
    assert verdict.losses == {"top1": pytest.approx(0.05), "top5": 0.5}
    assert verdict.slack == pytest.approx(-0.4)
    assert verdict.reason == "top5 0.5 against 1: relative loss 50.00%, above the tolerable 10.00%"


def test_named_metrics_are_constrained_each_by_its_own_and_others_only_reported():
    criterion = AccuracyCriterion(
        metrics=FrozenMap(
            {
                "top1": AccuracyCriterion(criterion="absolute", tolerable_loss=0.02),
                "loss": AccuracyCriterion(higher_is_better=False, tolerable_loss=0.5),
            }
        )
    )
    baseline = {"top1": 0.9, "loss": 1.0, "seconds": 1.0}
    verdict = judge(criterion, {"top1": 0.885, "loss": 1.2, "seconds": 99.0}, baseline)
    assert verdict.is_met
    assert set(verdict.losses) == {"top1", "loss"}
    assert verdict.slack == pytest.approx(0.005)
    assert not judge(criterion, {"top1": 0.885, "loss": 1.6}, baseline).is_met
    assert not judge(criterion, {"top1": 0.87, "loss": 1.2}, baseline).is_met


def test_metrics_that_are_missing_are_config_errors_that_name_them():
    named = AccuracyCriterion(metrics=FrozenMap({"f1": AccuracyCriterion()}))
    with pytest.raises(ConfigError, match=r"names the metrics \['f1'\], but the evaluation returned \['top1'\]"):
        judge(named, {"top1": 1.0}, {"top1": 1.0})
    with pytest.raises(ConfigError, match=r"the float baseline also had \['top5'\]"):
        judge(AccuracyCriterion(), {"top1": 1.0}, {"top1": 1.0, "top5": 1.0})


@pytest.mark.parametrize("loss", [-0.1, math.nan, math.inf, "0.01", None, True])
def test_a_tolerable_loss_out_of_range_is_a_config_error(loss):
    with pytest.raises(ConfigError, match="tolerable_loss: found"):
        AccuracyCriterion(tolerable_loss=loss)


def test_an_unknown_kind_of_loss_is_a_config_error():
    with pytest.raises(ConfigError, match="expected 'relative' or 'absolute'"):
        AccuracyCriterion(criterion="percent")


def test_a_plain_dict_of_metrics_is_taken_and_stays_hashable():
    criterion = AccuracyCriterion(metrics={"top1": AccuracyCriterion(tolerable_loss=0.02)})
    assert criterion.metrics["top1"].tolerable_loss == 0.02
    assert hash(criterion) == hash(
        AccuracyCriterion(metrics=FrozenMap({"top1": AccuracyCriterion(tolerable_loss=0.02)}))
    )
