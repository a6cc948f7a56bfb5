"""A run as its directory tells it, finished or not: what every report is drawn from.

Only files are read (journal.jsonl, result.json, ranges.json), so a run that is under way, or one from another machine, is shown the same way.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_tune import journal
from neural_tune.config import TuneConfig
from neural_tune.errors import ConfigError
from neural_tune.evaluation import Certificate
from neural_tune.measure import SpeedComparison
from neural_tune.protocols import ObservedTensor, OpOutcome
from neural_tune.run_directory import RunDirectory
from neural_tune.values import Baseline, FrozenMap, History, Insight, TrialResult, from_jsonable


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What result.json adds to the journal once a run is over; fields as in `neural_tune.result.TuneResult`."""

    status: str
    reason: str
    framework: str
    artifact: str
    best: TrialResult | None
    certificate: Certificate | None
    speed: SpeedComparison | None
    size_float: int
    size: int
    ops: tuple[OpOutcome, ...]
    counts: FrozenMap[float]
    notices: tuple[str, ...]
    front: tuple[int, ...]
    passes: float
    is_interrupted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """Everything that is known of a run.

    Attributes:
        job: Name of the job.
        directory: The run's folder.
        config: The configuration.
        versions: Package (and "instruction_set") -> version.
        identity: Hashes of the model, the space and the configuration.
        calibration_samples: Samples that calibration read; 0 without calibration.
        baseline: The float model; None before it was measured.
        insight: What the probes found; None without probes.
        trials: Finished trials, in the order in which they ended.
        running: Numbers of the trials that were started and have not ended.
        ranges: What calibration saw of the tensors that the result quantizes.
        outcome: The result; None while the run is under way.
    """

    job: str
    directory: Path
    config: TuneConfig
    versions: FrozenMap[str]
    identity: FrozenMap[str]
    calibration_samples: int
    baseline: Baseline | None
    insight: Insight | None
    trials: tuple[TrialResult, ...]
    running: tuple[int, ...]
    ranges: tuple[ObservedTensor, ...]
    outcome: Outcome | None

    @property
    def history(self) -> History:
        """The trials as the strategy saw them."""
        return History(
            baseline=self.baseline or Baseline(metrics=FrozenMap()),
            criterion=self.config.criterion,
            objectives=self.config.objectives,
            results=self.trials,
        )


def read(directory: str | Path) -> RunRecord:
    """Return the run in `directory`.

    Raises:
        ConfigError: it is no run's folder, or its journal was damaged.
    """
    folder = RunDirectory.existing(directory)
    records = journal.read(folder.journal)
    if not records or records[0]["kind"] != "run":
        raise ConfigError(f"{folder.journal}: found no run in it yet, expected a record of kind 'run' first")
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_kind.setdefault(record["kind"], []).append(record)
    trials = tuple(from_jsonable(TrialResult, record["result"]) for record in by_kind.get("trial", ()))
    ended = {result.trial.number for result in trials}
    started = [record["number"] for record in by_kind.get("started", ()) if record["number"] not in ended]
    # Behind an earlier end stand the records of a run that was resumed: it is under way again, and result.json is that of before.
    outcome = _outcome(folder.root / "result.json") if records[-1]["kind"] == "end" else None
    return RunRecord(
        job=folder.root.resolve().parent.name,
        directory=folder.root,
        config=from_jsonable(TuneConfig, records[0]["config"]),
        versions=FrozenMap(records[0]["versions"]),
        identity=FrozenMap({key: str(value) for key, value in records[0]["identity"].items()}),
        calibration_samples=sum(record["samples"] for record in by_kind.get("calibration", ())[-1:]),
        baseline=_last(by_kind, "baseline", Baseline),
        insight=_last(by_kind, "insight", Insight),
        trials=trials,
        running=() if outcome else tuple(started),
        ranges=_ranges(folder),
        outcome=outcome,
    )


def _last(by_kind: dict[str, list[dict[str, Any]]], kind: str, of: type[Any]) -> Any:
    found = by_kind.get(kind)
    return from_jsonable(of, found[-1][kind]) if found else None


def _ranges(folder: RunDirectory) -> tuple[ObservedTensor, ...]:
    if not folder.ranges.is_file():
        return ()
    stored: tuple[ObservedTensor, ...] = from_jsonable(
        tuple[ObservedTensor, ...], json.loads(folder.ranges.read_text())
    )
    return stored


def _outcome(path: Path) -> Outcome | None:
    """Return what result.json says; None when the run died before it was written."""
    if not path.is_file():
        return None
    stored = json.loads(path.read_text())

    def of(name: str, kind: Any) -> Any:
        return None if stored.get(name) is None else from_jsonable(kind, stored[name])

    return Outcome(
        status=stored["status"],
        reason=stored["reason"],
        framework=stored["framework"],
        artifact=stored["artifact"] or "",
        best=of("best", TrialResult),
        certificate=of("certificate", Certificate),
        speed=of("speed", SpeedComparison),
        size_float=stored["size_float"],
        size=stored["size"],
        ops=of("ops", tuple[OpOutcome, ...]) or (),
        counts=FrozenMap(stored["counts"]),
        notices=tuple(stored["notices"]),
        front=tuple(stored["front"]),
        passes=stored["passes"],
        is_interrupted=stored["is_interrupted"],
    )
