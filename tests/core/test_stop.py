"""StopRule: ranges, and the meaning of a timeout of zero."""

from __future__ import annotations

import math

import pytest

from neural_tune.errors import ConfigError
from neural_tune.values import StopRule


def test_defaults_stop_at_the_first_acceptable_of_a_hundred_trials():
    rule = StopRule()
    assert (rule.max_trials, rule.timeout, rule.max_passes) == (100, 0.0, None)
    assert rule.at_first_acceptable
    assert not StopRule(timeout=0.5).at_first_acceptable


@pytest.mark.parametrize("trials", [0, -1, 1.5, True, "10", None])
def test_max_trials_is_a_whole_number_from_one(trials):
    with pytest.raises(ConfigError, match="max_trials: found"):
        StopRule(max_trials=trials)


@pytest.mark.parametrize("timeout", [-1, math.nan, math.inf, "1", None])
def test_timeout_is_in_seconds_from_zero(timeout):
    with pytest.raises(ConfigError, match="timeout: found"):
        StopRule(timeout=timeout)


@pytest.mark.parametrize("passes", [0, -0.5, math.nan])
def test_max_passes_is_above_zero(passes):
    with pytest.raises(ConfigError, match="max_passes: found"):
        StopRule(max_passes=passes)
