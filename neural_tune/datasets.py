"""Data that a job file can name: arrays on disk, or the user's own loader.

A dataset is one of `DATASETS`; `neural_tune.transforms` changes its batches. Arrays are read without pickle, so a data file is never code; a
`factory` names a Python callable, so a job file is.
"""

from __future__ import annotations

import importlib
import math
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from neural_tune.errors import ConfigError, DataError
from neural_tune.options import close_to, only_known
from neural_tune.protocols import Array
from neural_tune.transforms import Step

# Where an array lies: a .npy file, or a .npz file and the name in it.
_Place: TypeAlias = tuple[Path, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayDataset:
    """Arrays on disk.

    Attributes:
        x: The places of the inputs, each with a name by which a transform can single it out: the input's own where the job
            gives one, else the array's.
        y: The place of the labels; None when there are none.
        form: What a batch of inputs is: one "array", a "tuple" in the order of the model's inputs, or a "mapping" by input name.
    """

    x: tuple[tuple[str, _Place], ...]
    y: _Place | None = None
    form: Literal["array", "tuple", "mapping"] = "array"

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return tuple(name for name, _ in self.x)

    def load(self) -> tuple[dict[str, Array], Array | None]:
        """Return the inputs by name and the labels; .npy files are mapped, not read.

        Raises:
            DataError: a file holds no plain array, or the arrays disagree about the number of samples.
        """
        inputs = {name: _read(place) for name, place in self.x}
        labels = _read(self.y) if self.y else None
        lengths = {name: len(array) for name, array in inputs.items()}
        if labels is not None:
            lengths["the labels"] = len(labels)
        if len(set(lengths.values())) != 1:
            shown = ", ".join(f"{name}: {length}" for name, length in lengths.items())
            raise DataError(f"the arrays of one dataset disagree about the number of samples ({shown})")
        return inputs, labels

    def arrange(self, inputs: Mapping[str, Array]) -> object:
        """Return one batch of inputs in the form the job asked for."""
        if self.form == "mapping":
            return dict(inputs)
        return tuple(inputs.values()) if self.form == "tuple" else next(iter(inputs.values()))


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
    only_known(options, needed=("callable",), known=("callable", "args"))
    args = options.get("args") or {}
    if not isinstance(args, Mapping) or not all(isinstance(name, str) for name in args):
        raise ConfigError(f"args: found {args!r}, expected a mapping of keyword arguments")
    try:
        function = import_callable(options["callable"], folder)
    except ConfigError as error:
        raise ConfigError(f"callable: {error}") from error
    return Factory(spec=options["callable"], function=function, args=dict(args))


def _npz(options: Mapping[str, Any], folder: Path) -> ArrayDataset:
    only_known(options, needed=("path", "x"), known=("path", "x", "y"))
    path = _existing(options["path"], folder, "path")
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"path: found {options['path']!r}, which is no .npz archive ({error})") from error

    def place(name: object, option: str) -> _Place:
        if name not in names:
            raise ConfigError(f"{option}: found {name!r}, expected an array of {path.name}: {', '.join(sorted(names))}")
        return path, str(name)

    return _arrays(options, place)


def _numpy(options: Mapping[str, Any], folder: Path) -> ArrayDataset:
    only_known(options, needed=("x",), known=("x", "y"))
    return _arrays(options, lambda name, option: (_existing(name, folder, option), ""))


DATASETS: dict[str, Callable[[Mapping[str, Any], Path], ArrayDataset | Factory]] = {
    "npz": _npz,
    "numpy": _numpy,
    "factory": factory,
}


def _arrays(options: Mapping[str, Any], place: Callable[[object, str], _Place]) -> ArrayDataset:
    """Return the dataset of `x` and `y`; all misplaced arrays are reported at once."""
    x, y = options["x"], options.get("y")
    form: Literal["array", "tuple", "mapping"]
    if isinstance(x, Mapping):
        form, wanted = "mapping", [(str(name), item, f"x.{name}") for name, item in x.items()]
    elif isinstance(x, list):
        form, wanted = "tuple", [(Path(str(item)).stem, item, f"x[{position}]") for position, item in enumerate(x)]
    else:
        form, wanted = "array", [(Path(str(x)).stem, x, "x")]
    errors: list[str] = []
    found: dict[str, _Place] = {}
    for name, item, option in [*wanted, *([("", y, "y")] if y is not None else [])]:
        try:
            where = place(item, option)
        except ConfigError as error:
            errors.append(str(error))
            continue
        if name in found:
            errors.append(f"{option}: found {item!r} for the second time; name the inputs in a mapping")
        found[name] = where
    if not wanted:
        errors.append(f"x: found {x!r}, expected at least one array")
    if errors:
        raise ConfigError("\n".join(errors))
    labels = found.pop("", None)
    return ArrayDataset(x=tuple(found.items()), y=labels, form=form)


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
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path.name}{f'[{key}]' if key else ''}: no plain array can be read ({error})") from error
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        raise DataError(
            f"{path.name}: found a {type(array).__name__} without a batch axis, expected an array with one row per sample"
        )
    return array


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
