"""Arrays on disk: .npz archives and .npy files, with one input or several."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from neural_tune.data_files import Rows
from neural_tune.datasets.given import existing_file
from neural_tune.errors import ConfigError, DataError
from neural_tune.protocols import Array

# Where an array lies: a .npy file, or a .npz file and the name in it.
Place: TypeAlias = tuple[Path, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayDataset:
    """Arrays on disk.

    Attributes:
        x: The places of the inputs, each with a name by which a transform can single it out: the input's own where the job
            gives one, else the array's.
        y: The place of the labels; None when there are none.
        form: What a batch of inputs is: one "array", a "tuple" in the order of the model's inputs, or a "mapping" by input name.
    """

    x: tuple[tuple[str, Place], ...]
    y: Place | None = None
    form: Literal["array", "tuple", "mapping"] = "array"

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return tuple(name for name, _ in self.x)

    def load(self) -> tuple[Mapping[str, Rows], Rows | None]:
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


def npz(options: Mapping[str, Any], folder: Path) -> ArrayDataset:
    """Return the dataset of arrays in one archive. Raises ConfigError for a file or an array that is not there."""
    path = existing_file(options["path"], folder, "path")
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"path: found {options['path']!r}, which is no .npz archive ({error})") from error

    def place(name: object, option: str) -> Place:
        if name not in names:
            raise ConfigError(f"{option}: found {name!r}, expected an array of {path.name}: {', '.join(sorted(names))}")
        return path, str(name)

    return _arrays(options, place)


def numpy_files(options: Mapping[str, Any], folder: Path) -> ArrayDataset:
    """Return the dataset of arrays with a file each. Raises ConfigError for a file that is not there."""
    return _arrays(options, lambda name, option: (existing_file(name, folder, option), ""))


def _arrays(options: Mapping[str, Any], place: Callable[[object, str], Place]) -> ArrayDataset:
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
    found: dict[str, Place] = {}
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


def _read(place: Place) -> Array:
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
