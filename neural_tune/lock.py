"""What a tuned model was like, written down for later: `neural-tune.lock.json`, to be committed beside the job.

The lock holds no weights: it says which candidate it was, on which model and data, and what was measured. Beside it lies a small .npz of values
per sample (right-or-wrong ones packed to a bit each), without which a loss could not be told from noise.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from neural_tune.command_record import CommandRecord
from neural_tune.errors import ConfigError, NeuralTuneError
from neural_tune.evaluation import split_batch, to_numpy
from neural_tune.evaluation.data import content_digest
from neural_tune.measure import SpeedComparison
from neural_tune.paired import is_right_or_wrong
from neural_tune.preparation import Run
from neural_tune.protocols import Array, Outputs
from neural_tune.replay import Replayed
from neural_tune.stored_model import StoredModel
from neural_tune.values import FLOAT_CANDIDATE, Candidate, FrozenMap, from_jsonable, to_jsonable

VERSION = 1
FILE = "neural-tune.lock.json"
_PROBES = 256  # samples on which the distance from float is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedMetric:
    """One metric of the locked model.

    Attributes:
        name: The metric.
        baseline: Its value for the float model.
        value: Its value for the locked model.
        higher_is_better: Its direction.
        samples: Samples behind it; 0 where nobody counted.
        worse: Samples that float has right and the locked model wrong (or that got worse).
        better: The other way round.
    """

    name: str
    baseline: float
    value: float
    higher_is_better: bool = True
    samples: int = 0
    worse: int = 0
    better: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """A tuned model, written down.

    Attributes:
        job: The job file, relative to the lock's folder.
        overrides: Values that were set on top of it.
        model_path: The model that took the place of the job's; empty for none.
        framework: The adapter.
        recipe: Which op runs in which precision, and how.
        model: Hash of the float model.
        calibration: Hash of the first calibration batch; empty when there is none.
        evaluation: Hash of the evaluation data; empty when an opaque function evaluates.
        versions: Package -> version, and the instruction set.
        status: "accepted" or "best_effort".
        metrics: What was measured, per metric.
        distance: Mean squared distance of the outputs from float's, in units of float's energy.
        speed: Float against the locked model.
        size: Bytes of the artifact.
        size_float: Bytes of the float model.
        ops: Op -> precision, for ops that do not run in float.
        values: SHA-256 of the file of values per sample.
        artifact: Name of the trained model's file beside the lock; empty where the model is built anew from its recipe.
        trained: Hash of the trained model's files.
    """

    job: str
    overrides: tuple[str, ...] = ()
    model_path: str = ""
    framework: str
    recipe: Candidate
    model: str
    calibration: str = ""
    evaluation: str = ""
    versions: FrozenMap[str]
    status: str
    metrics: tuple[LockedMetric, ...]
    distance: float = 0.0
    speed: SpeedComparison | None = None
    size: int
    size_float: int
    ops: FrozenMap[str]
    values: str = ""
    artifact: str = ""
    trained: str = ""

    def write(self, path: Path) -> None:
        """Write the lock."""
        data = {"version": VERSION, "neural_tune": version("neural-tune"), **to_jsonable(self)}
        path.write_text(json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Lock:
        """Return the lock at `path`.

        Raises:
            ConfigError: there is none, or it is damaged or of another version.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"lock {path}: cannot be read ({error}); `neural-tune lock RUN` writes one") from error
        if not isinstance(data, dict) or data.pop("version", None) != VERSION:
            raise ConfigError(f"lock {path}: expected version {VERSION}; write it anew with `neural-tune lock RUN`")
        data.pop("neural_tune", None)
        return from_jsonable(cls, data, path.name)

    def stored(self, path: Path) -> StoredModel | None:
        """Return the trained model that lies beside the lock at `path`; None where none was kept.

        Raises:
            ConfigError: it is gone, or it is another one.
        """
        return StoredModel.read(model_folder(path), self.artifact, self.trained) if self.trained else None

    def command(self, path: Path) -> CommandRecord:
        """Return how the locked model is made anew; `path` is where the lock lies.

        Raises:
            ConfigError: the job is not there.
        """
        job = path.parent / self.job
        if not job.is_file():
            raise ConfigError(f"lock {path}: its job {self.job!r} is not beside it ({job})")
        return CommandRecord(job=job, overrides=self.overrides, model=self.model_path)


@dataclass(frozen=True, slots=True)
class SampleValues:
    """Values per sample, of the locked model.

    Attributes:
        metrics: Metric -> (n,), in data order.
        distances: Squared distance of the outputs from float's, per probe sample, in units of float's mean energy.
    """

    metrics: Mapping[str, Array] = field(default_factory=dict)
    distances: Array = field(default_factory=lambda: np.zeros(0))

    def write(self, path: Path) -> str:
        """Write the values without pickle, right-or-wrong ones as bits; return the file's SHA-256."""
        arrays: dict[str, Array] = {"distances": self.distances.astype(np.float32)}
        for name, values in self.metrics.items():
            if is_right_or_wrong(values):
                arrays[f"bits:{name}"] = np.packbits(values.astype(bool))
                arrays[f"count:{name}"] = np.array(len(values))
            else:
                arrays[f"value:{name}"] = values
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type] # numpy's stub takes every keyword for allow_pickle
        return hashlib.sha256(path.read_bytes()).hexdigest()

    @classmethod
    def read(cls, path: Path, expected: str) -> SampleValues:
        """Return the values at `path`.

        Raises:
            ConfigError: the file is not there, or not the one the lock was written with.
        """
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            found = "another file" if path.is_file() else "no file"
            raise ConfigError(
                f"{path}: found {found}, expected the values per sample that were written with the lock; commit both"
            )
        metrics: dict[str, Array] = {}
        with np.load(path, allow_pickle=False) as stored:
            for key in stored.files:
                kind, _, name = key.partition(":")
                if kind == "bits":
                    metrics[name] = np.unpackbits(stored[key], count=int(stored[f"count:{name}"])).astype(np.float64)
                elif kind == "value":
                    metrics[name] = stored[key]
            return cls(metrics, stored["distances"].astype(np.float64))


def values_file(lock: Path) -> Path:
    """Return where the values per sample of a lock lie: neural-tune.lock.json has neural-tune.lock.npz."""
    return lock.with_suffix(".npz")


def model_folder(lock: Path) -> Path:
    """Return where the trained model of a lock lies: neural-tune.lock.json has neural-tune.lock.model/."""
    return lock.with_suffix(".model")


def lock_of(replayed: Replayed, command: CommandRecord, path: Path) -> tuple[Lock, SampleValues]:
    """Return the lock of what was replayed, to be written at `path`.

    Raises:
        NeuralTuneError: the replay gave no model.
    """
    result, run = replayed.result, replayed.run
    if run is None or result.best is None or result.baseline is None or result.artifact is None:
        raise NeuralTuneError(f"lock: the run cannot be repeated: {result.reason}")
    distances = distances_of(run, result.artifact)
    job = os.path.relpath(command.job.resolve(), path.resolve().parent)
    lock = Lock(
        job=Path(job).as_posix(),
        overrides=command.overrides,
        model_path=command.model,
        framework=result.framework,
        recipe=result.best.trial.candidate,
        model=run.bench.adapter.fingerprint(run.bench.model),
        calibration=calibration_digest(run),
        evaluation=evaluation_digest(run),
        versions=versions_of(run),
        status=result.status.value,
        metrics=measured(replayed),
        distance=float(distances.mean()),
        speed=result.speed,
        size=result.size,
        size_float=result.size_float,
        ops=FrozenMap({op.name: op.precision for op in result.ops if not op.is_float}),
    )
    return lock, SampleValues(replayed.values, distances)


def measured(replayed: Replayed) -> tuple[LockedMetric, ...]:
    """Return every metric of what was replayed, with its counts."""
    result, run = replayed.result, replayed.run
    if run is None or result.best is None or result.baseline is None:
        return ()
    certified = {entry.name: entry for entry in (result.certificate.metrics if result.certificate else ())}
    rules = run.task.config.criterion
    found = []
    for name, value in result.best.metrics.items():
        entry = certified.get(name)
        higher = run.task.evaluator.directions.get(name, rules.metrics.get(name, rules).higher_is_better)
        found.append(
            LockedMetric(
                name=name,
                baseline=result.baseline.metrics[name],
                value=value,
                higher_is_better=higher,
                samples=entry.samples if entry else 0,
                worse=entry.worse if entry else 0,
                better=entry.better if entry else 0,
            )
        )
    return tuple(found)


def versions_of(run: Run) -> FrozenMap[str]:
    """Return the versions that decide what a replay gives."""
    capability = run.space.capability
    return FrozenMap(
        {
            "neural_tune": version("neural-tune"),
            capability.framework: capability.runtime_version,
            "numpy": np.__version__,
            "instruction_set": capability.instruction_set,
        }
    )


def evaluation_digest(run: Run) -> str:
    """Return a hash of every evaluation batch; empty when an opaque function evaluates."""
    loader = run.task.evaluation_loader
    if loader is None:
        return ""
    state = hashlib.sha256()
    names = run.space.capability.inputs
    for batch in loader:
        inputs, labels = split_batch(batch, names)
        state.update(content_digest(inputs, labels).encode())
    return state.hexdigest()


def calibration_digest(run: Run) -> str:
    """Return the hash of the first calibration batch; empty when nothing was calibrated."""
    from neural_tune import journal  # noqa: PLC0415 - the name is a module and a field of Run

    records = journal.read(run.directory.journal)
    return next((str(record["digest"]) for record in reversed(records) if record["kind"] == "calibration"), "")


def distances_of(run: Run, artifact: Path) -> Array:
    """Return the squared distance of the artifact's outputs from the float model's, per sample, in units of float's mean energy."""
    bench = run.bench
    adapter, threads = bench.adapter, bench.config.threads
    reference = adapter.build(bench.model, FLOAT_CANDIDATE, None, threads)
    built = adapter.restore(artifact, threads)
    distances, energies = [], []
    for inputs in _probes(run):
        before, after = adapter.run(reference, inputs), adapter.run(built, inputs)
        distances.append(_squares([now - then for then, now in _floats(before, after)]))
        energies.append(_squares([then for then, _ in _floats(before, after)]))
    energy = float(np.concatenate(energies).mean())
    return np.asarray(np.concatenate(distances) / (energy or 1.0))


def _probes(run: Run) -> Iterable[Any]:
    """Yield whole batches of inputs, up to `_PROBES` samples: of the evaluation data, or the batch that speed is measured with."""
    loader, seen = run.task.evaluation_loader, 0
    if loader is None:
        yield run.bench.sample
        return
    for batch in loader:
        inputs, _ = split_batch(batch, run.space.capability.inputs)
        yield inputs
        first = (
            next(iter(inputs.values()))
            if isinstance(inputs, Mapping)
            else inputs[0]
            if isinstance(inputs, tuple | list)
            else inputs
        )
        seen += len(to_numpy(first))
        if seen >= _PROBES:
            return


def _floats(before: Outputs, after: Outputs) -> list[tuple[Array, Array]]:
    """Return the pairs of outputs that hold floating-point numbers, as float64."""
    pairs = zip(before, after, strict=True)
    return [(then.astype(np.float64), now.astype(np.float64)) for then, now in pairs if then.dtype.kind == "f"]


def _squares(parts: list[Array]) -> Array:
    """Return the sum of squares per sample; values that are not finite count as a very large number."""
    if not parts:
        return np.zeros(1)
    total = sum(
        np.square(np.nan_to_num(part, nan=1e6, posinf=1e6, neginf=-1e6)).reshape(len(part), -1).sum(axis=1)
        for part in parts
    )
    return np.asarray(total)
