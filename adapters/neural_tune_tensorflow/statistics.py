"""What calibration leaves behind: per tensor, everything a range can be computed from; collected in one pass, kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from neural_tune.errors import AdapterError, DataError
from neural_tune.numerics.histogram import Histogram
from neural_tune.numerics.observers import Observed, find_range
from neural_tune.protocols import Array
from neural_tune.values import Observer

VERSION = 1
_ARRAYS, _INDEX = "statistics.npz", "statistics.json"
_RangeKey: TypeAlias = tuple[str, Observer, float | None, bool, int]


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """The result of calibration; every range is a pure function of it.

    Attributes:
        tensors: Tensor -> what was seen of it. Not to be changed.
        batches: Number of batches read.
        infinite: Tensors that took infinite values, as masks do: they have no range.
    """

    tensors: Mapping[str, Observed]
    batches: int = 0
    infinite: frozenset[str] = frozenset()
    _ranges: dict[_RangeKey, tuple[float, float]] = field(default_factory=dict, init=False, repr=False)

    def of(self, tensor: str) -> Observed:
        """Return what was seen of `tensor`.

        Raises:
            AdapterError: it was not observed, or has no range.
        """
        if tensor in self.infinite:
            raise AdapterError(f"tensor {tensor!r} took infinite values in calibration: keep its neighbours in float")
        if tensor not in self.tensors:
            raise AdapterError(
                f"tensor {tensor!r} was not observed in calibration, so it has no range: calibrate again"
            )
        return self.tensors[tensor]

    def range_of(
        self, tensor: str, observer: Observer, percentile: float | None = None, *, symmetric: bool, levels: int
    ) -> tuple[float, float]:
        """Return the (low, high) that `tensor` is to be quantized over; computed once and remembered."""
        key = (tensor, observer, percentile, symmetric, levels)
        if key not in self._ranges:
            self._ranges[key] = find_range(
                self.of(tensor), observer, percentile=percentile, symmetric=symmetric, levels=levels
            )
        return self._ranges[key]


@dataclass(frozen=True, slots=True, eq=False)
class FixedRanges:
    """Ranges that training found: whatever observer is asked for, the answer is the trained range.

    Attributes:
        ranges: Tensor -> (low, high).
        infinite: Always empty here.
    """

    ranges: Mapping[str, tuple[float, float]]
    infinite: frozenset[str] = frozenset()

    def range_of(
        self,
        tensor: str,
        observer: Observer,  # noqa: ARG002 - part of the protocol
        percentile: float | None = None,  # noqa: ARG002
        *,
        symmetric: bool,
        levels: int,  # noqa: ARG002
    ) -> tuple[float, float]:
        """Return the trained range; made symmetric where that is asked for."""
        if tensor not in self.ranges:
            raise AdapterError(f"training left no range for tensor {tensor!r}")
        low, high = self.ranges[tensor]
        bound = max(abs(low), abs(high))
        return (-bound, bound) if symmetric else (low, high)


class Collector:
    """Folds activations into statistics as they come; nothing of an activation is kept."""

    def __init__(self, names: Iterable[str]) -> None:
        self._running = {name: _Running() for name in names}

    @property
    def names(self) -> tuple[str, ...]:
        """What is observed."""
        return tuple(self._running)

    def fold(self, name: str, values: Array, batch: int) -> None:
        """Add one activation.

        Raises:
            DataError: it holds NaN.
        """
        if not values.size:
            return
        floats = values.astype(np.float32, copy=False)
        low, high = float(floats.min()), float(floats.max())
        if math.isnan(low) or math.isnan(high):
            raise DataError(
                f"calibration batch {batch}: tensor {name!r} holds NaN; the float model itself breaks on this input: "
                "check the preprocessing, or leave the batch out"
            )
        self._running[name].add(floats, low, high)

    def result(self, batches: int) -> Statistics:
        """Return the statistics.

        Raises:
            DataError: no batch was read.
        """
        if not batches:
            raise DataError("calibration got no batch: the iterable is empty (or was used up); give at least one batch")
        infinite = frozenset(name for name, item in self._running.items() if item.is_infinite)
        seen = {
            name: Observed(item.low, item.high, item.zeros, item.histogram)
            for name, item in self._running.items()
            if name not in infinite and item.histogram.counts.size
        }
        return Statistics(seen, batches, infinite)


@dataclass(slots=True)
class _Running:
    low: float = math.inf
    high: float = -math.inf
    zeros: int = 0
    histogram: Histogram = field(default_factory=Histogram.empty)
    is_infinite: bool = False

    def add(self, values: Array, low: float, high: float) -> None:
        if not (math.isfinite(low) and math.isfinite(high)):
            self.is_infinite = True
        if self.is_infinite:
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.zeros += values.size - int(np.count_nonzero(values))
        self.histogram = self.histogram.merge(Histogram.of(values, low, high))


def save(stats: Statistics, directory: Path, *, key: str = "") -> None:
    """Write `stats` below `directory` so that a reader finds the whole of it or nothing."""
    directory.mkdir(parents=True, exist_ok=True)
    seen = list(stats.tensors.values())
    buffer = io.BytesIO()
    np.savez(
        buffer,
        allow_pickle=False,
        bounds=np.array([[item.minimum, item.maximum] for item in seen], np.float64).reshape(-1, 2),
        zeros=np.array([item.zeros for item in seen], np.int64),
        grids=np.array(
            [[item.histogram.exponent, item.histogram.start, item.histogram.counts.size] for item in seen], np.int64
        ).reshape(-1, 3),
        counts=np.concatenate([np.zeros(0, np.int64), *(item.histogram.counts for item in seen)]),
    )
    arrays = buffer.getvalue()
    index = {
        "version": VERSION,
        "key": key,
        "batches": stats.batches,
        "tensors": list(stats.tensors),
        "infinite": sorted(stats.infinite),
        "sha256": hashlib.sha256(arrays).hexdigest(),
    }
    # The index names the digest of the arrays and comes last: until it is there, and where it does not fit, nothing is there.
    _write(directory / _ARRAYS, arrays)
    _write(directory / _INDEX, json.dumps(index).encode())


def load(directory: Path, *, key: str = "") -> Statistics | None:
    """Return what `save` wrote below `directory` under `key`; None if it is absent, torn, or of another version or key."""
    try:
        index = json.loads((directory / _INDEX).read_bytes())
        arrays = (directory / _ARRAYS).read_bytes()
        if (index["version"], index["key"], index["sha256"]) != (VERSION, key, hashlib.sha256(arrays).hexdigest()):
            return None
        with np.load(io.BytesIO(arrays), allow_pickle=False) as file:
            parts: dict[str, Any] = {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
    ends = np.cumsum(parts["grids"][:, 2])
    tensors = {}
    for row, name in enumerate(index["tensors"]):
        exponent, start, bins = parts["grids"][row].tolist()
        counts = parts["counts"][int(ends[row]) - bins : int(ends[row])]
        low, high = parts["bounds"][row].tolist()
        tensors[name] = Observed(low, high, int(parts["zeros"][row]), Histogram(exponent, start, counts))
    return Statistics(tensors, int(index["batches"]), frozenset(index["infinite"]))


def _write(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step."""
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
