"""Metrics that a Trainer's `evaluate` returns, with their criteria."""

from __future__ import annotations

from dataclasses import dataclass

from neural_tune import AccuracyCriterion


@dataclass(frozen=True, slots=True)
class Metric:
    """One entry of what `Trainer.evaluate` returns, and how much of it may be lost.

    Attributes:
        name: The key, such as "eval_f1".
        greater_is_better: Direction.
        is_relative: Whether `criterion` is a share of the float value (True) or in units of the metric.
        criterion: The tolerable loss.
        weight_ratio: Accepted for compatibility, no effect: every metric has a criterion of its own.
    """

    name: str
    greater_is_better: bool = True
    is_relative: bool = True
    criterion: float = 0.01
    weight_ratio: float | None = None

    def to_criterion(self) -> AccuracyCriterion:
        """Return the criterion of this metric. Raises ConfigError for a loss out of range."""
        return AccuracyCriterion(self.greater_is_better, "relative" if self.is_relative else "absolute", self.criterion)
