"""The tuning loop. `search` is the whole idea on one screen; everything before it is in preparation.py, one trial in trials.py, everything after in finish.py."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from neural_tune import events
from neural_tune.errors import PluginError
from neural_tune.executors import LocalExecutor, ProcessExecutor
from neural_tune.finish import failed, finish, halted
from neural_tune.preparation import Halted, Run, learn, prepare
from neural_tune.protocols import Executor
from neural_tune.result import TuneResult
from neural_tune.task import Task
from neural_tune.trials import TrialRunner
from neural_tune.values import (
    Candidate,
    FrozenMap,
    History,
    Origin,
    ProbeRequest,
    Trial,
    TrialResult,
    TrialStatus,
    count_passes,
    to_jsonable,
)

_NOTHING_LEFT = (
    "resume: the search of this run was over, so no trial was added; its model was taken from its files and measured again. "
    "With more time (timeout) or trials (max_trials) it goes on"
)


def tune(task: Task) -> TuneResult:
    """Run `task` from the float model to a certified result.

    Ctrl-C and SIGTERM end the search and give the best so far; while that is being finished they skip what is left of measuring.

    Raises:
        NeuralTuneError: the task cannot be started (configuration, data, plug-ins).
        Exception: whatever the user's own functions raise, untouched.
    """
    with _sigterm_interrupts():
        try:
            run = prepare(task)
        except Halted as halt:
            with halt.journal:
                return halted(task, halt)
        with run.journal:
            if run.problem:
                return failed(run, f"the float baseline is not sane: {run.problem}")
            taken_over = len(run.history.results)
            reason, is_interrupted = search(run)
            if task.resume is not None and len(run.history.results) == taken_over and not is_interrupted:
                run.notices = (*run.notices, _NOTHING_LEFT)
            return finish(run, reason, is_interrupted=is_interrupted)


def search(run: Run) -> tuple[str, bool]:
    """Try candidates until the strategy or the budget ends; return why it ended and whether it was interrupted."""
    started = time.monotonic()
    executor = _executor(run)
    _announce(run)
    try:
        while True:
            ended = _why_stop(run, time.monotonic() - started)
            while not ended and len(run.history.pending) < executor.capacity and _has_trials_left(run):
                proposal = run.strategy.propose(run.space, run.history)
                if proposal is None:
                    break
                if isinstance(proposal, ProbeRequest):
                    if run.history.pending:
                        break  # a trial that is running may end the search, and then nobody needs to know
                    learn(run, frozenset(proposal.probes))
                    continue
                trial = _trial(run, proposal.candidate, proposal.reason)
                known = run.history.result_of(trial.candidate)
                if known is not None:
                    _record(run, _reused(trial, known), started)
                    continue
                run.history = run.history.with_pending(trial)
                run.journal.append("started", number=trial.number, digest=trial.candidate.digest)
                run.emit(events.TrialStarted(trial=trial))
                executor.submit(trial)
            if ended or not run.history.pending:
                return f"{ended or 'the strategy has no further candidate'}{_gained(run.history)}", False
            _record(run, executor.collect(), started)
    except KeyboardInterrupt as interrupt:
        run.emit(events.Interrupted(signal=str(interrupt) or "SIGINT"))
        return f"interrupted by {str(interrupt) or 'Ctrl-C'}", True
    finally:
        executor.close()


def _record(run: Run, result: TrialResult, started: float) -> None:
    """Take a result into the journal first, then into the history; keep the artifact of the best only."""
    run.journal.append("trial", result=to_jsonable(result))
    run.history = run.history.with_result(result)
    best = run.history.best
    running = {trial.number for trial in run.history.pending}
    run.directory.keep_only(running | ({best.reused or best.trial.number} if best else set()))
    run.emit(
        events.TrialFinished(
            result=result,
            verdict=run.history.verdict(result),
            history=run.history,
            eta_seconds=_seconds_left(run, time.monotonic() - started),
        )
    )


def _why_stop(run: Run, elapsed: float) -> str:
    """Return the sentence that ends the search, or "" to go on. Running trials are waited for unless time is up."""
    stop, history = run.task.config.stop, run.history
    if stop.at_first_acceptable:
        if history.accepted and not history.pending and run.strategy.is_content(run.space, history):
            return "the criterion is met"
    elif elapsed >= stop.timeout:
        return f"the timeout of {stop.timeout:g} s is reached"
    if history.pending:
        return ""
    if len(history.results) >= stop.max_trials:
        return f"max_trials ({stop.max_trials}) is reached"
    if stop.max_passes is not None and count_passes(history.baseline, history.results) >= stop.max_passes:
        return f"max_passes ({stop.max_passes:g}) is reached"
    return ""


def _gained(history: History) -> str:
    """Return what the trials after the first accepted one brought, as the end of a sentence; "" when there were none."""
    accepted = [result for result in history.results if result.is_accepted]
    best = history.best
    if not accepted or best is None or accepted[0] is history.results[-1]:
        return ""
    first, later = accepted[0], len(history.results) - history.results.index(accepted[0]) - 1
    since = f"; since trial {first.trial.number}, the first accepted, {later} more"
    if best is first:
        return f"{since} gained nothing"
    names = [name for name in history.objectives.names if name in first.objectives and name in best.objectives]
    changes = (
        f"{name} {first.objectives[name]:.4g} to {best.objectives[name]:.4g} ({best.objectives[name] / first.objectives[name] - 1:+.1%})"
        for name in names
    )
    return f"{since} gained: {', '.join(changes)} in trial {best.trial.number}"


def _has_trials_left(run: Run) -> bool:
    tried = len(run.history.results) + len(run.history.pending)
    content = run.task.config.stop.at_first_acceptable and bool(run.history.accepted)
    return tried < run.task.config.stop.max_trials and not (content and run.strategy.is_content(run.space, run.history))


def _trial(run: Run, candidate: Candidate, reason: str) -> Trial:
    """Number a proposal, after holding the strategy to its contract."""
    if candidate.is_float or not run.space.contains(candidate):
        what = "the float model" if candidate.is_float else "a candidate outside the tuning space"
        raise PluginError(f"strategy {run.strategy.name!r} proposed {what}, which its protocol forbids: {candidate}")
    return Trial(
        number=run.history.next_number, candidate=candidate, origin=Origin(strategy=run.strategy.name, reason=reason)
    )


def _reused(trial: Trial, known: TrialResult) -> TrialResult:
    """Return what is known of the candidate as the result of `trial`, at no cost."""
    number = known.reused or known.trial.number
    return replace(known, trial=trial, samples=0, passes=0.0, durations=FrozenMap(), reused=number)


def _executor(run: Run) -> Executor:
    runner = TrialRunner(
        bench=run.bench,
        baseline=run.history.baseline,
        is_exact=run.strategy.needs_exact_metrics,
        progress=lambda trial, done, total: run.emit(
            events.SamplesDone(stage="search", trial=trial, done=done, total=total)
        ),
    )
    config = run.task.config
    return ProcessExecutor(runner, config.workers) if config.executor == "process" else LocalExecutor(runner)


def _announce(run: Run) -> None:
    run.emit(events.StageStarted(stage="search"))
    forecast, stop = run.strategy.forecast(run.space), run.task.config.stop
    per_trial = _seconds_per_trial(run.history)
    worst = min(forecast.worst, stop.max_trials) * per_trial / run.task.config.workers
    run.emit(
        events.SearchPlanned(
            baseline=run.history.baseline,
            forecast=forecast,
            eta_seconds=_seconds_left(run, 0.0),
            worst_seconds=worst if stop.at_first_acceptable else min(worst, stop.timeout),
            max_trials=stop.max_trials,
        )
    )


def _seconds_per_trial(history: History) -> float:
    """Return the mean wall time of a trial; before the first one, that of the baseline and of what was built for it or for the probes."""
    times = [sum(result.durations.values()) for result in history.results if result.status is not TrialStatus.FAILED]
    if times:
        return sum(times) / len(times)
    built = history.insight.build_seconds if history.insight else 0.0
    return history.baseline.seconds + max(history.baseline.build_seconds, built)


def _seconds_left(run: Run, elapsed: float) -> float:
    stop = run.task.config.stop
    expected = min(run.strategy.forecast(run.space).expected, stop.max_trials)
    left = max(0, expected - len(run.history.results)) * _seconds_per_trial(run.history) / run.task.config.workers
    return left if stop.at_first_acceptable else min(left, max(0.0, stop.timeout - elapsed))


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Make SIGTERM end the search as Ctrl-C does. Signal handlers belong to the main thread; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    earlier = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
