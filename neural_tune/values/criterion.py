"""When is a candidate accurate enough? `judge` is the only function in the project that decides it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from neural_tune.errors import ConfigError
from neural_tune.values.frozen import FrozenMap

# Two accuracies that differ by rounding alone are equal: 0.90 - 0.89 is 0.010000000000000009 in binary.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class AccuracyCriterion:
    """The tolerable loss of accuracy against the float baseline.

    Attributes:
        higher_is_better: Direction of the metric.
        criterion: "relative" measures the loss in units of the baseline's magnitude, "absolute" in those of the metric.
        tolerable_loss: Largest accepted loss, 0 or more; 0.01 relative is one percent.
        metrics: Metric name -> criterion of its own. When it is empty, this criterion holds for every metric the
            evaluation returns; when it is not, the named metrics are constrained and the others are only reported.

    Raises:
        ConfigError: a field is out of range.
    """

    higher_is_better: bool = True
    criterion: Literal["relative", "absolute"] = "relative"
    tolerable_loss: float = 0.01
    metrics: FrozenMap[AccuracyCriterion] = field(default_factory=FrozenMap)

    def __post_init__(self) -> None:
        """Check every field, so that a typo does not silently become another criterion; take a plain dict of metrics too."""
        object.__setattr__(self, "metrics", FrozenMap(self.metrics))
        if self.criterion not in ("relative", "absolute"):
            message = f"accuracy criterion: found {self.criterion!r}, expected 'relative' or 'absolute'"
            raise ConfigError(message)
        loss = self.tolerable_loss
        if isinstance(loss, bool) or not isinstance(loss, int | float) or not math.isfinite(loss) or loss < 0:
            message = f"tolerable_loss: found {loss!r}, expected a finite number, 0 or more (0.01 is one percent)"
            raise ConfigError(message)

    def loss(self, value: float, baseline: float) -> float:
        """Return how much worse `value` is than `baseline`, in the criterion's unit; negative when it is better.

        A relative loss is measured against the magnitude of the baseline, whatever its sign. Against a baseline of 0
        every loss is infinite. NaN counts as an infinite loss.
        """
        if math.isnan(value):
            return math.inf
        difference = baseline - value if self.higher_is_better else value - baseline
        if self.criterion == "absolute":
            return difference
        if baseline == 0.0:
            return 0.0 if difference == 0.0 else math.copysign(math.inf, difference)
        return difference / abs(baseline)

    def allows(self, value: float, baseline: float) -> bool:
        """Return whether the loss is tolerable; the boundary itself is accepted, up to rounding."""
        return self.loss(value, baseline) <= self.tolerable_loss + _ROUNDING

    def constraints(self, names: Mapping[str, float]) -> dict[str, AccuracyCriterion]:
        """Return the criterion of each constrained metric among `names`.

        Raises:
            ConfigError: a metric with a criterion of its own was not returned by the evaluation.
        """
        missing = sorted(set(self.metrics) - set(names))
        if missing:
            message = (
                f"accuracy criterion names the metrics {missing}, but the evaluation returned {sorted(names)}: "
                "rename one of them"
            )
            raise ConfigError(message)
        return dict(self.metrics) if self.metrics else dict.fromkeys(names, self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer of `judge`.

    Attributes:
        is_met: True when every constrained metric holds.
        losses: Metric -> loss, in the unit of its own criterion; constrained metrics only.
        slack: Smallest tolerable loss minus loss over the metrics; negative when the criterion is missed. It orders
            candidates by how near they come.
        reason: One sentence for a person.
    """

    is_met: bool
    losses: FrozenMap[float]
    slack: float
    reason: str


def judge(criterion: AccuracyCriterion, metrics: Mapping[str, float], baseline: Mapping[str, float]) -> Verdict:
    """Decide whether `metrics` are good enough against `baseline`.

    Raises:
        ConfigError: the criterion names a metric that is not there, or the candidate lacks one of the baseline's.
    """
    constraints = criterion.constraints(baseline)
    lost = sorted(set(constraints) - set(metrics))
    if lost:
        message = f"the evaluation returned {sorted(metrics)}, but the float baseline also had {lost}"
        raise ConfigError(message)
    losses = {name: rule.loss(metrics[name], baseline[name]) for name, rule in constraints.items()}
    missed = [name for name, rule in constraints.items() if not rule.allows(metrics[name], baseline[name])]
    slack = min((rule.tolerable_loss - losses[name] for name, rule in constraints.items()), default=0.0)
    sentences = [_sentence(name, constraints[name], metrics[name], baseline[name]) for name in missed or constraints]
    return Verdict(is_met=not missed, losses=FrozenMap(losses), slack=slack, reason="; ".join(sentences))


def _sentence(name: str, rule: AccuracyCriterion, value: float, baseline: float) -> str:
    loss = rule.loss(value, baseline)
    held = "within" if rule.allows(value, baseline) else "above"
    shown = f"{loss:.2%}" if rule.criterion == "relative" else f"{loss:.4g}"
    limit = f"{rule.tolerable_loss:.2%}" if rule.criterion == "relative" else f"{rule.tolerable_loss:.4g}"
    return f"{name} {value:.4g} against {baseline:.4g}: {rule.criterion} loss {shown}, {held} the tolerable {limit}"
