"""Data that a job file can name: arrays, images and tables on disk, or the user's own loader.

A dataset is one of `DATASETS`; `neural_tune.transforms` changes its batches. Data files are read without pickle, so a data file is never code; a
`factory` names a Python callable, so a job file is. What reads one kind of file is in `neural_tune.data_files`.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from neural_tune import data_files
from neural_tune.callables import import_callable
from neural_tune.data_files import Rows
from neural_tune.errors import ConfigError, DataError
from neural_tune.options import close_to, only_known
from neural_tune.protocols import Array
from neural_tune.transforms import Batch, Step, stacked

__all__ = ["DATASETS", "ArrayDataset", "BatchLoader", "Dataset", "Factory", "dataset", "factory", "import_callable"]

# Where an array lies: a .npy file, or a .npz file and the name in it.
_Place: TypeAlias = tuple[Path, str]


class Dataset(Protocol):
    """Samples that can be read any number of times, always in the same order."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs, by which a transform can single one out."""

    def load(self) -> tuple[Mapping[str, Rows], Rows | None]:
        """Return the inputs by name and the labels. Raises DataError for files that cannot be read."""

    def arrange(self, inputs: Mapping[str, Array]) -> object:
        """Return one batch of inputs in the form the job asked for."""


@dataclass(frozen=True, slots=True)
class RowDataset:
    """One input whose samples are read when they are asked for: images, records, made-up numbers.

    Attributes:
        name: The input's name for transforms.
        open: Returns the samples and the labels; called at the first iteration.
    """

    name: str
    open: Callable[[], tuple[Rows, Rows | None]]

    @property
    def input_names(self) -> tuple[str, ...]:
        """The name of the one input."""
        return (self.name,)

    def load(self) -> tuple[Mapping[str, Rows], Rows | None]:
        """Return the samples and the labels."""
        rows, labels = self.open()
        return {self.name: rows}, labels

    def arrange(self, inputs: Mapping[str, Array]) -> object:
        """Return the array of the one input."""
        return inputs[self.name]


@dataclass(frozen=True, slots=True)
class ColumnDataset:
    """Several inputs by name, read when they are asked for.

    Attributes:
        input_names: Names of the model's inputs.
        open: Returns the samples of each, and the labels.
    """

    input_names: tuple[str, ...]
    open: Callable[[], tuple[Mapping[str, Rows], Rows | None]]

    def load(self) -> tuple[Mapping[str, Rows], Rows | None]:
        """Return the samples and the labels."""
        return self.open()

    def arrange(self, inputs: Mapping[str, Array]) -> object:
        """Return the arrays by input name."""
        return dict(inputs)


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


class BatchLoader:
    """Batches of a `Dataset`, transformed as they are read, any number of times and always in the same order.

    A batch is `(inputs, labels)`, or `(inputs,)` when there are no labels. Arrays are opened at the first iteration.
    """

    def __init__(
        self,
        dataset: Dataset,
        steps: Sequence[Step] = (),
        batch_size: int = 1,
        *,
        drop_last: bool = False,
        label_shift: int = 0,
    ) -> None:
        """Take a dataset, the steps in order, and how to cut batches; `drop_last` leaves out an incomplete last batch, `label_shift` is added to labels."""
        self.batch_size = batch_size
        self._dataset, self._steps, self._drop_last = dataset, tuple(steps), drop_last
        self._label_shift = label_shift
        self._arrays: tuple[Mapping[str, Rows], Rows | None] | None = None

    def with_labels_shifted(self, shift: int) -> BatchLoader:
        """Return the same batches with `shift` added to every label."""
        return BatchLoader(self._dataset, self._steps, self.batch_size, drop_last=self._drop_last, label_shift=shift)

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
            yield (batch,) if labels is None else (batch, self._labels(labels[rows]))

    def _labels(self, rows: Any) -> Array:
        return np.asarray(rows) + self._label_shift if self._label_shift else np.asarray(rows)

    def _opened(self) -> tuple[Mapping[str, Rows], Rows | None]:
        if self._arrays is None:
            self._arrays = self._dataset.load()
        return self._arrays

    def _transformed(self, name: str, batch: Batch) -> Array:
        for step in self._steps:
            if not step.inputs or name in step.inputs:
                batch = step.apply(batch)
        return stacked(batch)


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


def dataset(spec: Mapping[str, Any], folder: Path) -> Dataset | Factory:
    """Return the dataset that a job describes as `{kind: options}`.

    Args:
        spec: One of the kinds of `DATASETS` (or INC's name for it) with its options. `x` of npz and numpy may be one name (file), a list in
            the order of the model's inputs, or a mapping from input name to name (file). A factory returns an iterable of batches.
        folder: Folder of the job file; relative paths start there, and a factory's module may lie there.

    Raises:
        ConfigError: the kind is unknown, an option is missing or wrong, a file or an array in it does not exist. One line per fault.
    """
    if not isinstance(spec, Mapping) or len(spec) != 1:
        found = list(spec) if isinstance(spec, Mapping) else spec
        raise ConfigError(f"found {found!r}, expected one kind of dataset with its options: {', '.join(DATASETS)}")
    kind, options = next(iter(spec.items()))
    maker = DATASETS.get(INC_DATASETS.get(kind, kind))
    if maker is None:
        raise ConfigError(
            f"{kind}: there is no such dataset{close_to(kind, DATASETS)}; there are {', '.join(DATASETS)}"
        )
    if not isinstance(options, Mapping):
        raise ConfigError(f"{kind}: found {options!r}, expected a mapping of options")
    try:
        return maker.make(options, folder)
    except ConfigError as error:
        lines = str(error).splitlines()
        raise ConfigError(
            "\n".join(f"{kind}{': ' if line.startswith('found ') else '.'}{line}" for line in lines)
        ) from error


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
    return _arrays(options, lambda name, option: (_existing(name, folder, option), ""))


def _image_folder(options: Mapping[str, Any], folder: Path) -> RowDataset:
    root = _folder(options, folder)
    mode = _one_of(options, "mode", ("RGB", "L"), "RGB")
    classes = data_files.class_folders(root)
    if not classes:
        raise ConfigError(f"path: found {root.name!r}, expected a folder with one folder of images per class")
    return RowDataset("image", lambda: data_files.image_folder(root, classes, mode))


def _csv(options: Mapping[str, Any], folder: Path) -> RowDataset:
    path = _existing(options["path"], folder, "path")
    try:
        columns = data_files.csv_header(path)
    except DataError as error:
        raise ConfigError(f"path: {error}") from error
    label, image, features = options.get("label"), options.get("image"), options.get("features")
    if image is not None and features is not None:
        raise ConfigError("found both image and features, expected one: a column of file names, or columns of numbers")
    wanted = [("label", label), ("image", image)]
    wanted += [(f"features[{place}]", name) for place, name in enumerate(features or ())]
    errors = [
        f"{option}: found {name!r}, expected a column of {path.name}: {', '.join(columns)}"
        for option, name in wanted
        if name is not None and name not in columns
    ]
    if errors:
        raise ConfigError("\n".join(errors))
    if image is not None:
        root = _folder(options, folder, "root") if "root" in options else path.parent
        mode = _one_of(options, "mode", ("RGB", "L"), "RGB")
        return RowDataset(str(image), lambda: data_files.csv_images(path, str(image), label, root, mode))
    numbers = tuple(features or [name for name in columns if name != label])
    return RowDataset("features", lambda: data_files.csv_numbers(path, numbers, label))


def _cifar10(options: Mapping[str, Any], folder: Path) -> RowDataset:
    split = _one_of(options, "split", ("train", "test"), "test")
    root = _folder(options, folder)
    files = data_files.cifar10_files(root, split)
    if not files:
        hint = (
            "; the pickled version for Python is refused: unpickling is running code"
            if any(root.glob("*_batch*"))
            else ""
        )
        raise ConfigError(
            f"path: found no {split} batches (*.bin) of CIFAR-10 in {root}: take the binary version{hint}"
        )
    return RowDataset("image", lambda: data_files.cifar10(files))


def _mnist(options: Mapping[str, Any], folder: Path) -> RowDataset:
    split = _one_of(options, "split", ("train", "test"), "test")
    root = _folder(options, folder)
    found = data_files.mnist_files(root, split)
    if found is None:
        names = " and ".join(f"{name}[.gz]" for name in data_files.MNIST_FILES[split])
        raise ConfigError(
            f"path: found no {names} in {root}, expected the files of MNIST or of a data set in its format"
        )
    return RowDataset("image", lambda: (data_files.idx(found[0]), data_files.idx(found[1])))


def _tfrecord(options: Mapping[str, Any], folder: Path) -> RowDataset:
    pattern = options["path"]
    if not isinstance(pattern, str) or not pattern:
        raise ConfigError(f"path: found {pattern!r}, expected a file name, which may hold * and ?")
    files = (
        tuple(sorted(path for path in folder.glob(pattern) if path.is_file()))
        if not Path(pattern).is_absolute()
        else ()
    )
    files = files or tuple(sorted(path for path in Path(pattern).parent.glob(Path(pattern).name) if path.is_file()))
    if not files:
        raise ConfigError(f"path: found {pattern!r}, but no such file in {folder}")
    shape = options.get("shape")
    if shape is not None and not data_files.is_shape(shape):
        raise ConfigError(f"shape: found {shape!r}, expected a list of lengths")
    record = data_files.Record(
        x=_text(options, "x", "image/encoded"),
        y=_text(options, "y", "image/class/label") if options.get("y", "") is not None else "",
        shape=tuple(shape) if shape else (),
        dtype=_text(options, "dtype", "float32"),
        offset=_integer(options, "label_offset", 0),
    )
    return RowDataset(record.x, lambda: data_files.tfrecord(files, record))


def _hf_disk(options: Mapping[str, Any], folder: Path) -> ColumnDataset | RowDataset:
    root = _folder(options, folder)
    x, y = options["x"], options.get("y")
    split = options.get("split")
    if isinstance(x, str):
        return RowDataset(x, lambda: data_files.hf_column(root, split, x, y))
    given = {str(name): name for name in x} if isinstance(x, list) else x
    if not isinstance(given, Mapping) or not given or not all(isinstance(name, str) for name in given.values()):
        raise ConfigError(f"x: found {x!r}, expected a column, a list of columns, or a mapping from input to column")
    columns = {str(name): str(column) for name, column in given.items()}
    return ColumnDataset(tuple(columns), lambda: data_files.hf_columns(root, split, columns, y))


def _dummy(options: Mapping[str, Any], folder: Path) -> RowDataset:  # noqa: ARG001 - every maker gets the folder
    shape = options["shape"]
    if not data_files.is_shape(shape):
        raise ConfigError(f"shape: found {shape!r}, expected a list of lengths, the number of samples first")
    numbers = data_files.Numbers(
        shape=tuple(shape),
        dtype=_text(options, "dtype", "float32"),
        low=_number(options, "low", -1.0),
        high=_number(options, "high", 1.0),
        classes=_integer(options, "classes", 2) if options.get("label") or "classes" in options else 0,
        seed=_integer(options, "seed", 0),
    )
    return RowDataset("x", numbers.draw)


@dataclass(frozen=True, slots=True)
class DatasetKind:
    """One kind of dataset that a job can name.

    Attributes:
        summary: One line for people.
        needed: Options that must be there.
        known: All options.
        maker: Takes checked option names and the job's folder.
        aliases: INC's word for an option -> ours.
    """

    summary: str
    needed: tuple[str, ...]
    known: tuple[str, ...]
    maker: Callable[[Mapping[str, Any], Path], Dataset | Factory]
    aliases: tuple[tuple[str, str], ...] = ()

    def make(self, options: Mapping[str, Any], folder: Path) -> Dataset | Factory:
        """Return the dataset. Raises ConfigError, one line per fault."""
        words = dict(self.aliases)
        given = {words.get(name, name): value for name, value in options.items()}
        only_known(given, needed=self.needed, known=self.known)
        return self.maker(given, folder)


_ROOT = (("root", "path"), ("data_path", "path"))
DATASETS: dict[str, DatasetKind] = {
    "npz": DatasetKind("arrays in an .npz file", ("path", "x"), ("path", "x", "y"), _npz),
    "numpy": DatasetKind("arrays in .npy files, memory-mapped", ("x",), ("x", "y"), _numpy),
    "image_folder": DatasetKind("one folder of images per class", ("path",), ("path", "mode"), _image_folder, _ROOT),
    "csv": DatasetKind(
        "a table of numbers, or of image files", ("path",), ("path", "label", "features", "image", "root", "mode"), _csv
    ),
    "cifar10": DatasetKind("the binary version of CIFAR-10", ("path",), ("path", "split"), _cifar10, _ROOT),
    "mnist": DatasetKind("idx files of MNIST and its relatives", ("path",), ("path", "split"), _mnist, _ROOT),
    "tfrecord": DatasetKind(
        "TFRecord files of tf.train.Example",
        ("path",),
        ("path", "x", "y", "shape", "dtype", "label_offset"),
        _tfrecord,
        _ROOT,
    ),
    "hf_disk": DatasetKind(
        "a folder that datasets.save_to_disk wrote", ("path", "x"), ("path", "split", "x", "y"), _hf_disk
    ),
    "dummy": DatasetKind(
        "random numbers",
        ("shape",),
        ("shape", "dtype", "low", "high", "label", "classes", "seed"),
        _dummy,
        (("input_shape", "shape"),),
    ),
    "factory": DatasetKind(
        "an iterable of batches of your own",
        ("callable",),
        ("callable", "args"),
        factory,
    ),
}
# INC 1.x's names.
INC_DATASETS = {
    "ImageFolder": "image_folder",
    "CIFAR10": "cifar10",
    "MNIST": "mnist",
    "FashionMNIST": "mnist",
    "TFRecordDataset": "tfrecord",
    "ImageRecord": "tfrecord",
    "dummy_v2": "dummy",
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


def _folder(options: Mapping[str, Any], folder: Path, option: str = "path") -> Path:
    name = options[option] if option in options else options["path"]
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{option}: found {name!r}, expected the name of a folder")
    path = folder / name
    if not path.is_dir():
        raise ConfigError(f"{option}: found {name!r}, but there is no folder {path}")
    return path


def _one_of(options: Mapping[str, Any], name: str, allowed: tuple[str, ...], default: str) -> str:
    value = options.get(name, default)
    if value not in allowed:
        raise ConfigError(f"{name}: found {value!r}{close_to(value, allowed)}, expected {' or '.join(allowed)}")
    return str(value)


def _text(options: Mapping[str, Any], name: str, default: str) -> str:
    value = options.get(name, default)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name}: found {value!r}, expected a text")
    return value


def _integer(options: Mapping[str, Any], name: str, default: int) -> int:
    value = options.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name}: found {value!r}, expected an integer")
    return value


def _number(options: Mapping[str, Any], name: str, default: float) -> float:
    value = options.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigError(f"{name}: found {value!r}, expected a number")
    return float(value)


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
