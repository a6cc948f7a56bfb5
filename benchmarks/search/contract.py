"""What every contestant gets and hands back; needs numpy (and scipy for one metric), so that it runs in each peer's environment.

A task is a folder: model.onnx, data.npz, task.json. A contestant is a child process with a folder of its own. It counts what it evaluates
through a `Meter`, takes its CPU time and memory through a `Stopwatch`, and leaves `found.json`, the accepted model, and what the float and
the accepted model answer in its own runtime.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Run = Callable[[Arrays], Array]
CALIBRATION_SAMPLES, BATCH = 300, 50


@dataclass(frozen=True)
class Task:
    """A model, data, and what accurate enough means.

    Attributes:
        name: Such as "t20".
        folder: Where model.onnx is.
        calibration: Input name -> at most 300 samples, without labels.
        inputs: Input name -> rows of the validation data.
        labels: One per sample.
        metric: "top1" on logits; or "pair_spearman": outputs are unit vectors, sample i is row i with row i + samples, its score their product.
        loss: The tolerable loss.
        is_relative: Whether `loss` is a share of the float model's metric.
        is_transformer: Whether a tool that asks for the kind of model should be told "transformer".
        batches: Batch sizes at which latency is measured.
    """

    name: str
    folder: Path
    calibration: Arrays
    inputs: Arrays
    labels: Array
    metric: str
    loss: float
    is_relative: bool
    is_transformer: bool
    batches: tuple[int, ...]

    @classmethod
    def read(cls, folder: Path) -> Task:
        """Read what `write` wrote."""
        with np.load(folder / "data.npz", allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        settings = json.loads((folder / "task.json").read_text())
        return cls(
            folder=folder,
            calibration={key[6:]: value for key, value in arrays.items() if key.startswith("calib:")},
            inputs={key[6:]: value for key, value in arrays.items() if key.startswith("input:")},
            labels=arrays["labels"],
            **{**settings, "batches": tuple(settings["batches"])},
        )

    def write(self) -> None:
        """Write data.npz and task.json beside model.onnx."""
        arrays = {f"calib:{name}": value for name, value in self.calibration.items()}
        arrays |= {f"input:{name}": value for name, value in self.inputs.items()}
        np.savez(self.folder / "data.npz", labels=self.labels, **arrays)  # type: ignore[arg-type] # numpy takes every keyword for allow_pickle
        settings = {
            name: getattr(self, name) for name in ("name", "metric", "loss", "is_relative", "is_transformer", "batches")
        }
        (self.folder / "task.json").write_text(json.dumps(settings, indent=1) + "\n")

    @property
    def model(self) -> Path:
        """The float model."""
        return self.folder / "model.onnx"

    @property
    def samples(self) -> int:
        """What one pass over the data means."""
        return len(self.labels)

    def rows(self, samples: Sequence[int] | Array) -> Array:
        """Return the rows of the inputs that belong to these samples; for pairs, all first sentences, then all second ones."""
        chosen = np.asarray(samples, np.int64)
        return np.concatenate([chosen, chosen + self.samples]) if self.metric == "pair_spearman" else chosen

    def score(self, outputs: Array, samples: Sequence[int] | Array | None = None) -> float:
        """Return the metric of outputs, which are those of `rows(samples)`; higher is better."""
        labels = self.labels if samples is None else self.labels[np.asarray(samples)]
        if self.metric == "top1":
            return float((outputs.argmax(1) == labels).mean())
        return spearman(pair_scores(outputs), labels)

    def values(self, outputs: Array, samples: Sequence[int] | Array | None = None) -> list[float]:
        """Return a value per sample, higher is better: right or wrong; for pairs, minus the distance of the score from the label."""
        labels = self.labels if samples is None else self.labels[np.asarray(samples)]
        if self.metric == "top1":
            return [float(right) for right in outputs.argmax(1) == labels]
        return [-float(value) for value in np.abs(pair_scores(outputs) - labels / 5.0)]


def pair_scores(outputs: Array) -> Array:
    """Return the product of each first sentence's vector with its second one's."""
    first, second = np.split(outputs, 2)
    return np.asarray((first * second).sum(1))


def spearman(scores: Array, labels: Array) -> float:
    """Return the rank correlation."""
    from scipy.stats import spearmanr

    return float(spearmanr(scores, labels).statistic)


def batches(inputs: Arrays, size: int = BATCH) -> Iterator[dict[str, Array]]:
    """Yield the inputs in batches."""
    for start in range(0, len(next(iter(inputs.values()))), size):
        yield {name: array[start : start + size] for name, array in inputs.items()}


def outputs_of(run: Run, inputs: Arrays, size: int = BATCH) -> Array:
    """Return the first output for all of `inputs`."""
    return np.concatenate([run(batch) for batch in batches(inputs, size)])


class Meter:
    """Evaluates models on the validation data and counts it; the count survives a kill, in `progress.json`.

    Attributes:
        calls: Evaluations.
        full: Those of the whole set.
        samples: Samples evaluated.
        metrics: What each call found.
    """

    def __init__(self, task: Task, folder: Path) -> None:
        self.task, self.calls, self.full, self.samples, self.metrics = task, 0, 0, 0, list[float]()
        self._path = folder / "progress.json"

    @property
    def passes(self) -> float:
        """Samples evaluated over the size of the set."""
        return self.samples / self.task.samples

    def score(self, run: Run) -> float:
        """Return the metric on the whole set: one call, one pass."""
        return self.scores(run, np.arange(self.task.samples))[0]

    def scores(self, run: Run, samples: Sequence[int] | Array, size: int = BATCH) -> tuple[float, list[float]]:
        """Return the metric and the value of each sample, on some of the samples, run in batches of `size`."""
        rows = self.task.rows(samples)
        found = outputs_of(run, {name: array[rows] for name, array in self.task.inputs.items()}, size)
        value = self.task.score(found, samples)
        self.calls, self.samples = self.calls + 1, self.samples + len(samples)
        self.full += len(samples) == self.task.samples
        self.metrics.append(value)
        self._path.write_text(json.dumps({"calls": self.calls, "samples": self.samples, "passes": self.passes}))
        return value, self.task.values(found, samples)


class Stopwatch:
    """CPU seconds (children included), wall seconds and peak memory of this process since it was made."""

    def __init__(self) -> None:
        self._cpu, self._wall = _cpu(), time.perf_counter()
        self._resident = _peak_mb()

    def read(self) -> dict[str, float]:
        """Return the figures so far; `cpu_child_s` is that of the whole process, imports included."""
        return {
            "cpu_s": round(_cpu() - self._cpu, 2),
            "cpu_child_s": round(_cpu(), 2),
            "wall_s": round(time.perf_counter() - self._wall, 2),
            "peak_mb": round(_peak_mb(), 1),
            "peak_before_mb": round(self._resident, 1),
        }


def _cpu() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def _peak_mb() -> float:
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


def compare(
    run_float: Run, run_tuned: Run, task: Task, size: int, *, seconds: float = 4.0, most: int = 200
) -> dict[str, float]:
    """Return how many times faster the tuned model is: the median of the ratios of neighbouring blocks of runs, in alternating order.

    By CPU time: with one thread that is the time the model takes when nobody else wants the core. The quartiles say how steady it was.
    """
    batch = {name: array[:size] for name, array in task.inputs.items()}
    runs = _block_size(run_float, batch)
    rows: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    for run in (run_float, run_tuned):
        _timed(run, batch, runs)
    while len(rows) < most and (len(rows) < 15 or time.perf_counter() < end):
        order = (run_float, run_tuned) if len(rows) % 2 else (run_tuned, run_float)
        times = {run: _timed(run, batch, runs) for run in order}
        rows.append((times[run_float], times[run_tuned]))
    ratios = [reference / tuned for reference, tuned in rows]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": round(middle, 3),
        "quartile_low": round(low, 3),
        "quartile_high": round(high, 3),
        "float_ms": round(statistics.median(row[0] for row in rows) * 1e3, 4),
        "ms": round(statistics.median(row[1] for row in rows) * 1e3, 4),
        "rounds": len(rows),
        "runs_per_round": runs,
    }


def _block_size(run: Run, batch: Arrays) -> int:
    """Return how many runs take about 5 ms: a single short one is lost in the resolution of the clock."""
    run(batch)
    return max(1, min(100, round(0.005 / _timed(run, batch, 3))))


def _timed(run: Run, batch: Arrays, runs: int) -> float:
    """Return CPU seconds per run."""
    start = time.process_time()
    for _ in range(runs):
        run(batch)
    return max(time.process_time() - start, 1e-9) / runs


def child(contest: Callable[[Task, Path, str], dict[str, Any]]) -> int:
    """Be a contestant: pin to one core, run `contest(task, folder, setting)`, write `found.json`. A failure is written too, in full."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--setting", default="")
    arguments = parser.parse_args()
    # One core for everybody: no runtime then spins idle threads on the CPU-seconds clock, and defaults cannot differ.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    try:
        found = contest(Task.read(arguments.task), arguments.folder, arguments.setting)
    except BaseException as error:  # noqa: BLE001 - whatever a peer does, exit() included, is a row of the table
        text = "".join(traceback.format_exception_only(error)).strip()
        found = {"status": "failed", "reason": text[-1500:], "traceback": traceback.format_exc()[-6000:]}
        if isinstance(error, SystemExit):
            found["reason"] = f"the tool called exit({error.code})"
    (arguments.folder / "found.json").write_text(json.dumps(found, indent=1, default=str) + "\n")
    sys.stdout.flush()
    return 0
