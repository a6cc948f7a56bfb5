"""The outputs of a model for one batch: held to their form, and compared with those of another run."""

from __future__ import annotations

import numpy as np

from neural_tune.errors import DataError
from neural_tune.protocols import Array, Outputs

# A run on other batches may differ by this much of the largest output before it counts as different.
_REPEATS = 1e-5


def checked(outputs: object, length: int) -> Outputs:
    """Return the outputs of one batch as arrays. Raises DataError unless each has `length` rows."""
    arrays = (
        tuple(np.asarray(output) for output in outputs) if isinstance(outputs, tuple | list) else (np.asarray(outputs),)
    )
    for position, array in enumerate(arrays):
        if array.ndim == 0 or len(array) != length:
            raise DataError(
                f"output {position} of the model has shape {array.shape} for a batch of {length} samples; expected the batch axis first. "
                "Choose the model's outputs, or give an eval_func"
            )
    if not arrays:
        raise DataError("the model gave no output; expected at least one array")
    return arrays


def agree(again: Array, before: Array) -> bool:
    """Return whether an output is the same as `before`: integers exactly, floats up to rounding."""
    if again.shape != before.shape:
        return False
    if again.dtype.kind != "f":
        return bool((again == before).all())
    finite = np.isfinite(before)
    scale = float(np.abs(before[finite]).max(initial=0.0))
    same = np.isclose(again, before, rtol=0.0, atol=_REPEATS * max(scale, 1e-30), equal_nan=True)
    return bool(same.all())
