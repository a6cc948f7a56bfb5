"""The list of transforms of a job, checked as a whole: every fault at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neural_tune.errors import ConfigError, DataError
from neural_tune.options import close_to, only_known
from neural_tune.protocols import Array
from neural_tune.transforms.arrays import Cast, ExpandDims, Normalize, Rescale, Reshape, Transpose
from neural_tune.transforms.images import CenterCrop, Resize, ResizeCropImagenet
from neural_tune.transforms.others import of_torchvision, own
from neural_tune.transforms.transform import Batch, Transform


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
        return own(name, given, folder)
    if name.startswith("torchvision."):
        return of_torchvision(name.removeprefix("torchvision."), given)
    kind: Any = TRANSFORMS.get(name) or INC_TRANSFORMS[name]
    fields = dataclasses.fields(kind)
    only_known(
        given,
        needed=tuple(field.name for field in fields if field.default is dataclasses.MISSING),
        known=tuple(field.name for field in fields),
    )
    made: Transform = kind(**given)
    return made
