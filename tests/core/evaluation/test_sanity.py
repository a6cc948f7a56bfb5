from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np

from neural_tune.evaluation import Evaluation, check_baseline, check_outputs, metric
from neural_tune.evaluation.sanity import near_chance
from neural_tune.values import FrozenMap

BATCH = np.arange(12.0).reshape(4, 3)


class Model:
    def __init__(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        self.function = function

    def run(self, built: object, inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        return (self.function(inputs),)


def problems(function: Callable[[np.ndarray], np.ndarray], inputs: np.ndarray = BATCH) -> list[str]:
    return check_outputs(Model(function), None, inputs)  # type: ignore[arg-type]


def test_a_finite_metric_is_sane_and_others_are_named() -> None:
    assert check_baseline(Evaluation(metrics=FrozenMap({"f1": 0.5}))) == []
    found = check_baseline(Evaluation(metrics=FrozenMap({"f1": math.nan, "loss": math.inf, "topk": 1.0})))
    assert len(found) == 2
    assert "f1 is nan" in found[0]
    assert "no metric" in check_baseline(Evaluation(metrics=FrozenMap()))[0]


def test_healthy_outputs_have_no_problem() -> None:
    assert problems(lambda x: x * 2) == []
    assert problems(lambda x: x.argmax(axis=1), np.eye(3)) == []


def test_values_that_are_not_finite_are_counted() -> None:
    (found,) = problems(lambda x: np.where(x > 9, np.nan, x))
    assert "2 values of 12 that are not finite" in found


def test_a_dead_model_is_recognised_unless_the_batch_cannot_tell() -> None:
    assert "same for all 4 samples" in problems(np.ones_like)[0]
    assert problems(np.ones_like, BATCH[:1]) == []
    assert problems(lambda x: x * 2, np.ones((4, 3))) == []


def test_a_model_that_does_not_repeat_itself_is_recognised() -> None:
    generator = np.random.default_rng(0)
    (found,) = problems(lambda x: x + generator.normal(size=x.shape) * 1e-3)
    assert "two runs" in found
    assert problems(lambda x: x * (1 + 1e-9 * generator.normal())) == []


def test_importing_the_package_loads_no_library_of_metrics() -> None:
    code = (
        "import sys, neural_tune.evaluation as e; e.metric('topk'); e.metric('psnr');"
        "print([m for m in ('sklearn', 'scipy', 'torch', 'torchmetrics', 'tensorflow') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_an_accuracy_at_chance_level_is_a_notice_and_a_better_one_is_not() -> None:
    labels = np.arange(1000) % 10  # always answering one class: 0.1, with a standard error of 0.0095
    topk = metric("topk")
    assert "0.1180, and 0.1000" in near_chance(topk, 0.118, labels)
    assert near_chance(topk, 0.120, labels) == ""
    assert near_chance(metric("accuracy"), 0.118, labels) != ""
    assert near_chance(topk, 0.0, labels) != ""


def test_only_accuracies_over_classes_on_enough_samples_can_be_at_chance_level() -> None:
    labels = np.arange(1000) % 10
    assert near_chance(metric("mse"), 0.0, labels) == ""
    assert near_chance(metric({"topk": 5}), 0.1, labels) == ""
    assert near_chance(metric("topk"), 0.1, labels[:40]) == ""
    assert near_chance(metric("topk"), 1.0, np.zeros(1000, int)) == ""
    assert near_chance(metric("accuracy"), 0.1, np.tile(labels, (2, 1))) == ""
    assert near_chance(metric("topk"), 0.1, list(labels)) == ""
    assert near_chance(metric({"accuracy": {"ignore_index": 0}}), 0.1, labels) == ""
