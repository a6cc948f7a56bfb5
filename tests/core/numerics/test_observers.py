"""The observers against numpy, float64 brute force on the raw data, and a plain-loop reading of Migacz's scheme."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

from neural_tune.errors import ConfigError
from neural_tune.numerics.histogram import Histogram
from neural_tune.numerics.observers import Density, Moments, Observed, divergence, expected_error, find_range
from neural_tune.values import Observer

RNG = np.random.default_rng(7)
NORMAL = RNG.normal(size=200_000).astype(np.float32)
SHAPES = {
    "normal": NORMAL,
    "relu": np.maximum(NORMAL, 0.0),
    "laplace": RNG.laplace(size=200_000).astype(np.float32),
    "outlier": np.concatenate([NORMAL, np.array([40.0], np.float32)]),
    "both_outliers": np.concatenate([NORMAL, np.array([40.0, -25.0], np.float32)]),
    "skewed": RNG.gamma(1.5, size=200_000).astype(np.float32) - np.float32(0.5),
    "negative": -np.abs(NORMAL),
    "relu6": np.clip(NORMAL * 4, 0.0, 6.0).astype(np.float32),
    "far": NORMAL + np.float32(30.0),
}
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES)
EITHER_SCHEME = pytest.mark.parametrize("symmetric", [False, True])


def observed(values):
    return Observed(float(values.min()), float(values.max()), int(np.sum(values == 0)), Histogram.of(values))


def quantized(values, low, high, levels):
    """The textbook quantizer in float64: zero is a level, ties to even."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / (levels - 1)
    zero_point = np.clip(np.rint(-low / step), 0, levels - 1)
    return (np.clip(np.rint(values / step) + zero_point, 0, levels - 1) - zero_point) * step


def true_error(values, low, high, levels=256):
    exact = values.astype(np.float64)
    return float(np.mean((exact - quantized(exact, low, high, levels)) ** 2))


# --- minmax


@EVERY_SHAPE
def test_minmax_is_what_was_observed_bit_for_bit(shape):
    values = SHAPES[shape]
    assert find_range(observed(values), Observer.MINMAX, symmetric=False, levels=256) == (values.min(), values.max())
    bound = np.abs(values).max()
    assert find_range(observed(values), Observer.MINMAX, symmetric=True, levels=255) == (-bound, bound)


# --- percentile


@EVERY_SHAPE
@pytest.mark.parametrize("share", [None, 90.0, 99.0, 99.9, 99.99])
def test_a_symmetric_percentile_is_numpys_on_magnitudes_within_a_bin(shape, share):
    values = SHAPES[shape]
    low, high = find_range(observed(values), Observer.PERCENTILE, percentile=share, symmetric=True, levels=256)
    expected = np.percentile(np.abs(values), share or 99.99, method="inverted_cdf")
    assert low == -high
    assert abs(high - expected) <= 2 * Histogram.of(values).of_magnitudes().width


@EVERY_SHAPE
@pytest.mark.parametrize("share", [None, 90.0, 99.0, 99.9, 99.99])
def test_an_asymmetric_percentile_clips_half_of_the_rest_at_each_end(shape, share):
    values = SHAPES[shape]
    low, high = find_range(observed(values), Observer.PERCENTILE, percentile=share, symmetric=False, levels=256)
    tail = (100.0 - (share or 99.99)) / 2.0
    expected = np.percentile(values, [tail, 100.0 - tail], method="inverted_cdf")
    assert np.abs(np.array([low, high]) - expected).max() <= Histogram.of(values).width


def test_a_hundred_percent_is_minmax():
    assert find_range(observed(NORMAL), Observer.PERCENTILE, percentile=100.0, symmetric=False, levels=256) == (
        NORMAL.min(),
        NORMAL.max(),
    )


def test_a_tensor_that_is_nearly_always_zero_keeps_its_range():
    values = np.zeros(1_000_000, np.float32)
    values[:5] = 3.0
    for symmetric in (False, True):
        assert find_range(observed(values), Observer.PERCENTILE, symmetric=symmetric, levels=256)[1] == 3.0


# --- mse


@EVERY_SHAPE
@pytest.mark.parametrize("levels", [256, 128, 16])
def test_the_expected_error_is_the_error_of_really_quantizing_the_data(shape, levels):
    values = SHAPES[shape]
    histogram = Histogram.of(values).spanning_zero()
    moments = Moments.of(histogram, int(np.sum(values == 0)))
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    for below, above in itertools.product((1.0, 0.6, 0.2), repeat=2):
        ends = np.array([low * below]) / histogram.width, np.array([high * above]) / histogram.width
        expected = expected_error(moments, *ends, levels)[0] * histogram.width**2 / values.size
        assert expected == pytest.approx(true_error(values, low * below, high * above, levels), rel=0.02)


@EVERY_SHAPE
@pytest.mark.parametrize("levels", [256, 16])
def test_mse_is_within_two_percent_of_brute_force_over_both_ends(shape, levels):
    values = SHAPES[shape][-20_000:]
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    found = find_range(observed(values), Observer.MSE, symmetric=False, levels=levels)
    factors = np.geomspace(1.0, 0.02, 30)
    pairs = itertools.product(factors if low else [1.0], factors if high else [1.0])
    best = min(true_error(values, low * below, high * above, levels) for below, above in pairs)
    assert true_error(values, *found, levels) <= 1.02 * best


@EVERY_SHAPE
def test_symmetric_mse_is_within_two_percent_of_brute_force(shape):
    values = SHAPES[shape][-20_000:]
    bound = float(np.abs(values).max())
    low, high = find_range(observed(values), Observer.MSE, symmetric=True, levels=255)
    best = min(true_error(values, -bound * factor, bound * factor, 255) for factor in np.geomspace(1.0, 0.02, 200))
    assert low == -high
    assert true_error(values, low, high, 255) <= 1.02 * best


@given(arrays.arrays(np.float32, st.integers(2, 200), elements=st.floats(-1000, 1000, width=32)), st.booleans())
@settings(max_examples=60, deadline=None)
def test_mse_never_promises_more_error_than_minmax(values, symmetric):
    assume(values.min() != values.max())
    seen = observed(values)
    histogram = seen.histogram.spanning_zero()
    moments = Moments.of(histogram, seen.zeros)

    def promised(bounds):
        low, high = (np.array([bound]) / histogram.width for bound in (min(bounds[0], 0.0), max(bounds[1], 0.0)))
        return expected_error(moments, low, high, 256)[0]

    found = find_range(seen, Observer.MSE, symmetric=symmetric, levels=256)
    minmax = find_range(seen, Observer.MINMAX, symmetric=symmetric, levels=256)
    assert promised(found) <= promised(minmax) * (1 + 1e-9) + 1e-6 * moments.square


# --- kl


def migacz(counts, first, last, levels):
    """Plain loops: P with the outliers in the outermost bins, Q merged into groups and spread over non-empty bins."""
    reference = [float(count) for count in counts[first:last]]
    raw = list(reference)
    reference[0] += float(sum(counts[:first]))
    reference[-1] += float(sum(counts[last:]))
    size = last - first
    spread = [0.0] * size
    for group in range(levels):
        members = range(math.ceil(group * size / levels), math.ceil((group + 1) * size / levels))
        filled = [index for index in members if raw[index] > 0]
        for index in filled:
            spread[index] = sum(raw[item] for item in members) / len(filled)
    total_p, total_q = sum(reference), sum(spread)
    terms = zip(reference, spread, strict=True)
    return sum(p / total_p * math.log((p / total_p) / (q / total_q)) for p, q in terms if p > 0)


@EVERY_SHAPE
def test_the_divergence_is_migaczs_computed_with_plain_loops(shape):
    counts = Histogram.of(SHAPES[shape]).spanning_zero().counts.astype(np.float64)
    filled = np.flatnonzero(counts)
    first = np.array([0, filled[len(filled) // 50], filled[len(filled) // 20]])
    last = np.array([counts.size, filled[-len(filled) // 50] + 1, filled[-1] + 1])
    found = divergence(Density.of(counts), first, last, 256)
    expected = [migacz(counts, *window, 256) for window in zip(first.tolist(), last.tolist(), strict=True)]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


def real_divergence(values, low, high, levels, bins=4000):
    """KL between the data as clipped and what a quantizer with `levels` steps over [low, high] can still tell, on fine bins."""
    counts, edges = np.histogram(values, bins=bins, range=(float(values.min()), float(values.max())))
    centers = (edges[:-1] + edges[1:]) / 2.0
    first, last = np.searchsorted(centers, low), np.searchsorted(centers, high)
    while counts[first] == 0:
        first += 1
    while counts[last - 1] == 0:
        last -= 1
    return migacz(counts, int(first), int(last), levels)


@pytest.mark.parametrize("shape", ["normal", "outlier", "both_outliers", "laplace"])
@EITHER_SCHEME
def test_kl_clips_strictly_inside_and_loses_less_information_than_minmax(shape, symmetric):
    more = np.random.default_rng(8).normal(size=800_000).astype(np.float32)
    values = SHAPES[shape] if shape == "laplace" else np.concatenate([SHAPES[shape], more])
    low, high = find_range(observed(values), Observer.KL, symmetric=symmetric, levels=256)
    data, bottom, levels = (np.abs(values), 0.0, 128) if symmetric else (values, low, 256)
    if symmetric:
        assert low == -high
        assert high < data.max()
    else:
        assert values.min() <= low <= 0.0 < high <= values.max()
        assert high - low < values.max() - values.min()
    full = real_divergence(data, data.min(), data.max(), levels)
    assert real_divergence(data, bottom, high, levels) < full


@EITHER_SCHEME
def test_kl_cuts_a_lonely_outlier_off(symmetric):
    _, high = find_range(observed(SHAPES["outlier"]), Observer.KL, symmetric=symmetric, levels=256)
    assert 2.5 < high < 8.0


@EVERY_SHAPE
@EITHER_SCHEME
def test_kl_clips_at_most_one_percent_at_each_end(shape, symmetric):
    values = SHAPES[shape]
    low, high = find_range(observed(values), Observer.KL, symmetric=symmetric, levels=256)
    slack = Histogram.of(values).spanning_zero().width
    assert np.mean(values > high + slack) <= 0.01
    assert np.mean(values < low - slack) <= 0.01


def test_kl_keeps_an_even_distribution_whole():
    values = RNG.uniform(-1.0, 1.0, size=500_000).astype(np.float32)
    low, high = find_range(observed(values), Observer.KL, symmetric=False, levels=256)
    assert low == pytest.approx(-1.0, abs=0.01)
    assert high == pytest.approx(1.0, abs=0.01)


def test_kl_does_not_trust_a_handful_of_values():
    values = np.concatenate([NORMAL[:300], np.array([40.0], np.float32)])
    assert find_range(observed(values), Observer.KL, symmetric=False, levels=256) == (values.min(), values.max())


# --- all of them


@given(
    arrays.arrays(np.float32, st.integers(1, 300), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.sampled_from([item for item in Observer if item is not Observer.GPTQ]),
    st.booleans(),
    st.sampled_from([2, 16, 128, 255, 256, 65536]),
)
@settings(max_examples=150, deadline=None)
def test_a_range_is_finite_ordered_and_never_beyond_what_was_observed(values, observer, symmetric, levels):
    low, high = find_range(observed(values), observer, symmetric=symmetric, levels=levels)
    bound = float(np.abs(values).max())
    bottom, top = (-bound, bound) if symmetric else (float(values.min()), float(values.max()))
    assert bottom <= low <= high <= top
    assert not symmetric or low == -high


@pytest.mark.parametrize("observer", [item for item in Observer if item is not Observer.GPTQ])
@EITHER_SCHEME
def test_a_constant_and_all_zeros_keep_what_was_observed(observer, symmetric):
    for value in (0.0, 2.5, -2.5):
        low, high = find_range(observed(np.full(5000, value, np.float32)), observer, symmetric=symmetric, levels=256)
        assert (low, high) == ((-abs(value), abs(value)) if symmetric else (value, value))


@pytest.mark.parametrize("observer", [Observer.KL, Observer.MSE])
def test_exact_zeros_do_not_move_a_clipping_range(observer):
    dense = np.abs(SHAPES["laplace"]) + np.float32(1e-6)
    sparse = np.concatenate([dense, np.zeros(3_000_000, np.float32)])
    ranges = [find_range(observed(values), observer, symmetric=False, levels=256) for values in (dense, sparse)]
    assert ranges[1][1] == pytest.approx(ranges[0][1], rel=0.03)


@pytest.mark.parametrize("observer", [Observer.KL, Observer.MSE])
def test_sixteen_bits_are_finer_than_the_histogram_and_keep_everything(observer):
    assert find_range(observed(NORMAL), observer, symmetric=False, levels=65536) == (NORMAL.min(), NORMAL.max())


@pytest.mark.parametrize("observer", [item for item in Observer if item is not Observer.GPTQ])
@EVERY_SHAPE
def test_a_range_takes_at_most_twenty_milliseconds(observer, shape):
    seen = observed(SHAPES[shape])
    durations = []
    for _ in range(5):
        begin = time.process_time()
        find_range(seen, observer, symmetric=False, levels=256)
        durations.append(time.process_time() - begin)
    assert min(durations) <= 0.020


@pytest.mark.parametrize(("levels", "percentile"), [(1, None), (256, 40.0), (256, 100.5), (256, math.nan)])
def test_settings_out_of_their_domain_are_refused(levels, percentile):
    with pytest.raises(ConfigError, match=r"expected|at least"):
        find_range(observed(NORMAL), Observer.PERCENTILE, percentile=percentile, symmetric=False, levels=levels)
