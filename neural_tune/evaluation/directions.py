"""Whether higher is better, per metric: a metric of ours knows, one of the user's may leave it to the criterion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from neural_tune.errors import ConfigError
from neural_tune.evaluation.metric import USER_CODE, Metric
from neural_tune.values import AccuracyCriterion, FrozenMap


def stated(metrics: Sequence[Metric]) -> dict[str, bool]:
    """Return metric -> higher is better, of those that say so."""
    return {metric.name: metric.higher_is_better for metric in metrics if metric.higher_is_better is not None}


def settled(metrics: Sequence[Metric], criterion: AccuracyCriterion) -> tuple[Metric, ...]:
    """Return the metrics with a direction each: where a metric states none, that of `criterion`.

    Raises:
        ConfigError: a callable states one direction, and the criterion of its own the other.
    """
    for metric in metrics:
        own = criterion.metrics.get(metric.name)
        if own is None or metric.library != USER_CODE or metric.higher_is_better is None:
            continue
        if own.higher_is_better != metric.higher_is_better:
            raise ConfigError(
                f"metric {metric.name!r}: found higher_is_better={metric.higher_is_better} with the metric and "
                f"{own.higher_is_better} in its accuracy criterion, expected one direction. Change one of them"
            )
    return tuple(_settled(metric, criterion) for metric in metrics)


def _settled(metric: Metric, criterion: AccuracyCriterion) -> Metric:
    if metric.higher_is_better is not None:
        return metric
    return replace(metric, higher_is_better=criterion.metrics.get(metric.name, criterion).higher_is_better)


def directed(criterion: AccuracyCriterion, directions: Mapping[str, bool]) -> AccuracyCriterion:
    """Return `criterion` with the direction of every metric whose direction is known; what it constrains stays the same.

    A metric of ours knows whether higher is better; a criterion that says otherwise would accept the worst candidates and make early
    rejection wrong.

    Args:
        criterion: The criterion.
        directions: Metric -> higher is better, of every metric the evaluation returns: a criterion without metrics of its own gets these.
    """
    if not directions:
        return criterion
    named = criterion.metrics or dict.fromkeys(directions, criterion)
    rules = {
        name: replace(rule, higher_is_better=directions.get(name, rule.higher_is_better), metrics=FrozenMap())
        for name, rule in named.items()
    }
    return replace(criterion, metrics=FrozenMap(rules))
