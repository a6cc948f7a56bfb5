"""The kinds of dataset that a job can name, each with its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_tune.datasets import arrays, files
from neural_tune.datasets.factories import Factory, factory
from neural_tune.datasets.samples import Dataset
from neural_tune.errors import ConfigError
from neural_tune.options import close_to, only_known


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
    "npz": DatasetKind("arrays in an .npz file", ("path", "x"), ("path", "x", "y"), arrays.npz),
    "numpy": DatasetKind("arrays in .npy files, memory-mapped", ("x",), ("x", "y"), arrays.numpy_files),
    "image_folder": DatasetKind(
        "one folder of images per class", ("path",), ("path", "mode"), files.image_folder, _ROOT
    ),
    "csv": DatasetKind(
        "a table of numbers, or of image files",
        ("path",),
        ("path", "label", "features", "image", "root", "mode"),
        files.csv,
    ),
    "cifar10": DatasetKind("the binary version of CIFAR-10", ("path",), ("path", "split"), files.cifar10, _ROOT),
    "mnist": DatasetKind("idx files of MNIST and its relatives", ("path",), ("path", "split"), files.mnist, _ROOT),
    "tfrecord": DatasetKind(
        "TFRecord files of tf.train.Example",
        ("path",),
        ("path", "x", "y", "shape", "dtype", "label_offset"),
        files.tfrecord,
        _ROOT,
    ),
    "hf_disk": DatasetKind(
        "a folder that datasets.save_to_disk wrote", ("path", "x"), ("path", "split", "x", "y"), files.hf_disk
    ),
    "dummy": DatasetKind(
        "random numbers",
        ("shape",),
        ("shape", "dtype", "low", "high", "label", "classes", "seed"),
        files.dummy,
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
