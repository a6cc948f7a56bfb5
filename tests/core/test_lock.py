"""The distance of a locked model from float."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neural_tune import PerformanceConfig, PostTrainingQuantConfig, TuningCriterion, lock
from neural_tune.api import task_of
from neural_tune.check import check
from neural_tune.command_record import CommandRecord
from neural_tune.replay import replay
from neural_tune.report import make_reporter
from neural_tune.task import Task
from neural_tune.testing import ToyAdapter, ToyTask, toy_task


def test_an_output_that_is_no_number_is_far_away_and_still_a_number() -> None:
    part = np.asarray([[1.0, np.nan], [np.inf, 0.0], [-np.inf, 0.0], [1.0, 2.0]])
    found = lock._squares([part])
    assert np.isfinite(found).all()
    assert (found[:3] >= 1e12).all()
    assert found[3] == 5.0


def opaque(toy: ToyTask, folder: Path, calibration: Any) -> Task:
    """A task that only an eval_func evaluates: nobody sees its data."""
    conf = PostTrainingQuantConfig(
        workspace=str(folder),
        performance=PerformanceConfig(warmup=1, repeats=12, seconds=0.05, batch_size=8),
        tuning_criterion=TuningCriterion(max_trials=1),
    )
    return task_of(toy.model, conf, calibration, lambda _: 0.9, framework=ToyAdapter(), reporter=make_reporter("quiet"))


def test_distances_on_other_calibration_data_are_not_compared(tmp_path: Path) -> None:
    toy = toy_task()
    batches = list(toy.batches())
    others = [np.asarray(inputs)[::-1] * np.float32(0.5) for inputs in batches]
    made = replay(opaque(toy, tmp_path / "a", batches), lambda space: space.preferred())
    written, values = lock.lock_of(made, CommandRecord(job=tmp_path / "job.yaml"), tmp_path / "lock.json")
    for calibration, outcome in ((batches, "passed"), (others, "skipped")):
        report = check(opaque(toy, tmp_path / outcome, calibration), written, values, has_latency=False)
        found = {item.name: item for item in report.checks}["distance from float"]
        assert found.outcome == outcome, found.detail
    assert found.detail == "the calibration data changed"


def test_a_check_runs_the_models_and_hashes_the_data_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = toy_task()
    batches = list(toy.batches())
    made = replay(opaque(toy, tmp_path / "a", batches), lambda space: space.preferred())
    written, values = lock.lock_of(made, CommandRecord(job=tmp_path / "job.yaml"), tmp_path / "lock.json")
    calls: Counter[str] = Counter()

    def counted(name: str) -> None:
        original = getattr(lock, name)

        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return original(*arguments)

        monkeypatch.setattr(f"neural_tune.check.{name}", call)

    names = ("distances_of", "evaluation_digest", "calibration_digest")
    for name in names:
        counted(name)
    report = check(opaque(toy, tmp_path / "b", batches), written, values, has_latency=False)
    outcomes = {item.name: item.outcome for item in report.checks}
    assert outcomes["distance from float"] == outcomes["same outputs"] == "passed"
    assert calls == dict.fromkeys(names, 1)
