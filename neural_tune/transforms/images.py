"""Transforms of images, one by one: size and crop, with Pillow. An image is (height, width, channels)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neural_tune.errors import ConfigError, DataError, PluginError
from neural_tune.options import close_to
from neural_tune.protocols import Array
from neural_tune.transforms.transform import FLOAT, numbers


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
            numbers(name, getattr(self, name))

    def __call__(self, batch: Array) -> Array:
        """Return float32 images. Arrays are (samples, height, width, channels)."""
        return np.stack([self.sample(image) for image in batch])

    def sample(self, image: Array) -> Array:
        """Return one image as float32."""
        whole = Resize(size=self.resize_side, keep_ratio=True).sample(image)
        middle = CenterCrop(size=(self.height, self.width)).sample(whole)
        changed: Array = (middle.astype(FLOAT) - np.asarray(self.mean_value, FLOAT)) * FLOAT(self.scale)
        return changed


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
        np.asarray(pillow.fromarray(np.ascontiguousarray(image[:, :, place], FLOAT)).resize((width, height), how))
        for place in range(image.shape[2])
    ]
    result = np.stack(planes, axis=2)
    if image.dtype.kind in "iu":
        limits = np.iinfo(image.dtype)
        result = np.clip(np.rint(result), limits.min, limits.max)
    changed: Array = result.astype(image.dtype)
    return changed
