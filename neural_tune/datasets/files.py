"""Data sets in the formats that others publish them in: what a job may say of each, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neural_tune import data_files
from neural_tune.datasets.given import existing_file, existing_folder, integer, number, one_of, text
from neural_tune.datasets.samples import ColumnDataset, RowDataset
from neural_tune.errors import ConfigError, DataError


def image_folder(options: Mapping[str, Any], folder: Path) -> RowDataset:
    """Return the dataset of images in one folder per class. Raises ConfigError, one line per fault."""
    root = existing_folder(options, folder)
    mode = one_of(options, "mode", ("RGB", "L"), "RGB")
    classes = data_files.class_folders(root)
    if not classes:
        raise ConfigError(f"path: found {root.name!r}, expected a folder with one folder of images per class")
    return RowDataset("image", lambda: data_files.image_folder(root, classes, mode))


def csv(options: Mapping[str, Any], folder: Path) -> RowDataset:
    """Return the dataset of a table: numbers, or the names of image files. Raises ConfigError, one line per fault."""
    path = existing_file(options["path"], folder, "path")
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
        root = existing_folder(options, folder, "root") if "root" in options else path.parent
        mode = one_of(options, "mode", ("RGB", "L"), "RGB")
        return RowDataset(str(image), lambda: data_files.csv_images(path, str(image), label, root, mode))
    numbers = tuple(features or [name for name in columns if name != label])
    return RowDataset("features", lambda: data_files.csv_numbers(path, numbers, label))


def cifar10(options: Mapping[str, Any], folder: Path) -> RowDataset:
    """Return the dataset of the binary version of CIFAR-10. Raises ConfigError, one line per fault."""
    split = one_of(options, "split", ("train", "test"), "test")
    root = existing_folder(options, folder)
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


def mnist(options: Mapping[str, Any], folder: Path) -> RowDataset:
    """Return the dataset of a pair of idx files. Raises ConfigError, one line per fault."""
    split = one_of(options, "split", ("train", "test"), "test")
    root = existing_folder(options, folder)
    found = data_files.mnist_files(root, split)
    if found is None:
        names = " and ".join(f"{name}[.gz]" for name in data_files.MNIST_FILES[split])
        raise ConfigError(
            f"path: found no {names} in {root}, expected the files of MNIST or of a data set in its format"
        )
    return RowDataset("image", lambda: (data_files.idx(found[0]), data_files.idx(found[1])))


def tfrecord(options: Mapping[str, Any], folder: Path) -> RowDataset:
    """Return the dataset of records of tf.train.Example. Raises ConfigError, one line per fault."""
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
        x=text(options, "x", "image/encoded"),
        y=text(options, "y", "image/class/label") if options.get("y", "") is not None else "",
        shape=tuple(shape) if shape else (),
        dtype=text(options, "dtype", "float32"),
        offset=integer(options, "label_offset", 0),
    )
    return RowDataset(record.x, lambda: data_files.tfrecord(files, record))


def hf_disk(options: Mapping[str, Any], folder: Path) -> ColumnDataset | RowDataset:
    """Return the dataset of what datasets.save_to_disk wrote. Raises ConfigError, one line per fault."""
    root = existing_folder(options, folder)
    x, y = options["x"], options.get("y")
    split = options.get("split")
    if isinstance(x, str):
        return RowDataset(x, lambda: data_files.hf_column(root, split, x, y))
    given = {str(name): name for name in x} if isinstance(x, list) else x
    if not isinstance(given, Mapping) or not given or not all(isinstance(name, str) for name in given.values()):
        raise ConfigError(f"x: found {x!r}, expected a column, a list of columns, or a mapping from input to column")
    columns = {str(name): str(column) for name, column in given.items()}
    return ColumnDataset(tuple(columns), lambda: data_files.hf_columns(root, split, columns, y))


def dummy(options: Mapping[str, Any], folder: Path) -> RowDataset:  # noqa: ARG001 - every maker gets the folder
    """Return the dataset of random numbers. Raises ConfigError, one line per fault."""
    shape = options["shape"]
    if not data_files.is_shape(shape):
        raise ConfigError(f"shape: found {shape!r}, expected a list of lengths, the number of samples first")
    numbers = data_files.Numbers(
        shape=tuple(shape),
        dtype=text(options, "dtype", "float32"),
        low=number(options, "low", -1.0),
        high=number(options, "high", 1.0),
        classes=integer(options, "classes", 2) if options.get("label") or "classes" in options else 0,
        seed=integer(options, "seed", 0),
    )
    return RowDataset("x", numbers.draw)
