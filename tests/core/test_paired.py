"""Paired tests against scipy, and that chance alone does not look like a loss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_tune.paired import mcnemar, paired_test, ratio_interval

stats = pytest.importorskip("scipy.stats", reason='needs: pip install "neural-tune[metrics]"')


@given(worse=st.integers(0, 400), better=st.integers(0, 400))
def test_mcnemar_is_scipys_one_sided_binomial_test_where_there_is_a_loss(worse: int, better: int) -> None:
    if worse > better:
        oracle = stats.binomtest(worse, worse + better, 0.5, alternative="greater").pvalue
        assert mcnemar(worse, better) == pytest.approx(oracle, rel=1e-9, abs=1e-300)
    else:
        assert mcnemar(worse, better) == 1.0


def test_right_or_wrong_values_count_what_changed() -> None:
    before = np.asarray([1, 1, 1, 1, 1, 1, 1, 1, 0, 0], float)
    after = np.asarray([1, 0, 0, 0, 0, 0, 0, 0, 0, 1], float)
    found = paired_test(before, after, higher_is_better=True)
    assert (found.worse, found.better, found.method) == (7, 1, "McNemar, exact")
    assert found.drop == pytest.approx(0.6)
    assert found.p == pytest.approx(9 / 256)


def test_errors_are_worse_when_they_grow_and_a_permutation_test_sees_it() -> None:
    rng = np.random.default_rng(0)
    before = rng.gamma(2.0, size=200)
    after = before + rng.normal(0.05, 0.1, 200)
    assert paired_test(before, after, higher_is_better=False).p < 0.001
    assert paired_test(before, after, higher_is_better=True).p == 1.0
    # The same test by scipy, on the same kind of draws.
    oracle = stats.permutation_test(
        (after - before,), np.mean, permutation_type="samples", alternative="greater", n_resamples=2000, rng=1
    )
    assert oracle.pvalue < 0.001


def test_noise_without_a_loss_is_found_out_as_rarely_as_the_level_says() -> None:
    rng = np.random.default_rng(1)
    found = []
    for seed in range(200):
        before = rng.normal(size=60)
        found.append(paired_test(before, before + rng.normal(0, 0.3, 60), higher_is_better=True, seed=seed).p < 0.05)
    assert sum(found) / 200 < 0.1


def test_a_nan_is_as_bad_as_can_be() -> None:
    found = paired_test(np.asarray([0.5, 0.2]), np.asarray([0.5, np.nan]), higher_is_better=True)
    assert (found.worse, found.p) == (1, 0.0)


def test_the_interval_of_a_ratio_is_one_for_equal_values_and_holds_the_ratio_otherwise() -> None:
    rng = np.random.default_rng(2)
    values = rng.gamma(1.0, size=256)
    assert ratio_interval(values, values) == (1.0, 1.0, 1.0)
    ratio, low, high = ratio_interval(values, values * rng.normal(1.3, 0.2, 256))
    assert low < ratio < high
    assert 1.2 < ratio < 1.4
    assert ratio_interval(np.zeros(4), np.zeros(4))[0] == 1.0


def test_a_loss_is_found_whatever_the_unit_of_the_values() -> None:
    rng = np.random.default_rng(0)
    before = rng.gamma(2.0, size=200)
    after = before + rng.normal(0.05, 0.1, 200)
    whole = paired_test(before, after, higher_is_better=False)
    small = paired_test(before * 1e-15, after * 1e-15, higher_is_better=False)
    assert whole.p < 0.001
    assert small.p == pytest.approx(whole.p)
