"""Transforms of arrays of any shape: type, scale, axes. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neural_tune.errors import ConfigError, DataError
from neural_tune.protocols import Array
from neural_tune.transforms.transform import FLOAT, numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Converts to another dtype.

    Attributes:
        dtype: A numpy dtype, such as "float32".
    """

    dtype: str

    def __post_init__(self) -> None:
        """Refuse what is no number format."""
        try:
            is_number = np.dtype(self.dtype).kind in "biuf"
        except TypeError:
            is_number = False
        if not is_number:
            raise ConfigError(f"dtype: found {self.dtype!r}, expected a number format such as float32, int64 or uint8")

    def __call__(self, batch: Array) -> Array:
        """Return the batch in the new dtype."""
        return batch.astype(self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalize:
    """Computes (x - mean) / std in float32 (float64 stays float64).

    Attributes:
        mean: One number, or one per channel.
        std: One number, or one per channel; not 0.
        axis: The channel axis; needed only where two axes are as long as `mean`.
    """

    mean: float | Sequence[float]
    std: float | Sequence[float]
    axis: int | None = None

    def __post_init__(self) -> None:
        """Check numbers and lengths."""
        numbers("mean", self.mean)
        if not np.all(numbers("std", self.std)):
            raise ConfigError(f"std: found {self.std!r}, expected numbers other than 0")
        lengths = {np.size(value) for value in (self.mean, self.std) if not np.isscalar(value)}
        if len(lengths) > 1:
            raise ConfigError(f"mean and std: found lengths {sorted(lengths)}, expected one number per channel in both")
        if self.axis is not None:
            _integers("axis", [self.axis])

    def __call__(self, batch: Array) -> Array:
        """Return the normalised batch."""
        batch = _floating(batch)
        normalised: Array = (batch - self._spread(self.mean, batch)) / self._spread(self.std, batch)
        return normalised

    def _spread(self, value: float | Sequence[float], batch: Array) -> Array:
        """Return `value` in a shape that broadcasts along the channel axis."""
        array = np.asarray(value, batch.dtype)
        if array.ndim == 0:
            return array
        shape = [1] * batch.ndim
        shape[self._channel_axis(len(array), batch)] = len(array)
        return array.reshape(shape)

    def _channel_axis(self, channels: int, batch: Array) -> int:
        sample = batch.shape[1:]
        if self.axis is not None:
            fits = -len(sample) <= self.axis < len(sample) and sample[self.axis] == channels
            found = [self.axis % len(sample)] if fits else []
        else:
            found = [axis for axis, length in enumerate(sample) if length == channels]
        if len(found) != 1:
            raise DataError(
                f"Normalize: found samples of shape {list(sample)} and {channels} channels"
                f"{f' along axis {self.axis}' if self.axis is not None else ''}, expected one axis of length {channels}; "
                "name it with axis (the batch axis not counted)"
            )
        return found[0] + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescale:
    """Computes (x + shift) * scale in float32 (float64 stays float64): with shift = -zero_point it decodes integer codes.

    Attributes:
        scale: Factor; without one, pixels from 0 to 255 become numbers from 0 to 1, as in INC.
        shift: Added first.
    """

    scale: float = 1 / 255
    shift: float = 0.0

    def __post_init__(self) -> None:
        """Check that both are numbers."""
        for name in ("scale", "shift"):
            if np.ndim(numbers(name, getattr(self, name))):
                raise ConfigError(f"{name}: found {getattr(self, name)!r}, expected one number")

    def __call__(self, batch: Array) -> Array:
        """Return the rescaled batch."""
        batch = _floating(batch)
        rescaled: Array = (batch + batch.dtype.type(self.shift)) * batch.dtype.type(self.scale)
        return rescaled


@dataclass(frozen=True, slots=True, kw_only=True)
class Transpose:
    """Permutes the axes of a sample.

    Attributes:
        perm: The old position of each new axis, the batch axis not counted: [2, 0, 1] makes HWC to CHW.
    """

    perm: Sequence[int]

    def __post_init__(self) -> None:
        """Check that it is a permutation."""
        perm = _integers("perm", self.perm)
        if sorted(perm) != list(range(len(perm))):
            raise ConfigError(
                f"perm: found {perm}, expected a permutation of 0 to {len(perm) - 1} (the batch axis not counted)"
            )

    def __call__(self, batch: Array) -> Array:
        """Return the permuted batch."""
        if batch.ndim != len(self.perm) + 1:
            raise DataError(
                f"Transpose: found samples of shape {list(batch.shape[1:])}, expected {len(self.perm)} axes for perm {list(self.perm)}"
            )
        return np.ascontiguousarray(batch.transpose(0, *(axis + 1 for axis in self.perm)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reshape:
    """Gives every sample another shape.

    Attributes:
        shape: The new shape, the batch axis not counted; one length may be -1.
    """

    shape: Sequence[int]

    def __post_init__(self) -> None:
        """Check the lengths."""
        shape = _integers("shape", self.shape)
        if any(length < -1 for length in shape) or shape.count(-1) > 1:
            raise ConfigError(f"shape: found {shape}, expected lengths, of which one may be -1")

    def __call__(self, batch: Array) -> Array:
        """Return the batch with samples of the new shape."""
        try:
            return batch.reshape(len(batch), *self.shape)
        except ValueError as error:
            raise DataError(
                f"Reshape: found samples of shape {list(batch.shape[1:])}, which cannot take the shape {list(self.shape)}"
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpandDims:
    """Inserts an axis of length 1.

    Attributes:
        axis: Position of the new axis in a sample: 0 is right after the batch axis, -1 is last.
    """

    axis: int = 0

    def __post_init__(self) -> None:
        """Check that it is an integer."""
        _integers("axis", [self.axis])

    def __call__(self, batch: Array) -> Array:
        """Return the batch with one more axis."""
        if not -batch.ndim <= self.axis < batch.ndim:
            raise DataError(
                f"ExpandDims: found samples of shape {list(batch.shape[1:])}, which have no place for axis {self.axis}"
            )
        return np.expand_dims(batch, self.axis + 1 if self.axis >= 0 else self.axis)


def _integers(name: str, value: object) -> list[int]:
    if not isinstance(value, list | tuple) or not all(
        isinstance(item, int) and not isinstance(item, bool) for item in value
    ):
        raise ConfigError(
            f"{name}: found {value!r}, expected {'an integer' if name == 'axis' else 'a list of integers'}"
        )
    return list(value)


def _floating(batch: Array) -> Array:
    return batch if batch.dtype in (np.float32, np.float64) else batch.astype(FLOAT)
