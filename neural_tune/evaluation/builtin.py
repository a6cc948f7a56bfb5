"""The table of built-in metrics. Their values come from scikit-learn, scipy or torchmetrics; only per-sample values are computed here.

The per-sample values exist for early rejection and for intervals; tests prove that their mean is the library's value.
A NaN among a model's outputs makes the metric NaN, which `judge` counts as an infinite loss.
"""

from __future__ import annotations

import numpy as np

from neural_tune.evaluation.classification import (
    build_accuracy,
    build_auc,
    build_confusion,
    build_log_loss,
    build_mcc,
    build_miou,
    build_topk,
)
from neural_tune.evaluation.metric import MetricInfo
from neural_tune.evaluation.regression import build_correlation, build_error, build_psnr, build_r2

METRICS: dict[str, MetricInfo] = {
    "topk": MetricInfo(
        library="sklearn.metrics.top_k_accuracy_score",
        higher_is_better=True,
        summary="share of samples whose label is among the k best scores; k=1 (default) is argmax accuracy",
        build=build_topk,
        option="k",
    ),
    "accuracy": MetricInfo(
        library="sklearn.metrics.accuracy_score",
        higher_is_better=True,
        summary="share of right classes; also per token or pixel, single scores (threshold) and ignore_index",
        build=build_accuracy,
        option="threshold",
    ),
    "precision": MetricInfo(
        library="sklearn.metrics.precision_score",
        higher_is_better=True,
        summary="precision; average binary for two classes, else macro",
        build=build_confusion("precision_score"),
        option="average",
    ),
    "recall": MetricInfo(
        library="sklearn.metrics.recall_score",
        higher_is_better=True,
        summary="recall; average binary for two classes, else macro",
        build=build_confusion("recall_score"),
        option="average",
    ),
    "f1": MetricInfo(
        library="sklearn.metrics.f1_score",
        higher_is_better=True,
        summary="harmonic mean of precision and recall; average binary for two classes, else macro",
        build=build_confusion("f1_score"),
        option="average",
    ),
    "mcc": MetricInfo(
        library="sklearn.metrics.matthews_corrcoef",
        higher_is_better=True,
        summary="Matthews correlation of predicted and true classes",
        build=build_mcc,
        option="threshold",
    ),
    "auc": MetricInfo(
        library="sklearn.metrics.roc_auc_score",
        higher_is_better=True,
        summary="area under the ROC curve; several classes one against the rest",
        build=build_auc,
        option="average",
    ),
    "log_loss": MetricInfo(
        library="sklearn.metrics.log_loss",
        higher_is_better=False,
        summary="cross-entropy of probabilities or logits",
        build=build_log_loss,
    ),
    "miou": MetricInfo(
        library="sklearn.metrics.jaccard_score",
        higher_is_better=True,
        summary="mean intersection over union of the classes of a segmentation",
        build=build_miou,
        option="ignore_index",
    ),
    "mse": MetricInfo(
        library="sklearn.metrics.mean_squared_error",
        higher_is_better=False,
        summary="mean squared error over all values",
        build=build_error("mean_squared_error", np.square),
    ),
    "rmse": MetricInfo(
        library="sklearn.metrics.root_mean_squared_error",
        higher_is_better=False,
        summary="root of the mean squared error over all values",
        build=build_error("root_mean_squared_error", None),
    ),
    "mae": MetricInfo(
        library="sklearn.metrics.mean_absolute_error",
        higher_is_better=False,
        summary="mean absolute error over all values",
        build=build_error("mean_absolute_error", np.abs),
    ),
    "r2": MetricInfo(
        library="sklearn.metrics.r2_score",
        higher_is_better=True,
        summary="share of the targets' variance that is explained",
        build=build_r2,
    ),
    "spearman": MetricInfo(
        library="scipy.stats.spearmanr",
        higher_is_better=True,
        summary="rank correlation of scores and targets",
        build=build_correlation("spearmanr"),
        requires=("scipy",),
    ),
    "pearson": MetricInfo(
        library="scipy.stats.pearsonr",
        higher_is_better=True,
        summary="linear correlation of scores and targets",
        build=build_correlation("pearsonr"),
        requires=("scipy",),
    ),
    "psnr": MetricInfo(
        library="torchmetrics.functional.image.peak_signal_noise_ratio",
        higher_is_better=True,
        summary="peak signal-to-noise ratio in dB; data_range defaults to that of the targets",
        build=build_psnr,
        option="data_range",
        requires=("torch", "torchmetrics"),
    ),
}
