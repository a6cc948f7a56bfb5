"""What is optimised among the models that are accurate enough."""

from __future__ import annotations

from dataclasses import dataclass

import neural_tune


@dataclass(frozen=True, slots=True)
class Objective:
    """One quantity to improve.

    Attributes:
        name: "performance" (latency), "modelsize", "footprint" (memory), or neural_tune's own names.
        greater_is_better: Accepted for compatibility; the built-in objectives know their direction.
        weight_ratio: Share in the weighted score; None counts as 1.
    """

    name: str
    greater_is_better: bool = True
    weight_ratio: float | None = None

    def to_objective(self) -> neural_tune.Objective:
        """Return neural_tune's own form. Raises ConfigError for a name or weight that does not exist."""
        return neural_tune.Objective(self.name, 1.0 if self.weight_ratio is None else self.weight_ratio)


performance = Objective("performance")
modelsize = Objective("modelsize")
footprint = Objective("footprint")
