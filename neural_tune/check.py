"""Is a locked model still what it was? The lock replayed on today's code, versions and data, and compared check by check.

Every comparison knows its noise. Accuracy: a paired test on the same samples. Distance from float: a paired bootstrap interval. Latency: the
ratio to float, measured interleaved in one process, whose interval must lie wholly below the locked one, in every one of several
measurements. Size and ops have no noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from neural_tune.lock import (
    Lock,
    LockedMetric,
    SampleValues,
    calibration_digest,
    distances_of,
    evaluation_digest,
    measured,
    versions_of,
)
from neural_tune.measure import SpeedComparison
from neural_tune.paired import paired_test, ratio_interval
from neural_tune.preparation import Run
from neural_tune.protocols import Array
from neural_tune.replay import Replayed, fitted, replay
from neural_tune.result import TuneResult
from neural_tune.stored_model import StoredModel
from neural_tune.task import Task
from neural_tune.values import FrozenMap, judge

# With the same model, data, versions and processor, a replay gives the same outputs. A sample whose distance from float differs by more than this share
# (and by more than float32 rounds away) moved; a few may, where sums are added up in another order.
_MOVED, _ALIKE, _MOST_MOVED = 0.02, 1e-9, 0.05
_MOST_NAMES = 5
_ITSELF = "the model that was locked is checked itself, byte for byte: nothing was built that could differ"


class Outcome(StrEnum):
    """How a check ended. SKIPPED: what it compares cannot be compared here; it says why."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was compared.

    Attributes:
        name: What, such as "accuracy.topk".
        outcome: How it ended.
        locked: What it was then, in words.
        now: What it is now, in words.
        detail: Why it ended so.
    """

    name: str
    outcome: Outcome
    locked: str = ""
    now: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What a check lets pass.

    Attributes:
        p: A loss of accuracy counts below this probability that it is chance.
        latency: How much of the locked latency ratio may be lost.
        distance: How much farther from float the outputs may be.
        size: How much larger the artifact may be.
        repeats: Measurements of latency before it counts as worse.
    """

    p: float = 0.01
    latency: float = 0.15
    distance: float = 0.05
    size: float = 0.01
    repeats: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """All checks of one lock.

    Attributes:
        checks: In the order in which they are shown.
        notices: What changed without being a fault, such as a version.
        versions: Package -> version of today.
    """

    checks: tuple[Check, ...]
    notices: tuple[str, ...] = ()
    versions: FrozenMap[str] = field(default_factory=FrozenMap)

    @property
    def is_passed(self) -> bool:
        """True when nothing failed."""
        return not any(check.outcome is Outcome.FAILED for check in self.checks)


def check(
    task: Task,
    lock: Lock,
    values: SampleValues,
    tolerance: Tolerance | None = None,
    *,
    stored: StoredModel | None = None,
    is_new_model: bool = False,
    has_latency: bool = True,
) -> CheckReport:
    """Replay `lock` with the model, data and configuration of `task`, and compare.

    Args:
        task: What the lock's job says today.
        lock: What was.
        values: What was, per sample.
        tolerance: What is let pass.
        stored: The locked model itself, where training made it: it is checked, and nothing is trained.
        is_new_model: The float model was exchanged on purpose: its outputs are not compared with those of the old one.
        has_latency: False measures no latency.

    Raises:
        NeuralTuneError: the task cannot be started.
    """
    replayed = replay(task, fitted(lock.recipe), stored)
    run, result = replayed.run, replayed.result
    if run is None or result.artifact is None:
        return _impossible(lock, replayed)
    comparison = _Comparison(
        lock,
        values,
        tolerance or Tolerance(),
        replayed,
        run,
        result,
        _Sameness.of(lock, run),
        is_new_model,
        has_latency,
        stored is not None,
    )
    return CheckReport(checks=tuple(comparison.checks()), notices=comparison.notices(), versions=versions_of(run))


def _impossible(lock: Lock, replayed: Replayed) -> CheckReport:
    reason = replayed.result.reason
    versions = versions_of(replayed.run) if replayed.run else FrozenMap[str]()
    if replayed.run is not None and replayed.run.history.results == () and not replayed.run.problem:
        reason = f"no op of the locked recipe can run in low precision any more: {_names(lock.ops)}"
    failed = Check(name="replay", outcome=Outcome.FAILED, locked=lock.status, now="no model", detail=reason)
    return CheckReport(checks=(failed,), versions=versions)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sameness:
    """Whether a replay had what the lock was made with; each is told from hashes, which are taken once."""

    has_model: bool
    has_evaluation_data: bool
    has_calibration_data: bool
    has_versions: bool

    @classmethod
    def of(cls, lock: Lock, run: Run) -> _Sameness:
        """Compare."""
        return cls(
            has_model=run.bench.adapter.fingerprint(run.bench.model) == lock.model,
            has_evaluation_data=evaluation_digest(run) == lock.evaluation,
            has_calibration_data=calibration_digest(run) == lock.calibration,
            has_versions=dict(versions_of(run)) == dict(lock.versions),
        )


@dataclass(frozen=True, slots=True)
class _Comparison:
    """A lock and its replay, side by side."""

    lock: Lock
    values: SampleValues
    tolerance: Tolerance
    replayed: Replayed
    run: Run
    result: TuneResult
    same: _Sameness
    is_new_model: bool
    has_latency: bool
    is_stored: bool

    def checks(self) -> Iterator[Check]:
        """Yield every check."""
        yield self._data(self.same.has_evaluation_data)
        yield from self._accuracy(self.same.has_evaluation_data)
        yield self._criterion()
        yield from self._outputs()
        yield self._ops()
        yield self._size()
        yield self._latency()

    def notices(self) -> tuple[str, ...]:
        """Return what changed without being a fault."""
        now = versions_of(self.run)
        found = [
            f"{name}: {self.lock.versions.get(name, 'absent')} when locked, {now.get(name, 'absent')} now"
            for name in sorted({*self.lock.versions, *now})
            if self.lock.versions.get(name) != now.get(name)
        ]
        if not self.same.has_model and not self.is_new_model:
            found.append("the float model is another one than when locked")
        if not self.same.has_calibration_data:
            found.append("the calibration data are other ones than when locked")
        return tuple(found)

    def _data(self, is_same: bool) -> Check:
        if not self.lock.evaluation:
            reason = "an eval_func evaluates: nobody sees its data"
            return Check(name="evaluation data", outcome=Outcome.SKIPPED, detail=reason)
        detail = "" if is_same else "results cannot be compared sample by sample: lock anew (neural-tune lock RUN)"
        outcome = Outcome.PASSED if is_same else Outcome.FAILED
        return Check(
            name="evaluation data", outcome=outcome, now="the same" if is_same else "other data", detail=detail
        )

    def _accuracy(self, is_same_data: bool) -> Iterator[Check]:
        now = {metric.name: metric for metric in measured(self.replayed)}
        for locked in self.lock.metrics:
            name = f"accuracy.{locked.name}"
            if locked.name not in now:
                yield Check(
                    name=name, outcome=Outcome.FAILED, locked=_value(locked), detail="the evaluation no longer gives it"
                )
            elif not is_same_data and self.lock.evaluation:
                yield Check(
                    name=name, outcome=Outcome.SKIPPED, locked=_value(locked), detail="the evaluation data changed"
                )
            else:
                yield self._one_metric(name, locked, now[locked.name])

    def _one_metric(self, name: str, locked: LockedMetric, now: LockedMetric) -> Check:
        before, after = self.values.metrics.get(locked.name), self.replayed.values.get(locked.name)
        if before is None or after is None or len(before) != len(after):
            reason = "no values per sample, so noise is not known: held to the criterion only"
            return Check(name=name, outcome=Outcome.PASSED, locked=_value(locked), now=_value(now), detail=reason)
        test = paired_test(before, after, higher_is_better=locked.higher_is_better)
        fell = test.p < self.tolerance.p
        detail = f"{test.worse} samples worse, {test.better} better of {len(before)}; p = {test.p:.3g} ({test.method})"
        outcome = Outcome.FAILED if fell else Outcome.PASSED
        return Check(name=name, outcome=outcome, locked=_value(locked), now=_value(now), detail=detail)

    def _criterion(self) -> Check:
        criterion, result = self.run.task.config.criterion, self.result
        metrics = result.best.metrics if result.best else FrozenMap[float]()
        verdict = judge(criterion, metrics, self.run.history.baseline.metrics)
        was_met = self.lock.status == "accepted"
        outcome = Outcome.PASSED if verdict.is_met else Outcome.FAILED if was_met else Outcome.SKIPPED
        words = {True: "met", False: "not met"}
        return Check(
            name="criterion", outcome=outcome, locked=words[was_met], now=words[verdict.is_met], detail=verdict.reason
        )

    def _outputs(self) -> Iterator[Check]:
        """Yield the two checks on the outputs themselves; the float model and the replayed one are run once for both."""
        excuses = {
            "the float model is another one": not self.same.has_model,
            "the evaluation data changed": not self.same.has_evaluation_data,
            # Where nobody sees the evaluation data, the distance is that on a batch of calibration data.
            "the calibration data changed": not self.lock.evaluation and not self.same.has_calibration_data,
            "there is no model": self.result.artifact is None,
        }
        excuse = next((reason for reason, holds in excuses.items() if holds), "")
        now = np.zeros(0) if excuse or self.result.artifact is None else distances_of(self.run, self.result.artifact)
        if not excuse and (len(now) != len(self.values.distances) or not len(now)):
            excuse = "measured on other samples"
        yield self._distance(now, excuse)
        yield self._reproduced(now, excuse)

    def _distance(self, now: Array, excuse: str) -> Check:
        name, locked = "distance from float", f"{self.lock.distance:.3g}"
        if excuse:
            return Check(name=name, outcome=Outcome.SKIPPED, locked=locked, detail=excuse)
        ratio, low, high = ratio_interval(self.values.distances, now)
        outcome = Outcome.FAILED if low > 1.0 + self.tolerance.distance else Outcome.PASSED
        detail = f"{ratio:.3f} times the locked one (99 % interval {low:.3f} to {high:.3f}), tolerated {1 + self.tolerance.distance:.2f}"
        return Check(name=name, outcome=outcome, locked=locked, now=f"{now.mean():.3g}", detail=detail)

    def _reproduced(self, now: Array, excuse: str) -> Check:
        """Where nothing changed that may change the numbers, they must be the locked ones: better ones would be a surprise too."""
        name = "same outputs"
        excuses = {
            excuse: bool(excuse),
            "the calibration data changed": not self.same.has_calibration_data,
            "versions or processor changed": not self.same.has_versions,
            "candidates are trained, and no two trainings are alike": self.run.bench.train_func is not None,
        }
        excuse = next((reason for reason, holds in excuses.items() if holds), "")
        if excuse:
            return Check(name=name, outcome=Outcome.SKIPPED, detail=excuse)
        moved = float(np.mean(np.abs(now - self.values.distances) > _MOVED * np.abs(self.values.distances) + _ALIKE))
        outcome = Outcome.FAILED if moved > _MOST_MOVED else Outcome.PASSED
        detail = "" if not moved else f"{moved:.0%} of the samples lie elsewhere between the locked outputs and float's"
        return Check(name=name, outcome=outcome, detail=detail)

    def _ops(self) -> Check:
        if self.is_stored:
            return Check(name="ops in low precision", outcome=Outcome.SKIPPED, detail=_ITSELF)
        now = {op.name: op for op in self.result.ops}
        left = [name for name in self.lock.ops if name not in now or now[name].is_float]
        quantized = sum(not op.is_float for op in self.result.ops)
        whys = "; ".join(
            f"{name}: {now[name].reason or 'float'}" if name in now else f"{name}: gone" for name in left[:_MOST_NAMES]
        )
        more = f" and {len(left) - _MOST_NAMES} more" if len(left) > _MOST_NAMES else ""
        return Check(
            name="ops in low precision",
            outcome=Outcome.FAILED if left else Outcome.PASSED,
            locked=str(len(self.lock.ops)),
            now=str(quantized),
            detail=f"left low precision: {whys}{more}" if left else "",
        )

    def _size(self) -> Check:
        if self.is_stored:
            return Check(name="size", outcome=Outcome.SKIPPED, detail=_ITSELF)
        limit = self.lock.size * (1.0 + self.tolerance.size)
        outcome = Outcome.FAILED if self.result.size > limit else Outcome.PASSED
        change = f"{self.result.size / max(self.lock.size, 1) - 1:+.2%}"
        return Check(
            name="size",
            outcome=outcome,
            locked=f"{self.lock.size} bytes",
            now=f"{self.result.size} bytes",
            detail=change,
        )

    def _latency(self) -> Check:
        name, locked = "latency ratio to float", self.lock.speed
        if locked is None or self.result.speed is None or not self.has_latency:
            return Check(name=name, outcome=Outcome.SKIPPED, detail="not measured")
        here, there = (versions.get("instruction_set", "") for versions in (versions_of(self.run), self.lock.versions))
        if here != there:
            reason = f"locked on {there}, this machine has {here}: the ratios of two processors cannot be compared"
            return Check(
                name=name, outcome=Outcome.SKIPPED, locked=_speed(locked), now=_speed(self.result.speed), detail=reason
            )
        return self._compared(name, locked, self.result.speed)

    def _compared(self, name: str, locked: SpeedComparison, first: SpeedComparison) -> Check:
        """Return the verdict on latency: worse only if every one of several measurements says so."""
        limit = min(locked.low, locked.ratio) * (1.0 - self.tolerance.latency)
        best, tries = first, 1
        while best.high < limit and tries < self.tolerance.repeats and self.result.artifact is not None:
            again = self.run.bench.compare_speed(self.result.artifact)
            best, tries = max(best, again, key=lambda speed: speed.high), tries + 1
        is_worse = best.high < limit
        detail = f"tolerated down to {limit:.2f}x" + (f"; below it in each of {tries} measurements" if is_worse else "")
        detail += f"; {tries} measurements" if tries > 1 and not is_worse else ""
        outcome = Outcome.FAILED if is_worse else Outcome.PASSED
        return Check(name=name, outcome=outcome, locked=_speed(locked), now=_speed(best), detail=detail)


def _value(metric: LockedMetric) -> str:
    return f"{metric.value:.6g} (float {metric.baseline:.6g})"


def _speed(speed: SpeedComparison) -> str:
    return f"{speed.ratio:.2f}x ({speed.low:.2f} to {speed.high:.2f})"


def _names(ops: FrozenMap[str]) -> str:
    names = list(ops)
    return ", ".join(names[:_MOST_NAMES]) + (
        f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    )
