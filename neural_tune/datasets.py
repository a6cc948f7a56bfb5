"""Data that a job file can name: arrays on disk or the user's own loader, and numpy transforms between them and the model.

A dataset is one of `DATASETS`, a transform one of `TRANSFORMS`. Arrays are read without pickle, so a data file is never code; a
`factory` names a Python callable, so a job file is.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from neural_tune.errors import ConfigError, DataError
from neural_tune.protocols import Array

# Where an array lies: a .npy file, or a .npz file and the name in it.
_Place: TypeAlias = tuple[Path, str]
_FLOAT = np.float32


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
            kind = np.dtype(self.dtype).kind
        except TypeError:
            kind = ""
        if kind not in tuple("biuf"):
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
        return (batch - self._spread(self.mean, batch)) / self._spread(self.std, batch)

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
        scale: Factor.
        shift: Added first.
    """

    scale: float
    shift: float = 0.0

    def __post_init__(self) -> None:
        """Check that both are numbers."""
        for name in ("scale", "shift"):
            if np.ndim(_numbers(name, getattr(self, name))):
                raise ConfigError(f"{name}: found {getattr(self, name)!r}, expected one number")

    def __call__(self, batch: Array) -> Array:
        """Return the rescaled batch."""
        batch = _floating(batch)
        return (batch + batch.dtype.type(self.shift)) * batch.dtype.type(self.scale)


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


TRANSFORMS: dict[str, Callable[..., Transform]] = {
    kind.__name__: kind for kind in (Cast, Normalize, Rescale, Transpose, Reshape, ExpandDims)
}


@dataclass(frozen=True, slots=True)
class Step:
    """A transform and the inputs it is meant for; an empty tuple means all of them."""

    transform: Transform
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayDataset:
    """Arrays on disk.

    Attributes:
        x: One place, a tuple of places in the order of the model's inputs, or a mapping from input name to place.
        y: The labels; None when there are none.
    """

    x: _Place | tuple[_Place, ...] | Mapping[str, _Place]
    y: _Place | None = None

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names a transform can single out: those of the inputs where they have one, else of the arrays."""
        if isinstance(self.x, Mapping):
            return tuple(self.x)
        places: Any = self.x if _is_several(self.x) else (self.x,)
        return tuple(key or file.stem for file, key in places)

    def load(self) -> tuple[dict[str, Array], Array | None]:
        """Return the inputs by name and the labels; .npy files are mapped, not read.

        Raises:
            DataError: a file holds no plain array, or the arrays disagree about the number of samples.
        """
        places: Any = self.x.values() if isinstance(self.x, Mapping) else self.x if _is_several(self.x) else (self.x,)
        inputs = {name: _read(place) for name, place in zip(self.input_names, places, strict=True)}
        labels = _read(self.y) if self.y else None
        found = {name: len(array) for name, array in inputs.items()} | (
            {"y": len(labels)} if labels is not None else {}
        )
        if len(set(found.values())) != 1:
            shown = ", ".join(f"{name} has {length}" for name, length in found.items())
            raise DataError(f"the arrays of one dataset disagree about the number of samples: {shown}")
        return inputs, labels

    def arrange(self, inputs: Mapping[str, Array]) -> object:
        """Return one batch of inputs in the form the job asked for: an array, a tuple or a dict."""
        if isinstance(self.x, Mapping):
            return dict(inputs)
        return tuple(inputs.values()) if _is_several(self.x) else next(iter(inputs.values()))


class BatchLoader:
    """Batches of an `ArrayDataset`, transformed as they are read, any number of times and always in the same order.

    A batch is `(inputs, labels)`, or `(inputs,)` when there are no labels. Arrays are opened at the first iteration.
    """

    def __init__(
        self, dataset: ArrayDataset, steps: Sequence[Step] = (), batch_size: int = 1, *, drop_last: bool = False
    ) -> None:
        """Take a dataset, the steps in order, and how to cut batches; `drop_last` leaves out an incomplete last batch."""
        self.batch_size = batch_size
        self._dataset, self._steps, self._drop_last = dataset, tuple(steps), drop_last
        self._arrays: tuple[dict[str, Array], Array | None] | None = None

    def __len__(self) -> int:
        """Return the number of batches."""
        count = len(next(iter(self._opened()[0].values())))
        return count // self.batch_size if self._drop_last else math.ceil(count / self.batch_size)

    def __iter__(self) -> Iterator[tuple[object, ...]]:
        """Yield the batches.

        Raises:
            DataError: the files hold something else than arrays, or a transform does not fit them.
        """
        inputs, labels = self._opened()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            rows = slice(start, start + self.batch_size)
            batch = self._dataset.arrange(
                {name: self._transformed(name, array[rows]) for name, array in inputs.items()}
            )
            yield (batch,) if labels is None else (batch, np.asarray(labels[rows]))

    def _opened(self) -> tuple[dict[str, Array], Array | None]:
        if self._arrays is None:
            self._arrays = self._dataset.load()
        return self._arrays

    def _transformed(self, name: str, batch: Array) -> Array:
        for step in self._steps:
            if not step.inputs or name in step.inputs:
                batch = step.transform(batch)
        return np.asarray(batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Factory:
    """A Python callable that a job names, with its arguments.

    Attributes:
        spec: "module:callable", as written.
        function: The callable.
        args: Keyword arguments.
    """

    spec: str
    function: Callable[..., Any]
    args: Mapping[str, Any]

    def __call__(self) -> Any:
        """Return what the callable makes; what it raises propagates."""
        return self.function(**self.args)


def dataset(spec: Mapping[str, Any], folder: Path) -> ArrayDataset | Factory:
    """Return the dataset that a job describes as `{kind: options}`.

    Args:
        spec: One of `{npz: {path, x, y?}}`, `{numpy: {x, y?}}`, `{factory: {callable, args?}}`. `x` may be one name (file), a list in the
            order of the model's inputs, or a mapping from input name to name (file). A factory returns an iterable of batches.
        folder: Folder of the job file; relative paths start there, and a factory's module may lie there.

    Raises:
        ConfigError: the kind is unknown, an option is missing or wrong, a file or an array in it does not exist. One line per fault.
    """
    if not isinstance(spec, Mapping) or len(spec) != 1:
        found = list(spec) if isinstance(spec, Mapping) else spec
        raise ConfigError(f"found {found!r}, expected one kind of dataset with its options: {', '.join(DATASETS)}")
    kind, options = next(iter(spec.items()))
    if kind not in DATASETS:
        raise ConfigError(
            f"{kind}: there is no such dataset{close_to(kind, DATASETS)}; there are {', '.join(DATASETS)}"
        )
    if not isinstance(options, Mapping):
        raise ConfigError(f"{kind}: found {options!r}, expected a mapping of options")
    try:
        return DATASETS[kind](options, folder)
    except ConfigError as error:
        raise ConfigError("\n".join(f"{kind}.{line}" for line in str(error).splitlines())) from error


def transforms(spec: Mapping[str, Any] | Sequence[Any] | None) -> tuple[Step, ...]:
    """Return the transforms that a job lists, in order.

    Args:
        spec: A mapping from name to options, or a list of such mappings where one transform comes twice. The option `inputs` of any
            transform names the inputs it is meant for; without it, it is meant for all.

    Raises:
        ConfigError: a name or an option is unknown or wrong. One line per fault.
    """
    entries: list[tuple[Any, Any]] = []
    errors: list[str] = []
    for item in spec if isinstance(spec, list) else [spec or {}]:
        if isinstance(item, Mapping):
            entries += item.items()
        else:
            errors.append(
                f"found {item!r}, expected a mapping from transform to options; there are {', '.join(TRANSFORMS)}"
            )
    steps = []
    for name, options in entries:
        try:
            steps.append(_step(name, options))
        except ConfigError as error:
            errors.append(str(error))
    if errors:
        raise ConfigError("\n".join(errors))
    return tuple(steps)


def import_callable(spec: object, folder: Path | None = None) -> Callable[..., Any]:
    """Return the callable that "module:callable" names; `folder` is on sys.path during the import only.

    Raises:
        ConfigError: the text has another form, or there is no such module or callable.
        Exception: whatever the module raises when it is imported.
    """
    module_name, _, name = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if not module_name or not name:
        raise ConfigError(f'found {spec!r}, expected "package.module:callable"')
    with _on_path(folder):
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise ConfigError(
                f"found {spec!r}, but there is no module {error.name!r} beside the job file or among the installed ones"
            ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"found {spec!r}, but {module_name} has no {name!r}{close_to(part, dir(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"found {spec!r}, which is a {type(found).__name__}, expected something to call")
    return found  # type: ignore[no-any-return]


def factory(options: Mapping[str, Any], folder: Path) -> Factory:
    """Return the factory that `{callable: "module:callable", args: {...}}` describes.

    Raises:
        ConfigError: an option is missing, unknown or wrong. One line per fault.
    """
    _only(options, needed=("callable",), known=("callable", "args"))
    args = options.get("args") or {}
    if not isinstance(args, Mapping) or not all(isinstance(name, str) for name in args):
        raise ConfigError(f"args: found {args!r}, expected a mapping of keyword arguments")
    try:
        function = import_callable(options["callable"], folder)
    except ConfigError as error:
        raise ConfigError(f"callable: {error}") from error
    return Factory(spec=options["callable"], function=function, args=dict(args))


def close_to(word: object, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" for the most similar of the known words, or an empty string."""
    folded = {item.lower(): item for item in known}
    close = difflib.get_close_matches(str(word).lower(), folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def _npz(options: Mapping[str, Any], folder: Path) -> ArrayDataset:
    _only(options, needed=("path", "x"), known=("path", "x", "y"))
    path = _existing(options["path"], folder, "path")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = set(archive.files)
    except (OSError, ValueError, AttributeError, EOFError) as error:
        raise ConfigError(f"path: {path} is no .npz archive ({error or type(error).__name__})") from error

    def place(name: object, option: str) -> _Place:
        if name not in names:
            raise ConfigError(f"{option}: found {name!r}, expected an array of {path.name}: {', '.join(sorted(names))}")
        return path, str(name)

    return _arrays(options, place)


def _numpy(options: Mapping[str, Any], folder: Path) -> ArrayDataset:
    _only(options, needed=("x",), known=("x", "y"))
    return _arrays(options, lambda name, option: (_existing(name, folder, option), ""))


DATASETS: dict[str, Callable[[Mapping[str, Any], Path], ArrayDataset | Factory]] = {
    "npz": _npz,
    "numpy": _numpy,
    "factory": factory,
}


def _arrays(options: Mapping[str, Any], place: Callable[[object, str], _Place]) -> ArrayDataset:
    """Return the dataset of `x` and `y`; all misplaced arrays are reported at once."""
    errors: list[str] = []

    def found(name: object, option: str) -> Any:
        try:
            return place(name, option)
        except ConfigError as error:
            errors.append(str(error))
            return None

    x: Any = options["x"]
    if isinstance(x, Mapping):
        x = {str(name): found(item, f"x.{name}") for name, item in x.items()}
    elif isinstance(x, list):
        x = tuple(found(item, f"x[{position}]") for position, item in enumerate(x))
    else:
        x = found(x, "x")
    if not x and not errors:
        errors.append(f"x: found {options['x']!r}, expected at least one array")
    y = found(options["y"], "y") if options.get("y") is not None else None
    if errors:
        raise ConfigError("\n".join(errors))
    return ArrayDataset(x=x, y=y)


def _is_several(x: object) -> bool:
    return isinstance(x, tuple) and isinstance(x[0], tuple)


def _existing(name: object, folder: Path, option: str) -> Path:
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{option}: found {name!r}, expected a file name")
    path = folder / name
    if not path.is_file():
        raise ConfigError(f"{option}: found {name!r}, but there is no file {path}")
    return path


def _read(place: _Place) -> Array:
    path, key = place
    try:
        if key:
            with np.load(path, allow_pickle=False) as archive:
                array = archive[key]
        else:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(f"{path.name}{f'[{key}]' if key else ''}: no plain array can be read ({error})") from error
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        raise DataError(
            f"{path.name}: found a {type(array).__name__} without a batch axis, expected an array with one row per sample"
        )
    return array


def _step(name: object, options: object) -> Step:
    if name not in TRANSFORMS:
        raise ConfigError(
            f"{name}: there is no such transform{close_to(name, TRANSFORMS)}; there are {', '.join(TRANSFORMS)}"
        )
    if not isinstance(options, Mapping | None):
        raise ConfigError(f"{name}: found {options!r}, expected a mapping of options")
    kind: Any = TRANSFORMS[str(name)]
    given = dict(options or {})
    inputs = given.pop("inputs", [])
    fields = dataclasses.fields(kind)
    try:
        if not isinstance(inputs, list) or not all(isinstance(item, str) for item in inputs):
            raise ConfigError(f"inputs: found {inputs!r}, expected a list of input names")
        _only(
            given,
            needed=tuple(field.name for field in fields if field.default is dataclasses.MISSING),
            known=tuple(field.name for field in fields),
        )
        return Step(kind(**given), tuple(inputs))
    except ConfigError as error:
        raise ConfigError("\n".join(f"{name}.{line}" for line in str(error).splitlines())) from error


def _only(options: Mapping[str, Any], *, needed: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Refuse missing and unknown options, all at once."""
    errors = [f"{name}: missing" for name in needed if name not in options]
    errors += [
        f"{name}: unknown key{close_to(name, known)}; expected {', '.join(known)}"
        for name in options
        if name not in known
    ]
    if errors:
        raise ConfigError("\n".join(errors))


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


@contextmanager
def _on_path(folder: Path | None) -> Iterator[None]:
    if folder is None:
        yield
        return
    entry = str(folder)
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
