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

from neural_tune.errors import ConfigError, CriterionNotMetError
from neural_tune.evaluation import Certificate
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
        rows = [("", "float", "result", "")]
        for entry in self.certificate.metrics if self.certificate else ():
            change = f"drop {entry.drop:.4g}"
            if not math.isnan(entry.low):
                change += f" (95 % CI {entry.low:.4g} to {entry.high:.4g})"
            rows.append((entry.name, f"{entry.baseline:.4g}", f"{entry.value:.4g}", change))
        if self.speed:
            change = f"{self.speed.ratio:.2f}x as fast ({self.speed.low:.2f} to {self.speed.high:.2f})"
            rows.append(("latency", f"{self.speed.float_ms:.3g} ms", f"{self.speed.ms:.3g} ms", change))
        if self.size_ratio is not None:
            rows.append(("size", f"{self.size_float:,} B", f"{self.size:,} B", f"{self.size_ratio:.2f}x smaller"))
        if self.ops:
            low = sum(not op.is_float for op in self.ops)
            rows.append(("ops in low precision", "0", str(low), f"of {len(self.ops)}"))
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        notes = "".join(f"<li>{html.escape(notice)}</li>" for notice in self.notices)
        verdict = f"<b>{self.status.value}</b>: {html.escape(self.reason)}"
        return f"<div><p>{verdict}</p><table>{body}</table>{f'<ul>{notes}</ul>' if notes else ''}</div>"

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
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self.to_jsonable(), indent=1, sort_keys=True, allow_nan=False) + "\n")
        partial.replace(path)


def _status_in(folder: Path) -> str:
    """Return the status of what was saved in `folder` before; empty when there is nothing readable."""
    try:
        stored = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return str(stored.get("status", ""))
    except (OSError, ValueError, AttributeError):
        return ""
