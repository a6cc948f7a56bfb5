"""What calibration leaves behind: per tensor, everything a range can be computed from, and how it is kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from neural_tune.errors import AdapterError
from neural_tune.numerics import observers
from neural_tune.numerics.histogram import Histogram
from neural_tune.values import Observer
from neural_tune_onnxruntime.spool import Spool

_LOG = logging.getLogger(__name__)

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
_RangeKey: TypeAlias = tuple[str, Observer, float | None, bool, int]

VERSION = 2
_ARRAYS, _INDEX = "statistics.npz", "statistics.json"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChannelStatistics:
    """Statistics of one tensor along one axis.

    Attributes:
        axis: The channel axis, as it was asked for (-1 for the input of a MatMul or Gemm).
        absmax: float64, shape (channels,): the largest |x| of every channel.
        mean: float64, shape (channels,).
    """

    axis: int
    absmax: Floats
    mean: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorStatistics:
    """What was seen of one tensor.

    Attributes:
        minimum: The smallest value, exactly as float32 held it.
        maximum: The largest value, exactly as float32 held it.
        count: Number of values.
        zeros: How many of them are exactly zero (after a Relu often half; zero costs no quantization error).
        mean: Mean of all values.
        histogram: Counts of all values, zeros included.
        channels: Per-channel statistics, where they were asked for.
    """

    minimum: float
    maximum: float
    count: int
    zeros: int
    mean: float
    histogram: Histogram
    channels: ChannelStatistics | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """The result of calibration: every range is a pure function of it, so no trial calibrates again.

    Attributes:
        tensors: Tensor name -> what was seen of it. Not to be changed.
        batches: Number of batches that were read.
        inputs: These batches (or the first of them) on disk, for recipes; None where they were not kept.
        infinite: Tensors that took infinite values (attention masks do): they have no range, so what reads or writes them stays float.
    """

    tensors: Mapping[str, TensorStatistics]
    batches: int = 0
    inputs: Spool | None = None
    infinite: frozenset[str] = frozenset()
    _ranges: dict[_RangeKey, tuple[float, float]] = field(default_factory=dict, init=False, repr=False)

    def of(self, tensor: str) -> TensorStatistics:
        """Return what was seen of `tensor`.

        Raises:
            AdapterError: the tensor was never observed; a default range in its place would silently be wrong.
        """
        if tensor in self.tensors:
            return self.tensors[tensor]
        if tensor in self.infinite:
            raise AdapterError(
                f"tensor {tensor!r} took infinite values in calibration, so it has no range: keep its neighbours in float"
            )
        raise AdapterError(
            f"tensor {tensor!r} was never observed in calibration ({len(self.tensors)} tensors were), so it has no range; "
            "add it to the observed tensors and calibrate again, or keep its consumers in float"
        )

    def range_of(
        self, tensor: str, observer: Observer, percentile: float | None = None, *, symmetric: bool, levels: int
    ) -> tuple[float, float]:
        """Return the (low, high) that `tensor` is to be quantized over.

        Asymmetric: within the observed minimum and maximum (the quantizer widens it to hold zero, and the observers reckon with
        that). Symmetric: (-t, t) with t at most the largest |x| observed. Computed once and remembered.

        Args:
            tensor: Name of an observed tensor.
            observer: How the range is found; see `observers`.
            percentile: Share of the values that is kept, in percent; for the percentile observer, None means 99.99.
            symmetric: Whether the range must be symmetric around zero.
            levels: Number of integers of the quantized type (256 for 8 bits, 128 with reduce_range).

        Raises:
            AdapterError: the tensor was never observed.
        """
        key = (tensor, observer, percentile, symmetric, levels)
        if key not in self._ranges:
            seen = self.of(tensor)
            self._ranges[key] = observers.find_range(
                observers.Observed(seen.minimum, seen.maximum, seen.zeros, seen.histogram),
                observer,
                percentile=percentile,
                symmetric=symmetric,
                levels=levels,
            )
        return self._ranges[key]


def save(stats: Statistics, directory: Path, *, key: str = "") -> None:
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


def load(directory: Path, *, key: str = "") -> Statistics | None:
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
        return Statistics(seen, int(index["batches"]), infinite=frozenset(index["infinite"]))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        _LOG.info("no usable statistics in %s: %s", directory, error)
        return None


def _to_arrays(tensors: list[TensorStatistics]) -> dict[str, Any]:
    """Pack all tensors into a few arrays, so that no tensor name becomes a name in an archive."""
    channels = [tensor.channels for tensor in tensors]
    return {
        "bounds": np.array([[tensor.minimum, tensor.maximum, tensor.mean] for tensor in tensors], np.float64).reshape(
            -1, 3
        ),
        "totals": np.array([[tensor.count, tensor.zeros] for tensor in tensors], np.int64).reshape(-1, 2),
        "grids": np.array(
            [[item.histogram.exponent, item.histogram.start, item.histogram.counts.size] for item in tensors], np.int64
        ).reshape(-1, 3),
        "counts": np.concatenate([np.zeros(0, np.int64), *(tensor.histogram.counts for tensor in tensors)]),
        "channel_sizes": np.array([-1 if item is None else item.absmax.size for item in channels], np.int64),
        "channel_axes": np.array([0 if item is None else item.axis for item in channels], np.int64),
        "channel_absmax": np.concatenate([np.zeros(0), *(item.absmax for item in channels if item is not None)]),
        "channel_mean": np.concatenate([np.zeros(0), *(item.mean for item in channels if item is not None)]),
    }


def _from_arrays(arrays: Mapping[str, Any]) -> Iterator[TensorStatistics]:
    bin_ends = np.cumsum(arrays["grids"][:, 2])
    channel_ends = np.cumsum(np.maximum(arrays["channel_sizes"], 0))
    for row, (minimum, maximum, mean) in enumerate(arrays["bounds"].tolist()):
        exponent, start, bins = arrays["grids"][row].tolist()
        size, axis = int(arrays["channel_sizes"][row]), int(arrays["channel_axes"][row])
        window = slice(int(channel_ends[row]) - size, int(channel_ends[row]))
        channels = None
        if size >= 0:
            absmax, means = arrays["channel_absmax"][window], arrays["channel_mean"][window]
            channels = ChannelStatistics(axis=axis, absmax=absmax, mean=means)
        yield TensorStatistics(
            minimum=minimum,
            maximum=maximum,
            count=int(arrays["totals"][row, 0]),
            zeros=int(arrays["totals"][row, 1]),
            mean=mean,
            histogram=Histogram(exponent, start, arrays["counts"][int(bin_ends[row]) - bins : int(bin_ends[row])]),
            channels=channels,
        )


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
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name durable, where the platform lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
