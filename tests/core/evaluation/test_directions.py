from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neural_tune import AccuracyCriterion, ConfigError, PerformanceConfig, PostTrainingQuantConfig, TuningCriterion, fit
from neural_tune.evaluation import Metric, MetricEvaluator
from neural_tune.evaluation.metrics import best_possible, metric
from neural_tune.testing import ToyAdapter, ToyTask, sabotage, toy_task
from neural_tune.values import FrozenMap, judge


def wrong_rate(outputs: np.ndarray, labels: np.ndarray) -> float:
    return float((outputs.argmax(axis=1) != labels).mean())


class TableAdapter:
    """A model is a table of outputs; its input is the row number."""

    def run(self, built: np.ndarray, inputs: Any) -> tuple[np.ndarray, ...]:
        return (built[np.asarray(inputs)[:, 0].astype(int)],)


def evaluator_on(labels: np.ndarray, metrics: object) -> MetricEvaluator:
    return MetricEvaluator((np.arange(len(labels))[:, None], labels), metrics, batch_size=10)


@pytest.fixture(scope="module")
def task() -> ToyTask:
    return toy_task()


def tuned(task: ToyTask, workspace: Path, metric: object, criterion: AccuracyCriterion) -> Any:
    config = PostTrainingQuantConfig(
        workspace=str(workspace),
        performance=PerformanceConfig(warmup=1, repeats=12, seconds=0.05, batch_size=8),
        tuning_criterion=TuningCriterion(strategy="basic", max_trials=1),
        accuracy_criterion=criterion,
    )
    model = sabotage(task.model, task.model.dense_names[2])
    data = (task.inputs, task.labels)
    return fit(model, config, task.batches(), None, data, metric, framework=ToyAdapter(), reporter="quiet")


@pytest.mark.parametrize("spec", [wrong_rate, f"{__name__}:wrong_rate", [wrong_rate, "topk"]])
def test_a_callable_without_a_direction_has_the_criterions_and_a_worse_model_is_not_accepted(
    spec: object, task: ToyTask, tmp_path: Path
) -> None:
    result = tuned(task, tmp_path, spec, AccuracyCriterion(False, "relative", 0.01))
    assert not result.accepted
    (drop,) = (entry.drop for entry in result.certificate.metrics if entry.name == "wrong_rate")
    assert drop > 0.1


def test_a_direction_that_only_the_metric_states_holds_against_the_default(task: ToyTask, tmp_path: Path) -> None:
    spec = {"callable": wrong_rate, "higher_is_better": False}
    result = tuned(task, tmp_path, spec, AccuracyCriterion(criterion="relative", tolerable_loss=0.01))
    assert not result.accepted
    assert any("wrong_rate: lower is better" in notice for notice in result.notices)


def test_a_metric_and_its_own_criterion_that_contradict_each_other_are_refused(task: ToyTask, tmp_path: Path) -> None:
    for stated in (True, False):
        own = AccuracyCriterion(metrics=FrozenMap({"wrong_rate": AccuracyCriterion(not stated)}))
        with pytest.raises(ConfigError, match=rf"'wrong_rate': found higher_is_better={stated} .* and {not stated}"):
            tuned(task, tmp_path, {"callable": wrong_rate, "higher_is_better": stated}, own)
    assert evaluator_on(np.zeros(3), "mse").settle(
        AccuracyCriterion(metrics=FrozenMap({"mse": AccuracyCriterion(True)}))
    ) == {"mse": False}


def test_only_stated_directions_are_known_before_the_criterion_settles_the_others() -> None:
    evaluator = evaluator_on(np.zeros(3), ["mse", "topk", wrong_rate, {"numpy:vdot": {"higher_is_better": False}}])
    assert evaluator.directions == {"mse": False, "topk": True, "vdot": False}
    settled = evaluator.settle(AccuracyCriterion(False))
    assert settled == evaluator.directions == {"mse": False, "topk": True, "wrong_rate": False, "vdot": False}
    assert [metric.higher_is_better for metric in evaluator.metrics] == [False, True, False, False]
    own = AccuracyCriterion(False, metrics=FrozenMap({"wrong_rate": AccuracyCriterion(True)}))
    assert evaluator.settle(own)["wrong_rate"] is True


def test_no_bound_exists_without_a_direction() -> None:
    silent = metric(wrong_rate)
    assert silent.higher_is_better is None
    with pytest.raises(ConfigError, match="'wrong_rate': it is not known whether higher is better"):
        best_possible(silent, 0.0, 0, 10)


def absolute_error() -> Metric:
    def per_sample(outputs: tuple[np.ndarray, ...], labels: object) -> np.ndarray:
        return np.abs(outputs[0] - np.asarray(labels))

    return Metric(
        name="gap",
        higher_is_better=None,
        compute=lambda outputs, labels: float(per_sample(outputs, labels).mean()),
        per_sample=per_sample,
        best_per_sample=0.0,
    )


def failing(criterion: AccuracyCriterion, baseline: Mapping[str, float]) -> Callable[[Mapping[str, float]], bool]:
    return lambda bounds: not judge(criterion, bounds, baseline).is_met


def test_early_rejection_and_certificate_use_the_settled_direction() -> None:
    labels = np.arange(40.0)
    criterion = AccuracyCriterion(False, "absolute", 0.5)
    better, worse, base = labels + 0.1, labels + 3.0, labels + 1.0
    evaluator, adapter = evaluator_on(labels, absolute_error()), TableAdapter()
    evaluator.settle(criterion)
    baseline = evaluator.baseline(adapter, base).metrics  # type: ignore[arg-type]
    rule = failing(criterion, baseline)
    rejected = evaluator.evaluate(adapter, worse, hopeless=rule)  # type: ignore[arg-type]
    assert (rejected.is_complete, rejected.samples) == (False, 30)  # 30 * 3 / 40 is above 1.5, 20 * 3 / 40 is not
    accepted = evaluator.evaluate(adapter, better, hopeless=rule)  # type: ignore[arg-type]
    assert accepted.is_complete
    assert evaluator.certify(accepted)["gap"].drop == pytest.approx(-0.9)


def test_nothing_is_rejected_early_while_a_direction_is_unknown() -> None:
    labels = np.arange(40.0)
    evaluator, adapter = evaluator_on(labels, absolute_error()), TableAdapter()
    evaluator.baseline(adapter, labels)  # type: ignore[arg-type]
    complete = evaluator.evaluate(adapter, labels + 9, hopeless=lambda bounds: True)  # type: ignore[arg-type]
    assert complete.is_complete
    assert math.isclose(complete.metrics["gap"], 9.0)
