"""Ranges on demand: of what was observed only, each computed once."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from neural_tune.calibration import Statistics
from neural_tune.errors import AdapterError
from neural_tune.numerics import observers
from neural_tune.numerics.observers import Observed
from neural_tune.values import Observer


def test_a_tensor_that_was_never_observed_is_named():
    stats = Statistics({"seen": Observed.of(np.ones(3, np.float32))}, 1)
    with pytest.raises(AdapterError, match=r"'unseen' was never observed.*calibrate again"):
        stats.range_of("unseen", Observer.MINMAX, symmetric=False, levels=256)


def test_a_range_is_computed_once_per_question(stats, monkeypatch):
    calls = []
    find = observers.find_range
    monkeypatch.setattr(observers, "find_range", lambda *args, **kwargs: calls.append(args) or find(*args, **kwargs))
    first = stats.range_of("input", Observer.MSE, symmetric=False, levels=256)
    assert stats.range_of("input", Observer.MSE, symmetric=False, levels=256) == first
    assert len(calls) == 1
    assert stats.range_of("input", Observer.MSE, symmetric=True, levels=256) != first
    assert stats.range_of("input", Observer.PERCENTILE, 99.0, symmetric=False, levels=256) != first
    assert len(calls) == 3


def test_a_tensor_of_infinities_is_told_from_one_that_was_not_observed(stats):
    with pytest.raises(AdapterError, match="'mask' took infinite values"):
        stats.range_of("mask", Observer.MINMAX, symmetric=False, levels=256)


def test_statistics_travel_to_another_process(stats):
    copy = pickle.loads(pickle.dumps(stats))
    assert copy.range_of("input", Observer.KL, symmetric=False, levels=256) == stats.range_of(
        "input", Observer.KL, symmetric=False, levels=256
    )
