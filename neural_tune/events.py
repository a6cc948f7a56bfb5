"""What a run tells its reporters. The engine emits these values and never prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from neural_tune.protocols import Forecast
from neural_tune.space import TuningSpace
from neural_tune.values import Baseline, History, Trial, TrialResult, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """The model is loaded and the space is known.

    Attributes:
        job: Name of the job.
        run_directory: Where everything of this run is written.
        space: The tuning space.
        strategy: Name of the strategy.
        resumed_trials: Trials taken over from an earlier run of the same directory.
        notices: Things the user should know before it starts.
    """

    job: str
    run_directory: str
    space: TuningSpace
    strategy: str
    resumed_trials: int = 0
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStarted:
    """A stage of the run begins: "calibration", "baseline", "probes", "search", "certificate", "measure"."""

    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesDone:
    """Progress inside a pass: `done` of `total` samples (total 0 when unknown), in the stage "probes" of probes; `trial` 0 is the baseline or the probes."""

    stage: str
    trial: int
    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlanned:
    """The baseline is known, the search begins.

    Attributes:
        baseline: The float model.
        forecast: Trials the strategy expects, and its worst case under the budget.
        eta_seconds: Expected seconds for the search; `worst_seconds` for the worst case (or the timeout).
        worst_seconds: See above.
        max_trials: The budget.
    """

    baseline: Baseline
    forecast: Forecast
    eta_seconds: float
    worst_seconds: float
    max_trials: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStarted:
    """A trial begins."""

    trial: Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFinished:
    """A trial ended.

    Attributes:
        result: Its outcome.
        verdict: The verdict on it; None for a failed trial.
        history: The history after it, so that a reporter can show the best so far.
        eta_seconds: Expected seconds left in the search.
    """

    result: TrialResult
    verdict: Verdict | None
    history: History
    eta_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """Ctrl-C or SIGTERM arrived; the best so far is being finished. `signal` is its name."""

    signal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """The run is over. `result` is a `neural_tune.result.TuneResult`."""

    result: object


Event: TypeAlias = (
    RunStarted | StageStarted | SamplesDone | SearchPlanned | TrialStarted | TrialFinished | Interrupted | RunFinished
)
