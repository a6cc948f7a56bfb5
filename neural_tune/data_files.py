"""Data files of the wide world, one function per kind: images, tables, CIFAR-10, MNIST, TFRecord, Hugging Face folders.

Nothing is unpickled. Libraries that one kind needs (Pillow, tensorflow, datasets) are imported when it is read.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from neural_tune.errors import DataError, PluginError
from neural_tune.protocols import Array

_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_CIFAR_RECORD = 1 + 3 * 32 * 32
_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
MNIST_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class Rows(Protocol):
    """Samples in order: an array, or something that reads them when they are asked for."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Return samples: one array, or a list of arrays that may differ in shape."""


@dataclass(frozen=True, slots=True)
class LazyRows:
    """Samples that are read one by one.

    Attributes:
        items: What each sample is read from.
        read: Reads one.
    """

    items: Sequence[Any]
    read: Callable[[Any], Array]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.items)

    def __getitem__(self, rows: slice) -> list[Array]:
        """Return the samples of `rows`, each with its own shape."""
        return [self.read(item) for item in self.items[rows]]


def library(module: str, install: str) -> Any:
    """Import `module` at first use.

    Raises:
        PluginError: it is not installed; the message names the pip command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise PluginError(f'this data needs {name}, which is not installed: pip install "{install}"') from error


def read_image(path: Path, mode: str) -> Array:
    """Return an image as uint8 of shape (height, width, 3), or (height, width, 1) for mode "L".

    Raises:
        DataError: the file is no image that Pillow reads.
    """
    pillow = library("PIL.Image", "pillow")
    try:
        with pillow.open(path) as image:
            array = np.asarray(image.convert(mode))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no image can be read ({error})") from error
    return array if array.ndim == 3 else array[:, :, None]


def class_folders(root: Path) -> tuple[Path, ...]:
    """Return the folders of classes below `root`, in the order of their labels (by name, as torchvision numbers them)."""
    return tuple(sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")))


def image_folder(root: Path, classes: Sequence[Path], mode: str) -> tuple[Rows, Rows]:
    """Return the images below `root` and the positions of their classes."""
    found = [(path, label) for label, folder in enumerate(classes) for path in _images_below(folder)]
    if not found:
        raise DataError(f"{root}: found no image below it, expected files such as {root.name}/{classes[0].name}/1.jpg")
    rows = LazyRows([path for path, _ in found], lambda path: read_image(path, mode))
    return rows, np.asarray([label for _, label in found])


def _images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGES and path.is_file())


def csv_header(path: Path) -> list[str]:
    """Return the column names of a table. Raises DataError for a file without."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header = next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: no table can be read ({error})") from error
    if not header:
        raise DataError(f"{path}: found an empty file, expected a first line with the names of the columns")
    return [name.strip() for name in header]


def _csv_rows(path: Path) -> list[dict[str, str]]:
    names = csv_header(path)
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))[1:]
    for number, line in enumerate(lines, 2):
        if line and len(line) != len(names):
            raise DataError(f"{path}, line {number}: found {len(line)} values, expected {len(names)}, one per column")
    return [dict(zip(names, (value.strip() for value in line), strict=True)) for line in lines if line]


def csv_numbers(path: Path, columns: Sequence[str], label: str | None) -> tuple[Rows, Rows | None]:
    """Return float32 rows of `columns` and the labels of a table."""
    rows = _csv_rows(path)
    table = np.stack([_column(path, rows, name) for name in columns], axis=1).astype(np.float32)
    return table, None if label is None else _labels(path, rows, label)


def csv_images(path: Path, column: str, label: str | None, root: Path, mode: str) -> tuple[Rows, Rows | None]:
    """Return the images whose file names a table lists, and the labels."""
    rows = _csv_rows(path)
    missing = [row[column] for row in rows if not (root / row[column]).is_file()]
    if missing:
        raise DataError(
            f"{path}: column {column!r} names {len(missing)} files that are not in {root}, such as {missing[0]!r}"
        )
    images = LazyRows([root / row[column] for row in rows], lambda file: read_image(file, mode))
    return images, None if label is None else _labels(path, rows, label)


def _column(path: Path, rows: Sequence[Mapping[str, str]], name: str) -> Array:
    values = []
    for number, row in enumerate(rows, 2):
        try:
            values.append(float(row[name]))
        except ValueError:
            raise DataError(f"{path}, line {number}: column {name!r}: found {row[name]!r}, expected a number") from None
    return np.asarray(values)


def _labels(path: Path, rows: Sequence[Mapping[str, str]], name: str) -> Array:
    values = _column(path, rows, name)
    return values.astype(np.int64) if (values == np.round(values)).all() else values


def cifar10_files(root: Path, split: str) -> tuple[Path, ...]:
    """Return the files of a split of CIFAR-10's binary version, in or below `root`."""
    pattern = "data_batch_*.bin" if split == "train" else "test_batch.bin"
    return tuple(sorted(root.rglob(pattern)))


def cifar10(files: Sequence[Path]) -> tuple[Rows, Rows]:
    """Return images as uint8 (n, 32, 32, 3) and labels from records of one label byte and three planes of 1024 bytes."""
    parts = []
    for path in files:
        data = np.fromfile(path, np.uint8)
        if data.size == 0 or data.size % _CIFAR_RECORD:
            raise DataError(f"{path}: found {data.size} bytes, expected records of {_CIFAR_RECORD} bytes")
        parts.append(data.reshape(-1, _CIFAR_RECORD))
    records = np.concatenate(parts)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0].astype(np.int64)


def mnist_files(root: Path, split: str) -> tuple[Path, Path] | None:
    """Return the files of images and labels of a split in or below `root`, plain or gzipped; None when one is not there."""
    found = []
    for name in MNIST_FILES[split]:
        wanted = {name, f"{name}.gz", name.replace("-idx", ".idx"), f"{name.replace('-idx', '.idx')}.gz"}
        path = next((path for path in sorted(root.rglob("*")) if path.name in wanted and path.is_file()), None)
        if path is None:
            return None
        found.append(path)
    return found[0], found[1]


def idx(path: Path) -> Array:
    """Return the array of an idx file; images get a channel axis at the end, labels become int64.

    Raises:
        DataError: the file does not hold what its header says.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_TYPES:
        raise DataError(f"{path}: found no idx header, expected a file in the format of MNIST")
    kind, axes = np.dtype(_IDX_TYPES[data[2]]), data[3]
    start = 4 + 4 * axes
    shape = tuple(int.from_bytes(data[place : place + 4], "big") for place in range(4, start, 4))
    if len(data) - start != math.prod(shape) * kind.itemsize:
        raise DataError(f"{path}: found {len(data) - start} bytes of data, expected {shape} values of {kind}")
    array = np.frombuffer(data, kind, offset=start).reshape(shape)
    return array.astype(np.int64) if axes == 1 else array[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is in one record of a TFRecord file.

    Attributes:
        x: Feature of the input; an encoded image (JPEG, PNG), or numbers.
        y: Feature of the label; empty for none.
        shape: Shape of a sample that is given as numbers or raw bytes; empty for an encoded image.
        dtype: Of raw bytes, and of the sample.
        offset: Added to labels: -1 where a file counts from 1.
    """

    x: str
    y: str
    shape: tuple[int, ...]
    dtype: str
    offset: int


def tfrecord(files: Sequence[Path], record: Record) -> tuple[Rows, Rows | None]:
    """Return the samples of TFRecord files, read by tensorflow.

    Raises:
        PluginError: tensorflow is not installed.
        DataError: a feature is not there, or is no sample.
    """
    tf = library("tensorflow", "neural-tune[tensorflow]")
    samples: list[Any] = []
    labels: list[int] = []
    try:
        for raw in tf.data.TFRecordDataset([str(path) for path in files]):
            example = tf.train.Example.FromString(raw.numpy())
            samples.append(_feature(example, record.x))
            if record.y:
                labels.append(int(_feature(example, record.y)[0]) + record.offset)
    except tf.errors.DataLossError as error:
        raise DataError(f"{files[0].name}: no TFRecord file ({error.message})") from error
    rows = LazyRows(samples, lambda values: _sample(tf, values, record))
    return rows, np.asarray(labels) if record.y else None


def _feature(example: Any, name: str) -> Any:
    feature = example.features.feature
    if name not in feature:
        raise DataError(f"a record has no feature {name!r}, expected one of {', '.join(sorted(feature))}; set x and y")
    kind = feature[name].WhichOneof("kind")
    return () if kind is None else getattr(feature[name], kind).value


def _sample(tf: Any, values: Any, record: Record) -> Array:
    if record.shape:
        flat = (
            np.frombuffer(values[0], record.dtype) if isinstance(values[0], bytes) else np.asarray(values, record.dtype)
        )
        if flat.size != math.prod(record.shape):
            raise DataError(f"feature {record.x!r}: found {flat.size} values, expected the shape {list(record.shape)}")
        return flat.reshape(record.shape)
    if not values or not isinstance(values[0], bytes):
        raise DataError(f"feature {record.x!r}: found numbers, expected an encoded image; give their shape")
    return np.asarray(tf.io.decode_image(values[0], channels=3, expand_animations=False).numpy())


def hf_column(root: Path, split: str | None, x: str, y: str | None) -> tuple[Rows, Rows | None]:
    """Return one column and the labels of a folder that `Dataset.save_to_disk` wrote."""
    columns, labels = hf_columns(root, split, {x: x}, y)
    return columns[x], labels


def hf_columns(
    root: Path, split: str | None, columns: Mapping[str, str], y: str | None
) -> tuple[dict[str, Rows], Rows | None]:
    """Return columns by input name, and the labels, of a folder that `Dataset.save_to_disk` wrote.

    Raises:
        PluginError: the datasets library is not installed.
        DataError: no such split or column.
    """
    datasets = library("datasets", "datasets")
    try:
        stored = datasets.load_from_disk(str(root))
    except (OSError, ValueError) as error:
        raise DataError(f"{root}: found no dataset that save_to_disk wrote ({error})") from error
    if isinstance(stored, Mapping):
        stored = _split_of(root, stored, split)
    unknown = [name for name in (*columns.values(), *([y] if y else [])) if name not in stored.column_names]
    if unknown:
        raise DataError(f"{root}: found no column {unknown[0]!r}, expected one of {', '.join(stored.column_names)}")
    rows: dict[str, Rows] = {name: StoredColumn.of(stored, column) for name, column in columns.items()}
    return rows, None if y is None else np.asarray(stored[y][:])


def _split_of(root: Path, stored: Mapping[str, Any], split: str | None) -> Any:
    if split is None and len(stored) > 1:
        raise DataError(f"{root}: found the splits {', '.join(stored)}, expected one of them as split")
    chosen = split if split is not None else next(iter(stored))
    if chosen not in stored:
        raise DataError(f"{root}: found no split {chosen!r}, expected one of {', '.join(stored)}")
    return stored[chosen]


@dataclass(frozen=True, slots=True)
class StoredColumn:
    """A column of a Hugging Face dataset: numbers as they were declared, images as uint8 of shape (height, width, 3).

    Attributes:
        table: The column alone, so that no other one is decoded.
        name: Its name.
    """

    table: Any
    name: str

    @classmethod
    def of(cls, stored: Any, name: str) -> StoredColumn:
        """Return the column `name` of a dataset."""
        alone = stored.select_columns([name])
        declared = _declared(stored.features[name])
        # Without a format, numbers come as Python's own, and what was float32 would become float64.
        return cls(alone.with_format("numpy", dtype=declared) if declared else alone.with_format(None), name)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.table)

    def __getitem__(self, rows: slice) -> list[Array]:
        """Return the samples of `rows`, each with its own shape."""
        cells = self.table[rows][self.name]
        return [np.asarray(cell.convert("RGB") if hasattr(cell, "convert") else cell) for cell in cells]


def _declared(feature: Any) -> str:
    """Return the number format inside a declaration, such as that of a list of arrays; "" where it holds no numbers."""
    while isinstance(feature, list) or hasattr(feature, "feature"):
        feature = feature[0] if isinstance(feature, list) else feature.feature
    dtype = getattr(feature, "dtype", None)
    try:
        return dtype if isinstance(dtype, str) and np.dtype(dtype).kind in "biuf" else ""
    except TypeError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Uniform random numbers, for a first try without data; they say nothing about accuracy.

    Attributes:
        shape: Samples, then the shape of one.
        dtype: A numpy dtype.
        low: Smallest value.
        high: Largest value (of integers: one above it).
        classes: Labels are random below this; 0 gives none.
        seed: The same seed gives the same numbers.
    """

    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float
    classes: int
    seed: int

    def draw(self) -> tuple[Rows, Rows | None]:
        """Return samples and labels. Raises DataError for a dtype numpy does not know."""
        generator = np.random.default_rng(self.seed)
        try:
            kind = np.dtype(self.dtype)
        except TypeError as error:
            raise DataError(
                f"dummy data: found dtype {self.dtype!r}, expected a number format such as float32"
            ) from error
        x: Array
        if kind.kind in "iub":
            x = generator.integers(int(self.low), max(int(self.high), int(self.low) + 1), self.shape).astype(kind)
        else:
            x = generator.uniform(self.low, self.high, self.shape).astype(kind)
        return x, generator.integers(0, self.classes, self.shape[0]) if self.classes else None


def is_shape(value: object) -> bool:
    """Return whether `value` is a list of lengths, 1 or more each."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(length, int) and not isinstance(length, bool) and length > 0 for length in value)
    )
