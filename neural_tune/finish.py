"""Everything after the search: choose, certify, measure, explain, write.

The winner's artifact is the one its trial evaluated: its hash is compared before it is moved into place, so the certificate speaks of the very file
that is handed out. Only where a trial was cut short, or its files are gone, is the candidate built and evaluated again.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from neural_tune import events, measure, recipe
from neural_tune.errors import AdapterError
from neural_tune.evaluation import Evaluation
from neural_tune.journal import Journal
from neural_tune.preparation import Halted, Run
from neural_tune.protocols import BuildReport, CountsKernels, GuardsArtifact, OpOutcome, ShowsRanges
from neural_tune.result import Status, TuneResult
from neural_tune.run_directory import RunDirectory
from neural_tune.task import Task
from neural_tune.trials import OWN_FILES, VALUES_FILE, content_hash, store_values
from neural_tune.values import (
    FLOAT_CANDIDATE,
    Candidate,
    FrozenMap,
    History,
    TrialResult,
    TrialStatus,
    Verdict,
    count_passes,
    judge,
    to_jsonable,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finalist:
    """A trial whose artifact lies in place and was evaluated on the whole set."""

    result: TrialResult
    folder: Path  # of the trial
    artifact: Path
    evaluation: Evaluation
    passes: float  # evaluated for this finish, beyond the trial itself
    built: Any  # the artifact, loaded back

    def verdict(self, run: Run) -> Verdict:
        """Return the verdict on the artifact."""
        return judge(run.history.criterion, self.evaluation.metrics, run.history.baseline.metrics)

    def is_met(self, run: Run) -> bool:
        """Return whether the artifact meets the criterion."""
        return self.verdict(run).is_met


def halted(task: Task, halt: Halted) -> TuneResult:
    """Return (and record) a result of a run that could not get as far as its search."""
    result = TuneResult(
        status=Status.FAILED,
        reason=halt.reason,
        model=None,
        framework=halt.framework,
        is_interrupted=halt.is_interrupted,
        run_directory=halt.directory.root,
    )
    return _conclude(task, result, halt.directory, halt.journal)


def failed(run: Run, reason: str, *, is_interrupted: bool = False, notices: Iterable[str] = ()) -> TuneResult:
    """Return (and record) a result without a model."""
    history = run.history
    result = TuneResult(
        status=Status.FAILED,
        reason=reason,
        model=None,
        framework=run.bench.adapter.name,
        baseline=history.baseline if history.baseline.metrics else None,
        trials=history.results,
        passes=count_passes(history.baseline, history.results),
        notices=tuple(dict.fromkeys((*run.notices, *notices))),
        is_interrupted=is_interrupted,
        run_directory=run.directory.root,
    )
    return _conclude(run.task, result, run.directory, run.journal)


def finish(run: Run, ended: str, *, is_interrupted: bool) -> TuneResult:
    """Return the result of a search that ended because of `ended`.

    An interrupt in here skips what is left of measuring; an adapter that breaks on one finalist leaves the others.
    """
    steps = _Steps(is_interrupted=is_interrupted)
    best = run.history.best
    if best is None:
        return failed(run, _why_nothing(run.history, ended), is_interrupted=is_interrupted)
    run.emit(events.StageStarted(stage="certificate"))
    finalist, extra = _choose(run, run.history.accepted or (best,), steps)
    if finalist is None:
        reason = f"no candidate could be finished ({ended}): {'; '.join(steps.notices)}"
        return failed(run, reason, is_interrupted=steps.is_interrupted)
    result = _result(run, finalist, ended, extra, steps)
    return _conclude(run.task, result, run.directory, run.journal, run)


def _choose(run: Run, results: Iterable[TrialResult], steps: _Steps) -> tuple[_Finalist | None, float]:
    """Return the first of `results` that still meets the criterion, else the last one that can be finished, and the passes it took."""
    chosen: _Finalist | None = None
    passes = 0.0
    queue = deque(results)
    while queue:
        result = queue.popleft()
        number = result.trial.number
        if steps.is_interrupted and result.status is not TrialStatus.COMPLETE:
            steps.notices.append(f"interrupted: trial {number} was cut short and was not evaluated to the end")
            continue
        try:
            chosen = _finalist(run, result)
        except AdapterError as error:
            steps.notices.append(f"trial {number} could not be finished: {error}")
            continue
        except KeyboardInterrupt:
            if not steps.is_interrupted and result.status is TrialStatus.COMPLETE:
                queue.appendleft(result)  # all it needs is moving files: an impatient user still gets her model
            else:
                steps.notices.append(f"interrupted while trial {number} was evaluated to the end")
            steps.is_interrupted = True
            continue
        passes += chosen.passes
        if chosen.is_met(run) or not result.is_accepted:
            break
        steps.notices.append(f"trial {number} was accepted, but its rebuilt artifact is not; the next one was taken")
    return chosen, passes


@dataclass(slots=True)
class _Steps:
    """What a finish can do without: a step that breaks or is interrupted becomes a notice, not the loss of an accepted model."""

    is_interrupted: bool = False
    notices: list[str] = field(default_factory=list)
    _is_cut: bool = False

    def attempt(self, what: str, step: Callable[[], T]) -> T | None:
        """Return what `step` returns; None, with a notice, when it breaks or is interrupted, or something before it was."""
        if self._is_cut:
            self.notices.append(f"interrupted: no {what}")
            return None
        try:
            return step()
        except AdapterError as error:
            self.notices.append(f"no {what}: {error}")
        except KeyboardInterrupt:
            self.is_interrupted = self._is_cut = True
            self.notices.append(f"interrupted: no {what}")
        return None


def _finalist(run: Run, result: TrialResult) -> _Finalist:
    """Bring the trial's own artifact into place; build and evaluate it again only if it is not complete."""
    number = result.reused or result.trial.number
    folder, bench = run.directory.trial(number), run.bench
    stored = _stored_values(folder)
    passes = 0.0
    if stored is None or result.status is not TrialStatus.COMPLETE:
        if bench.train_func is not None:
            raise AdapterError(
                f"the trained model of trial {number} is gone or was changed, and training it again would give another one"
            )
        artifact = bench.build(result.trial.candidate, folder).name
        evaluation = bench.evaluator.evaluate(
            bench.adapter, bench.adapter.restore(folder / artifact, bench.config.threads)
        )
        store_values(folder, evaluation)
        passes = evaluation.passes
    else:
        artifact = result.artifact
        evaluation = Evaluation(
            metrics=result.metrics, samples=result.samples, passes=result.passes, is_complete=True, values=stored
        )
    shutil.rmtree(run.directory.model, ignore_errors=True)
    shutil.copytree(folder, run.directory.model, ignore=lambda where, _: OWN_FILES if Path(where) == folder else ())
    moved = run.directory.model / artifact
    built = bench.adapter.restore(moved, bench.config.threads)
    return _Finalist(result=result, folder=folder, artifact=moved, evaluation=evaluation, passes=passes, built=built)


def _stored_values(folder: Path) -> dict[str, Any] | None:
    """Return the per-sample values of a trial whose artifact is untouched since its evaluation; None otherwise."""
    path = folder / VALUES_FILE
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as stored:
        if str(stored["hash"]) != content_hash(folder):
            return None
        return {name.removeprefix("value:"): stored[name] for name in stored.files if name.startswith("value:")}


def _result(run: Run, finalist: _Finalist, ended: str, extra: float, steps: _Steps) -> TuneResult:
    bench, history = run.bench, run.history
    candidate = finalist.result.trial.candidate
    verdict = finalist.verdict(run)
    result = TuneResult(
        status=Status.ACCEPTED if verdict.is_met else Status.BEST_EFFORT,
        reason=f"{verdict.reason} ({ended})",
        model=bench.adapter.native(finalist.built),
        framework=bench.adapter.name,
        baseline=history.baseline,
        best=replace(finalist.result, metrics=finalist.evaluation.metrics),
        trials=history.results,
        front=history.front,
        passes=count_passes(history.baseline, history.results) + extra,
        size_float=int(history.baseline.objectives["size"]),
        size=measure.size_on_disk(finalist.artifact.parent),
        run_directory=run.directory.root,
        artifact=finalist.artifact,
    )
    certificate = steps.attempt(
        "certificate",
        lambda: bench.evaluator.certify(finalist.evaluation, criterion=history.criterion, seed=run.task.config.seed),
    )
    report = steps.attempt("report per op", lambda: bench.report(finalist.folder)) or BuildReport(ops=())
    run.emit(events.StageStarted(stage="measure"))
    speed = steps.attempt("measurement of speed", lambda: bench.compare_speed(finalist.artifact))
    steps.attempt("calibration histograms", lambda: _write_ranges(run, candidate))
    guarded = steps.attempt("check of the artifact by the adapter's guard", lambda: _guard(run, finalist)) or ()
    result = replace(
        result,
        certificate=certificate,
        ops=_explained(run, report, candidate),
        counts=_counts(run, finalist, report, steps),
        speed=speed,
        is_interrupted=steps.is_interrupted,
    )
    note = finalist.result.note
    notices = (
        *run.notices,
        *([note] if note else []),
        *report.notes,
        *_warnings(result),
        *getattr(bench.evaluator, "notices", ()),
        *guarded,
        *steps.notices,
    )
    return replace(result, notices=tuple(dict.fromkeys(notices)))


def _counts(run: Run, finalist: _Finalist, report: BuildReport, steps: _Steps) -> FrozenMap[float]:
    """Return the counts of the report, with those that only the running model could tell."""
    adapter, threads = run.bench.adapter, run.task.config.performance.threads
    if not isinstance(adapter, CountsKernels):
        return report.counts
    counted = steps.attempt("count of kernels", lambda: adapter.kernel_counts(finalist.artifact, threads)) or {}
    return FrozenMap({**report.counts, **counted})


def _warnings(result: TuneResult) -> list[str]:
    """Say loudly what a user would otherwise find out in production."""
    found = []
    speed = result.speed
    verb = "accepted" if result.accepted else "kept as the nearest miss"
    if speed and speed.high < 1.0:
        found.append(
            f"{verb}, but SLOWER than float: {speed.ratio:.2f}x (95 % interval {speed.low:.2f} to {speed.high:.2f})"
        )
    elif speed and speed.low <= 1.0:
        found.append(
            f"{verb}, but its speed cannot be told from float's: {speed.ratio:.2f}x (95 % interval {speed.low:.2f} to {speed.high:.2f})"
        )
    if result.size_float and result.size_ratio is not None and result.size_ratio <= 1.0:
        found.append(f"{verb}, but not smaller than float: {result.size} against {result.size_float} bytes")
    if result.ops and all(op.is_float for op in result.ops):
        found.append(f"{verb}, but no op runs in low precision")
    return found


def _guard(run: Run, finalist: _Finalist) -> tuple[str, ...]:
    adapter = run.bench.adapter
    return adapter.guard(finalist.artifact, run.bench.sample) if isinstance(adapter, GuardsArtifact) else ()


def _write_ranges(run: Run, candidate: Candidate) -> None:
    """Write what calibration saw of every quantized tensor beside the journal, for the report page."""
    bench = run.bench
    if isinstance(bench.adapter, ShowsRanges) and bench.statistics is not None and bench.train_func is None:
        found = bench.adapter.ranges(bench.model, candidate, bench.statistics)
        run.directory.ranges.write_text(json.dumps(to_jsonable(found)) + "\n")


def _explained(run: Run, report: BuildReport, candidate: Candidate) -> tuple[OpOutcome, ...]:
    """Give every float op its reason: the user's rule, the accuracy it restores, or what the adapter says."""
    tunable = {op: group for group in run.space.groups for op in group.ops}
    explained = []
    for outcome in report.ops:
        reason = outcome.reason
        if outcome.is_float and outcome.name in run.space.fixed:
            reason = run.space.fixed[outcome.name]
        elif outcome.is_float and outcome.name in tunable and candidate.config_of(outcome.name).is_float:
            reason = _restored_accuracy(run, tunable[outcome.name].ops)
        explained.append(replace(outcome, reason=reason))
    return tuple(explained)


def _restored_accuracy(run: Run, ops: tuple[str, ...]) -> str:
    """Return what two trials that differ in this group alone say about it."""
    complete = [result for result in run.history.results if result.status is TrialStatus.COMPLETE]
    by_digest: Mapping[str, TrialResult] = {result.trial.candidate.digest: result for result in complete}
    for result in complete:
        candidate = result.trial.candidate
        if candidate.config_of(ops[0]).is_float:
            continue
        other = by_digest.get(candidate.with_ops(dict.fromkeys(ops, FLOAT_CANDIDATE.config_of(ops[0]))).digest)
        if other is not None:
            name = next(iter(result.metrics))
            return f"accuracy: float changes {name} by {other.metrics[name] - result.metrics[name]:+.4g} (trials {result.trial.number}, {other.trial.number})"
    return _predicted(run, ops)


def _predicted(run: Run, ops: tuple[str, ...]) -> str:
    """Return what the probes said about a group that no pair of trials measured alone."""
    group = next((group for group in run.space.groups if group.ops == ops), None)
    name, word = (group.name, group.choices[0].word) if group is not None else ("", "int8")
    insight = run.history.insight
    latency = insight.latency if insight else None
    slower = alone = ""
    times = latency.compared(ops) if latency is not None else None
    if times is not None:
        in_float, in_int8 = times
        slower = f"slower in {word}: {in_int8:.3g} ms against {in_float:.3g} ms" if in_int8 >= in_float else ""
        alone = f"; alone it takes {in_int8:.3g} ms in {word} against {in_float:.3g} ms, conversions not counted"
    known = (insight.divergence_with_recipes or insight.divergence) if insight else {}
    if name not in known:
        return slower or f"{_left(run)}{alone}"
    if math.isinf(known[name]):
        return f"it could not be probed in {word}: built alone, it fails or gives outputs that are not finite"
    rank = sorted(known.values(), reverse=True).index(known[name]) + 1
    told = f"in {word} alone it moves the outputs by {known[name]:.2g} of their variance (rank {rank} of {len(known)})"
    if rank <= max(1, len(known) // 4):
        return f"accuracy: {told}" + (f"; {slower}" if slower else "")
    if slower:
        return f"{slower}; {told}"
    if latency is None:
        return f"accuracy: {told}"
    why = "latency: predicted not to pay beside its float neighbours" if times else _left(run)
    return f"{why}; {told}"


def _left(run: Run) -> str:
    return f"the strategy {run.strategy.name!r} left it in float"


def _why_nothing(history: History, ended: str) -> str:
    if not history.results:
        return f"no candidate was tried: {ended}"
    first = next(result for result in history.results if result.status is TrialStatus.FAILED)
    return f"every trial failed; the first one: {first.error}"


def _conclude(
    task: Task, result: TuneResult, directory: RunDirectory, journal: Journal, run: Run | None = None
) -> TuneResult:
    """Write the result beside the journal and tell the reporter."""
    if run is not None and result.best is not None:
        header = {
            "neural_tune": version("neural-tune"),
            "framework": result.framework,
            "model": run.bench.adapter.fingerprint(run.bench.model),
            "result": f"{result.status.value}: {result.reason}",
        }
        recipe.write(directory.root / "recipe.yaml", result.best.trial.candidate, run.space, header)
    result.write(directory.root / "result.json")
    journal.append("end", status=result.status.value, reason=result.reason, best=to_jsonable(result.best))
    task.reporter.on_event(events.RunFinished(result=result))
    return result
