"""The contract between the TensorFlow adapter and what really runs a model: oneDNN graphs, LiteRT.

The adapter is a switchboard: it reads the caller's model once (`source.FloatGraph`), chooses a backend, and hands every further call to
it. Three values go back and forth, as in `neural_tune.protocols.Adapter`: the hold on the float model, the statistics, the built
model. Each of them is the backend's own; the hold and the built model say whose they are (`backend`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from neural_tune.protocols import AdapterOptions, Array, BuildReport, Inputs, Outputs
from neural_tune.values import Candidate, Capability, Observer

Feed = Mapping[str, Array]
RunFeed = Callable[[Feed], Outputs]


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One input or output of a model.

    Attributes:
        name: The name by which a user knows it: keyword of the signature, name of the Keras input.
        tensor: Name of the tensor in the backend's graph.
        dtype: numpy type of its elements.
        shape: Per axis its length, None where it is free; None as a whole where even the rank is free.
    """

    name: str
    tensor: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None


class Ranges(Protocol):
    """Where the range of a tensor comes from: calibration (`neural_tune.calibration.Statistics`) or training (`fixed_ranges.FixedRanges`)."""

    def range_of(
        self, tensor: str, observer: Observer, percentile: float | None = None, *, symmetric: bool, levels: int
    ) -> tuple[float, float]:
        """Return the (low, high) that `tensor` is to be quantized over; raises AdapterError when nothing is known of it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Built:
    """A model that runs.

    Attributes:
        backend: Name of the backend that made it.
        inputs: What it takes.
        outputs: What it gives.
        structure: How the native model hands out several outputs: "single", "list" or "dict".
        run: Feed by input name -> outputs in the order of `outputs`.
        size: Bytes on disk once saved (a callable, because counting them may cost as much as saving).
        write: Writes the artifact below a folder and returns its path.
        report: What became of every op.
    """

    backend: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    run: RunFeed
    size: Callable[[], int]
    write: Callable[[Path], Path]
    report: BuildReport
    structure: str = "single"


class Backend(Protocol):
    """One way to run a model in integers. Stateless, as the adapter is; errors as in `neural_tune.protocols.Adapter`."""

    name: str

    def load(self, source: Any, options: AdapterOptions) -> Any:
        """Return the hold on `source`: a `source.FloatGraph`, or a path to a file that only this backend reads (.tflite)."""

    def fingerprint(self, hold: Any) -> str:
        """Return a content hash."""

    def query(self, hold: Any) -> Capability:
        """Return what can be quantized."""

    def calibrate(self, hold: Any, batches: Iterable[Inputs], directory: Path) -> Any:
        """Read `batches` once and return statistics, also written below `directory`."""

    def load_statistics(self, hold: Any, directory: Path) -> Any | None:
        """Return what `calibrate` wrote; None if it is not there."""

    def build(self, hold: Any, candidate: Candidate, statistics: Any | None, threads: int | None) -> Built:
        """Return `candidate` ready to run."""

    def restore(self, artifact: Path, threads: int | None) -> Built:
        """Return what `Built.write` wrote, ready to run."""
