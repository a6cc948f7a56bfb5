"""What a transform is."""

from __future__ import annotations

import math
from typing import Protocol, TypeAlias

import numpy as np

from neural_tune.errors import ConfigError
from neural_tune.protocols import Array

FLOAT = np.float32
# One array, or a list of samples that need not have one shape yet (images before they are resized).
Batch: TypeAlias = Array | list[Array]


class Transform(Protocol):
    """Changes a batch of one input. Arrays have the batch axis first; axes in options do not count it."""

    def __call__(self, batch: Array) -> Array:
        """Return the changed batch; the given one stays as it is."""


def numbers(name: str, value: object) -> Array:
    """Return an option that is a number or a list of numbers. Raises ConfigError otherwise."""
    items = value if isinstance(value, list | tuple) else [value]
    if not items or not all(
        isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item) for item in items
    ):
        raise ConfigError(f"{name}: found {value!r}, expected a number or a list of numbers")
    return np.asarray(value)
