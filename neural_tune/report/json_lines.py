"""One JSON object per event and line, for programs. Every object has "event" and "time" (seconds since the epoch).

    run_started      job, run_directory, strategy, framework, runtime_version, instruction_set, ops, quantizable, groups,
                     candidates (text, it may be huge), resumed_trials, notices
    stage_started    stage: calibration | baseline | probes | search | certificate | measure
    samples_done     stage, trial (0: baseline or probes), done, total (0: unknown; both count probes in that stage); at most ten a second and trial
    search_planned   metrics, objectives (both of the float model), expected_trials, worst_trials, max_trials, eta_seconds, worst_seconds
    trial_started    trial, digest, strategy, reason
    trial_finished   trial, digest, status, is_accepted, reason, metrics, bounds, losses, objectives, passes, durations, error, reused,
                     best (number of the best trial so far, or null), eta_seconds
    interrupted      signal
    run_finished     everything of result.json, with run_directory and artifact as paths

A number that is not finite is one of the strings "nan", "inf", "-inf".
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Any, TextIO

from neural_tune import events
from neural_tune.report.stream import Stream
from neural_tune.result import TuneResult
from neural_tune.values import to_jsonable

_SECONDS_BETWEEN = 0.1
logger = logging.getLogger(__name__)


class JsonReporter:
    """Writes events as JSON lines."""

    def __init__(self, out: TextIO | None = None) -> None:
        """Write to `out`, by default stdout."""
        self._out = Stream(out or sys.stdout)
        self._last: tuple[str, int, float] = ("", 0, 0.0)

    def on_event(self, event: object) -> None:
        """Write `event` as a line; flushed, so that a reader sees it at once."""
        try:
            if isinstance(event, events.SamplesDone) and not self._is_due(event):
                return
            line = {"event": _name(event), "time": round(time.time(), 3), **_fields(event)}
            self._out.write(json.dumps(to_jsonable(line), allow_nan=False) + "\n")
            self._out.flush()
        except Exception:  # a fault of the reporter must not end a search
            logger.exception("cannot report %s", type(event).__name__)

    def close(self) -> None:
        """Nothing is open."""

    def _is_due(self, event: events.SamplesDone) -> bool:
        stage, trial, last = self._last
        now = time.monotonic()
        is_new = (stage, trial) != (event.stage, event.trial)
        is_due = is_new or now - last >= _SECONDS_BETWEEN or event.done == event.total
        if is_due:
            self._last = (event.stage, event.trial, now)
        return is_due


def _name(event: object) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()


def _fields(event: object) -> dict[str, Any]:
    match event:
        case events.RunStarted():
            return _started(event)
        case events.SearchPlanned():
            return {
                "metrics": event.baseline.metrics,
                "objectives": event.baseline.objectives,
                "expected_trials": event.forecast.expected,
                "worst_trials": event.forecast.worst,
                "max_trials": event.max_trials,
                "eta_seconds": event.eta_seconds,
                "worst_seconds": event.worst_seconds,
            }
        case events.TrialStarted(trial=trial):
            origin = trial.origin
            digest = trial.candidate.digest
            return {"trial": trial.number, "digest": digest, "strategy": origin.strategy, "reason": origin.reason}
        case events.TrialFinished():
            return _finished(event)
        case events.RunFinished(result=TuneResult() as result):
            paths = {"run_directory": str(result.run_directory), "artifact": str(result.artifact or "") or None}
            return {**result.to_jsonable(), **paths}
        case events.StageStarted() | events.SamplesDone() | events.Interrupted():
            return {name: getattr(event, name) for name in type(event).__dataclass_fields__}
    return {}


def _started(event: events.RunStarted) -> dict[str, Any]:
    space, capability = event.space, event.space.capability
    return {
        "job": event.job,
        "run_directory": event.run_directory,
        "strategy": event.strategy,
        "framework": capability.framework,
        "runtime_version": capability.runtime_version,
        "instruction_set": capability.instruction_set,
        "ops": len(capability.ops),
        "quantizable": sum(op.is_quantizable for op in capability.ops),
        "groups": len(space.groups),
        "candidates": str(space.size),
        "resumed_trials": event.resumed_trials,
        "notices": event.notices,
    }


def _finished(event: events.TrialFinished) -> dict[str, Any]:
    result, best = event.result, event.history.best
    return {
        "trial": result.trial.number,
        "digest": result.trial.candidate.digest,
        "status": result.status,
        "is_accepted": result.is_accepted,
        "reason": result.reason,
        "metrics": result.metrics,
        "bounds": result.bounds,
        "losses": event.verdict.losses if event.verdict else {},
        "objectives": result.objectives,
        "passes": result.passes,
        "durations": result.durations,
        "error": result.error,
        "reused": result.reused,
        "best": best.trial.number if best else None,
        "eta_seconds": event.eta_seconds,
    }
