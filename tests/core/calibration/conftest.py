"""Statistics to store, and to take ranges from."""

from __future__ import annotations

import numpy as np
import pytest

from neural_tune.calibration import Statistics
from neural_tune.numerics.observers import Observed


@pytest.fixture
def stats():
    rng = np.random.default_rng(0)
    return Statistics(
        {
            "input": Observed.of(rng.normal(size=10_000).astype(np.float32)),
            "/layer/../odd name\n": Observed.of(np.maximum(rng.normal(size=3000), 0).astype(np.float32)),
            "constant": Observed.of(np.full(9, -0.1, np.float32)),
        },
        batches=4,
        infinite=frozenset({"mask"}),
    )
