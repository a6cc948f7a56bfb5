"""What is optimised among the candidates that are accurate enough."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from neural_tune.errors import ConfigError

# name -> is a higher value better? Units: latency ms per batch, throughput samples/s, size and memory bytes.
BUILTIN_OBJECTIVES: dict[str, bool] = {"latency": False, "throughput": True, "size": False, "memory": False}
# INC 2.x's words for the same things.
ALIASES = {"performance": "latency", "modelsize": "size", "footprint": "memory"}


@dataclass(frozen=True, slots=True)
class Objective:
    """One quantity to improve.

    Attributes:
        name: "latency" (ms per batch), "throughput" (samples/s), "size" (bytes), "memory" (peak bytes of a fresh
            process), or the name of a user's callable.
        weight: Share in the weighted score, above 0.
        higher_is_better: Direction; None takes the built-in one.

    Raises:
        ConfigError: the weight is not positive, or a user's objective does not say its direction.
    """

    name: str
    weight: float = 1.0
    higher_is_better: bool | None = None

    def __post_init__(self) -> None:
        """Check the weight and settle aliases and the direction once."""
        object.__setattr__(self, "name", ALIASES.get(self.name, self.name))
        if not (math.isfinite(self.weight) and self.weight > 0):
            message = f"objective {self.name!r}: found weight {self.weight!r}, expected a number above 0"
            raise ConfigError(message)
        if self.higher_is_better is None:
            if self.name not in BUILTIN_OBJECTIVES:
                message = (
                    f"objective {self.name!r} is none of {sorted(BUILTIN_OBJECTIVES)}: "
                    "a user's objective must say higher_is_better"
                )
                raise ConfigError(message)
            object.__setattr__(self, "higher_is_better", BUILTIN_OBJECTIVES[self.name])

    def gain(self, value: float, baseline: float) -> float:
        """Return how many times better than the baseline `value` is (2.0 = twice as good)."""
        if value <= 0 or baseline <= 0:
            return math.nan
        return value / baseline if self.higher_is_better else baseline / value


@dataclass(frozen=True, slots=True)
class Objectives:
    """Several objectives, combined by weights or kept apart as a Pareto front.

    Attributes:
        items: The objectives, the most important first.
        pareto: Keep the whole front instead of one weighted score (the score still picks the returned model).
    """

    items: tuple[Objective, ...] = (Objective("latency"),)
    pareto: bool = False

    def __post_init__(self) -> None:
        """Refuse an empty list and doubles."""
        names = self.names
        if not names or len(set(names)) != len(names):
            message = f"objectives: found {list(names)}, expected at least one and none twice"
            raise ConfigError(message)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(item.name for item in self.items)

    @property
    def noise(self) -> float:
        """How far two scores may be apart and still count as equal: 5 % where time or memory is measured, else nothing."""
        return math.log(1.05) if {"latency", "throughput", "memory"} & set(self.names) else 0.0

    def score(self, values: Mapping[str, float], baseline: Mapping[str, float]) -> float:
        """Return the weighted mean of the logarithms of the gains; 0 equals float, higher is better.

        Weights are normalised, so 0.5/0.5 and 1/1 mean the same. An objective that was not measured makes it -inf.
        """
        total = sum(item.weight for item in self.items)
        gains = [item.gain(values.get(item.name, math.nan), baseline.get(item.name, math.nan)) for item in self.items]
        if any(math.isnan(gain) for gain in gains):
            return -math.inf
        return sum(item.weight * math.log(gain) for item, gain in zip(self.items, gains, strict=True)) / total

    def dominates(self, one: Mapping[str, float], other: Mapping[str, float]) -> bool:
        """Return whether `one` is at least as good everywhere and better somewhere."""
        signs = [1.0 if item.higher_is_better else -1.0 for item in self.items]
        differences = [sign * (one[item.name] - other[item.name]) for sign, item in zip(signs, self.items, strict=True)]
        return min(differences) >= 0 and max(differences) > 0

    def front(self, points: Sequence[Mapping[str, float]]) -> tuple[int, ...]:
        """Return the indices of the points that no other point dominates, in order."""
        return tuple(
            index
            for index, point in enumerate(points)
            if not any(self.dominates(other, point) for other in points if other is not point)
        )
