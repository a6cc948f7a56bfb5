"""What a job file can put between a dataset and the model, by name and in order: numpy, Pillow, torchvision, or a callable of your own."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from neural_tune.callables import import_callable
from neural_tune.errors import ConfigError, DataError, PluginError
from neural_tune.options import close_to, only_known
from neural_tune.protocols import Array

_FLOAT = np.float32
# One array, or a list of samples that need not have one shape yet (images before they are resized).
Batch: TypeAlias = Array | list[Array]


class Transform(Protocol):
    """Changes a batch of one input. Arrays have the batch axis first; axes in options do not count it."""

    def __call__(self, batch: Array) -> Array:
        """Return the changed batch; the given one stays as it is."""


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
        _numbers("mean", self.mean)
        if not np.all(_numbers("std", self.std)):
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
            if np.ndim(_numbers(name, getattr(self, name))):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """Resizes images with Pillow, one by one.

    Attributes:
        size: Height and width, or one length for both.
        keep_ratio: True makes the shorter side `size` long and keeps the proportions.
        interpolation: "bilinear", "nearest", "bicubic", "box" or "lanczos".
    """

    size: int | Sequence[int]
    keep_ratio: bool = False
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        """Check the lengths."""
        height, width = _extent("size", self.size)
        if self.keep_ratio and height != width:
            raise ConfigError(
                f"size: found {self.size!r} with keep_ratio, expected one length, that of the shorter side"
            )
        known = ("bilinear", "nearest", "bicubic", "box", "lanczos")
        if self.interpolation not in known:
            hint = close_to(self.interpolation, known)
            raise ConfigError(f"interpolation: found {self.interpolation!r}{hint}, expected one of {', '.join(known)}")

    def __call__(self, batch: Array) -> Array:
        """Return the images in the new size. Arrays are (samples, height, width, channels)."""
        return np.stack([self.sample(image) for image in batch])

    def sample(self, image: Array) -> Array:
        """Return one image of shape (height, width, channels) in the new size."""
        _check_image("Resize", image)
        height, width = _extent("size", self.size)
        if self.keep_ratio:
            factor = height / min(image.shape[:2])
            height, width = (max(height, round(length * factor)) for length in image.shape[:2])
        return _resized(image, height, width, self.interpolation)


@dataclass(frozen=True, slots=True, kw_only=True)
class CenterCrop:
    """Cuts the middle out of images.

    Attributes:
        size: Height and width, or one length for both.
    """

    size: int | Sequence[int]

    def __post_init__(self) -> None:
        """Check the lengths."""
        _extent("size", self.size)

    def __call__(self, batch: Array) -> Array:
        """Return the middle of every image. Arrays are (samples, height, width, channels)."""
        return np.stack([self.sample(image) for image in batch])

    def sample(self, image: Array) -> Array:
        """Return the middle of one image of shape (height, width, channels)."""
        _check_image("CenterCrop", image)
        height, width = _extent("size", self.size)
        top, left = round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2)
        if top < 0 or left < 0:
            raise DataError(
                f"CenterCrop: found an image of {image.shape[0]} x {image.shape[1]}, expected at least {height} x {width}: resize it first"
            )
        return image[top : top + height, left : left + width]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeCropImagenet:
    """What INC calls so: shorter side to `resize_side`, the middle of it, then (x - mean_value) * scale.

    Attributes:
        height: Of the result.
        width: Of the result.
        resize_side: Length of the shorter side before cropping.
        mean_value: One number, or one per channel.
        scale: Factor.
    """

    height: int
    width: int
    resize_side: int = 256
    mean_value: float | Sequence[float] = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check lengths and numbers."""
        for name in ("height", "width", "resize_side"):
            _extent(name, getattr(self, name))
        for name in ("mean_value", "scale"):
            _numbers(name, getattr(self, name))

    def __call__(self, batch: Array) -> Array:
        """Return float32 images. Arrays are (samples, height, width, channels)."""
        return np.stack([self.sample(image) for image in batch])

    def sample(self, image: Array) -> Array:
        """Return one image as float32."""
        whole = Resize(size=self.resize_side, keep_ratio=True).sample(image)
        middle = CenterCrop(size=(self.height, self.width)).sample(whole)
        changed: Array = (middle.astype(_FLOAT) - np.asarray(self.mean_value, _FLOAT)) * _FLOAT(self.scale)
        return changed


@dataclass(frozen=True, slots=True, kw_only=True)
class AsItIs:
    """Does nothing: what INC needs a step for (decoding, conversion to an array) has happened when data are read."""

    def __call__(self, batch: Array) -> Array:
        """Return the batch."""
        return batch


TRANSFORMS: dict[str, Callable[..., Transform]] = {
    kind.__name__: kind
    for kind in (Cast, Normalize, Rescale, Transpose, Reshape, ExpandDims, Resize, CenterCrop, ResizeCropImagenet)
}
# INC's steps that are done when data are read.
INC_TRANSFORMS: dict[str, Callable[..., Transform]] = dict.fromkeys(
    ("ToArray", "ToNDArray", "ParseDecodeImagenet"), AsItIs
)
_OTHERS = "or torchvision.NAME, or module:callable"


@dataclass(frozen=True, slots=True)
class Step:
    """A transform and the inputs it is meant for; an empty tuple means all of them."""

    transform: Transform
    inputs: tuple[str, ...] = ()

    def apply(self, batch: Batch) -> Batch:
        """Return the changed batch. Samples of different shapes need a transform that takes them one by one.

        Raises:
            DataError: the samples differ in shape and the transform takes whole batches only.
        """
        single: Callable[[Array], Array] | None = getattr(self.transform, "sample", None)
        if single is not None and isinstance(batch, list):
            return [single(sample) for sample in batch]
        return self.transform(stacked(batch))


def stacked(batch: Batch) -> Array:
    """Return a batch as one array.

    Raises:
        DataError: its samples differ in shape.
    """
    if not isinstance(batch, list):
        return np.asarray(batch)
    shapes = sorted({sample.shape for sample in batch})
    if len(shapes) > 1:
        shown = " and ".join(str(list(shape)) for shape in shapes[:2])
        raise DataError(
            f"found samples of the shapes {shown} in one batch, expected one shape: put Resize (or CenterCrop) first"
        )
    return np.stack(batch)


def transforms(spec: Mapping[str, Any] | Sequence[Any] | None, folder: Path | None = None) -> tuple[Step, ...]:
    """Return the transforms that a job lists, in order.

    Args:
        spec: A mapping from name to options, or a list of such mappings where one transform comes twice. The option `inputs` of any
            transform names the inputs it is meant for; without it, it is meant for all. A name is one of `TRANSFORMS`,
            "torchvision.NAME" (a class of torchvision.transforms.v2, for images one by one), or "module:callable".
        folder: Where a module of the user may lie.

    Raises:
        ConfigError: a name or an option is unknown or wrong. One line per fault.
        PluginError: torchvision is asked for and not installed.
    """
    entries: list[tuple[Any, Any]] = []
    errors: list[str] = []
    for item in spec if isinstance(spec, list) else [spec or {}]:
        if isinstance(item, Mapping):
            entries += item.items()
        elif isinstance(item, str):
            entries.append((item, None))
        else:
            errors.append(
                f"found {item!r}, expected a mapping from transform to options; there are {', '.join(TRANSFORMS)}, {_OTHERS}"
            )
    steps = []
    for name, options in entries:
        try:
            steps.append(_step(name, options, folder))
        except ConfigError as error:
            errors.append(str(error))
    if errors:
        raise ConfigError("\n".join(errors))
    return tuple(steps)


def _step(name: object, options: object, folder: Path | None) -> Step:
    is_known = name in TRANSFORMS or name in INC_TRANSFORMS
    is_others = isinstance(name, str) and (":" in name or name.startswith("torchvision."))
    if not is_known and not is_others:
        raise ConfigError(
            f"{name}: there is no such transform{close_to(name, TRANSFORMS)}; there are {', '.join(TRANSFORMS)}, {_OTHERS}"
        )
    if not isinstance(options, Mapping | None):
        raise ConfigError(f"{name}: found {options!r}, expected a mapping of options")
    given = dict(options or {})
    inputs = given.pop("inputs", [])
    if not isinstance(inputs, list) or not all(isinstance(item, str) for item in inputs):
        raise ConfigError(f"{name}.inputs: found {inputs!r}, expected a list of input names")
    try:
        return Step(_made(str(name), given, folder), tuple(inputs))
    except ConfigError as error:
        raise ConfigError("\n".join(f"{name}.{line}" for line in str(error).splitlines())) from error


def _made(name: str, given: dict[str, Any], folder: Path | None) -> Transform:
    if ":" in name:
        return _own(name, given, folder)
    if name.startswith("torchvision."):
        return _of_torchvision(name.removeprefix("torchvision."), given)
    kind: Any = TRANSFORMS.get(name) or INC_TRANSFORMS[name]
    fields = dataclasses.fields(kind)
    only_known(
        given,
        needed=tuple(field.name for field in fields if field.default is dataclasses.MISSING),
        known=tuple(field.name for field in fields),
    )
    made: Transform = kind(**given)
    return made


@dataclass(frozen=True, slots=True)
class _Own:
    """A callable of somebody else, on whole batches."""

    name: str
    function: Callable[[Array], Any]

    def __call__(self, batch: Array) -> Array:
        return _array_of(self.name, self.function(batch))


@dataclass(frozen=True, slots=True)
class _OwnPerSample:
    """A callable of somebody else, on one sample at a time."""

    name: str
    function: Callable[[Array], Any]

    def __call__(self, batch: Array) -> Array:
        return np.stack([self.sample(sample) for sample in batch])

    def sample(self, sample: Array) -> Array:
        return _array_of(self.name, self.function(sample))


def _own(name: str, given: dict[str, Any], folder: Path | None) -> Transform:
    per_sample, args = given.pop("per_sample", False), given.pop("args", None) or {}
    only_known(given, needed=(), known=("per_sample", "args", "inputs"))
    if not isinstance(per_sample, bool):
        raise ConfigError(f"per_sample: found {per_sample!r}, expected true or false")
    if not isinstance(args, Mapping) or not all(isinstance(key, str) for key in args):
        raise ConfigError(f"args: found {args!r}, expected a mapping of keyword arguments")
    try:
        function = import_callable(name, folder)
    except ConfigError as error:
        raise ConfigError(f"callable: {error}") from error
    return (_OwnPerSample if per_sample else _Own)(name, partial(function, **args) if args else function)


def _of_torchvision(name: str, given: dict[str, Any]) -> Transform:
    try:
        kinds: Any = importlib.import_module("torchvision.transforms.v2")
        to_image: Any = importlib.import_module("torchvision.transforms.v2.functional").to_image
    except ImportError as error:
        raise PluginError(
            f'transform torchvision.{name} needs torchvision, which is not installed: pip install "torchvision"'
        ) from error
    if not hasattr(kinds, name):
        known = [item for item in dir(kinds) if item[0].isupper()]
        raise ConfigError(f"callable: torchvision.transforms.v2 has no {name!r}{close_to(name, known)}")
    try:
        made = getattr(kinds, name)(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"options: torchvision says: {error}") from error
    # Images come as (height, width, channels) and go back so, whatever torchvision makes of them in between.
    return _OwnPerSample(f"torchvision.{name}", lambda sample: np.moveaxis(np.asarray(made(to_image(sample))), 0, -1))


def _array_of(name: str, value: object) -> Array:
    array = np.asarray(value)
    if array.dtype == object:
        raise DataError(f"transform {name}: returned a {type(value).__name__}, expected an array")
    return array


def _extent(name: str, value: object) -> tuple[int, int]:
    """Return height and width."""
    lengths: list[Any] = list(value) if isinstance(value, list | tuple) else [value, value]
    lengths = lengths * 2 if len(lengths) == 1 else lengths
    if len(lengths) != 2 or not all(
        isinstance(item, int) and not isinstance(item, bool) and item > 0 for item in lengths
    ):
        raise ConfigError(f"{name}: found {value!r}, expected a length in pixels, or height and width")
    return lengths[0], lengths[1]


def _check_image(name: str, image: Array) -> None:
    if image.ndim != 3 or image.shape[2] > 4:
        raise DataError(
            f"{name}: found samples of shape {list(image.shape)}, expected images as (height, width, channels)"
        )


def _resized(image: Array, height: int, width: int, interpolation: str) -> Array:
    try:
        pillow: Any = importlib.import_module("PIL.Image")
    except ImportError as error:
        raise PluginError('transform Resize needs Pillow, which is not installed: pip install "pillow"') from error
    how = pillow.Resampling[interpolation.upper()]
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.asarray(pillow.fromarray(image).resize((width, height), how))
    # Pillow resizes one channel of float32 at a time; integers are rounded back.
    planes = [
        np.asarray(pillow.fromarray(np.ascontiguousarray(image[:, :, place], _FLOAT)).resize((width, height), how))
        for place in range(image.shape[2])
    ]
    result = np.stack(planes, axis=2)
    if image.dtype.kind in "iu":
        limits = np.iinfo(image.dtype)
        result = np.clip(np.rint(result), limits.min, limits.max)
    changed: Array = result.astype(image.dtype)
    return changed


def _numbers(name: str, value: object) -> Array:
    items = value if isinstance(value, list | tuple) else [value]
    if not items or not all(
        isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item) for item in items
    ):
        raise ConfigError(f"{name}: found {value!r}, expected a number or a list of numbers")
    return np.asarray(value)


def _integers(name: str, value: object) -> list[int]:
    if not isinstance(value, list | tuple) or not all(
        isinstance(item, int) and not isinstance(item, bool) for item in value
    ):
        raise ConfigError(
            f"{name}: found {value!r}, expected {'an integer' if name == 'axis' else 'a list of integers'}"
        )
    return list(value)


def _floating(batch: Array) -> Array:
    return batch if batch.dtype in (np.float32, np.float64) else batch.astype(_FLOAT)
