"""A strategy driven by a scripted evaluation: no model, no adapter, no engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

from neural_tune.protocols import Strategy
from neural_tune.space import TuningSpace
from neural_tune.values import (
    PROBES,
    AccuracyCriterion,
    Baseline,
    Candidate,
    FrozenMap,
    History,
    Insight,
    Origin,
    ProbeRequest,
    Trial,
    TrialResult,
    TrialStatus,
    judge,
)

# What a script says about a candidate: one metric named "accuracy", several metrics, or None for a failed trial.
Outcome: TypeAlias = float | Mapping[str, float] | None
Evaluate: TypeAlias = Callable[[Candidate], Outcome]
Learn: TypeAlias = Callable[[frozenset[str], Insight], Insight]


def begin(baseline: float | Mapping[str, float], criterion: AccuracyCriterion | None = None) -> History:
    """Return the history before the first trial."""
    return History(baseline=Baseline(metrics=_metrics(baseline)), criterion=criterion or AccuracyCriterion())


def drive(
    strategy: Strategy,
    space: TuningSpace,
    evaluate: Evaluate,
    history: History,
    *,
    workers: int = 1,
    max_trials: int = 10_000,
    until_content: bool = True,
    learn: Learn | None = None,
) -> History:
    """Return the history that `strategy` leaves, started from (or resumed at) `history`.

    Probes that it asks for during the search are answered by `learn`, from the insight so far; without it they find nothing.

    Up to `workers` trials are pending at a time, and the oldest ends first. The search stops when the strategy is content (unless
    `until_content` is False, as with a time budget), when it proposes nothing while nothing is pending, or after
    `max_trials` results.
    """
    while len(history.results) < max_trials:
        if until_content and strategy.is_content(space, history):
            break
        while len(history.pending) < workers and len(history.results) + len(history.pending) < max_trials:
            proposal = strategy.propose(space, history)
            if proposal is None:
                break
            if isinstance(proposal, ProbeRequest):
                history = answer(history, proposal, learn)
                continue
            origin = Origin(strategy.name, proposal.reason)
            history = history.with_pending(
                Trial(number=history.next_number, candidate=proposal.candidate, origin=origin)
            )
        if not history.pending:
            break
        history = finish(history, history.pending[0], evaluate(history.pending[0].candidate))
    return history


def answer(history: History, request: ProbeRequest, learn: Learn | None = None) -> History:
    """Return the history in which the probes of `request` were run.

    Raises:
        ValueError: there is nobody to ask, or it has the answer already.
    """
    known = history.insight
    if known is None or not set(request.probes) <= set(PROBES) - known.answered:
        raise ValueError(f"asked for {sorted(request.probes)} with the insight {known}")
    found = learn(frozenset(request.probes), known) if learn else known
    probes = (*known.probes, *(name for name in PROBES if name in request.probes))
    return replace(history, insight=replace(found, probes=probes))


def finish(history: History, trial: Trial, outcome: Outcome) -> History:
    """Return the history in which `trial` has ended with `outcome`."""
    if outcome is None:
        result = TrialResult(trial=trial, status=TrialStatus.FAILED, error="AdapterError: scripted")
        return history.with_result(result)
    metrics = _metrics(outcome)
    verdict = judge(history.criterion, metrics, history.baseline.metrics)
    return history.with_result(
        TrialResult(
            trial=trial,
            status=TrialStatus.COMPLETE,
            metrics=metrics,
            is_accepted=verdict.is_met,
            reason=verdict.reason,
            passes=1.0,
        )
    )


def _metrics(outcome: float | Mapping[str, float]) -> FrozenMap[float]:
    return FrozenMap(outcome) if isinstance(outcome, Mapping) else FrozenMap({"accuracy": float(outcome)})
