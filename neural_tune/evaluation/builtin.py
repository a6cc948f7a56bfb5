"""The built-in metrics. Their values come from scikit-learn, scipy or torchmetrics; only per-sample values are computed here.

The per-sample values exist for early rejection and for intervals; tests prove that their mean is the library's value.
A NaN among a model's outputs makes the metric NaN, which `judge` counts as an infinite loss.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from neural_tune.errors import ConfigError, DataError, PluginError
from neural_tune.evaluation.predictions import (
    Selection,
    binary_scores,
    class_axis,
    class_labels,
    cut_of,
    has_nan,
    paired_values,
    predicted_classes,
    probabilities,
    rows_with_nan,
    score_table,
)
from neural_tune.protocols import Array, Outputs

# The `library` of a metric that is not ours.
USER_CODE = "user code"

Compute = Callable[[Outputs, object], float]
PerSample = Callable[[Outputs, object], Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number that says how good outputs are.

    Attributes:
        name: Name in the results and in the criterion.
        higher_is_better: Direction; None where nobody stated it, and the criterion's holds.
        compute: `(outputs, labels) -> float` on the whole evaluation set; outputs are a tuple of arrays.
        library: Where the value comes from.
        per_sample: `(outputs, labels) -> float64 (n,)` whose mean over any set of samples is the metric; None when the metric is no
            such mean.
        best_per_sample: The best value one sample can have (1 for accuracy, 0 for errors).
        margin: `(float outputs, labels) -> (n,)`; a candidate loses the samples with the smallest values first. None without
            `per_sample`.
        spec: What was asked for, with every option: the same text in every process (see `identity`).
    """

    name: str
    higher_is_better: bool | None
    compute: Compute
    library: str = USER_CODE
    per_sample: PerSample | None = None
    best_per_sample: float = math.nan
    margin: PerSample | None = None
    spec: str = ""

    def warm_up(self) -> None:
        """Import the library behind the metric, so that a missing one is found before a long pass, not after it."""
        module = self.library.rpartition(".")[0]
        if module:
            library(module)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    """One row of the table of built-in metrics.

    Attributes:
        library: The function that gives the value.
        higher_is_better: Direction.
        summary: One line for `neural-tune list`.
        build: `(selection, **options) -> Metric`.
        option: The option that a bare value sets, as k in `{topk: 5}`; empty when there is none.
        requires: Import names of what it needs.
    """

    library: str
    higher_is_better: bool
    summary: str
    build: Callable[..., Metric]
    option: str = ""
    requires: tuple[str, ...] = ("sklearn",)


def library(module: str) -> Any:
    """Import `module` at first use.

    Raises:
        PluginError: it is not installed; the message names the pip command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise PluginError(
            f'metrics need {package}, which is not installed: pip install "neural-tune[{extra_of(package)}]"'
        ) from error


def extra_of(package: str) -> str:
    """Return the extra of ours that brings `package` along."""
    return "pytorch" if package.partition(".")[0] in ("torch", "torchmetrics") else "metrics"


def _guarded(selection: Selection, value: Callable[[Array, Array], float]) -> Compute:
    """Wrap a function of (scores, labels): NaN for NaN outputs, DataError with the shapes where the library refuses."""

    def compute(outputs: Outputs, labels: object) -> float:
        scores, wanted = selection.pick(outputs, labels)
        if has_nan(scores):
            return math.nan
        try:
            return float(value(scores, wanted))
        except (ValueError, TypeError) as error:
            raise DataError(selection.misfit(scores, wanted, f"something the library takes: {error}")) from error

    return compute


def _sampled(selection: Selection, values: Callable[[Array, Array], Array]) -> PerSample:
    def per_sample(outputs: Outputs, labels: object) -> Array:
        scores, wanted = selection.pick(outputs, labels)
        return np.where(rows_with_nan(scores), np.nan, np.asarray(values(scores, wanted), np.float64))

    return per_sample


# ------------------------------------------------------------------------------------------------ classification


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


def _build_topk(selection: Selection, *, k: int = 1) -> Metric:
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
        compute=_guarded(selection, value),
        library="sklearn.metrics.accuracy_score" if k == 1 else "sklearn.metrics.top_k_accuracy_score",
        per_sample=_sampled(selection, hits),
        best_per_sample=1.0,
        margin=_sampled(selection, lambda scores, labels: _label_margin(*table(scores, labels), k)),
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


def _build_accuracy(
    selection: Selection, *, threshold: float | None = None, axis: int | None = None, ignore_index: int | None = None
) -> Metric:
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
        compute=_guarded(selection, value),
        library="sklearn.metrics.accuracy_score",
        per_sample=_sampled(selection, hits) if additive else None,
        best_per_sample=1.0 if additive else math.nan,
        margin=_sampled(selection, margin) if additive else None,
    )


def _build_confusion(function: str) -> Callable[..., Metric]:
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
            compute=_guarded(selection, value),
            library=f"sklearn.metrics.{function}",
        )

    return build


def _build_mcc(selection: Selection, *, threshold: float | None = None, axis: int | None = None) -> Metric:
    def value(scores: Array, labels: Array) -> float:
        predicted, wanted = _kept(*_predict(selection, scores, labels, axis, threshold), None)
        return float(library("sklearn.metrics").matthews_corrcoef(wanted, predicted))

    return Metric(
        name=selection.metric,
        higher_is_better=True,
        compute=_guarded(selection, value),
        library="sklearn.metrics.matthews_corrcoef",
    )


def _build_auc(selection: Selection, *, average: str = "macro", multi_class: str = "ovr") -> Metric:
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
        compute=_guarded(selection, value),
        library="sklearn.metrics.roc_auc_score",
    )


def _build_log_loss(selection: Selection) -> Metric:
    def value(scores: Array, labels: Array) -> float:
        table, labels = score_table(selection, scores, labels)
        loss = library("sklearn.metrics").log_loss
        return float(loss(labels, probabilities(table), labels=np.arange(table.shape[1])))

    return Metric(
        name=selection.metric,
        higher_is_better=False,
        compute=_guarded(selection, value),
        library="sklearn.metrics.log_loss",
    )


def _build_miou(selection: Selection, *, axis: int | None = None, ignore_index: int | None = None) -> Metric:
    def value(scores: Array, labels: Array) -> float:
        predicted, wanted = _kept(*_predict(selection, scores, labels, axis, None), ignore_index)
        return float(library("sklearn.metrics").jaccard_score(wanted, predicted, average="macro", zero_division=0.0))

    return Metric(
        name=selection.metric,
        higher_is_better=True,
        compute=_guarded(selection, value),
        library="sklearn.metrics.jaccard_score",
    )


# ------------------------------------------------------------------------------------------------ regression


def _build_error(function: str, error: Callable[[Array], Array] | None) -> Callable[..., Metric]:
    """Return the builder of an error metric over all values; `error` gives it per value where the metric is their mean."""

    def build(selection: Selection) -> Metric:
        def value(scores: Array, labels: Array) -> float:
            found, wanted = paired_values(selection, scores, labels)
            if not np.isfinite(found).all():
                return math.nan
            return float(getattr(library("sklearn.metrics"), function)(wanted.ravel(), found.ravel()))

        def errors(scores: Array, labels: Array) -> Array:
            found, wanted = paired_values(selection, scores, labels)
            finite = np.where(np.isfinite(found), found, np.nan)
            difference = (error or np.abs)(finite - wanted)
            return np.asarray(difference.reshape(len(difference), -1).mean(axis=1))

        return Metric(
            name=selection.metric,
            higher_is_better=False,
            compute=_guarded(selection, value),
            library=f"sklearn.metrics.{function}",
            per_sample=_sampled(selection, errors) if error else None,
            best_per_sample=0.0 if error else math.nan,
            # The samples with the largest float errors first: they use up the tolerable sum soonest.
            margin=_sampled(selection, lambda scores, labels: -errors(scores, labels)) if error else None,
        )

    return build


def _build_r2(selection: Selection) -> Metric:
    def value(scores: Array, labels: Array) -> float:
        found, wanted = paired_values(selection, scores, labels)
        rows = len(wanted)
        if not np.isfinite(found).all():
            return math.nan
        return float(library("sklearn.metrics").r2_score(wanted.reshape(rows, -1), found.reshape(rows, -1)))

    return Metric(
        name=selection.metric,
        higher_is_better=True,
        compute=_guarded(selection, value),
        library="sklearn.metrics.r2_score",
    )


def _build_correlation(function: str) -> Callable[..., Metric]:
    def build(selection: Selection) -> Metric:
        def value(scores: Array, labels: Array) -> float:
            found, wanted = paired_values(selection, scores, labels)
            if found.ndim != 1:
                raise DataError(selection.misfit(scores, labels, "one score and one target per sample"))
            # scipy warns about constants; no rank can be told from them, so the correlation is undefined.
            if len(found) < 2 or np.ptp(found) == 0 or np.ptp(wanted) == 0 or not np.isfinite(found).all():
                return math.nan
            return float(getattr(library("scipy.stats"), function)(found, wanted).statistic)

        return Metric(
            name=selection.metric,
            higher_is_better=True,
            compute=_guarded(selection, value),
            library=f"scipy.stats.{function}",
        )

    return build


def _build_psnr(selection: Selection, *, data_range: float | None = None) -> Metric:
    def value(scores: Array, labels: Array) -> float:
        found, wanted = paired_values(selection, scores, labels)
        torch, image = library("torch"), library("torchmetrics.functional.image")
        span = data_range if data_range is not None else float(np.ptp(wanted))
        ratio = image.peak_signal_noise_ratio(torch.from_numpy(found), torch.from_numpy(wanted), data_range=span)
        return float(ratio)

    return Metric(
        name=selection.metric,
        higher_is_better=True,
        compute=_guarded(selection, value),
        library="torchmetrics.functional.image.peak_signal_noise_ratio",
    )


METRICS: dict[str, MetricInfo] = {
    "topk": MetricInfo(
        library="sklearn.metrics.top_k_accuracy_score",
        higher_is_better=True,
        summary="share of samples whose label is among the k best scores; k=1 (default) is argmax accuracy",
        build=_build_topk,
        option="k",
    ),
    "accuracy": MetricInfo(
        library="sklearn.metrics.accuracy_score",
        higher_is_better=True,
        summary="share of right classes; also per token or pixel, single scores (threshold) and ignore_index",
        build=_build_accuracy,
        option="threshold",
    ),
    "precision": MetricInfo(
        library="sklearn.metrics.precision_score",
        higher_is_better=True,
        summary="precision; average binary for two classes, else macro",
        build=_build_confusion("precision_score"),
        option="average",
    ),
    "recall": MetricInfo(
        library="sklearn.metrics.recall_score",
        higher_is_better=True,
        summary="recall; average binary for two classes, else macro",
        build=_build_confusion("recall_score"),
        option="average",
    ),
    "f1": MetricInfo(
        library="sklearn.metrics.f1_score",
        higher_is_better=True,
        summary="harmonic mean of precision and recall; average binary for two classes, else macro",
        build=_build_confusion("f1_score"),
        option="average",
    ),
    "mcc": MetricInfo(
        library="sklearn.metrics.matthews_corrcoef",
        higher_is_better=True,
        summary="Matthews correlation of predicted and true classes",
        build=_build_mcc,
        option="threshold",
    ),
    "auc": MetricInfo(
        library="sklearn.metrics.roc_auc_score",
        higher_is_better=True,
        summary="area under the ROC curve; several classes one against the rest",
        build=_build_auc,
        option="average",
    ),
    "log_loss": MetricInfo(
        library="sklearn.metrics.log_loss",
        higher_is_better=False,
        summary="cross-entropy of probabilities or logits",
        build=_build_log_loss,
    ),
    "miou": MetricInfo(
        library="sklearn.metrics.jaccard_score",
        higher_is_better=True,
        summary="mean intersection over union of the classes of a segmentation",
        build=_build_miou,
        option="ignore_index",
    ),
    "mse": MetricInfo(
        library="sklearn.metrics.mean_squared_error",
        higher_is_better=False,
        summary="mean squared error over all values",
        build=_build_error("mean_squared_error", np.square),
    ),
    "rmse": MetricInfo(
        library="sklearn.metrics.root_mean_squared_error",
        higher_is_better=False,
        summary="root of the mean squared error over all values",
        build=_build_error("root_mean_squared_error", None),
    ),
    "mae": MetricInfo(
        library="sklearn.metrics.mean_absolute_error",
        higher_is_better=False,
        summary="mean absolute error over all values",
        build=_build_error("mean_absolute_error", np.abs),
    ),
    "r2": MetricInfo(
        library="sklearn.metrics.r2_score",
        higher_is_better=True,
        summary="share of the targets' variance that is explained",
        build=_build_r2,
    ),
    "spearman": MetricInfo(
        library="scipy.stats.spearmanr",
        higher_is_better=True,
        summary="rank correlation of scores and targets",
        build=_build_correlation("spearmanr"),
        requires=("scipy",),
    ),
    "pearson": MetricInfo(
        library="scipy.stats.pearsonr",
        higher_is_better=True,
        summary="linear correlation of scores and targets",
        build=_build_correlation("pearsonr"),
        requires=("scipy",),
    ),
    "psnr": MetricInfo(
        library="torchmetrics.functional.image.peak_signal_noise_ratio",
        higher_is_better=True,
        summary="peak signal-to-noise ratio in dB; data_range defaults to that of the targets",
        build=_build_psnr,
        option="data_range",
        requires=("torch", "torchmetrics"),
    ),
}
