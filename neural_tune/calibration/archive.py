"""Statistics on disk: `statistics.npz` holds the arrays, `statistics.json` names the tensors and the digest of the arrays."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neural_tune import atomic_file
from neural_tune.calibration.statistics import Statistics
from neural_tune.numerics.histogram import Histogram
from neural_tune.numerics.observers import Observed

_LOG = logging.getLogger(__name__)

# 1 was that of PyTorch and TensorFlow, 1 and 2 (with other fields) those of ONNX Runtime; since 3 there is one for all.
VERSION = 3
_ARRAYS, _INDEX = "statistics.npz", "statistics.json"


def save(found: Statistics, directory: Path, *, key: str) -> None:
    """Write `found` below `directory` so that a reader finds the whole of it or nothing, also after a crash.

    Args:
        found: What to write.
        directory: Created if it is missing.
        key: What the statistics belong to, such as a fingerprint of the model; `load` must name the same.
    """
    directory.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, **_to_arrays(list(found.tensors.values())))
    arrays = buffer.getvalue()
    index = {
        "version": VERSION,
        "key": key,
        "batches": found.batches,
        "tensors": list(found.tensors),
        "infinite": sorted(found.infinite),
        "sha256": hashlib.sha256(arrays).hexdigest(),
    }
    # The index names the digest of the arrays and comes last: until it is there, and where it does not fit, nothing is there.
    atomic_file.write(directory / _ARRAYS, arrays)
    atomic_file.write(directory / _INDEX, json.dumps(index).encode())


def load(directory: Path, *, key: str) -> Statistics | None:
    """Return what `save` wrote below `directory` under `key`; None if it is absent, torn, of another version or another key."""
    try:
        index = json.loads((directory / _INDEX).read_bytes())
        arrays = (directory / _ARRAYS).read_bytes()
        if (index["version"], index["key"], index["sha256"]) != (VERSION, key, hashlib.sha256(arrays).hexdigest()):
            _LOG.info("the statistics in %s are torn, of another version or of another model: not used", directory)
            return None
        with np.load(io.BytesIO(arrays), allow_pickle=False) as file:
            seen = list(_from_arrays({name: file[name] for name in file.files}))
        tensors = dict(zip(index["tensors"], seen, strict=True))
        return Statistics(tensors, int(index["batches"]), frozenset(index["infinite"]))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        _LOG.info("no usable statistics in %s: %s", directory, error)
        return None


def _to_arrays(tensors: Sequence[Observed]) -> dict[str, Any]:
    """Pack all tensors into a few arrays, so that no tensor name becomes a name in an archive."""
    histograms = [item.histogram for item in tensors]
    return {
        "bounds": np.array([[item.minimum, item.maximum] for item in tensors], np.float64).reshape(-1, 2),
        "zeros": np.array([item.zeros for item in tensors], np.int64),
        "grids": np.array([[h.exponent, h.start, h.counts.size] for h in histograms], np.int64).reshape(-1, 3),
        "counts": np.concatenate([np.zeros(0, np.int64), *(h.counts for h in histograms)]),
    }


def _from_arrays(arrays: Mapping[str, Any]) -> Iterator[Observed]:
    ends = np.cumsum(arrays["grids"][:, 2])
    for row, (minimum, maximum) in enumerate(arrays["bounds"].tolist()):
        exponent, start, bins = arrays["grids"][row].tolist()
        counts = arrays["counts"][int(ends[row]) - bins : int(ends[row])]
        yield Observed(minimum, maximum, int(arrays["zeros"][row]), Histogram(exponent, start, counts))
