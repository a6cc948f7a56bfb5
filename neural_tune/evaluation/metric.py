"""What a metric is: a number from outputs and labels, its direction, and where it can be had its value per sample."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from neural_tune.errors import DataError, PluginError
from neural_tune.evaluation.predictions import Selection, has_nan, rows_with_nan
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


def guarded(selection: Selection, value: Callable[[Array, Array], float]) -> Compute:
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


def sampled(selection: Selection, values: Callable[[Array, Array], Array]) -> PerSample:
    """Wrap a function of (scores, labels) that gives one value per sample: NaN for the rows with a NaN."""

    def per_sample(outputs: Outputs, labels: object) -> Array:
        scores, wanted = selection.pick(outputs, labels)
        return np.where(rows_with_nan(scores), np.nan, np.asarray(values(scores, wanted), np.float64))

    return per_sample
