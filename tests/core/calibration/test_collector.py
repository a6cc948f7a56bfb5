"""The collector against numpy on all activations at once, however they are cut and ordered."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_tune.calibration import Collector
from neural_tune.errors import AdapterError, DataError


def collected(batches):
    collector = Collector()
    for batch in batches:
        for name, values in batch.items():
            collector.see(name, values)
        collector.end_batch()
    return collector.statistics()


def same(one, other):
    bounds = [(item.minimum, item.maximum, item.zeros) for item in (one, other)]
    grids = [(item.histogram.exponent, item.histogram.start) for item in (one, other)]
    return (
        bounds[0] == bounds[1] and grids[0] == grids[1] and np.array_equal(one.histogram.counts, other.histogram.counts)
    )


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 600), max_size=6),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 3e4, 1e30]),
    kind=st.sampled_from([np.float32, np.float64]),
    data=st.data(),
)
def test_any_cut_in_any_order_gives_what_all_values_at_once_show(cuts, scale, kind, data):
    rng = np.random.default_rng(len(cuts))
    whole = np.maximum(rng.normal(scale=scale, size=600), -0.5 * scale).astype(np.float32).astype(kind)
    whole[::7] = 0.0
    parts = data.draw(st.permutations(np.split(whole, sorted(cuts))))
    found = collected({"t": part} for part in parts).of("t")
    values = whole.astype(np.float32)
    assert (np.float32(found.minimum), np.float32(found.maximum)) == (values.min(), values.max())
    assert (found.count, found.zeros) == (600, int(np.sum(values == 0)))
    expected, _ = np.histogram(values.astype(np.float64), bins=found.histogram.edges)
    assert np.array_equal(found.histogram.counts, expected)
    assert same(found, collected([{"t": values}]).of("t"))


def test_half_precision_integers_and_views_are_observed_as_what_they_hold():
    values = np.arange(-12, 12).reshape(4, 6)
    found = collected([{str(i): item} for i, item in enumerate([values.astype(np.float16), values, values.T[::2]])])
    assert same(found.of("0"), found.of("1"))
    assert (found.of("2").minimum, found.of("2").maximum, found.of("2").count) == (-12.0, 10.0, 12)


def test_a_value_that_is_not_a_number_names_tensor_and_batch():
    bad = np.array([1.0, np.nan, np.inf, np.nan], np.float32)
    with pytest.raises(DataError, match=r"batch 2: tensor 't' holds 2 NaN.*leave the batch out"):
        collected([{"t": np.ones(3, np.float32)}, {"t": bad}])


@pytest.mark.parametrize("first", [True, False])
def test_a_tensor_of_infinities_gets_no_range_and_the_others_keep_theirs(first):
    good, bad = {"mask": np.zeros(3), "t": np.ones(3)}, {"mask": np.array([-np.inf, 0.0]), "t": np.ones(3)}
    found = collected([bad, good] if first else [good, bad])
    assert (found.infinite, list(found.tensors), found.batches) == ({"mask"}, ["t"], 2)


def test_a_tensor_that_stays_empty_counts_as_never_observed():
    with pytest.raises(AdapterError, match="'t' was never observed"):
        collected([{"t": np.zeros((0, 3), np.float32)}]).of("t")


def test_no_batch_is_an_error():
    with pytest.raises(DataError, match="no batch"):
        Collector().statistics()
