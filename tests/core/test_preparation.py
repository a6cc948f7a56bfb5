"""What a start refuses, when, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neural_tune import (
    ConfigError,
    DataError,
    PerformanceConfig,
    PostTrainingQuantConfig,
    TuningCriterion,
    fit,
    journal,
)
from neural_tune.api import task_of
from neural_tune.replay import from_recipe, replay
from neural_tune.report import make_reporter
from neural_tune.testing import ToyAdapter, ToyTask, toy_task


@pytest.fixture(scope="module")
def toy() -> ToyTask:
    return toy_task()


class Counting(ToyAdapter):
    """Counts what is run."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def run(self, *arguments: Any) -> Any:
        self.runs += 1
        return super().run(*arguments)


def conf(folder: Path) -> PostTrainingQuantConfig:
    return PostTrainingQuantConfig(
        workspace=str(folder / "w"),
        performance=PerformanceConfig(warmup=1, repeats=12, seconds=0.05, batch_size=8),
        tuning_criterion=TuningCriterion(strategy="basic"),
    )


def failing_eval(_: object) -> float:
    raise ZeroDivisionError("my own bug")


def broken_data() -> Iterator[Any]:
    raise DataError("the disk with the data is not there")
    yield


def test_a_recipe_that_does_not_fit_is_refused_before_anything_is_run(toy: ToyTask, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("version: 1\nrules: [{op: nowhere, use: int8}]\n")
    adapter = Counting()
    calls: list[object] = []
    task = task_of(
        toy.model,
        conf(tmp_path),
        toy.batches(),
        lambda model: calls.append(model) or 0.9,
        framework=adapter,
        reporter=make_reporter("quiet"),
    )
    with pytest.raises(ConfigError, match="recipe"):
        replay(task, from_recipe(recipe))
    assert (adapter.runs, calls) == (0, [])
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"calib_dataloader": lambda toy: broken_data()}, DataError),
        ({"calib_dataloader": lambda toy: []}, DataError),
        ({"framework": lambda toy: "no such framework"}, Exception),
    ],
)
def test_a_start_that_fails_before_it_knew_anything_leaves_no_folder(
    toy: ToyTask, tmp_path: Path, changes: dict[str, Any], error: type[Exception]
) -> None:
    given: dict[str, Any] = {"calib_dataloader": toy.batches(), "framework": ToyAdapter()}
    given |= {name: change(toy) for name, change in changes.items()}
    with pytest.raises(error):
        fit(toy.model, conf(tmp_path), eval_func=lambda _: 0.9, reporter="quiet", **given)
    assert list((tmp_path / "w").glob("*")) == []


def test_a_start_that_fails_leaves_other_runs_of_the_job_alone(toy: ToyTask, tmp_path: Path) -> None:
    given: dict[str, Any] = {"eval_func": lambda _: 0.9, "reporter": "quiet", "framework": ToyAdapter()}
    result = fit(toy.model, conf(tmp_path), toy.batches(), **given)
    with pytest.raises(DataError):
        fit(toy.model, conf(tmp_path), broken_data(), **given)
    assert list((tmp_path / "w").glob("*/*")) == [result.run_directory]


def test_a_start_that_fails_after_the_calibration_can_be_resumed_without_another_one(
    toy: ToyTask, tmp_path: Path
) -> None:
    with pytest.raises(ZeroDivisionError):
        fit(toy.model, conf(tmp_path), toy.batches(), failing_eval, reporter="quiet", framework=ToyAdapter())
    (root,) = (tmp_path / "w").glob("*/*")
    result = fit(
        toy.model,
        conf(tmp_path),
        toy.batches(),
        lambda _: 0.9,
        reporter="quiet",
        framework=ToyAdapter(),
        resume=root,
    )
    assert result.accepted
    kinds = [record["kind"] for record in journal.read(root / "journal.jsonl")]
    assert kinds.count("calibration") == 1


def test_the_search_of_a_finished_run_is_not_repeated_and_the_result_says_so(toy: ToyTask, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "calib_dataloader": toy.batches(),
        "eval_dataloader": (toy.inputs, toy.labels),
        "eval_metric": "topk",
        "framework": ToyAdapter(),
        "reporter": "quiet",
    }
    first = fit(toy.model, conf(tmp_path), **given)
    again = fit(toy.model, conf(tmp_path), **given, resume=first.run_directory)
    assert again.status is first.status
    assert again.passes == first.passes
    assert [trial.trial for trial in again.trials] == [trial.trial for trial in first.trials]
    assert first.artifact is not None
    assert again.artifact is not None
    assert np.array_equal(again.model(toy.inputs[:4]), first.model(toy.inputs[:4]))
    assert any("the search of this run was over" in notice for notice in again.notices)
    assert not any("the search of this run was over" in notice for notice in first.notices)
    more = PostTrainingQuantConfig(
        workspace=str(tmp_path / "w"),
        performance=conf(tmp_path).performance,
        tuning_criterion=TuningCriterion(strategy="basic", timeout=60, max_trials=len(first.trials) + 1),
    )
    further = fit(toy.model, more, **given, resume=first.run_directory)
    assert len(further.trials) == len(first.trials) + 1
    assert not any("the search of this run was over" in notice for notice in further.notices)
