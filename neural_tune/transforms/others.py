"""Transforms of others: a callable of the user, or one of torchvision."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from neural_tune.callables import import_callable
from neural_tune.errors import ConfigError, DataError, PluginError
from neural_tune.options import close_to, only_known
from neural_tune.protocols import Array
from neural_tune.transforms.transform import Transform


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


def own(name: str, given: dict[str, Any], folder: Path | None) -> Transform:
    """Return the callable "module:callable" as a transform. Raises ConfigError for options it does not have."""
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


def of_torchvision(name: str, given: dict[str, Any]) -> Transform:
    """Return the transform `name` of torchvision. Raises ConfigError where there is none, PluginError without torchvision."""
    try:
        kinds: Any = importlib.import_module("torchvision.transforms.v2")
        to_image: Any = importlib.import_module("torchvision.transforms.v2.functional").to_image
    except ImportError as error:
        raise PluginError(
            f'transform torchvision.{name} needs torchvision, which is not installed: pip install "torchvision"'
        ) from error
    except RuntimeError as error:  # a build for another torch, or for a GPU that is not there
        raise PluginError(
            f"transform torchvision.{name}: torchvision is installed but does not work ({error}); install the build that fits torch"
        ) from error
    if not hasattr(kinds, name):
        known = [item for item in dir(kinds) if item[0].isupper()]
        raise ConfigError(f"callable: torchvision.transforms.v2 has no {name!r}{close_to(name, known)}")
    try:
        made = getattr(kinds, name)(**_with_dtypes(given))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"options: torchvision says: {error}") from error

    def apply(sample: Array) -> Array:
        # Images come as (height, width, channels) and go back so, whatever torchvision makes of them in between.
        try:
            return np.moveaxis(np.asarray(made(to_image(sample))), 0, -1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"transform torchvision.{name}: {error}") from error

    return _OwnPerSample(f"torchvision.{name}", apply)


def _with_dtypes(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the dtype "float32" and the like as torch knows it, which YAML cannot write."""
    dtype = given.get("dtype")
    found = getattr(importlib.import_module("torch"), dtype, None) if isinstance(dtype, str) else None
    return {**given, **({"dtype": found} if found is not None else {})}


def _array_of(name: str, value: object) -> Array:
    array = np.asarray(value)
    if array.dtype == object:
        raise DataError(f"transform {name}: returned a {type(value).__name__}, expected an array")
    return array
