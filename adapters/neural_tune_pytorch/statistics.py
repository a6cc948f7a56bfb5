"""What calibration remembers of every tensor: a few kilobytes each, and every candidate is built from that."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from neural_tune.errors import AdapterError, DataError
from neural_tune.numerics import observers
from neural_tune.numerics.histogram import Histogram
from neural_tune.values import Observer

_LOG = logging.getLogger(__name__)
VERSION = 1
_ARRAYS = "statistics.npz"
_INDEX = "statistics.json"
_RangeKey: TypeAlias = tuple[str, Observer, float | None, bool, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorStatistics:
    """What was seen of one tensor.

    Attributes:
        minimum: The smallest value, exactly as float32 held it.
        maximum: The largest value, exactly as float32 held it.
        zeros: How many values are exactly zero.
        histogram: Counts of all values, zeros included.
    """

    minimum: float
    maximum: float
    zeros: int
    histogram: Histogram

    @classmethod
    def of(cls, values: np.ndarray[Any, np.dtype[np.float32]]) -> TensorStatistics:
        """Return what one array (float32, any shape, not empty, finite) shows.

        Raises:
            DataError: a value is not finite.
        """
        low, high = float(values.min()), float(values.max())
        histogram = Histogram.of(values, low, high)
        return cls(minimum=low, maximum=high, zeros=int(values.size - np.count_nonzero(values)), histogram=histogram)

    def merge(self, other: TensorStatistics) -> TensorStatistics:
        """Return what both have seen; exact, associative and commutative."""
        return TensorStatistics(
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            zeros=self.zeros + other.zeros,
            histogram=self.histogram.merge(other.histogram),
        )


class Collector:
    """Gathers statistics while tensors pass by; memory does not grow with the number of batches."""

    def __init__(self) -> None:
        self._seen: dict[str, TensorStatistics] = {}
        self._infinite: set[str] = set()
        self._batches = 0

    def see(self, name: str, values: np.ndarray[Any, Any]) -> None:
        """Take note of the values of one tensor in one batch.

        Raises:
            DataError: a value is NaN.
        """
        array = np.ascontiguousarray(values, dtype=np.float32)
        if not array.size or name in self._infinite:
            return
        low, high = float(array.min()), float(array.max())
        if math.isnan(low) or math.isnan(high):
            raise DataError(f"tensor {name!r} holds NaN in calibration: check the inputs (and the checkpoint)")
        if math.isinf(low) or math.isinf(high):
            self._infinite.add(name)
            self._seen.pop(name, None)
            return
        found = TensorStatistics.of(array)
        known = self._seen.get(name)
        self._seen[name] = found if known is None else known.merge(found)

    def end_batch(self) -> None:
        """Count one batch."""
        self._batches += 1

    def statistics(self) -> Statistics:
        """Return what was gathered."""
        return Statistics(dict(self._seen), self._batches, frozenset(self._infinite))


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """The result of calibration: every range is a pure function of it, so no trial calibrates again.

    Attributes:
        tensors: Tensor name -> what was seen of it. Not to be changed.
        batches: Number of batches that were read.
        infinite: Tensors that took infinite values (attention masks do): they have no range, so what reads them stays float.
    """

    tensors: Mapping[str, TensorStatistics]
    batches: int = 0
    infinite: frozenset[str] = frozenset()
    _ranges: dict[_RangeKey, tuple[float, float]] = field(default_factory=dict, init=False, repr=False)

    def of(self, tensor: str) -> TensorStatistics:
        """Return what was seen of `tensor`.

        Raises:
            AdapterError: the tensor was never observed; a default range in its place would silently be wrong.
        """
        if tensor in self.tensors:
            return self.tensors[tensor]
        why = "took infinite values" if tensor in self.infinite else "was never observed"
        raise AdapterError(
            f"tensor {tensor!r} {why} in calibration ({len(self.tensors)} tensors were observed), so it has no range; "
            "keep the ops that read it in float, or calibrate again"
        )

    def joined(self, tensors: Iterable[str]) -> TensorStatistics:
        """Return what was seen of several tensors that must share one range."""
        found = [self.of(name) for name in tensors]
        total = found[0]
        for item in found[1:]:
            total = total.merge(item)
        return total

    def range_of(
        self, tensor: str, observer: Observer, percentile: float | None = None, *, symmetric: bool, levels: int
    ) -> tuple[float, float]:
        """Return the (low, high) that `tensor` is to be quantized over. Computed once and remembered.

        Args:
            tensor: Name of an observed tensor; several that share a range are joined by a vertical bar.
            observer: How the range is found; see `neural_tune.numerics.observers`.
            percentile: Share of the values that is kept, in percent; for the percentile observer, None means 99.99.
            symmetric: Whether the range must be symmetric around zero.
            levels: Number of integers of the quantized type (256 for 8 bits, 128 with reduce_range).

        Raises:
            AdapterError: the tensor was never observed.
        """
        key = (tensor, observer, percentile, symmetric, levels)
        if key not in self._ranges:
            seen = self.joined(tensor.split("|"))
            self._ranges[key] = observers.find_range(
                observers.Observed(seen.minimum, seen.maximum, seen.zeros, seen.histogram),
                observer,
                percentile=percentile,
                symmetric=symmetric,
                levels=levels,
            )
        return self._ranges[key]


def save(stats: Statistics, directory: Path, *, key: str) -> None:
    """Write `stats` below `directory` so that a reader finds the whole of it or nothing, also after a crash.

    Args:
        stats: What to write.
        directory: Created if it is missing.
        key: What the statistics belong to, such as a fingerprint of the model; `load` must name the same.
    """
    directory.mkdir(parents=True, exist_ok=True)
    names = list(stats.tensors)
    buffer = io.BytesIO()
    np.savez(buffer, **_to_arrays([stats.tensors[name] for name in names]))
    arrays = buffer.getvalue()
    index = {
        "version": VERSION,
        "key": key,
        "batches": stats.batches,
        "tensors": names,
        "infinite": sorted(stats.infinite),
        "sha256": hashlib.sha256(arrays).hexdigest(),
    }
    # The index names the digest of the arrays and comes last: until it is there, and where it does not fit, nothing is there.
    _write_atomically(directory / _ARRAYS, arrays)
    _write_atomically(directory / _INDEX, json.dumps(index).encode())


def load(directory: Path, *, key: str) -> Statistics | None:
    """Return what `save` wrote below `directory` under `key`; None if it is absent, torn, of another version or another key."""
    try:
        index = json.loads((directory / _INDEX).read_bytes())
        arrays = (directory / _ARRAYS).read_bytes()
        if (index["version"], index["key"], index["sha256"]) != (VERSION, key, hashlib.sha256(arrays).hexdigest()):
            _LOG.info("the statistics in %s are torn, of another version or of another model: not used", directory)
            return None
        with np.load(io.BytesIO(arrays), allow_pickle=False) as file:
            tensors = list(_from_arrays({name: file[name] for name in file.files}))
        seen = dict(zip(index["tensors"], tensors, strict=True))
        return Statistics(seen, int(index["batches"]), frozenset(index["infinite"]))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        _LOG.info("no usable statistics in %s: %s", directory, error)
        return None


def _to_arrays(tensors: list[TensorStatistics]) -> dict[str, Any]:
    """Pack all tensors into a few arrays, so that no tensor name becomes a name in an archive."""
    histograms = [item.histogram for item in tensors]
    return {
        "bounds": np.array([[item.minimum, item.maximum] for item in tensors], np.float64).reshape(-1, 2),
        "zeros": np.array([item.zeros for item in tensors], np.int64),
        "grids": np.array([[h.exponent, h.start, h.counts.size] for h in histograms], np.int64).reshape(-1, 3),
        "counts": np.concatenate([np.zeros(0, np.int64), *(h.counts for h in histograms)]),
    }


def _from_arrays(arrays: Mapping[str, Any]) -> Iterator[TensorStatistics]:
    ends = np.cumsum(arrays["grids"][:, 2])
    for row, (minimum, maximum) in enumerate(arrays["bounds"].tolist()):
        exponent, start, bins = arrays["grids"][row].tolist()
        counts = arrays["counts"][int(ends[row]) - bins : int(ends[row])]
        histogram = Histogram(exponent, start, counts)
        yield TensorStatistics(minimum=minimum, maximum=maximum, zeros=int(arrays["zeros"][row]), histogram=histogram)


def _write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step that survives a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
