"""The calibration inputs, kept on disk beside the statistics: what recipes look at again without the caller's loader.

A recipe changes weights, and with them the ranges of some activations. These are observed anew on the very inputs that calibration saw. The
inputs are kept as plain arrays, one archive per batch, without pickle, up to a bound of bytes.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from neural_tune.errors import AdapterError

_LOG = logging.getLogger(__name__)

Feed: TypeAlias = Mapping[str, NDArray[Any]]
"""One batch: input name -> array."""

BOUND = 256 << 20
_FOLDER, _INDEX = "inputs", "inputs.json"
# Beside the inputs: what is computed from them, such as curvatures.
DERIVED = "derived"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spool:
    """Batches on disk.

    Attributes:
        folder: Where they lie.
        names: Input names, in the order of the arrays.
        batches: How many batches were kept.
        seen: How many batches calibration read.
    """

    folder: Path
    names: tuple[str, ...]
    batches: int
    seen: int

    @property
    def is_whole(self) -> bool:
        """True when every calibration batch was kept."""
        return self.batches == self.seen

    def feeds(self, most: int | None = None) -> Iterator[Feed]:
        """Yield the batches in order; with `most`, cut after so many samples.

        Raises:
            AdapterError: a file is gone.
        """
        left = most
        for number in range(self.batches):
            if left is not None and left <= 0:
                return
            feed = self._read(number)
            length = length_of(feed)
            if left is not None and length > left:
                feed = {name: array[:left] if array.ndim else array for name, array in feed.items()}
            if left is not None:
                left -= length
            yield feed

    def _read(self, number: int) -> Feed:
        try:
            with np.load(self.folder / f"{number:06}.npz", allow_pickle=False) as file:
                return {name: file[f"i{position}"] for position, name in enumerate(self.names)}
        except (OSError, ValueError, KeyError) as error:
            message = (
                f"calibration batch {number} is not readable below {str(self.folder)!r} ({error}): calibrate again"
            )
            raise AdapterError(message) from error


def length_of(feed: Feed) -> int:
    """Return the number of samples of a batch: the length of the first axis of its first input that has one."""
    return next((len(array) for array in feed.values() if array.ndim), 1)


class Recorder:
    """Writes batches that pass by, until the bound is reached; what is not closed does not exist for `load`."""

    def __init__(self, directory: Path, *, bound: int = BOUND) -> None:
        """Start anew below `directory`; what an earlier calibration left is deleted."""
        self._directory = directory
        self._folder = directory / _FOLDER
        self._left = bound
        self._names: tuple[str, ...] = ()
        self._kept = self._seen = 0
        (directory / _INDEX).unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.rmtree(directory / DERIVED, ignore_errors=True)
        self._folder.mkdir(parents=True)

    def passing(self, feeds: Iterable[Feed]) -> Iterator[Feed]:
        """Yield `feeds` unchanged, keeping the first ones; the first batch is kept whatever its size."""
        for feed in feeds:
            size = sum(array.nbytes for array in feed.values())
            if self._kept == self._seen and (size <= self._left or not self._seen):
                self._write(feed)
                self._left -= size
            self._seen += 1
            yield feed

    def close(self) -> Spool:
        """Make the batches known to `load` and return them."""
        index = {"names": list(self._names), "batches": self._kept, "seen": self._seen}
        temporary = self._directory / f".{_INDEX}.tmp"
        temporary.write_text(json.dumps(index), encoding="utf-8")
        temporary.replace(self._directory / _INDEX)
        if self._kept < self._seen:
            _LOG.info("kept the first %d of %d calibration batches for recipes", self._kept, self._seen)
        return Spool(folder=self._folder, names=self._names, batches=self._kept, seen=self._seen)

    def _write(self, feed: Feed) -> None:
        self._names = self._names or tuple(feed)
        arrays = {f"i{position}": feed[name] for position, name in enumerate(self._names)}
        np.savez(self._folder / f"{self._kept:06}.npz", allow_pickle=False, **arrays)
        self._kept += 1


def load(directory: Path) -> Spool | None:
    """Return what a `Recorder` wrote below `directory`; None if it is absent or incomplete."""
    try:
        index = json.loads((directory / _INDEX).read_text(encoding="utf-8"))
        found = Spool(
            folder=directory / _FOLDER,
            names=tuple(index["names"]),
            batches=int(index["batches"]),
            seen=int(index["seen"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        _LOG.info("no usable calibration inputs in %s: %s", directory, error)
        return None
    missing = [number for number in range(found.batches) if not (found.folder / f"{number:06}.npz").is_file()]
    return None if missing else found
