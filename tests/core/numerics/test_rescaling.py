"""Rescaled constants compute the same function, whatever the factors are, and both ends of a chain see each other's changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_tune.numerics import preservation, rescaling
from neural_tune.numerics.factors import Moments
from neural_tune.numerics.rescaling import Edge, Part, Reader, Refusal

RNG = np.random.default_rng(11)
CHAIN = {
    ("a", 1): RNG.normal(size=(6, 4)),
    ("a", 2): RNG.normal(size=6),
    ("b", 1): RNG.normal(size=(5, 6)),
    ("c", 1): RNG.normal(size=(3, 5)),
}


def forward(weights, x):
    hidden = np.maximum(x @ weights["a", 1].T + weights["a", 2], 0)
    hidden = np.maximum(hidden @ weights["b", 1].T, 0)
    return hidden @ weights["c", 1].T


def edge(producer, reader, channels, *, bias=False):
    divided = (Part(op=producer, position=1, trailing=1), *((Part(op=producer, position=2),) if bias else ()))
    readers = (Reader(op=reader, tensor=producer, axis=1, weight=Part(op=reader, position=1)),)
    return Edge(
        producer=producer, kind="linear", channels=channels, tensors=(producer,), divided=divided, readers=readers
    )


def moments(axes):
    widths = {"a": 6, "b": 5}
    return {name: Moments(*(np.full(widths[name], value) for value in (0.0, 1.0, 0.5, 0.3))) for name in axes}


@given(seed=st.integers(0, 2**31), spread=st.floats(0.1, 3))
def test_the_function_stays_along_a_chain_for_any_factors(seed, spread):
    rng = np.random.default_rng(seed)
    found = [edge("a", "b", 6, bias=True), edge("b", "c", 5), Refusal(producer="c", reason="the last one")]
    change = rescaling.rescale(
        "test",
        found,
        lambda op, position: CHAIN[op, position],
        moments,
        lambda weights, seen: np.exp(rng.normal(0, spread, seen.low.shape)),
    )
    x = RNG.normal(size=(16, 4))
    assert set(change.edits) == set(CHAIN)
    assert change.tensors == ("a", "b")
    assert change.refused == {"c": "the last one"}
    before, after = ([forward(weights, x)] for weights in (CHAIN, change.edits))
    assert preservation.difference([before], [after]) <= preservation.TOLERANCE


def test_factors_of_one_change_nothing_and_are_refused():
    change = rescaling.rescale(
        "test", [edge("a", "b", 6)], lambda op, position: CHAIN[op, position], moments, lambda _, seen: np.ones(6)
    )
    assert not change.edits
    assert "better than none" in change.refused["a"]


def test_a_flattened_image_has_one_factor_per_channel_side_by_side():
    part = Part(op="fc", position=1, repeat=3)
    values = np.ones((2, 6))
    np.testing.assert_array_equal(part.scaled(values, np.array([2.0, 5.0]))[0], [2, 2, 2, 5, 5, 5])
    assert part.summarised(values).taps == 3


@pytest.mark.parametrize(("broken", "expected"), [(1.0, 0.0), (1.5, 0.5), (np.nan, np.inf), (np.inf, np.inf)])
def test_the_difference_is_relative_and_never_hides_what_is_not_finite(broken, expected):
    one = [np.array([3.0, 4.0]), np.array([2.0])]
    two = [one[0], one[1] * broken]
    assert preservation.difference([one], [two]) == pytest.approx(expected)
