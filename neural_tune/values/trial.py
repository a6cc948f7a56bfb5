"""Trials: what was tried, why, and what came out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from neural_tune.values.candidate import Candidate
from neural_tune.values.criterion import AccuracyCriterion, Verdict, judge
from neural_tune.values.frozen import FrozenMap
from neural_tune.values.insight import Insight
from neural_tune.values.objective import Objective, Objectives


class TrialStatus(StrEnum):
    """How a trial ended.

    COMPLETE: evaluated on the whole set, `metrics` are exact. REJECTED: an exact bound showed before the end of
    the pass that the criterion cannot be met; `metrics` is empty and `bounds` holds the best values still possible.
    FAILED: the adapter broke on it; `error` says how.
    """

    COMPLETE = "complete"
    REJECTED = "rejected"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Origin:
    """Who proposed a candidate, and why: `strategy` names the strategy, `reason` is for the report."""

    strategy: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a strategy hands to the engine: a candidate and the reason for it, one short sentence."""

    candidate: Candidate
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A candidate with its running number, from 1."""

    number: int
    candidate: Candidate
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """The outcome of a trial.

    Attributes:
        trial: What was tried.
        status: How it ended.
        metrics: Metric -> value on the whole evaluation set; empty unless COMPLETE.
        bounds: Metric -> best value that was still possible when it was REJECTED.
        objectives: Objective -> measured value (see `BUILTIN_OBJECTIVES` for units); measured when the criterion is met.
        is_accepted: The verdict of `judge`, recorded when the trial ended.
        reason: The verdict in words.
        samples: Evaluation samples that were run, 0 for a reused result.
        passes: `samples` over the size of the evaluation set.
        durations: Stage ("build", "evaluate", "measure") -> seconds.
        error: For FAILED, the type and message of what happened.
        reused: Number of the earlier trial of the same candidate whose result this is; 0 when it was really run.
        artifact: Name of the saved artifact in the trial's folder; empty when there is none.
        note: How the model came about, where that is worth telling: whether training was needed and what it gained.
    """

    trial: Trial
    status: TrialStatus
    metrics: FrozenMap[float] = field(default_factory=FrozenMap)
    bounds: FrozenMap[float] = field(default_factory=FrozenMap)
    objectives: FrozenMap[float] = field(default_factory=FrozenMap)
    is_accepted: bool = False
    reason: str = ""
    samples: int = 0
    passes: float = 0.0
    durations: FrozenMap[float] = field(default_factory=FrozenMap)
    error: str = ""
    reused: int = 0
    artifact: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The float model on the whole evaluation set.

    Attributes:
        metrics: Metric -> value.
        objectives: Objective -> measured value.
        samples: Evaluation samples run.
        passes: Passes over the evaluation set.
        seconds: Wall time of the evaluation.
        build_seconds: Wall time of building the float model: the least that a candidate takes.
    """

    metrics: FrozenMap[float]
    objectives: FrozenMap[float] = field(default_factory=FrozenMap)
    samples: int = 0
    passes: float = 1.0
    seconds: float = 0.0
    build_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Everything a strategy may know: the rules of the game, what came out, and what is still running.

    Attributes:
        baseline: The float model.
        criterion: What decides acceptance.
        objectives: What is optimised among the accepted.
        results: Finished trials, in the order in which they ended.
        pending: Trials that are running.
        insight: What probes have found so far; None when there is nobody to ask (see `ProbeRequest`).
    """

    baseline: Baseline
    criterion: AccuracyCriterion = field(default_factory=AccuracyCriterion)
    objectives: Objectives = field(default_factory=Objectives)
    results: tuple[TrialResult, ...] = ()
    pending: tuple[Trial, ...] = ()
    insight: Insight | None = None

    def with_pending(self, trial: Trial) -> History:
        """Return the history in which `trial` is running."""
        return replace(self, pending=(*self.pending, trial))

    def with_result(self, result: TrialResult) -> History:
        """Return the history in which the trial of `result` has ended."""
        pending = tuple(trial for trial in self.pending if trial.number != result.trial.number)
        return replace(self, results=(*self.results, result), pending=pending)

    @property
    def seen(self) -> frozenset[str]:
        """Digests of every candidate that was tried or is running."""
        done = {result.trial.candidate.digest for result in self.results}
        return frozenset(done | {trial.candidate.digest for trial in self.pending})

    @property
    def next_number(self) -> int:
        """The number of the next trial."""
        numbers = [result.trial.number for result in self.results] + [trial.number for trial in self.pending]
        return max(numbers, default=0) + 1

    def result_of(self, candidate: Candidate) -> TrialResult | None:
        """Return the finished result of `candidate`, the first one if there are several."""
        digest = candidate.digest
        return next((result for result in self.results if result.trial.candidate.digest == digest), None)

    def verdict(self, result: TrialResult) -> Verdict | None:
        """Return the verdict on `result` from its metrics (or bounds); None for a failed trial."""
        values = result.metrics or result.bounds
        return judge(self.criterion, values, self.baseline.metrics) if values else None

    def slack(self, result: TrialResult) -> float:
        """Return how near `result` comes to the criterion; an upper bound when it was rejected early, -inf if failed."""
        verdict = self.verdict(result)
        return verdict.slack if verdict else -math.inf

    @property
    def accepted(self) -> tuple[TrialResult, ...]:
        """Accepted results, the one to take first.

        The best score leads. Measured times and memory are noisy: results within 5 % of the best score count as equal to it, and
        the smallest of them leads. Where no result is better than float by the objectives, nothing was gained that a score could
        rank, and the smallest leads too. Remaining ties go to the more accurate, then to the earlier.
        """
        results = [result for result in self.results if result.is_accepted]
        scores = {result.trial.number: self._score(result) for result in results}
        top = max(scores.values(), default=0.0)
        near = top - self.objectives.noise if top > 0 else -math.inf

        def rank(result: TrialResult) -> tuple[bool, float, float, float, int]:
            score = scores[result.trial.number]
            is_near = score >= near
            size = result.objectives.get("size", 0.0) if is_near else 0.0
            return (not is_near, 0.0 if is_near else -score, size, -self.slack(result), result.trial.number)

        return tuple(sorted(results, key=rank))

    @property
    def front(self) -> tuple[TrialResult, ...]:
        """Accepted results that no other one beats in every objective (size included) and in accuracy, best accuracy first."""
        results = [
            result for result in self.accepted if not result.reused and {*self.objectives.names} <= {*result.objectives}
        ]
        names = {"size": None, **dict.fromkeys(self.objectives.names)}
        known = {item.name: item for item in self.objectives.items}
        measured = (known[name] if name in known else Objective(name) for name in names)
        axes = Objectives((*measured, Objective("slack", 1.0, True)))
        points = [{"size": 0.0, **result.objectives, "slack": self.slack(result)} for result in results]
        front = (results[place] for place in axes.front(points))
        return tuple(sorted(front, key=lambda result: (-self.slack(result), result.trial.number)))

    @property
    def best(self) -> TrialResult | None:
        """The best accepted result; without one, the complete result that comes nearest; else None."""
        accepted = self.accepted
        if accepted:
            return accepted[0]
        complete = [result for result in self.results if result.status is TrialStatus.COMPLETE]
        # A rejected trial is known by a bound only. It is the nearest miss only where nothing was measured fully.
        rejected = [result for result in self.results if result.status is TrialStatus.REJECTED]
        return max(complete or rejected, key=self.slack, default=None)

    def _score(self, result: TrialResult) -> float:
        return self.objectives.score(result.objectives, self.baseline.objectives)


def count_passes(baseline: Baseline, results: Iterable[TrialResult]) -> float:
    """Return the passes over the evaluation set that baseline and trials took together."""
    return baseline.passes + sum(result.passes for result in results)
