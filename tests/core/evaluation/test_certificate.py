from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from neural_tune.errors import DataError
from neural_tune.evaluation import Certificate, Evaluation, FunctionEvaluator, MetricEvaluator, certify
from neural_tune.evaluation.certificate import BONETT_PRICE, BOOTSTRAP, PAIRED_T, paired_mean, paired_proportions
from neural_tune.values import AccuracyCriterion, FrozenMap, canonical_json, from_jsonable

pytest.importorskip("scipy.stats", reason="scipy is not installed")


def evaluation(name: str, values: np.ndarray, **fields: Any) -> Evaluation:
    return Evaluation(
        metrics=FrozenMap({name: float(values.mean())}),
        samples=len(values),
        values={name: values.astype(float)},
        **fields,
    )


def test_right_or_wrong_samples_give_counts_and_the_interval_of_bonett_and_price() -> None:
    before = np.array([1] * 90 + [0] * 10)
    after = np.array([1] * 80 + [0] * 16 + [1] * 4)  # 10 lost, 4 won
    (entry,) = certify(evaluation("topk", before), evaluation("topk", after), {"topk": True}).metrics
    assert (entry.worse, entry.better, entry.samples, entry.method) == (10, 4, 100, BONETT_PRICE)
    assert entry.drop == pytest.approx(0.06)
    down, up = 11 / 102, 5 / 102  # by hand: one more of each, two more in all
    half = 1.959963984540054 * math.sqrt((down + up - (down - up) ** 2) / 102)
    assert (entry.low, entry.high) == pytest.approx((down - up - half, down - up + half), abs=1e-12)


def test_an_error_that_grew_is_a_positive_drop_with_a_paired_t_interval() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    before = generator.random(40)
    after = before + generator.normal(0.1, 0.2, 40)
    entry = certify(evaluation("mse", before), evaluation("mse", after), {"mse": False})["mse"]
    expected = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert entry.method == PAIRED_T
    assert entry.drop == pytest.approx(after.mean() - before.mean())
    assert (entry.low, entry.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert entry.worse == int((after > before).sum())


@pytest.mark.parametrize(("worse", "better"), [(0.03, 0.01), (0.01, 0.01), (0.10, 0.06)])
def test_the_interval_of_proportions_covers_the_truth(worse: float, better: float) -> None:
    generator = np.random.default_rng(17)
    draws = generator.multinomial(500, [worse, better, 1 - worse - better], size=4000)
    hits = 0
    for down, up, _ in draws:
        low, high = paired_proportions(int(down), int(up), 500)
        hits += low <= worse - better <= high
    assert hits / len(draws) >= 0.93


def test_the_interval_of_a_mean_difference_covers_the_truth() -> None:
    generator = np.random.default_rng(18)
    hits = 0
    for _ in range(2000):
        low, high = paired_mean(generator.exponential(0.5, 500) - 0.3)  # skewed on purpose
        hits += low <= 0.2 <= high
    assert hits / 2000 >= 0.93


def test_a_single_sample_has_no_interval_of_the_mean() -> None:
    assert all(math.isnan(end) for end in paired_mean(np.array([0.5])))


def test_an_opaque_function_gets_a_drop_without_an_interval_and_the_criterions_direction() -> None:
    values = iter([0.5, 0.6])
    evaluator = FunctionEvaluator(lambda model: {"loss": next(values)})

    class Native:
        def native(self, built: object) -> object:
            return built

    evaluator.baseline(Native(), None)  # type: ignore[arg-type]
    final = evaluator.evaluate(Native(), None)  # type: ignore[arg-type]
    entry = evaluator.certify(final, criterion=AccuracyCriterion(higher_is_better=False))["loss"]
    assert entry.drop == pytest.approx(0.1)
    assert entry.method == "none (opaque eval_func)"
    assert math.isnan(entry.low)
    assert math.isnan(entry.high)


def rank_evaluator(seed: int, n: int) -> tuple[MetricEvaluator, Evaluation]:
    """A float model and a candidate that correlate with a target, known by their outputs."""

    class Columns:
        def run(self, built: int, inputs: np.ndarray) -> tuple[np.ndarray, ...]:
            return (inputs[:, built],)

    generator = np.random.default_rng(seed)
    target = generator.normal(size=n)
    table = np.stack([target + 0.5 * generator.normal(size=n), target + generator.normal(size=n)], axis=1)
    evaluator = MetricEvaluator((table, target), ["pearson"], batch_size=50)
    evaluator.baseline(Columns(), 0)  # type: ignore[arg-type]
    return evaluator, evaluator.evaluate(Columns(), 1)  # type: ignore[arg-type]


def test_a_metric_that_is_no_mean_is_resampled_and_the_seed_decides() -> None:
    evaluator, final = rank_evaluator(0, 300)
    entry = evaluator.certify(final, seed=3)["pearson"]
    assert entry.method == BOOTSTRAP
    assert entry.low < entry.drop < entry.high
    assert entry == evaluator.certify(final, seed=3)["pearson"]
    assert entry != evaluator.certify(final, seed=4)["pearson"]
    # The truth: correlations 1/sqrt(1.25) and 1/sqrt(2).
    assert entry.low < 1 / math.sqrt(1.25) - 1 / math.sqrt(2) < entry.high


def test_a_certificate_needs_a_complete_evaluation_with_the_baselines_metrics() -> None:
    whole = evaluation("topk", np.ones(4))
    with pytest.raises(DataError, match="cut short"):
        certify(whole, Evaluation(metrics=FrozenMap(), is_complete=False), {})
    with pytest.raises(DataError, match=r"with the metrics \['topk'\]; found \['f1'\]"):
        certify(whole, evaluation("f1", np.ones(4)), {})


def test_a_certificate_has_a_canonical_json_form() -> None:
    opaque = Evaluation(metrics=FrozenMap({"accuracy": 0.5}), passes=1.0)
    certificate = certify(opaque, opaque, {})
    text = canonical_json(certificate)
    again = from_jsonable(Certificate, json.loads(text))
    assert canonical_json(again) == text
    assert again["accuracy"].value == 0.5
    with pytest.raises(KeyError):
        again["f1"]
