"""What `fit` returns."""

from __future__ import annotations

import html
import json
import math
import os
import shutil
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from neural_tune import atomic_file, words
from neural_tune.errors import ConfigError, CriterionNotMetError
from neural_tune.evaluation import Certificate, MetricCertificate
from neural_tune.measure import SpeedComparison
from neural_tune.protocols import OpOutcome
from neural_tune.values import Baseline, FrozenMap, TrialResult, to_jsonable

RESULT_VERSION = 1


class Status(StrEnum):
    """ACCEPTED: the criterion is met by the saved artifact. BEST_EFFORT: nothing met it; the nearest miss is kept. FAILED: no model."""

    ACCEPTED = "accepted"
    BEST_EFFORT = "best_effort"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TuneResult:
    """The outcome of a run. It always exists; read `status` (or `accepted`) before using `model`.

    Attributes:
        status: accepted, best_effort or failed.
        reason: Why, in words: the verdict, what was missed, or what broke.
        model: The native model, loaded from the saved artifact; None when failed.
        framework: Name of the adapter.
        baseline: The float model's metrics and objectives; None when it could not be measured.
        best: The trial the model comes from; None when there is none.
        trials: All trials, in the order in which they ended.
        front: The accepted trials that no other one beats in every objective and in accuracy at once, best accuracy first.
        certificate: The metrics of the artifact against float, with intervals; None when failed.
        passes: Samples evaluated over the size of the evaluation set, baseline and certificate included.
        speed: Float against the artifact, interleaved on the real runtime; None when failed or not measured.
        size_float: Bytes of the float model in the same format.
        size: Bytes of the artifact.
        ops: Per op: precision and why.
        counts: Counts from the adapter, such as unfused Q/DQ pairs.
        notices: Things the user must know (no speed-up, guard findings ...).
        is_interrupted: True when Ctrl-C or SIGTERM ended the search.
        run_directory: Where the journal, the recipe and the model of this run are.
        artifact: The saved native model; None when failed.
    """

    status: Status
    reason: str
    model: Any
    framework: str
    baseline: Baseline | None = None
    best: TrialResult | None = None
    trials: tuple[TrialResult, ...] = ()
    front: tuple[TrialResult, ...] = ()
    certificate: Certificate | None = None
    passes: float = 0.0
    speed: SpeedComparison | None = None
    size_float: int = 0
    size: int = 0
    ops: tuple[OpOutcome, ...] = ()
    counts: FrozenMap[float] = field(default_factory=FrozenMap)
    notices: tuple[str, ...] = ()
    is_interrupted: bool = False
    run_directory: Path = Path()
    artifact: Path | None = None

    def __repr__(self) -> str:
        speed = f", {self.speedup:.2f}x as fast" if self.speedup else ""
        size = f", {self.size_ratio:.2f}x smaller" if self.size_float and self.size_ratio else ""
        return f"<TuneResult {self.status.value}: {self.reason}{speed}{size}; {len(self.trials)} trials, {self.passes:.2f} passes>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the verdict, and float against the result."""
        columns = ("", "float", "accepted" if self.accepted else "best effort", "change")
        head = "".join(_cell(name, "th") for name in columns)
        body = "".join(_row(cells) for cells in self.comparison())
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if self.best else ""
        notes = "".join(f"<li>{html.escape(notice)}</li>" for notice in self.notices)
        verdict = f"<b>{self.status.value}</b>: {html.escape(self.reason)}"
        return f"<div><p>{verdict}</p>{table}{f'<ul>{notes}</ul>' if notes else ''}</div>"

    def comparison(self) -> list[tuple[str, str, str, str]]:
        """Return what was measured, a row each: what, float, result, and the change, in words."""
        rows = [
            (entry.name, words.metric(entry.baseline), words.metric(entry.value), _drop(entry))
            for entry in (self.certificate.metrics if self.certificate else ())
        ]
        if self.speed:
            how = f"latency, batch {self.speed.batch_size}, {words.plural(self.speed.threads, 'thread')}"
            change = f"{self.speed.ratio:.2f}x as fast (95 % CI {self.speed.low:.2f} to {self.speed.high:.2f})"
            rows.append((how, f"{self.speed.float_ms:.3g} ms", f"{self.speed.ms:.3g} ms", change))
        if self.size_ratio is not None:
            sizes = words.size(self.size_float), words.size(self.size)
            rows.append(("size", *sizes, f"{self.size_ratio:.2f}x smaller"))
        rows += [(name, *self._objective(name)) for name in self._other_objectives()]
        low = sum(not op.is_float for op in self.ops)
        rows.append(("ops in low precision", "0", str(low), f"of {words.plural(len(self.ops), 'op')}"))
        effort = f"{words.plural(len(self.trials), 'trial')}, {self.passes:.2f} passes over the evaluation data"
        return [*rows, ("effort", "", "", effort)]

    def _other_objectives(self) -> list[str]:
        """Return the objectives that have no row of their own."""
        if self.best is None or self.baseline is None:
            return []
        shown = {"size"} | ({"latency", "throughput"} if self.speed else set())
        return [name for name in self.best.objectives if name not in shown]

    def _objective(self, name: str) -> tuple[str, str, str]:
        before = self.baseline.objectives.get(name, math.nan) if self.baseline else math.nan
        after = self.best.objectives[name] if self.best else math.nan
        change = f"{after / before:.3g} of float" if before > 0 else ""
        return words.objective(name, before), words.objective(name, after), change

    @property
    def accepted(self) -> bool:
        """True when the criterion is met."""
        return self.status is Status.ACCEPTED

    @property
    def speedup(self) -> float | None:
        """How many times faster than float the artifact is; None when it was not measured."""
        return self.speed.ratio if self.speed else None

    @property
    def size_ratio(self) -> float | None:
        """How many times smaller than float the artifact is; None when there is none."""
        return self.size_float / self.size if self.size else None

    def save(self, directory: str | os.PathLike[str], *, best_effort: bool = False) -> Path:
        """Copy the native artifact, recipe.yaml and result.json into `directory`; return the artifact's path.

        Raises:
            CriterionNotMetError: the result is not accepted and `best_effort` was not set, or there is no model at all.
            ConfigError: `directory` is a file, or holds an accepted model that a best effort would replace.
        """
        if self.artifact is None:
            raise CriterionNotMetError(f"there is no model to save: {self.reason}")
        if not self.accepted and not best_effort:
            raise CriterionNotMetError(
                f"the criterion is not met ({self.reason}); to save the nearest miss all the same: save(..., best_effort=True)"
            )
        target = Path(directory)
        if target.exists() and not target.is_dir():
            raise ConfigError(f"save: found a file at {target}, expected a folder or nothing")
        if not self.accepted and _status_in(target) == Status.ACCEPTED:
            raise ConfigError(
                f"save: {target} holds an accepted model, which a best effort must not replace: choose another folder, or remove it first"
            )
        target.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.artifact.parent, target, dirs_exist_ok=True)
        for name in ("recipe.yaml", "result.json"):
            shutil.copyfile(self.run_directory / name, target / name)
        return target / self.artifact.name

    def to_jsonable(self) -> dict[str, Any]:
        """Return everything but the model as plain JSON data, in the layout of result.json."""
        return {
            "version": RESULT_VERSION,
            "status": self.status.value,
            "reason": self.reason,
            "framework": self.framework,
            "artifact": self.artifact.name if self.artifact else None,
            "baseline": to_jsonable(self.baseline),
            "best": to_jsonable(self.best),
            "trials": len(self.trials),
            "front": [trial.trial.number for trial in self.front],
            "certificate": to_jsonable(self.certificate),
            "passes": self.passes,
            "speed": to_jsonable(self.speed),
            "speedup": self.speedup,
            "size_float": self.size_float,
            "size": self.size,
            "size_ratio": self.size_ratio,
            "ops": to_jsonable(self.ops),
            "counts": to_jsonable(self.counts),
            "notices": list(self.notices),
            "is_interrupted": self.is_interrupted,
        }

    def write(self, path: Path) -> None:
        """Write result.json atomically."""
        text = json.dumps(self.to_jsonable(), indent=1, sort_keys=True, allow_nan=False)
        atomic_file.write(path, f"{text}\n".encode())


def _row(cells: tuple[str, str, str, str]) -> str:
    name, before, after, change = cells
    wrapped = f'<td style="text-align: left">{html.escape(words.clean(change))}</td>'
    return f"<tr>{_cell(name, 'th')}{_cell(before, 'td')}{_cell(after, 'td')}{wrapped}</tr>"


def _cell(text: str, tag: str) -> str:
    return f'<{tag} style="text-align: left; white-space: nowrap">{html.escape(words.clean(text))}</{tag}>'


def _drop(entry: MetricCertificate) -> str:
    text = f"drop {words.metric(entry.drop)}"
    if not math.isnan(entry.low):
        text += f" (95 % CI {words.metric(entry.low)} to {words.metric(entry.high)})"
    else:
        text += f", interval: {entry.method}"
    if entry.samples:
        text += f"; {entry.worse} worse, {entry.better} better of {words.plural(entry.samples, 'sample')}"
    return text


def _status_in(folder: Path) -> str:
    """Return the status of what was saved in `folder` before; empty when there is nothing readable."""
    try:
        stored = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return str(stored.get("status", ""))
    except (OSError, ValueError, AttributeError):
        return ""
