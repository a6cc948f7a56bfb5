"""Quantization specs, capabilities, candidates and histories as values."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_tune.errors import ConfigError, PluginError
from neural_tune.testing import begin, finish
from neural_tune.testing.spaces import INT8, op
from neural_tune.values import (
    FLOAT,
    FLOAT_CANDIDATE,
    AccuracyCriterion,
    Candidate,
    Capability,
    DType,
    FrozenMap,
    Granularity,
    Mode,
    Objective,
    Objectives,
    Observer,
    OpConfig,
    Origin,
    QuantSpec,
    TensorRange,
    Trial,
    TrialResult,
    TrialStatus,
    count_passes,
)

# QuantSpec and OpConfig


@pytest.mark.parametrize("granularity", Granularity)
@pytest.mark.parametrize("group_size", [None, 32])
def test_group_size_belongs_to_per_group_and_only_there(granularity, group_size):
    if (granularity is Granularity.PER_GROUP) == (group_size is not None):
        assert QuantSpec(dtype=DType.INT4, granularity=granularity, group_size=group_size).group_size == group_size
    else:
        with pytest.raises(ConfigError, match=f"group_size={group_size} with granularity {granularity}"):
            QuantSpec(dtype=DType.INT4, granularity=granularity, group_size=group_size)


@pytest.mark.parametrize("observer", Observer)
def test_a_percentile_belongs_to_the_percentile_observer(observer):
    if observer is Observer.PERCENTILE:
        assert QuantSpec(dtype=DType.INT8, observer=observer, percentile=99.9).percentile == 99.9
    else:
        with pytest.raises(ConfigError, match="give it for the percentile observer only"):
            QuantSpec(dtype=DType.INT8, observer=observer, percentile=99.9)


@pytest.mark.parametrize("share", [50.0, 0.9999, 100.1, -1.0, math.nan])
def test_a_percentile_is_in_percent_above_50(share):
    with pytest.raises(ConfigError, match="expected a share in percent, above 50 and at most 100"):
        QuantSpec(dtype=DType.INT8, observer=Observer.PERCENTILE, percentile=share)


def test_values_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        INT8.mode = Mode.FLOAT
    with pytest.raises(FrozenInstanceError):
        INT8.activation.dtype = DType.INT4


def test_descriptions_are_short():
    spec = QuantSpec(dtype=DType.UINT8, symmetric=False, observer=Observer.KL)
    assert spec.describe() == "uint8 asym per_tensor kl"
    assert QuantSpec(dtype=DType.BF16).describe() == "bf16"
    assert INT8.describe() == "static: uint8 asym per_tensor, weight int8 sym per_channel"
    assert OpConfig(mode=Mode.CAST).describe() == "cast"
    assert FLOAT.describe() == "float"


def test_float_dtypes_are_the_three_floating_point_ones():
    assert {dtype for dtype in DType if dtype.is_float} == {DType.BF16, DType.FP16, DType.FP32}


# Capability


@pytest.mark.parametrize("choices", [(), (INT8,), (FLOAT, INT8), (FLOAT, FLOAT), (FLOAT, INT8, FLOAT)])
def test_choices_end_in_float_and_hold_it_once(choices):
    with pytest.raises(PluginError, match="choices must end in FLOAT and hold it once"):
        op("conv", "Conv", choices)


def test_a_choice_listed_twice_is_refused():
    with pytest.raises(PluginError, match=r"choices hold static: .* twice"):
        op("conv", "Conv", (INT8, INT8, FLOAT))


def test_op_names_are_unique():
    with pytest.raises(PluginError, match="fw names ops twice: a"):
        Capability(framework="fw", runtime_version="1", instruction_set="", ops=(op("a"), op("b"), op("a")))


def test_a_group_may_be_named_like_its_own_member_but_not_like_another_op():
    first, second = op("a", group="a"), op("b", group="a")
    assert Capability(framework="fw", runtime_version="1", instruction_set="", ops=(first, second)).ops
    with pytest.raises(PluginError, match="fw names groups like ops that are not in them: a"):
        Capability(framework="fw", runtime_version="1", instruction_set="", ops=(op("a"), second))


def test_an_op_with_extra_choices_only_is_quantizable():
    bare = op("conv", "Conv", (FLOAT,))
    assert not bare.is_quantizable
    assert replace(bare, extra=(INT8,)).is_quantizable


# Candidate


@given(st.dictionaries(st.text(max_size=3), st.sampled_from([INT8, FLOAT]), max_size=5))
def test_float_ops_are_dropped_so_that_equal_candidates_are_equal(ops):
    candidate = Candidate.of(ops)
    assert candidate == Candidate.of({name: config for name, config in ops.items() if config != FLOAT})
    assert all(candidate.config_of(name) == config for name, config in ops.items())
    assert candidate.config_of("no such op") == FLOAT
    assert candidate.is_float == (INT8 not in ops.values())
    assert candidate.is_float == (candidate == FLOAT_CANDIDATE)


def test_ranges_and_recipes_have_one_order():
    kl, mse = TensorRange(tensor="b", observer=Observer.KL), TensorRange(tensor="a", observer=Observer.MSE)
    one = Candidate.of({}, [kl, mse], ["z", "a", "z"])
    assert one == Candidate.of({}, [mse, kl], ["a", "z"])
    assert one.digest == Candidate.of({}, [mse, kl], ["a", "z"]).digest
    assert one.recipes == ("a", "z")


def test_with_ops_changes_only_what_it_names():
    candidate = Candidate.of({"a": INT8, "b": INT8}, recipes=["r"])
    assert candidate.with_ops({"a": FLOAT}) == Candidate.of({"b": INT8}, recipes=["r"])
    assert candidate.with_ops({"c": INT8}).with_ops({"c": FLOAT}) == candidate


# History


def _trial(number, **ops):
    return Trial(number=number, candidate=Candidate.of(ops), origin=Origin("test"))


def test_a_trial_is_pending_until_its_result_arrives():
    history = begin(1.0)
    one, two = _trial(1, a=INT8), _trial(2, b=INT8)
    history = history.with_pending(one).with_pending(two)
    assert history.next_number == 3
    assert history.seen == {one.candidate.digest, two.candidate.digest}
    history = finish(history, two, 0.5)
    assert history.pending == (one,)
    assert [result.trial for result in history.results] == [two]
    assert history.result_of(two.candidate).metrics == {"accuracy": 0.5}
    assert history.result_of(one.candidate) is None
    assert history.seen == {one.candidate.digest, two.candidate.digest}


def test_numbers_go_on_after_a_resumed_history():
    assert begin(1.0).next_number == 1
    assert finish(begin(1.0), _trial(7, a=INT8), 0.5).next_number == 8


def _result(number, metric=None, *, accepted=False, latency=None, status=TrialStatus.COMPLETE):
    metrics = FrozenMap({} if metric is None else {"accuracy": metric})
    return TrialResult(
        trial=_trial(number, **{f"op{number}": INT8}),
        status=status,
        metrics=metrics if status is TrialStatus.COMPLETE else FrozenMap(),
        bounds=metrics if status is TrialStatus.REJECTED else FrozenMap(),
        objectives=FrozenMap({} if latency is None else {"latency": latency}),
        is_accepted=accepted,
        passes=0.25,
    )


def _history(*results):
    history = begin(1.0, AccuracyCriterion(tolerable_loss=0.1))
    baseline = replace(history.baseline, objectives=FrozenMap({"latency": 10.0}))
    return replace(history, baseline=baseline, objectives=Objectives((Objective("latency"),)), results=results)


def _numbers(results):
    return [result.trial.number for result in results]


def test_accepted_results_are_ranked_by_objective_then_accuracy_then_age():
    history = _history(
        _result(1, 0.95, accepted=True, latency=5.0),
        _result(2, 0.97, accepted=True, latency=5.0),
        _result(3, 0.91, accepted=True, latency=4.0),
        _result(4, 0.99, accepted=False, latency=1.0),
        _result(5, 0.97, accepted=True, latency=5.0),
        _result(6, 0.99, accepted=True),
    )
    assert _numbers(history.accepted) == [3, 2, 5, 1, 6]
    assert history.best.trial.number == 3


def test_without_an_accepted_result_the_nearest_complete_miss_is_best():
    failed = _result(3, status=TrialStatus.FAILED)
    rejected = _result(4, 0.89, status=TrialStatus.REJECTED)
    history = _history(_result(1, 0.5), _result(2, 0.8), failed, rejected)
    assert history.best.trial.number == 2
    assert _history(rejected, failed).best.trial.number == 4
    assert _history(failed).best is None
    assert _history().best is None


def test_slack_of_a_failed_trial_is_the_lowest_and_of_a_rejected_one_its_bound():
    history = _history()
    assert history.slack(_result(1, status=TrialStatus.FAILED)) == -math.inf
    assert history.verdict(_result(1, status=TrialStatus.FAILED)) is None
    assert history.slack(_result(1, 0.85, status=TrialStatus.REJECTED)) == pytest.approx(-0.05)
    assert history.slack(_result(1, 0.95)) == pytest.approx(0.05)


def test_passes_add_up_with_the_baseline():
    history = _history(_result(1, 0.5), _result(2, 0.5))
    assert count_passes(history.baseline, history.results) == pytest.approx(1.5)
