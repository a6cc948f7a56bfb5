"""Factors per channel: by hand, scale-free, safe where channels are silent."""

from __future__ import annotations

import numpy as np
import pytest

from neural_tune.numerics import factors
from neural_tune.numerics.factors import Moments, Weights


def test_factors_of_two_channels_by_hand():
    # x ranges over 4 and 1, W over 1 and 4, one output: alpha 1/2 gives sqrt(4 / 1) : sqrt(1 / 4) = 4 : 1, centred 2 : 1/2.
    weight = Weights.of(np.array([[[[1.0], [4.0]]]]))
    seen = Moments(np.zeros(2), np.array([4.0, 1.0]), np.array([2.0, 0.5]), np.array([4.0, 0.25]))
    found = list(factors.candidates([weight], seen))
    np.testing.assert_allclose(found[0], [1.0, 1.0])
    np.testing.assert_allclose(found[1 + factors.ALPHAS.index(0.5)], [2.0, 0.5])
    # At 2 : 1/2 both channels of x / s reach 2 and both weights 2: step 2 / 255 and 2 / 127, signal 4 + 4.
    by_hand = ((2 / 255) ** 2 * (4 * 1 + 0.25 * 16) + (2 / 127) ** 2 * (4 / 4 + 0.25 * 4)) / 12 / 8
    assert factors.predicted_noise([weight], seen, np.array([2.0, 0.5])) == pytest.approx(by_hand)


def test_predicted_noise_does_not_depend_on_the_scale_of_an_output():
    rng = np.random.default_rng(5)
    values = rng.standard_normal((1, 3, 4, 9))
    seen = Moments(-rng.random(4), rng.random(4), np.zeros(4), rng.random(4))
    chosen = np.exp(rng.standard_normal(4))
    first = factors.predicted_noise([Weights.of(values)], seen, chosen)
    louder = values * np.array([1.0, 10.0, 0.01]).reshape(1, 3, 1, 1)
    assert factors.predicted_noise([Weights.of(louder)], seen, chosen) == pytest.approx(first)


def test_silent_channels_keep_an_ordinary_factor():
    weight = Weights.of(np.ones((1, 2, 4, 1)))
    seen = Moments(np.zeros(4), np.array([0.0, 1.0, 1.0, 1.0]), np.zeros(4), np.array([0.0, 1.0, 1.0, 1.0]))
    for found in factors.candidates([weight], seen):
        assert found[0] == pytest.approx(1.0)


def test_an_output_without_signal_says_nothing():
    weight = Weights.of(np.ones((2, 1, 1, 9)))
    seen = Moments(np.zeros(2), np.array([0.0, 1.0]), np.zeros(2), np.array([0.0, 0.5]))
    assert np.isfinite(factors.predicted_noise([weight], seen, np.ones(2)))
    assert np.isfinite(factors.choose([weight], seen)).all()
