"""Metrics of classes: accuracy and its relatives, from scikit-learn; only per-sample values and margins are computed here."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from neural_tune.errors import ConfigError, DataError
from neural_tune.evaluation.metric import Metric, guarded, library, sampled
from neural_tune.evaluation.predictions import (
    Selection,
    binary_scores,
    class_axis,
    class_labels,
    cut_of,
    predicted_classes,
    probabilities,
    score_table,
)
from neural_tune.protocols import Array


# Why by the label's margin, signed (float mistakes first), and not by |margin| or by best minus second best: samples of 3,000 until exact
# rejection at an absolute loss of 0.005, batches of 50, plain QDQ int8 of ONNX Runtime 1.31 with 0 to 4 ops restored:
#   task, true drop      t20 .0320  t20 .0547  t20 .0053  t60 .0697  t60 .0193  t60 .0130
#   label margin               200        200        400        150        250        250
#   best - second best         300        250       1350        200        300        300
#   |label margin|             300        250       2950        200        300        300
#   data order                1700       1450       3000        900       1900       2100
# A float mistake that stays one settles a sample for good; left for last it counts as a possible gain all along. Putting samples first that
# earlier candidates lost moved the figures by one batch at most, in both directions.
def _label_margin(scores: Array, labels: Array, rank: int = 1) -> Array:
    """Return the label's score minus the `rank`-th best other score; negative where the float model is wrong."""
    table = scores.astype(np.float64)
    rows = np.arange(len(table))
    own = table[rows, labels]
    table[rows, labels] = -np.inf
    others = np.partition(table, -rank, axis=1)[:, -rank] if rank <= table.shape[1] else table.max(axis=1)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(own - others)


def build_topk(selection: Selection, *, k: int = 1) -> Metric:
    """Return the share of samples whose label is among the `k` best scores."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ConfigError(f"metric topk: found k={k!r}, expected an integer, 1 or more")

    def table(scores: Array, labels: Array) -> tuple[Array, Array]:
        scores, labels = score_table(selection, scores, labels)
        if k >= scores.shape[1]:
            raise DataError(
                f"metric {selection.metric!r}: top {k} of {scores.shape[1]} classes is always right; expected a smaller k"
            )
        return scores, labels

    def value(scores: Array, labels: Array) -> float:
        scores, labels = table(scores, labels)
        metrics = library("sklearn.metrics")
        if k == 1:
            # One class is predicted: the first of the best, as argmax and every deployment has it. (top_k_accuracy_score
            # would give a tie to the last class, and ties are common among dequantized outputs.)
            return float(metrics.accuracy_score(labels, scores.argmax(axis=1)))
        # labels= because the evaluation set may lack some of the model's classes.
        return float(metrics.top_k_accuracy_score(labels, _finite(scores), k=k, labels=np.arange(scores.shape[1])))

    def hits(scores: Array, labels: Array) -> Array:
        scores, labels = table(scores, labels)
        if k == 1:
            return np.asarray(scores.argmax(axis=1) == labels)
        best = np.argsort(_finite(scores), axis=1, kind="stable")[:, ::-1][:, :k]  # scikit-learn's order, ties included
        return np.asarray((best == labels[:, None]).any(axis=1))

    return Metric(
        name=selection.metric,
        higher_is_better=True,
        compute=guarded(selection, value),
        library="sklearn.metrics.accuracy_score" if k == 1 else "sklearn.metrics.top_k_accuracy_score",
        per_sample=sampled(selection, hits),
        best_per_sample=1.0,
        margin=sampled(selection, lambda scores, labels: _label_margin(*table(scores, labels), k)),
    )


def _finite(scores: Array) -> Array:
    """Return scores in which -inf (a class that is masked out) is the smallest number: scikit-learn refuses infinities."""
    if scores.dtype.kind != "f" or np.isfinite(scores).all():
        return scores
    limits = np.finfo(scores.dtype)
    return np.clip(scores, limits.min, limits.max)


def _predict(
    selection: Selection, scores: Array, labels: Array, axis: int | None, threshold: float | None
) -> tuple[Array, Array]:
    labels = class_labels(selection, scores, labels)
    return predicted_classes(selection, scores, labels, axis=axis, threshold=threshold), labels


def _kept(predicted: Array, labels: Array, ignore_index: int | None) -> tuple[Array, Array]:
    """Return both flat, without the positions whose label is `ignore_index`."""
    predicted, labels = predicted.ravel(), labels.ravel()
    if ignore_index is None:
        return predicted, labels
    keep = labels != ignore_index
    return predicted[keep], labels[keep]


def build_accuracy(
    selection: Selection, *, threshold: float | None = None, axis: int | None = None, ignore_index: int | None = None
) -> Metric:
    """Return the share of right classes."""

    def value(scores: Array, labels: Array) -> float:
        predicted, wanted = _kept(*_predict(selection, scores, labels, axis, threshold), ignore_index)
        return float(library("sklearn.metrics").accuracy_score(wanted, predicted))

    def hits(scores: Array, labels: Array) -> Array:
        predicted, wanted = _predict(selection, scores, labels, axis, threshold)
        return np.asarray((predicted == wanted).reshape(len(wanted), -1).mean(axis=1))

    def margin(scores: Array, labels: Array) -> Array:
        wanted = class_labels(selection, scores, labels)
        over = class_axis(selection, scores, wanted, axis)
        if over is None and scores.dtype.kind == "f" and wanted.ndim == 1:
            return np.where(wanted > 0, 1.0, -1.0) * (scores - cut_of(selection, scores, threshold))
        if wanted.ndim == 1 and over is not None:
            return _label_margin(*score_table(selection, scores, wanted))
        return hits(scores, labels)  # one value for many positions: the samples with most mistakes first

    # Ignored positions weigh samples unequally: then the metric is no mean of per-sample values.
    additive = ignore_index is None
    return Metric(
        name=selection.metric,
        higher_is_better=True,
        compute=guarded(selection, value),
        library="sklearn.metrics.accuracy_score",
        per_sample=sampled(selection, hits) if additive else None,
        best_per_sample=1.0 if additive else math.nan,
        margin=sampled(selection, margin) if additive else None,
    )


def build_confusion(function: str) -> Callable[..., Metric]:
    """Return the builder of a metric on predicted classes: precision, recall, f1."""

    def build(
        selection: Selection,
        *,
        average: str | None = None,
        threshold: float | None = None,
        axis: int | None = None,
        ignore_index: int | None = None,
    ) -> Metric:
        if average not in (None, "binary", "micro", "macro", "weighted"):
            raise ConfigError(
                f"metric {selection.metric}: found average={average!r}, expected binary, micro, macro or weighted"
            )

        def value(scores: Array, labels: Array) -> float:
            predicted, wanted = _predict(selection, scores, labels, axis, threshold)
            over = class_axis(selection, scores, wanted, axis)
            two = scores.shape[over] == 2 if over is not None else scores.dtype.kind == "f"
            chosen = average or ("binary" if two else "macro")
            predicted, wanted = _kept(predicted, wanted, ignore_index)
            score = getattr(library("sklearn.metrics"), function)
            return float(score(wanted, predicted, average=chosen, zero_division=0.0))

        return Metric(
            name=selection.metric,
            higher_is_better=True,
            compute=guarded(selection, value),
            library=f"sklearn.metrics.{function}",
        )

    return build


def build_mcc(selection: Selection, *, threshold: float | None = None, axis: int | None = None) -> Metric:
    """Return the Matthews correlation coefficient."""

    def value(scores: Array, labels: Array) -> float:
        predicted, wanted = _kept(*_predict(selection, scores, labels, axis, threshold), None)
        return float(library("sklearn.metrics").matthews_corrcoef(wanted, predicted))

    return Metric(
        name=selection.metric,
        higher_is_better=True,
        compute=guarded(selection, value),
        library="sklearn.metrics.matthews_corrcoef",
    )


def build_auc(selection: Selection, *, average: str = "macro", multi_class: str = "ovr") -> Metric:
    """Return the area under the ROC curve."""

    def value(scores: Array, labels: Array) -> float:
        labels = class_labels(selection, scores, labels)
        single = binary_scores(selection, scores, labels)
        area = library("sklearn.metrics").roc_auc_score
        if single is not None:
            return float(area(labels, single))
        table, labels = score_table(selection, scores, labels)
        classes = np.arange(table.shape[1])
        return float(area(labels, probabilities(table), average=average, multi_class=multi_class, labels=classes))

    return Metric(
        name=selection.metric,
        higher_is_better=True,
        compute=guarded(selection, value),
        library="sklearn.metrics.roc_auc_score",
    )


def build_log_loss(selection: Selection) -> Metric:
    """Return the cross-entropy."""

    def value(scores: Array, labels: Array) -> float:
        table, labels = score_table(selection, scores, labels)
        loss = library("sklearn.metrics").log_loss
        return float(loss(labels, probabilities(table), labels=np.arange(table.shape[1])))

    return Metric(
        name=selection.metric,
        higher_is_better=False,
        compute=guarded(selection, value),
        library="sklearn.metrics.log_loss",
    )


def build_miou(selection: Selection, *, axis: int | None = None, ignore_index: int | None = None) -> Metric:
    """Return the mean intersection over union."""

    def value(scores: Array, labels: Array) -> float:
        predicted, wanted = _kept(*_predict(selection, scores, labels, axis, None), ignore_index)
        return float(library("sklearn.metrics").jaccard_score(wanted, predicted, average="macro", zero_division=0.0))

    return Metric(
        name=selection.metric,
        higher_is_better=True,
        compute=guarded(selection, value),
        library="sklearn.metrics.jaccard_score",
    )
