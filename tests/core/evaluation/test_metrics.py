from __future__ import annotations

import math

import numpy as np
import pytest

from neural_tune.errors import ConfigError, DataError
from neural_tune.evaluation import METRICS, metric, metrics

sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")


def logits(seed: int = 0, n: int = 200, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are often right and full of ties, as dequantized outputs are."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, n)
    scores = generator.normal(size=(n, classes)) + 1.5 * np.eye(classes)[labels]
    return (np.round(scores * 4) / 4).astype(np.float32), labels


@pytest.mark.parametrize("k", [2, 3, 5])
def test_topk_is_scikit_learns_value_and_the_mean_of_its_samples(k: int) -> None:
    scores, labels = logits()
    top = metric({"topk": k})
    expected = sklearn_metrics.top_k_accuracy_score(labels, scores, k=k)
    assert top.compute((scores,), labels) == expected
    assert top.per_sample is not None
    assert top.per_sample((scores,), labels).mean() == pytest.approx(expected, abs=1e-12)


def test_top1_is_the_accuracy_of_argmax_ties_included() -> None:
    scores, labels = logits()
    top = metric("topk")
    expected = sklearn_metrics.accuracy_score(labels, scores.argmax(axis=1))
    assert top.compute((scores,), labels) == metric("accuracy").compute((scores,), labels) == expected
    assert top.per_sample is not None
    assert top.per_sample((scores,), labels).mean() == pytest.approx(expected, abs=1e-12)


def test_topk_works_when_the_data_lack_some_classes_and_with_one_hot_or_column_labels() -> None:
    scores, labels = logits()
    few = labels < 7
    top = metric({"topk": {"k": 3}})
    expected = sklearn_metrics.top_k_accuracy_score(labels[few], scores[few], k=3, labels=np.arange(10))
    for shaped in (labels[few], labels[few][:, None], np.eye(10)[labels[few]], labels[few].astype(np.float32)):
        assert top.compute((scores[few],), shaped) == expected


def test_masked_classes_at_minus_infinity_do_not_stop_topk() -> None:
    scores, labels = logits()
    scores[:, 9] = -np.inf
    labels = np.minimum(labels, 8)
    assert 0.3 < metric({"topk": 2}).compute((scores,), labels) < 1


def test_labels_beyond_the_models_classes_are_named() -> None:
    scores, labels = logits()
    with pytest.raises(DataError, match=r"labels from 0 to 10, but the model has 10 classes \(0 to 9\)"):
        metric("topk").compute((scores,), np.append(labels[1:], 10))


def test_topk_of_all_classes_is_refused() -> None:
    scores, labels = logits(classes=3)
    with pytest.raises(DataError, match="always right"):
        metric({"topk": 3}).compute((scores,), labels)


@pytest.mark.parametrize("name", ["mse", "mae"])
@pytest.mark.parametrize("shape", [(50,), (50, 1), (50, 4), (50, 2, 3, 3)])
def test_errors_are_scikit_learns_and_the_mean_of_their_samples(name: str, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(1)
    found, wanted = generator.normal(size=shape).astype(np.float32), generator.normal(size=shape).astype(np.float32)
    function = {"mse": sklearn_metrics.mean_squared_error, "mae": sklearn_metrics.mean_absolute_error}[name]
    expected = function(wanted.astype(np.float64).ravel(), found.astype(np.float64).ravel())
    built = metric(name)
    assert not built.higher_is_better
    assert built.compute((found,), wanted) == expected
    assert built.per_sample is not None
    assert built.per_sample((found,), wanted).shape == (50,)
    assert built.per_sample((found,), wanted).mean() == pytest.approx(expected, rel=1e-12)


def test_a_column_of_outputs_is_not_broadcast_against_flat_targets() -> None:
    wanted = np.arange(5.0)
    assert metric("mse").compute((wanted[:, None] + 1,), wanted) == 1.0


def test_rmse_r2_and_correlations_are_the_libraries_values() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(2)
    wanted = generator.normal(size=80)
    found = wanted + generator.normal(size=80)
    expected = {
        "rmse": sklearn_metrics.root_mean_squared_error(wanted, found),
        "r2": sklearn_metrics.r2_score(wanted, found),
        "spearman": stats.spearmanr(found, wanted).statistic,
        "pearson": stats.pearsonr(found, wanted).statistic,
    }
    for name, value in expected.items():
        assert metric(name).compute((found,), wanted) == pytest.approx(value, rel=1e-12)
        assert metric(name).per_sample is None


def test_a_constant_output_has_no_correlation() -> None:
    assert math.isnan(metric("spearman").compute((np.ones(5),), np.arange(5)))


def test_f1_precision_recall_choose_binary_for_two_classes_and_macro_else() -> None:
    scores, labels = logits(3, classes=4)
    predicted = scores.argmax(axis=1)
    assert metric("f1").compute((scores,), labels) == sklearn_metrics.f1_score(labels, predicted, average="macro")
    micro = metric({"f1": {"average": "micro"}}).compute((scores,), labels)
    assert micro == sklearn_metrics.f1_score(labels, predicted, average="micro")
    scores, labels = logits(4, classes=2)
    predicted = scores.argmax(axis=1)
    for name, function in (("f1", "f1_score"), ("precision", "precision_score"), ("recall", "recall_score")):
        assert metric(name).compute((scores,), labels) == getattr(sklearn_metrics, function)(labels, predicted)
    assert metric("mcc").compute((scores,), labels) == sklearn_metrics.matthews_corrcoef(labels, predicted)


def test_single_scores_are_cut_at_one_half_and_logits_need_a_threshold() -> None:
    labels = np.array([0, 1, 1, 0])
    probability = np.array([[0.2], [0.7], [0.4], [0.9]], np.float32)
    assert metric("accuracy").compute((probability,), labels) == 0.5
    logit = np.array([-3.0, 2.0, -1.0, -2.0])
    with pytest.raises(DataError, match=r"single scores from -3 to 2.*threshold \(0 for logits\)"):
        metric("accuracy").compute((logit,), labels)
    built = metric({"accuracy": {"threshold": 0}})
    assert built.compute((logit,), labels) == 0.75
    assert built.per_sample is not None
    assert built.per_sample((logit,), labels).tolist() == [1, 1, 0, 1]
    assert built.margin is not None
    assert built.margin((logit,), labels).tolist() == [3, 2, -1, 2]


def test_auc_takes_one_score_two_logits_probabilities_and_many_classes() -> None:
    scores, labels = logits(5, classes=2)
    expected = sklearn_metrics.roc_auc_score(labels, scores[:, 1] - scores[:, 0])
    assert metric("auc").compute((scores,), labels) == expected
    assert metric("auc").compute(((scores[:, 1] - scores[:, 0])[:, None],), labels) == expected
    scores, labels = logits(6, classes=4)
    scores = scores + np.random.default_rng(7).normal(size=scores.shape) * 0.1  # no ties: rounding would break them
    odds = np.exp(scores.astype(np.float64))
    probability = odds / odds.sum(axis=1, keepdims=True)
    expected = sklearn_metrics.roc_auc_score(labels, probability, multi_class="ovr")
    assert metric("auc").compute((scores,), labels) == pytest.approx(expected, rel=1e-12)
    rounded = np.round(probability * 255) / 255  # a quantized softmax: rows sum to 1 only nearly
    assert metric("auc").compute((rounded,), labels) == pytest.approx(expected, abs=5e-3)
    loss = sklearn_metrics.log_loss(labels, probability)
    assert metric("log_loss").compute((scores,), labels) == pytest.approx(loss, rel=1e-9)


@pytest.mark.parametrize("channels_first", [True, False])
def test_miou_is_the_macro_jaccard_score_over_pixels(channels_first: bool) -> None:
    generator = np.random.default_rng(7)
    labels = generator.integers(0, 3, (6, 5, 7))
    scores = generator.normal(size=(6, 3, 5, 7)) + 2 * np.moveaxis(np.eye(3)[labels], -1, 1)
    predicted = scores.argmax(axis=1)
    given = scores if channels_first else np.moveaxis(scores, 1, -1)
    expected = sklearn_metrics.jaccard_score(labels.ravel(), predicted.ravel(), average="macro")
    assert metric("miou").compute((given,), labels) == expected
    ignored = np.where(generator.random(labels.shape) < 0.3, 255, labels)
    keep = ignored != 255
    expected = sklearn_metrics.jaccard_score(labels[keep], predicted[keep], average="macro")
    assert metric({"miou": {"ignore_index": 255}}).compute((given,), ignored) == expected
    dense = metric("accuracy")
    assert dense.per_sample is not None
    assert dense.per_sample((given,), labels).mean() == pytest.approx(dense.compute((given,), labels), abs=1e-12)


def test_psnr_is_the_value_of_torchmetrics() -> None:
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    wanted = np.linspace(0, 1, 48).reshape(1, 3, 4, 4)
    found = wanted + 0.1
    assert metric({"psnr": 1.0}).compute((found,), wanted) == pytest.approx(20.0)
    assert metric("psnr").compute((found,), wanted) == pytest.approx(20.0)


def test_nan_outputs_make_the_metric_nan_and_so_the_sample() -> None:
    scores, labels = logits()
    scores[3, 2] = np.nan
    for name in ("topk", "accuracy", "f1", "auc"):
        assert math.isnan(metric(name).compute((scores,), labels))
    built = metric("topk")
    assert built.per_sample is not None
    assert np.isnan(built.per_sample((scores,), labels)).nonzero()[0].tolist() == [3]
    assert math.isnan(metric("mse").compute((np.array([1.0, np.inf]),), np.zeros(2)))


def test_a_metric_looks_at_the_chosen_output_and_labels() -> None:
    scores, labels = logits()
    outputs = (np.zeros((200, 3)), scores)
    expected = metric("topk").compute((scores,), labels)
    built = metric({"topk": {"k": 1, "output": 1, "labels": "y", "name": "top1"}})
    assert built.name == "top1"
    assert built.compute(outputs, {"y": labels, "box": np.zeros(200)}) == expected
    assert metric({"topk": {"output": 1, "labels": 1}}).compute(outputs, (np.zeros(200), labels)) == expected
    assert metric({"topk": {"output": 1}}).compute(outputs, {"only": labels}) == expected
    with pytest.raises(DataError, match="asked for output 2, but the model has 2"):
        metric({"topk": {"output": 2}}).compute(outputs, labels)
    with pytest.raises(DataError, match=r"keys \['box', 'y'\]"):
        metric("topk").compute((scores,), {"y": labels, "box": labels})


@pytest.mark.parametrize("name", sorted(METRICS))
def test_shapes_that_do_not_fit_are_named_with_the_metric(name: str) -> None:
    if METRICS[name].requires == ("torch", "torchmetrics"):
        pytest.importorskip("torchmetrics")
    with pytest.raises(
        DataError, match=rf"metric '{name}': found outputs of shape \(8, 5, 2\).*labels of shape \(8, 3\)"
    ):
        metric(name).compute((np.zeros((8, 5, 2), np.float32),), np.zeros((8, 3), np.int64))
    with pytest.raises(DataError, match=r"shape \(8, 5\).*labels of shape \(7,\)"):
        metric(name).compute((np.zeros((8, 5), np.float32),), np.zeros(7, np.int64))
    with pytest.raises(DataError, match="needs labels"):
        metric(name).compute((np.zeros((8, 5), np.float32),), None)


def test_the_table_says_where_every_metric_comes_from() -> None:
    for name, info in METRICS.items():
        built = metric(name)
        assert built.name == name
        assert built.higher_is_better == info.higher_is_better
        assert info.library.split(".")[0] in ("sklearn", "scipy", "torchmetrics")
        assert info.summary


def test_an_unknown_metric_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ConfigError, match=r"unknown metric 'spearmann'. Did you mean spearman.*Known: accuracy, auc"):
        metric("spearmann")
    with pytest.raises(ConfigError, match=r"options \['kk'\], expected only \['k', 'output', 'labels', 'name'\]"):
        metric({"topk": {"kk": 1}})
    with pytest.raises(ConfigError, match="found k=0"):
        metric({"topk": 0})
    with pytest.raises(ConfigError, match="expected a table of options"):
        metric({"mse": 3})
    with pytest.raises(ConfigError, match="found 3"):
        metric(3)
    with pytest.raises(ConfigError, match="average='makro'"):
        metric({"f1": "makro"})


def test_callables_and_import_paths_are_metrics() -> None:
    def gap(outputs: np.ndarray, labels: np.ndarray) -> float:
        return float(np.abs(outputs - labels).max())

    built = metric({"callable": gap, "higher_is_better": False})
    assert (built.name, built.higher_is_better, built.per_sample) == ("gap", False, None)
    assert built.compute((np.array([1.0, 5.0]),), np.array([1.0, 2.0])) == 3.0
    assert metric(lambda outputs, labels: len(outputs)).compute((X2, X2), np.zeros(2)) == 2.0
    named = metric({"numpy:allclose": {"name": "same"}})
    with pytest.raises(DataError, match=r"metric 'same' returned (np\.)?True \(bool\)"):
        named.compute((np.zeros(2),), np.zeros(2))
    with pytest.raises(DataError, match="did you forget the return"):
        metric(lambda outputs, labels: None).compute((np.zeros(2),), np.zeros(2))
    assert metric("numpy:vdot").compute((np.ones(3),), np.ones(3)) == 3.0
    for wrong in ("no_such_module:f", "numpy:no_such", {"numpy:vdot": {"higher": True}}, {"callable": 3}):
        with pytest.raises(ConfigError):
            metric(wrong)


X2 = np.zeros((2, 2))


def test_several_metrics_come_from_a_list_or_a_table_and_need_different_names() -> None:
    assert [built.name for built in metrics(["topk", {"f1": "macro"}])] == ["topk", "f1"]
    assert [built.name for built in metrics({"topk": 1, "mse": None})] == ["topk", "mse"]
    assert [built.name for built in metrics("auc")] == ["auc"]
    with pytest.raises(ConfigError, match="every name once"):
        metrics([{"topk": 1}, {"topk": 5}])
    with pytest.raises(ConfigError, match="at least one"):
        metrics([])
