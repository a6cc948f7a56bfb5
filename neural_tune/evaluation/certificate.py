"""The evidence for one model: how much it lost against float on the same samples, and how sure that is."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from neural_tune.errors import DataError, PluginError
from neural_tune.evaluation.result import Evaluation
from neural_tune.protocols import Array

# Sample numbers (with repetition) -> metric of the float model, metric of the candidate.
Resampled = Callable[[Array], tuple[float, float]]

BONETT_PRICE = "Bonett-Price adjusted Wald, paired proportions"
PAIRED_T = "paired t"
BOOTSTRAP = "paired bootstrap, percentile"
NO_INTERVAL_OPAQUE = "none (opaque eval_func)"
NO_INTERVAL = "none (no per-sample values)"

_NORMAL_975 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricCertificate:
    """One metric of one model against float, measured on the same samples.

    Attributes:
        name: The metric.
        baseline: Its value for the float model.
        value: Its value for this model.
        drop: Loss in the metric's own units; positive is worse, whatever the direction.
        low: Lower end of the 95 % confidence interval of the drop on unseen data of the same kind; NaN without an interval.
        high: Upper end.
        method: How the interval was found, or why there is none.
        samples: Samples behind it; 0 where nobody counted.
        worse: Samples that float has right and this model wrong, for metrics that are right or wrong per sample; else samples that got worse.
        better: The other way round.
    """

    name: str
    baseline: float
    value: float
    drop: float
    low: float
    high: float
    method: str
    samples: int = 0
    worse: int = 0
    better: int = 0


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was measured on the saved artifact, per metric, ordered by name."""

    metrics: tuple[MetricCertificate, ...]

    def __getitem__(self, name: str) -> MetricCertificate:
        """Return the certificate of the metric `name`. Raises KeyError when there is none."""
        for entry in self.metrics:
            if entry.name == name:
                return entry
        raise KeyError(name)


def certify(
    baseline: Evaluation,
    final: Evaluation,
    directions: Mapping[str, bool],
    *,
    resampled: Mapping[str, Resampled] | None = None,
    seed: int = 0,
) -> Certificate:
    """Return what `final` lost against `baseline`, with a 95 % interval per metric where one can be had.

    Right-or-wrong values: Bonett and Price (2012), adjusted Wald interval for paired proportions. Other per-sample values: t interval of the
    mean paired difference. Other metrics: percentile bootstrap over samples, both models resampled together (Efron, 1979), when
    `resampled` has them. Otherwise no interval.

    Args:
        baseline: The float model.
        final: The model; a complete evaluation.
        directions: Metric -> higher is better; True for metrics it does not name.
        resampled: Metric -> both models' values on given sample numbers.
        seed: Of the bootstrap.

    Raises:
        DataError: `final` was cut short, or lacks a metric of the baseline.
    """
    missing = sorted(set(baseline.metrics) - set(final.metrics))
    if not final.is_complete or missing:
        raise DataError(
            f"a certificate needs a complete evaluation with the metrics {sorted(baseline.metrics)}; found {sorted(final.metrics)}"
            f"{'' if final.is_complete else ', cut short'}. Evaluate the artifact on the whole set first"
        )
    return Certificate(
        tuple(
            _certify_metric(name, baseline, final, directions.get(name, True), (resampled or {}).get(name), seed)
            for name in baseline.metrics
        )
    )


def _certify_metric(
    name: str, baseline: Evaluation, final: Evaluation, higher: bool, resampled: Resampled | None, seed: int
) -> MetricCertificate:
    before, after = baseline.metrics[name], final.metrics[name]
    sign = 1.0 if higher else -1.0
    samples, worse, better = baseline.samples, 0, 0
    low = high = math.nan
    method = NO_INTERVAL_OPAQUE if not samples else NO_INTERVAL
    first, second = (baseline.values or {}).get(name), (final.values or {}).get(name)
    if first is not None and second is not None and len(first) == len(second):
        drops = sign * (first - second)
        worse, better, samples = int((drops > 0).sum()), int((drops < 0).sum()), len(drops)
        if np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all():
            (low, high), method = paired_proportions(worse, better, samples), BONETT_PRICE
        else:
            (low, high), method = paired_mean(drops), PAIRED_T
    elif resampled is not None:
        (low, high), method = _bootstrap(resampled, sign, samples, seed), BOOTSTRAP
    return MetricCertificate(
        name=name,
        baseline=before,
        value=after,
        drop=sign * (before - after),
        low=low,
        high=high,
        method=method,
        samples=samples,
        worse=worse,
        better=better,
    )


def paired_proportions(worse: int, better: int, samples: int) -> tuple[float, float]:
    """Return the 95 % interval of the drop in a proportion, from discordant counts.

    D. G. Bonett and R. M. Price, "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired Data",
    Journal of Educational and Behavioral Statistics 37(4), 2012: one is added to either discordant count and two to the sample size.
    """
    total = samples + 2
    down, up = (worse + 1) / total, (better + 1) / total
    centre = down - up
    half = _NORMAL_975 * math.sqrt((down + up - centre**2) / total)
    return max(centre - half, -1.0), min(centre + half, 1.0)


def paired_mean(drops: Array) -> tuple[float, float]:
    """Return the 95 % t interval of the mean of paired differences; NaN for fewer than two, or where one is NaN."""
    count = len(drops)
    if count < 2 or np.isnan(drops).any():
        return math.nan, math.nan
    centre = float(drops.mean())
    half = _t_975(count - 1) * float(drops.std(ddof=1)) / math.sqrt(count)
    return centre - half, centre + half


def _t_975(freedom: int) -> float:
    try:
        stats = importlib.import_module("scipy.stats")
    except ImportError as error:
        raise PluginError('intervals need scipy, which is not installed: pip install "neural-tune[metrics]"') from error
    return float(stats.t.ppf(0.975, freedom))


def _bootstrap(resampled: Resampled, sign: float, samples: int, seed: int) -> tuple[float, float]:
    """Return the 2.5 and 97.5 percentiles of the drop over resampled sets; sets on which the metric is undefined are left out."""
    generator = np.random.default_rng(seed)
    rounds = min(max(8_000_000 // max(samples, 1), 200), 400)  # large sets need fewer rounds for the same seconds
    drops = np.full(rounds, np.nan)
    for turn in range(rounds):
        before, after = resampled(generator.integers(samples, size=samples))
        drops[turn] = sign * (before - after)
    known = drops[np.isfinite(drops)]
    if len(known) < rounds // 2:
        return math.nan, math.nan
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)
