"""The proof of function preservation is a proof with masks and damaged outputs too."""

from __future__ import annotations

import math

import numpy as np
import pytest

from neural_tune.numerics.preservation import difference

MASKED = np.array([1.0, -np.inf, 2.0], np.float32)


def test_the_largest_relative_difference_of_any_output_and_batch_counts() -> None:
    before = [(np.array([3.0, 4.0]), np.ones(2)), (np.array([3.0, 4.0]), np.ones(2))]
    after = [(np.array([3.0, 4.0]), np.ones(2)), (np.array([3.0, 4.5]), np.ones(2))]
    assert difference(before, after) == pytest.approx(0.1)


def test_the_infinities_of_a_mask_are_compared_as_such_and_the_rest_as_numbers() -> None:
    assert difference([(MASKED,)], [(MASKED.copy(),)]) == 0.0
    moved = np.array([1.0, -np.inf, 2.5], np.float32)
    assert difference([(MASKED,)], [(moved,)]) == pytest.approx(0.5 / math.sqrt(5.0))


@pytest.mark.parametrize(
    "after",
    [[1.0, 900.0, 2.0], [1.0, np.inf, 2.0], [1.0, np.nan, 2.0], [np.nan, -np.inf, 2.0], [np.inf, -np.inf, 2.0]],
)
def test_values_that_are_not_finite_must_stay_what_they_are(after: list[float]) -> None:
    assert difference([(MASKED,)], [(np.array(after, np.float32),)]) == math.inf


def test_nothing_is_proven_on_no_batch() -> None:
    assert difference([], []) == math.inf
