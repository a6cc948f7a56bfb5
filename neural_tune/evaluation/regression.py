"""Metrics of values: errors, explained variance, correlations, signal-to-noise ratio; from scikit-learn, scipy and torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from neural_tune.errors import DataError
from neural_tune.evaluation.metric import Metric, guarded, library, sampled
from neural_tune.evaluation.predictions import Selection, paired_values
from neural_tune.protocols import Array


def build_error(function: str, error: Callable[[Array], Array] | None) -> Callable[..., Metric]:
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
            compute=guarded(selection, value),
            library=f"sklearn.metrics.{function}",
            per_sample=sampled(selection, errors) if error else None,
            best_per_sample=0.0 if error else math.nan,
            # The samples with the largest float errors first: they use up the tolerable sum soonest.
            margin=sampled(selection, lambda scores, labels: -errors(scores, labels)) if error else None,
        )

    return build


def build_r2(selection: Selection) -> Metric:
    """Return the share of variance that is explained."""

    def value(scores: Array, labels: Array) -> float:
        found, wanted = paired_values(selection, scores, labels)
        rows = len(wanted)
        if not np.isfinite(found).all():
            return math.nan
        return float(library("sklearn.metrics").r2_score(wanted.reshape(rows, -1), found.reshape(rows, -1)))

    return Metric(
        name=selection.metric,
        higher_is_better=True,
        compute=guarded(selection, value),
        library="sklearn.metrics.r2_score",
    )


def build_correlation(function: str) -> Callable[..., Metric]:
    """Return the builder of a correlation of scores and targets."""

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
            compute=guarded(selection, value),
            library=f"scipy.stats.{function}",
        )

    return build


def build_psnr(selection: Selection, *, data_range: float | None = None) -> Metric:
    """Return the peak signal-to-noise ratio in dB."""

    def value(scores: Array, labels: Array) -> float:
        found, wanted = paired_values(selection, scores, labels)
        torch, image = library("torch"), library("torchmetrics.functional.image")
        span = data_range if data_range is not None else float(np.ptp(wanted))
        ratio = image.peak_signal_noise_ratio(torch.from_numpy(found), torch.from_numpy(wanted), data_range=span)
        return float(ratio)

    return Metric(
        name=selection.metric,
        higher_is_better=True,
        compute=guarded(selection, value),
        library="torchmetrics.functional.image.peak_signal_noise_ratio",
    )
