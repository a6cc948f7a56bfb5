"""The steps along a ladder, by hand."""

from __future__ import annotations

import itertools

import pytest

from neural_tune_strategies.auto.search import aim, belief, bisect, gallop


def climbed(errors, probes, *, is_informed=True):
    """Return the rungs tried when all of them are rejected."""
    beliefs, rung, tried = belief(errors, is_informed=is_informed), 0, []
    while rung < len(errors) - 1:
        rung = gallop(beliefs, rung, probes)
        tried.append(rung)
    return tried


def test_without_a_ranking_only_the_count_is_believed():
    assert belief([4.0, 3.0, 2.0, 1.0], is_informed=False) == pytest.approx([0.0, 0.6931, 0.4055, 0.2877], abs=1e-4)


def test_rungs_that_take_away_error_are_believed_in():
    beliefs = belief([8.0, 7.9, 0.1, 0.09, 0.08], is_informed=True)
    assert max(range(5), key=beliefs.__getitem__) == 2


def test_a_fall_of_what_is_negligible_is_not_believed_in():
    steep, flat = belief([100.0, 1e-6, 1e-9], is_informed=True), belief([100.0, 1e-6, 0.9e-6], is_informed=True)
    assert steep[2] == pytest.approx(flat[2], rel=1e-3)


def test_the_climb_is_strictly_upwards_and_ends_on_the_last_rung():
    errors = [1.5**-place for place in range(60)]
    for probes in (1, 3, 8, 12):
        tried = climbed(errors, probes)
        assert all(one < other for one, other in itertools.pairwise(tried))
        assert tried[-1] == 59


def test_more_probes_make_smaller_steps():
    errors = [60.0 - place for place in range(60)]
    assert len(climbed(errors, 12)) > len(climbed(errors, 6)) > len(climbed(errors, 1))


def test_a_cliff_is_climbed_to_directly_when_few_probes_are_left():
    errors = [1000.0] * 10 + [1.0] * 10
    assert gallop(belief(errors, is_informed=True), 4, 1) == 10


def test_a_bracket_is_halved_nearer_to_the_rejected_end_until_it_is_closed():
    beliefs = [0.0] + [1.0] * 9
    assert bisect(beliefs, 0, 9) == 3
    assert bisect(beliefs, 3, 9) == 5
    assert bisect(beliefs, 7, 9) == 8
    assert bisect(beliefs, 8, 9) is None
    assert bisect(beliefs, -1, 0) is None


def test_the_first_aim_assumes_that_the_loss_saturates():
    errors = [100.0, 50.0, 25.0, 10.0, 5.0]
    assert aim(errors, {0: 4.0}) == 1  # loss ~ error ** 2: half the error is a quarter of the loss
    assert aim(errors, {0: 16.0}) == 2
    assert aim(errors, {0: 1e9}) == 4


def test_two_losses_tell_the_power_law():
    errors = [100.0, 50.0, 25.0, 12.5, 6.25, 3.0]
    assert aim(errors, {0: 8.0, 1: 4.0}) == 3  # linear: a quarter of the error
    assert aim(errors, {0: 64.0, 1: 16.0}) == 3  # quadratic: 16 times the loss, a quarter of the error


def test_a_loss_that_rose_on_the_way_up_tells_nothing():
    errors = [100.0, 50.0, 25.0, 12.5]
    assert aim(errors, {0: 2.0, 1: 4.0}) == 2
