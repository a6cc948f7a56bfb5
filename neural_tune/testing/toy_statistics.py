"""What the toy adapter learns from calibration data: extremes and a histogram per activation tensor, in fixed memory."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neural_tune.testing.toy_model import Floats
from neural_tune.values import Observer

_BINS = 2048
_FILE = "toy_statistics.npz"
_DEFAULT_PERCENTILE = 99.99


class TensorStatistics:
    """Extremes and a histogram of absolute values that widens as it goes: memory does not depend on the samples."""

    def __init__(
        self, minimum: float = np.inf, maximum: float = -np.inf, limit: float = 1.0, counts: Any = None
    ) -> None:
        self.minimum = minimum
        self.maximum = maximum
        self.limit = limit
        self.counts = np.zeros(_BINS, dtype=np.int64) if counts is None else counts

    def add(self, values: Floats) -> None:
        """Take in one batch."""
        absolute = np.abs(values)
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))
        while absolute.max() > self.limit:  # twice the width: two neighbouring bins become one
            self.limit *= 2.0
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(_BINS // 2, dtype=np.int64)])
        self.counts = self.counts + np.histogram(absolute, bins=_BINS, range=(0.0, self.limit))[0]

    def range(self, observer: Observer, percentile: float | None) -> tuple[float, float]:
        """Return (low, high) with low <= 0 <= high, clipped where the observer is the percentile one."""
        low, high = min(self.minimum, 0.0), max(self.maximum, 0.0)
        if observer is Observer.PERCENTILE:
            kept = (percentile or _DEFAULT_PERCENTILE) / 100.0 * self.counts.sum()
            place = int(np.searchsorted(np.cumsum(self.counts), kept))
            clip = self.limit * (min(place, _BINS - 1) + 1) / _BINS
            low, high = max(low, -clip), min(high, clip)
        return low, high


@dataclass(frozen=True, eq=False, slots=True)
class ToyStatistics:
    """Statistics of the input tensor of every Dense layer, with the fingerprint of the model they belong to."""

    fingerprint: str
    tensors: Mapping[str, TensorStatistics]

    def write(self, directory: Path) -> None:
        """Write the statistics below `directory`, all or nothing."""
        arrays: dict[str, Any] = {"fingerprint": np.array(self.fingerprint)}
        for name, tensor in self.tensors.items():
            arrays[f"{name}.extent"] = np.array([tensor.minimum, tensor.maximum, tensor.limit])
            arrays[f"{name}.counts"] = tensor.counts
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / f"partial-{os.getpid()}-{_FILE}"
        np.savez(partial, **arrays)
        partial.replace(directory / _FILE)

    @classmethod
    def read(cls, directory: Path, fingerprint: str, tensors: tuple[str, ...]) -> ToyStatistics | None:
        """Return what `write` left for this model; None when it is missing, broken or another model's."""
        try:
            with (directory / _FILE).open("rb") as file, np.load(file, allow_pickle=False) as archive:
                if str(archive["fingerprint"]) != fingerprint:
                    return None
                return cls(fingerprint, {name: _read_tensor(archive, name) for name in tensors})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None


def _read_tensor(archive: Any, name: str) -> TensorStatistics:
    minimum, maximum, limit = (float(value) for value in archive[f"{name}.extent"])
    return TensorStatistics(minimum, maximum, limit, archive[f"{name}.counts"])
