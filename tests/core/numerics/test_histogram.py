"""The streaming histogram against numpy's on all the data at once, and its promises as properties."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

from neural_tune.errors import DataError
from neural_tune.numerics.histogram import BINS, CAPACITY, Histogram

ANY_FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
BATCHES = st.lists(arrays.arrays(np.float32, st.integers(1, 50), elements=ANY_FLOAT32), min_size=1, max_size=6)


def stream(batches):
    histogram = Histogram.empty()
    for batch in batches:
        histogram = histogram.merge(Histogram.of(batch))
    return histogram


def same(first, second):
    return (
        first.exponent == second.exponent
        and first.start == second.start
        and np.array_equal(first.counts, second.counts)
    )


@given(BATCHES)
def test_a_stream_gives_exactly_numpys_histogram_of_all_data_on_the_final_edges(batches):
    everything = np.concatenate(batches)
    histogram = stream(batches)
    expected, _ = np.histogram(everything.astype(np.float64), bins=histogram.edges)
    assert np.array_equal(histogram.counts, expected)
    assert histogram.count == everything.size


@given(BATCHES, st.randoms())
def test_the_order_of_the_batches_changes_nothing(batches, random):
    shuffled = list(batches)
    random.shuffle(shuffled)
    assert same(stream(batches), stream(shuffled))
    assert same(stream(batches), Histogram.of(np.concatenate(batches)))


@given(BATCHES)
def test_a_bin_is_as_fine_as_promised_and_there_are_never_too_many(batches):
    everything = np.concatenate(batches).astype(np.float64)
    histogram = stream(batches)
    low, high = everything.min(), everything.max()
    finest = max(np.abs(everything).max() * 2.0**-23, 2.0**-120)
    assert histogram.counts.size <= CAPACITY
    assert histogram.counts[0] > 0
    assert histogram.counts[-1] > 0
    assert histogram.width <= max((high - low) / (BINS - 1), finest)


def test_growing_ranges_conserve_mass_and_end_at_the_resolution_of_the_whole():
    rng = np.random.default_rng(0)
    batches = [rng.normal(scale=10.0**power, size=1000).astype(np.float32) for power in (-6, -2, 0, 3, 1)]
    histogram = stream(batches)
    assert histogram.count == 5000
    whole = np.concatenate(batches)
    assert BINS <= histogram.counts.size <= CAPACITY
    assert histogram.edges[0] <= whole.min() < histogram.edges[1]
    assert histogram.edges[-2] <= whole.max() < histogram.edges[-1]


def test_merging_shards_in_any_grouping_gives_one_result():
    rng = np.random.default_rng(1)
    parts = [Histogram.of((rng.standard_t(2, size=300) * scale).astype(np.float32)) for scale in (1, 7, 100)]
    results = [a.merge(b).merge(c) for a, b, c in itertools.permutations(parts)]
    results += [a.merge(b.merge(c)) for a, b, c in itertools.permutations(parts)]
    assert all(same(results[0], other) for other in results)


def test_values_beyond_the_piece_size_are_all_counted():
    values = np.random.default_rng(2).normal(size=(3, 100_001)).astype(np.float32)
    histogram = Histogram.of(values)
    assert np.array_equal(histogram.counts, np.histogram(values.astype(np.float64), bins=histogram.edges)[0])


def test_half_precision_values_are_binned_like_the_same_values_in_single():
    values = np.random.default_rng(3).normal(size=5000).astype(np.float16)
    assert same(Histogram.of(values), Histogram.of(values.astype(np.float32)))


def test_magnitudes_equal_the_histogram_of_absolute_values_up_to_values_on_an_edge():
    values = np.random.default_rng(4).normal(loc=0.3, size=100_000).astype(np.float32)
    folded = Histogram.of(values).of_magnitudes()
    expected, _ = np.histogram(np.abs(values).astype(np.float64), bins=folded.edges)
    on_edge = int(np.sum(np.mod(values.astype(np.float64), folded.width) == 0))
    assert folded.start == 0
    assert folded.count == values.size
    assert np.abs(np.cumsum(folded.counts) - np.cumsum(expected)).max() <= on_edge


@pytest.mark.parametrize("shift", [100.0, -100.0, 0.0, 5e6, -5e6])
def test_spanning_zero_pads_with_empty_bins_only(shift):
    values = (np.random.default_rng(5).uniform(size=1000) + shift).astype(np.float32)
    spanning = Histogram.of(values).spanning_zero()
    assert spanning.edges[0] <= 0.0 <= spanning.edges[-1]
    assert spanning.counts.size <= CAPACITY
    assert np.array_equal(spanning.counts, np.histogram(values.astype(np.float64), bins=spanning.edges)[0])


def test_a_constant_takes_one_bin():
    histogram = Histogram.of(np.full(7, 3.7, np.float32))
    assert histogram.counts.tolist() == [7]
    assert histogram.edges[0] <= np.float32(3.7) < histogram.edges[1]


def test_nothing_is_the_neutral_element():
    histogram = Histogram.of(np.array([1.0, 2.0], np.float32))
    assert same(Histogram.empty().merge(histogram), histogram)
    assert same(histogram.merge(Histogram.empty()), histogram)
    assert Histogram.of(np.zeros(0, np.float32)).count == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(DataError, match="finite"):
        Histogram.of(np.array([1.0, bad], np.float32))
