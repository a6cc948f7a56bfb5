"""The stages of `basic`, trial by trial, against scripted evaluations."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from neural_tune.testing import begin, drive, finish
from neural_tune.testing.spaces import INT8, choices, op, space_of, with_granularity, with_observer
from neural_tune.values import (
    FLOAT,
    AccuracyCriterion,
    FrozenMap,
    Granularity,
    Observer,
    Origin,
    Role,
    Trial,
    TrialResult,
    TrialStatus,
)
from neural_tune_strategies.basic import Basic

ABSOLUTE = AccuracyCriterion(criterion="absolute", tolerable_loss=0.0625)
FIVE = space_of(*(op(f"c{number}") for number in range(1, 6)))


def shown(space, candidate):
    """Return the float groups of a candidate, as "c1 c3"; "" is full int8."""
    return " ".join(group.name for group in space.groups if space.choice_of(candidate, group) == FLOAT)


def sequence(space, history):
    return [shown(space, result.trial.candidate) for result in history.results]


def hidden_pair(candidate):
    """c2 and c4 hurt unless both are float, c1 and c3 hurt a little by themselves, c5 helps a little in int8."""
    quantized = candidate.ops
    loss = (
        0.5 * ("c2" in quantized or "c4" in quantized) + 0.03125 * ("c1" in quantized) + 0.015625 * ("c3" in quantized)
    )
    return 1.0 - loss - 0.015625 * ("c5" not in quantized)


HIDDEN_PAIR = ["", "c5", "c4", "c3", "c2", "c1", "c1 c3", "c1 c3 c4", "c1 c2 c3 c4", "c1 c2 c3", "c1 c2 c4", "c2 c4"]


def test_full_int8_that_is_accepted_is_the_only_trial():
    history = drive(Basic(), FIVE, lambda _: 0.95, begin(1.0, ABSOLUTE))
    assert sequence(FIVE, history) == [""]
    assert history.results[0].trial.candidate == FIVE.preferred()
    assert history.results[0].is_accepted


def test_one_bad_op_is_found_from_the_last_op_to_the_first():
    history = drive(Basic(), FIVE, lambda c: 0.5 if "c3" in c.ops else 1.0, begin(1.0, ABSOLUTE))
    assert sequence(FIVE, history) == ["", "c5", "c4", "c3"]
    assert [result.is_accepted for result in history.results] == [False, False, False, True]


def test_companions_fall_back_after_all_anchors():
    space = space_of(
        op("a1"), op("add", "Add", role=Role.COMPANION), op("a2"), op("mul", "Mul", role=Role.COMPANION), op("a3")
    )
    history = drive(Basic(), space, lambda _: 0.5, begin(1.0, ABSOLUTE), max_trials=6)
    assert sequence(space, history) == ["", "a3", "a2", "a1", "mul", "add"]


def test_members_of_a_group_fall_back_together():
    space = space_of(op("left", group="pair"), op("c"), op("right", group="pair"))
    history = drive(Basic(), space, lambda c: 0.5 if "left" in c.ops else 1.0, begin(1.0, ABSOLUTE))
    assert sequence(space, history) == ["", "c", "pair"]
    assert set(history.results[-1].trial.candidate.ops) == {"c"}


def test_fallbacks_accumulate_by_measured_impact_until_accepted():
    damage = {"c1": 0.0625, "c2": 0.015625, "c3": 0.046875, "c4": 0.0, "c5": 0.03125}
    history = drive(Basic(), FIVE, lambda c: 1.0 - sum(damage[name] for name in c.ops), begin(1.0, ABSOLUTE))
    # loss in units of 1/64: full 10, tolerated 4; alone c5 8, c4 10, c3 7, c2 9, c1 6
    assert sequence(FIVE, history) == ["", "c5", "c4", "c3", "c2", "c1", "c1 c3"]
    assert history.results[-1].is_accepted
    assert Basic().is_content(FIVE, history)


def test_prune_back_quantizes_again_what_was_not_needed():
    history = drive(Basic(), FIVE, hidden_pair, begin(1.0, ABSOLUTE))
    assert sequence(FIVE, history) == HIDDEN_PAIR
    assert [result.is_accepted for result in history.results] == [False] * 8 + [True, False, True, True]
    content = [
        Basic().is_content(FIVE, replace(history, results=history.results[:cut])) for cut in range(len(HIDDEN_PAIR) + 1)
    ]
    assert content == [False] * len(HIDDEN_PAIR) + [True], "content only when the prune-back is done"
    assert Basic().propose(FIVE, history) is None


def test_equal_impacts_keep_the_order_of_stage_three():
    history = drive(Basic(), FIVE, lambda _: 0.5, begin(1.0, ABSOLUTE))
    assert sequence(FIVE, history) == ["", "c5", "c4", "c3", "c2", "c1", "c4 c5", "c3 c4 c5", "c2 c3 c4 c5"]
    assert not Basic().is_content(FIVE, history)


def test_all_float_is_never_reached_and_the_worst_case_is_the_forecast():
    """Only the last pile is accepted, and nothing can be taken back: every stage runs to its end."""
    last = {"c2", "c3", "c4", "c5"}
    history = drive(Basic(), FIVE, lambda c: 0.5 + 0.5 * (not last & set(c.ops)), begin(1.0, ABSOLUTE))
    assert sequence(FIVE, history)[-5:] == ["c3 c4 c5", "c2 c3 c4 c5", "c2 c4 c5", "c2 c3 c5", "c2 c3 c4"]
    assert Basic().forecast(FIVE).worst == len(history.results) == 3 * 5 - 3


@pytest.mark.parametrize(("groups", "expected", "worst"), [(0, 0, 0), (1, 1, 1), (2, 3, 3), (3, 4, 6), (10, 11, 27)])
def test_forecast_in_groups(groups, expected, worst):
    forecast = Basic().forecast(space_of(*(op(f"c{number}") for number in range(groups))))
    assert (forecast.expected, forecast.worst) == (expected, worst)


OPTIONS = space_of(
    op("conv1", "Conv", choices(Observer.KL, per_tensor=True)),
    op("conv2", "Conv", choices(Observer.KL, per_tensor=True)),
    op("fc", "Gemm", choices(Observer.MSE, Observer.KL)),
)
KL = with_observer(INT8, Observer.KL)
MSE = with_observer(INT8, Observer.MSE)
PER_TENSOR = with_granularity(INT8, Granularity.PER_TENSOR)


def test_options_are_tried_one_at_a_time_on_all_ops_that_offer_them():
    history = drive(Basic(), OPTIONS, lambda _: 0.5, begin(1.0, ABSOLUTE), max_trials=4)
    assert [dict(result.trial.candidate.ops) for result in history.results] == [
        {"conv1": INT8, "conv2": INT8, "fc": INT8},
        {"conv1": KL, "conv2": KL, "fc": KL},
        {"conv1": PER_TENSOR, "conv2": PER_TENSOR, "fc": INT8},
        {"conv1": INT8, "conv2": INT8, "fc": MSE},
    ]
    assert [result.trial.origin.reason for result in history.results][1:] == [
        "activation observer kl on Conv, Gemm",
        "weight granularity per_tensor on Conv",
        "activation observer mse on Gemm",
    ]
    assert Basic().forecast(OPTIONS).expected == 1 + 3 + 3
    assert Basic().forecast(OPTIONS).worst == 3 * 3 + 3 - 3


def test_the_best_option_is_the_start_of_the_fallbacks():
    def evaluate(candidate):
        return (
            0.75
            + 0.0625 * (candidate.config_of("fc") in (MSE, FLOAT))
            + 0.125 * (candidate.config_of("conv1") == FLOAT)
        )

    history = drive(Basic(), OPTIONS, evaluate, begin(1.0, ABSOLUTE))
    full = {"conv1": INT8, "conv2": INT8, "fc": MSE}
    assert [dict(result.trial.candidate.ops) for result in history.results[4:]] == [
        {name: config for name, config in full.items() if name != "fc"},
        {name: config for name, config in full.items() if name != "conv2"},
        {name: config for name, config in full.items() if name != "conv1"},
    ]
    assert history.results[-1].is_accepted


def test_an_accepted_option_ends_the_search():
    history = drive(Basic(), OPTIONS, lambda c: 1.0 if c.config_of("fc") == KL else 0.5, begin(1.0, ABSOLUTE))
    assert len(history.results) == 2
    assert history.results[-1].is_accepted


def test_of_equal_options_the_preferred_one_is_the_start():
    history = drive(Basic(), OPTIONS, lambda _: 0.5, begin(1.0, ABSOLUTE), max_trials=5)
    assert dict(history.results[4].trial.candidate.ops) == {"conv1": INT8, "conv2": INT8}


def test_lower_is_better_gives_the_same_trials():
    lower = AccuracyCriterion(higher_is_better=False, criterion="absolute", tolerable_loss=0.0625)
    history = drive(Basic(), FIVE, lambda c: 1.0 - hidden_pair(c), begin(0.0, lower))
    assert sequence(FIVE, history) == HIDDEN_PAIR


def test_relative_loss_of_a_negative_baseline_gives_the_same_trials():
    relative = AccuracyCriterion(criterion="relative", tolerable_loss=0.0625)
    history = drive(Basic(), FIVE, lambda c: -4.0 + 4.0 * (hidden_pair(c) - 1.0), begin(-4.0, relative))
    assert sequence(FIVE, history) == HIDDEN_PAIR


def test_several_metrics_are_ranked_by_the_one_that_is_furthest_off():
    criterion = AccuracyCriterion(
        metrics=FrozenMap({"top1": ABSOLUTE, "f1": AccuracyCriterion(criterion="absolute", tolerable_loss=0.25)})
    )

    def evaluate(candidate):
        quantized = candidate.ops
        return {"top1": 1.0 - 0.125 * ("c2" in quantized), "f1": 1.0 - 0.5 * ("c4" in quantized)}

    history = drive(Basic(), FIVE, evaluate, begin({"top1": 1.0, "f1": 1.0}, criterion))
    # c4 alone leaves -1/16 of slack (top1), every other -1/4 (f1): c4 comes first, and the rest keeps its order
    assert sequence(FIVE, history) == [
        "",
        "c5",
        "c4",
        "c3",
        "c2",
        "c1",
        "c4 c5",
        "c3 c4 c5",
        "c2 c3 c4 c5",
        "c2 c4 c5",
        "c2 c4",
    ]


def test_a_failed_fallback_counts_as_the_worst_impact():
    def evaluate(candidate):
        alone_c3 = set(candidate.ops) == {"c1", "c2", "c4", "c5"}
        return None if alone_c3 else 0.5

    history = drive(Basic(), FIVE, evaluate, begin(1.0, ABSOLUTE))
    assert sequence(FIVE, history)[6:] == ["c4 c5", "c2 c4 c5", "c1 c2 c4 c5"]
    assert history.results[3].status is TrialStatus.FAILED


def test_a_failed_start_is_left_for_an_option_that_works():
    history = drive(
        Basic(), OPTIONS, lambda c: None if c == OPTIONS.preferred() else 0.5, begin(1.0, ABSOLUTE), max_trials=5
    )
    assert dict(history.results[4].trial.candidate.ops) == {"conv1": KL, "conv2": KL}


def test_an_op_that_breaks_the_runtime_ends_in_float():
    history = drive(Basic(), FIVE, lambda c: None if "c2" in c.ops else 1.0, begin(1.0, ABSOLUTE))
    assert sequence(FIVE, history) == ["", "c5", "c4", "c3", "c2"]
    assert history.results[-1].is_accepted


def test_when_every_trial_fails_the_search_ends():
    history = drive(Basic(), FIVE, lambda _: None, begin(1.0, ABSOLUTE))
    assert len(history.results) == 1 + 5 + 3
    assert not history.accepted


def test_metrics_that_are_not_numbers_rank_last():
    history = drive(Basic(), FIVE, lambda c: math.nan if "c5" not in c.ops else 0.5, begin(1.0, ABSOLUTE), max_trials=7)
    assert sequence(FIVE, history)[-1] == "c3 c4"


@pytest.mark.parametrize("cut", range(len(HIDDEN_PAIR)))
def test_history_cut_anywhere_is_continued_alike(cut):
    whole = drive(Basic(), FIVE, hidden_pair, begin(1.0, ABSOLUTE))
    resumed = drive(Basic(), FIVE, hidden_pair, replace(whole, results=whole.results[:cut]))
    assert resumed == whole


@pytest.mark.parametrize("workers", [2, 3, 5, 16])
def test_workers_try_the_same_candidates_in_stages_two_and_three(workers):
    alone = drive(Basic(), OPTIONS, lambda _: 0.5, begin(1.0, ABSOLUTE), max_trials=7)
    together = drive(Basic(), OPTIONS, lambda _: 0.5, begin(1.0, ABSOLUTE), workers=workers, max_trials=7)
    assert [result.trial for result in together.results] == [result.trial for result in alone.results]
    crowd = drive(Basic(), FIVE, hidden_pair, begin(1.0, ABSOLUTE), workers=workers)
    assert set(sequence(FIVE, crowd)) == set(HIDDEN_PAIR)


def test_stages_one_and_five_wait_for_their_result():
    first = begin(1.0, ABSOLUTE).with_pending(Trial(number=1, candidate=FIVE.preferred(), origin=Origin("basic")))
    assert Basic().propose(FIVE, first) is None
    whole = drive(Basic(), FIVE, hidden_pair, begin(1.0, ABSOLUTE))
    pruning = replace(whole, results=whole.results[:9])
    pending = pruning.with_pending(whole.results[9].trial)
    assert Basic().propose(FIVE, pending) is None
    assert not Basic().is_content(FIVE, pending)


def test_stage_three_waits_for_all_options():
    history = begin(1.0, ABSOLUTE)
    for _ in range(3):
        proposal = Basic().propose(OPTIONS, history)
        trial = Trial(number=history.next_number, candidate=proposal.candidate, origin=Origin("basic"))
        history = finish(history.with_pending(trial), trial, 0.5)
    proposal = Basic().propose(OPTIONS, history)
    history = history.with_pending(Trial(number=4, candidate=proposal.candidate, origin=Origin("basic")))
    assert Basic().propose(OPTIONS, history) is None


def test_with_a_time_budget_options_and_fallbacks_are_completed_but_nothing_is_accumulated():
    history = drive(Basic(), FIVE, lambda _: 1.0, begin(1.0, ABSOLUTE), until_content=False)
    assert sequence(FIVE, history) == ["", "c5", "c4", "c3", "c2", "c1"]


def test_a_rejected_trial_is_ranked_by_its_bound():
    """Exact metrics are asked for, but a journal of another strategy may hold early rejections."""
    whole = drive(Basic(), FIVE, lambda _: 0.5, begin(1.0, ABSOLUTE), max_trials=6)
    bounded = TrialResult(
        trial=whole.results[3].trial, status=TrialStatus.REJECTED, bounds=FrozenMap({"accuracy": 0.75})
    )
    history = replace(whole, results=(*whole.results[:3], bounded, *whole.results[4:]))
    assert shown(FIVE, Basic().propose(FIVE, history).candidate) == "c3 c5"


def test_every_trial_says_why():
    history = drive(Basic(), FIVE, hidden_pair, begin(1.0, ABSOLUTE))
    reasons = [result.trial.origin.reason for result in history.results]
    assert reasons[0] == "full int8: the preferred precision of every op"
    assert reasons[1] == "c5 alone in float"
    assert reasons[7] == "3 groups in float by measured impact, now also c4"
    assert reasons[-1] == "c1 quantized again, 2 groups in float"


def test_a_proposal_on_150_ops_is_fast_with_a_long_history():
    import time

    space = space_of(*(op(f"layer{number}/conv") for number in range(150)))
    history = drive(Basic(), space, lambda _: 0.5, begin(1.0, ABSOLUTE), max_trials=250)
    start = time.perf_counter()
    assert Basic().propose(space, history) is not None  # nothing memoized
    assert time.perf_counter() - start < 2.0
