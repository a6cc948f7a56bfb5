"""Quantization-aware training through `fit` and `prepare_compression`, on the toy adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neural_tune import (
    AccuracyCriterion,
    AdapterError,
    CapabilityError,
    ConfigError,
    PerformanceConfig,
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    TuneResult,
    TuningCriterion,
    fit,
    load,
    prepare_compression,
)
from neural_tune.testing import ToyAdapter, ToyTask, sabotage, toy_task
from neural_tune.values import TrialStatus

QUICK = PerformanceConfig(warmup=1, repeats=12, seconds=0.05, batch_size=8)


@pytest.fixture(scope="module")
def task() -> ToyTask:
    return toy_task()


def training_data(task: ToyTask) -> tuple[Any, Any]:
    """Half of the evaluation set; what the tests assert does not need fresh samples."""
    return task.inputs[::2], task.labels[::2]


def tune(task: ToyTask, model: Any, tmp_path: Path, train_func: Any, **arguments: Any) -> TuneResult:
    settings: dict[str, Any] = {
        "workspace": str(tmp_path / "w"),
        "performance": QUICK,
        "tuning_criterion": TuningCriterion(strategy="basic", max_trials=1),
        "accuracy_criterion": AccuracyCriterion(True, "absolute", 0.01),
    }
    return fit(
        model,
        QuantizationAwareTrainingConfig(**settings),
        eval_dataloader=(task.inputs, task.labels),
        eval_metric="topk",
        train_func=train_func,
        framework=ToyAdapter(),
        reporter="quiet",
        **{"calib_dataloader": task.batches(), **arguments},
    )


def test_training_recovers_what_post_training_quantization_loses(task: ToyTask, tmp_path: Path) -> None:
    hard = sabotage(task.model, "dense3", 64.0)
    before = [weight.copy() for weight in hard.weights]
    result = tune(task, hard, tmp_path, lambda model: model.fit(*training_data(task), epochs=16, rate=3e-5))
    assert result.accepted, result.reason
    assert result.best is not None
    assert any("the trained model was kept" in notice for notice in result.notices)
    assert result.best.passes == pytest.approx(2.0)  # the post-training floor and the trained model
    assert result.passes == pytest.approx(3.0)
    assert "train" in result.best.durations
    assert all(np.array_equal(*pair) for pair in zip(before, hard.weights, strict=True))
    result.save(tmp_path / "saved")
    restored = load(tmp_path / "saved", framework=ToyAdapter())
    assert task.accuracy(restored) == pytest.approx(result.best.metrics["topk"])
    assert not any(op.is_float for op in result.ops)


def test_training_that_is_not_needed_does_not_happen(task: ToyTask, tmp_path: Path) -> None:
    calls: list[Any] = []
    result = tune(task, task.model, tmp_path, calls.append)
    assert result.accepted
    assert not calls
    assert any("was not trained" in notice for notice in result.notices)


def test_without_calibration_data_training_finds_the_ranges(task: ToyTask, tmp_path: Path) -> None:
    result = tune(
        task, task.model, tmp_path, lambda model: model.fit(*training_data(task), epochs=2), calib_dataloader=None
    )
    assert result.accepted, result.reason
    assert result.passes == pytest.approx(2.0)
    assert result.best is not None
    assert result.best.status is TrialStatus.COMPLETE


def test_training_that_makes_it_worse_leaves_the_post_training_model(task: ToyTask, tmp_path: Path) -> None:
    hard = sabotage(task.model, "dense3", 64.0)

    def ruin(model: Any) -> None:
        model.fit(*training_data(task), epochs=1)
        for weight in model.model.weights:
            weight[:] = 0.0

    floor = tune(task, hard, tmp_path / "ruined", ruin)
    assert not floor.accepted
    assert floor.best is not None
    assert floor.best.metrics["topk"] > 0.3
    assert "the post-training model was kept (trained: topk" in floor.best.note


def test_a_diverged_training_is_a_failed_attempt_and_the_post_training_model_stays(
    task: ToyTask, tmp_path: Path
) -> None:
    hard = sabotage(task.model, "dense3", 64.0)

    def diverge(model: Any) -> None:
        model.model.weights[0][0, 0] = np.nan

    result = tune(task, hard, tmp_path, diverge)
    assert result.best is not None
    assert "not finite" in result.best.note
    without = tune(task, task.model, tmp_path / "b", diverge, calib_dataloader=None)
    assert not without.accepted
    assert "not finite" in without.reason


def test_where_no_post_training_model_can_be_built_the_trained_one_is_kept_whatever_its_metric_says(
    task: ToyTask, tmp_path: Path
) -> None:
    refused: list[Any] = []

    class Unbuildable(ToyAdapter):
        def build(self, model: Any, candidate: Any, statistics: Any, threads: int | None = None) -> Any:
            if not candidate.is_float and not refused:
                refused.append(candidate)
                raise AdapterError("no kernel for these ranges")
            return super().build(model, candidate, statistics, threads)

    seen: list[float] = []

    def diverged(_: Any) -> float:
        seen.append(0.0)
        return 0.9 if len(seen) == 1 else float("nan")

    result = fit(
        task.model,
        QuantizationAwareTrainingConfig(
            workspace=str(tmp_path / "w"),
            performance=QUICK,
            tuning_criterion=TuningCriterion(strategy="basic", max_trials=1),
        ),
        calib_dataloader=task.batches(),
        eval_func=diverged,
        train_func=lambda model: model.fit(*training_data(task), epochs=1),
        framework=Unbuildable(),
        reporter="quiet",
    )
    assert result.status == "best_effort", result.reason
    assert result.best is not None
    assert "the trained model was kept (trained: " in result.best.note
    assert result.artifact is not None


def test_what_train_func_raises_propagates(task: ToyTask, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        tune(task, task.model, tmp_path, lambda _: 1 / 0, calib_dataloader=None)


def test_a_train_func_that_returns_another_model_is_refused(task: ToyTask, tmp_path: Path) -> None:
    def elsewhere(model: Any) -> Any:
        return type(model)(model.model, model.tensors, model._candidate, {})

    with pytest.raises(ConfigError, match="in place"):
        tune(task, task.model, tmp_path, elsewhere, calib_dataloader=None)


def test_training_needs_a_function_and_its_configuration(task: ToyTask, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train_func"):
        tune(task, task.model, tmp_path, None)
    with pytest.raises(ConfigError, match="QuantizationAwareTrainingConfig"):
        fit(
            task.model,
            PostTrainingQuantConfig(workspace=str(tmp_path)),
            calib_dataloader=task.batches(),
            eval_func=task.accuracy,
            train_func=print,
            framework=ToyAdapter(),
            reporter="quiet",
        )


def test_a_training_loop_of_ones_own_ends_in_an_integer_model(task: ToyTask, tmp_path: Path) -> None:
    manager = prepare_compression(task.model, QuantizationAwareTrainingConfig(), task.batches(), framework=ToyAdapter())
    manager.callbacks.on_train_begin()
    manager.model.fit(*training_data(task), epochs=2)
    shown = np.argmax(manager.model(task.inputs), axis=1)
    manager.callbacks.on_train_end()
    assert np.mean(np.argmax(manager.model(task.inputs), axis=1) == shown) > 0.99  # fake_quant equals integers
    manager.save(tmp_path / "saved")
    assert task.accuracy(load(tmp_path / "saved", framework=ToyAdapter())) == task.accuracy(manager.model)


def test_prepare_compression_takes_no_post_training_configuration(task: ToyTask) -> None:
    with pytest.raises(ConfigError, match="QuantizationAwareTrainingConfig"):
        prepare_compression(task.model, PostTrainingQuantConfig(), framework=ToyAdapter())  # type: ignore[arg-type]


def test_an_adapter_that_cannot_train_says_so(task: ToyTask) -> None:
    class Untrained(ToyAdapter):
        training = None  # type: ignore[assignment]

    class Plain:
        name = "plain"

        def __getattr__(self, name: str) -> Any:
            if name == "training":
                raise AttributeError(name)
            return getattr(ToyAdapter(), name)

    with pytest.raises(CapabilityError, match="cannot train"):
        prepare_compression(task.model, QuantizationAwareTrainingConfig(), framework=Plain())  # type: ignore[arg-type]
