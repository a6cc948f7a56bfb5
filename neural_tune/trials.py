"""One trial, from a candidate to a result.

The candidate is built, saved, and loaded back; evaluation and measurement run on what was loaded back. So the number that accepts a model was
measured on the very artifact that is handed out, and no second pass is needed to certify it.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from neural_tune import measure
from neural_tune.config import ObjectiveFunction, TuneConfig
from neural_tune.errors import AdapterError, ConfigError
from neural_tune.evaluation import Evaluation, Evaluator
from neural_tune.measure import SpeedComparison
from neural_tune.protocols import AnyAdapter, BuildReport, Inputs
from neural_tune.qat import TrainFunction, open_training, train
from neural_tune.run_directory import RunDirectory
from neural_tune.values import (
    FLOAT_CANDIDATE,
    Baseline,
    Candidate,
    FrozenMap,
    Trial,
    TrialResult,
    TrialStatus,
    canonical_json,
    from_jsonable,
    judge,
    to_jsonable,
)

# Shares of `performance.seconds`. The float model's time gives ratios a unit; those of trials rank what was accepted, and count as equal within 5 %. The
# figure that a result reports is measured at full length when the search is over.
_BASELINE_SHARE, _TRIAL_SHARE = 0.125, 0.25
VALUES_FILE = "values.npz"
REPORT_FILE = "report.json"
# What a trial's folder holds besides the artifact.
OWN_FILES = (VALUES_FILE, REPORT_FILE)
Progress = Callable[[int, int, int], None]  # trial number, samples done, samples in all


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """What every trial of a run shares.

    Attributes:
        adapter: The framework.
        model: The adapter's hold on the float model.
        statistics: From calibration; None when nothing static is asked for.
        config: The configuration.
        evaluator: Runs the evaluation; holds the float model's per-sample values.
        directory: Where artifacts go.
        sample: A batch of inputs for measuring.
        batch_size: Samples in `sample`.
        objective_functions: The user's objectives by name.
        train_func: Trains a candidate (quantization-aware training); None for post-training quantization.
    """

    adapter: AnyAdapter
    model: Any
    statistics: Any
    config: TuneConfig
    evaluator: Evaluator
    directory: RunDirectory
    sample: Inputs
    batch_size: int
    objective_functions: Mapping[str, ObjectiveFunction] = field(default_factory=dict)
    train_func: TrainFunction | None = None

    def build(self, candidate: Candidate, folder: Path) -> Path:
        """Build `candidate`, save it below `folder` (emptied first) and return the artifact."""
        return self._save(self.adapter.build(self.model, candidate, self.statistics, self.config.threads), folder)

    def build_trained(self, candidate: Candidate, folder: Path) -> Path:
        """Train `candidate`, save it below `folder` (emptied first) and return the artifact.

        Raises:
            Exception: whatever the user's `train_func` raises, untouched.
        """
        if self.train_func is None:
            raise AdapterError("found no train_func, expected one: a trained candidate cannot be built without it")
        training = open_training(self.adapter, self.model, candidate, self.statistics)
        train(training, self.train_func)
        return self._save(training.finish(self.config.threads), folder)

    def report(self, folder: Path) -> BuildReport:
        """Return what became of every op in the artifact that was built into `folder`."""
        return from_jsonable(BuildReport, json.loads((folder / REPORT_FILE).read_text()))

    def _save(self, built: Any, folder: Path) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / REPORT_FILE).write_text(json.dumps(to_jsonable(self.adapter.report(built))) + "\n")
        return self.adapter.save(built, folder)

    def compare_speed(self, artifact: Path, share: float = 1.0) -> SpeedComparison:
        """Measure float against `artifact`, interleaved, with the threads of the configuration, for a `share` of the time that it says."""
        how, adapter = self.config.performance, self.adapter
        reference = adapter.build(self.model, FLOAT_CANDIDATE, None, how.threads)
        candidate = adapter.restore(artifact, how.threads)
        return measure.compare_speed(
            lambda: adapter.run(reference, self.sample),
            lambda: adapter.run(candidate, self.sample),
            batch_size=self.batch_size,
            threads=how.threads,
            warmup=how.warmup,
            repeats=math.ceil(how.repeats * share),
            seconds=how.seconds * share,
        )

    def measure_float(self) -> FrozenMap[float]:
        """Return the value of every objective for the float model."""
        how, adapter = self.config.performance, self.adapter
        wanted = self.config.objectives.names
        values: dict[str, float] = {}
        reference = adapter.build(self.model, FLOAT_CANDIDATE, None, how.threads)
        if {"latency", "throughput"} & set(wanted):
            speed = measure.compare_speed(
                lambda: adapter.run(reference, self.sample),
                lambda: adapter.run(reference, self.sample),
                batch_size=self.batch_size,
                threads=how.threads,
                warmup=how.warmup,
                repeats=math.ceil(how.repeats * _BASELINE_SHARE),
                seconds=how.seconds * _BASELINE_SHARE,
            )
            values |= {"latency": speed.float_ms, "throughput": self.batch_size / speed.float_ms * 1e3}
        values["size"] = float(adapter.size(reference))
        if "memory" in wanted:
            folder = self.directory.trial(0)
            values["memory"] = self._memory(self.build(FLOAT_CANDIDATE, folder))
            shutil.rmtree(folder)
        values |= {name: _positive(name, f(adapter.native(reference))) for name, f in self.objective_functions.items()}
        return FrozenMap({name: values[name] for name in {*wanted, "size"}})

    def measure(self, artifact: Path, baseline: FrozenMap[float]) -> FrozenMap[float]:
        """Return the value of every objective for `artifact`.

        Latency and throughput are the baseline's times the interleaved ratio, so that trials measured at different times of a noisy
        machine compare with each other.
        """
        wanted = self.config.objectives.names
        values: dict[str, float] = {"size": float(artifact_size(artifact.parent))}
        if {"latency", "throughput"} & set(wanted):
            ratio = self.compare_speed(artifact, _TRIAL_SHARE).ratio
            values |= {
                "latency": baseline.get("latency", 0.0) / ratio,
                "throughput": baseline.get("throughput", 0.0) * ratio,
            }
        if "memory" in wanted:
            values["memory"] = self._memory(artifact)
        if self.objective_functions:
            native = self.adapter.native(self.adapter.restore(artifact, self.config.performance.threads))
            values |= {name: _positive(name, f(native)) for name, f in self.objective_functions.items()}
        return FrozenMap({name: values[name] for name in {*wanted, "size"}})

    def _memory(self, artifact: Path) -> float:
        inputs = self.directory.root / "sample.npz"
        if not inputs.exists():
            np.savez(inputs, **_named(self.sample, self.adapter.query(self.model).inputs))
        return float(measure.peak_memory(self.adapter.name, artifact, inputs, self.config.performance.threads))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRunner:
    """Runs trials on a workbench: trial in, result out. An AdapterError makes a failed trial, anything else propagates."""

    bench: Workbench
    baseline: Baseline
    is_exact: bool
    progress: Progress

    def __call__(self, trial: Trial) -> TrialResult:
        """Run a trial. With a `train_func`, the post-training model (where there is calibration data) is the floor that training must beat."""
        bench, folder = self.bench, self.bench.directory.trial(trial.number)
        if bench.train_func is None:
            return self._attempt(trial, folder, "build", bench.build)
        floor = None if bench.statistics is None else self._attempt(trial, folder, "build", bench.build)
        if floor is not None and floor.is_accepted:
            return replace(floor, note="the post-training model meets the criterion; it was not trained")
        beside = folder.with_name(f"{trial.number}.trained")
        trained = self._attempt(trial, beside, "train", bench.build_trained)
        return self._better(floor, trained, folder, beside)

    def _better(self, floor: TrialResult | None, trained: TrialResult, folder: Path, beside: Path) -> TrialResult:
        """Keep the trained model if it comes nearer to the criterion than the post-training one, else that; the effort of both counts."""
        if floor is None:
            _replace_folder(folder, beside)
            return replace(trained, note="trained from uncalibrated ranges")
        told = f"trained: {trained.error or _numbers(trained)}; post-training: {floor.error or _numbers(floor)}"
        # A floor that failed has no files: whatever training gave is then all there is, even if its metric is NaN.
        keeps_trained = trained.status is TrialStatus.COMPLETE and (
            floor.status is TrialStatus.FAILED or self._slack(trained) > self._slack(floor)
        )
        if keeps_trained:
            _replace_folder(folder, beside)
        else:
            shutil.rmtree(beside, ignore_errors=True)
        winner = trained if keeps_trained or floor.status is TrialStatus.FAILED else floor
        stages = {**floor.durations}
        for stage, seconds in trained.durations.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
        return replace(
            winner,
            note=f"{'the trained' if winner is trained else 'the post-training'} model was kept ({told})",
            passes=floor.passes + trained.passes,
            durations=FrozenMap(stages),
        )

    def _slack(self, result: TrialResult) -> float:
        if result.status is not TrialStatus.COMPLETE:
            return -math.inf
        return judge(self.bench.config.criterion, result.metrics, self.baseline.metrics).slack

    def _attempt(self, trial: Trial, folder: Path, stage: str, build: Callable[[Candidate, Path], Path]) -> TrialResult:
        """Build, save, load back, evaluate, judge, and measure if accurate enough."""
        durations: dict[str, float] = {}
        try:
            with _clock(durations, stage):
                artifact = build(trial.candidate, folder)
                built = self.bench.adapter.restore(artifact, self.bench.config.threads)
            with _clock(durations, "evaluate"):
                evaluation = self._evaluate(trial, built)
            result = replace(self._judged(trial, evaluation), artifact=artifact.name)
            store_values(folder, evaluation)
            if result.is_accepted:
                with _clock(durations, "measure"):
                    objectives = self.bench.measure(artifact, self.baseline.objectives)
                result = replace(result, objectives=objectives)
        except AdapterError as error:
            shutil.rmtree(folder, ignore_errors=True)
            result = TrialResult(trial=trial, status=TrialStatus.FAILED, error=f"{type(error).__name__}: {error}")
        return replace(result, durations=FrozenMap({stage: round(s, 4) for stage, s in durations.items()}))

    def _evaluate(self, trial: Trial, built: Any) -> Evaluation:
        def hopeless(bounds: Mapping[str, float]) -> bool:
            return not judge(self.bench.config.criterion, bounds, self.baseline.metrics).is_met

        return self.bench.evaluator.evaluate(
            self.bench.adapter,
            built,
            # A post-training model that is compared with its trained form must be known exactly.
            hopeless=None if self.is_exact or self.bench.train_func is not None else hopeless,
            progress=lambda done, total: self.progress(trial.number, done, total),
            is_batch_bound=trial.candidate.is_batch_bound,
        )

    def _judged(self, trial: Trial, evaluation: Evaluation) -> TrialResult:
        verdict = judge(
            self.bench.config.criterion,
            evaluation.metrics if evaluation.is_complete else evaluation.bounds,
            self.baseline.metrics,
        )
        return TrialResult(
            trial=trial,
            status=TrialStatus.COMPLETE if evaluation.is_complete else TrialStatus.REJECTED,
            metrics=evaluation.metrics,
            bounds=evaluation.bounds,
            # Only a whole pass can accept, whatever a bound says.
            is_accepted=evaluation.is_complete and verdict.is_met,
            reason=verdict.reason if evaluation.is_complete else f"at best {verdict.reason}",
            samples=evaluation.samples,
            passes=evaluation.passes,
        )


def _replace_folder(folder: Path, by: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if by.is_dir():
        by.rename(folder)


def _numbers(result: TrialResult) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())


def store_values(folder: Path, evaluation: Evaluation) -> None:
    """Write the per-sample values of a complete evaluation beside its artifact, with the artifact's hash."""
    if evaluation.is_complete:
        values = {f"value:{name}": array for name, array in (evaluation.values or {}).items()}
        meta = canonical_json(FrozenMap({"samples": float(evaluation.samples), "passes": evaluation.passes}))
        np.savez(
            folder / VALUES_FILE, allow_pickle=False, meta=np.array(meta), hash=np.array(content_hash(folder)), **values
        )


def artifact_size(folder: Path) -> int:
    """Return the bytes of everything that `save` wrote into a trial's folder."""
    own = [folder / name for name in OWN_FILES]
    return measure.size_on_disk(folder) - sum(path.stat().st_size for path in own if path.is_file())


def content_hash(folder: Path) -> str:
    """Return the SHA-256 over names and bytes of all files below `folder`, `OWN_FILES` left out."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not (path.parent == folder and path.name in OWN_FILES):
            total.update(path.relative_to(folder).as_posix().encode() + b"\0")
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    total.update(block)
    return total.hexdigest()


def _positive(name: str, value: object) -> float:
    """Return a user's objective as a number. Candidates are ranked by ratios to float, which need positive values."""
    number = float(value)  # type: ignore[arg-type] # what is no number raises here, in the user's own words
    if not (math.isfinite(number) and number > 0):
        raise ConfigError(f"objective {name!r} returned {value!r}, expected a number above 0: shift or invert it")
    return number


def _named(inputs: Inputs, names: tuple[str, ...]) -> dict[str, Any]:
    if isinstance(inputs, Mapping):
        return dict(inputs)
    members = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return dict(zip(names, members, strict=True))


@contextmanager
def _clock(durations: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        durations[stage] = durations.get(stage, 0.0) + time.perf_counter() - start
