"""What probes on unlabeled calibration samples say about a model before the search: how much each op hurts, and what it gains."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from neural_tune.values.capability import Capability
from neural_tune.values.frozen import FrozenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyProfile:
    """Time per op in both precisions, from two profiled runs, and what it costs to cross between them.

    Attributes:
        float_ms: Op -> milliseconds in the float model; ops that cost nothing measurable may be missing.
        int8_ms: Op -> milliseconds in the full int8 model.
        border_ms: Tensor -> milliseconds to convert it once between float and int8, in either direction.
        batch_size: Samples per run.
        threads: Threads of the runtime.
    """

    float_ms: FrozenMap[float]
    int8_ms: FrozenMap[float]
    border_ms: FrozenMap[float] = field(default_factory=FrozenMap)
    batch_size: int = 1
    threads: int = 1

    def predict(self, capability: Capability, int8_ops: Collection[str]) -> float:
        """Return the predicted milliseconds of a model in which exactly `int8_ops` run in int8.

        A tensor is converted once for each side that reads it in the other precision than it was written in.
        """
        quantized = frozenset(int8_ops)
        producers = {tensor: op.name for op in capability.ops for tensor in op.outputs}
        total = 0.0
        crossed: set[tuple[str, bool]] = set()
        for op in capability.ops:
            is_int8 = op.name in quantized
            total += (self.int8_ms if is_int8 else self.float_ms).get(op.name, 0.0)
            for tensor in op.inputs:
                if (producers.get(tensor) in quantized) != is_int8:
                    crossed.add((tensor, is_int8))
        return total + sum(self.border_ms.get(tensor, 0.0) for tensor, _ in crossed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Insight:
    """The findings of the probes; part of the history, so that a strategy stays a pure function of values.

    Attributes:
        divergence: Group name -> divergence of the model's outputs from float when only this group has its preferred
            config ("one-in"); 0 is no difference. Divergences of single groups add up well, so they predict any subset.
        full: Divergence of full int8, without any recipe.
        recipes: Names of the recipes that were found to lower the divergence of full int8, to be used in every candidate.
        full_with_recipes: Divergence of full int8 with these recipes; equal to `full` when there is none.
        divergence_with_recipes: As `divergence`, with these recipes; empty when there is none.
        latency: Times per op; None when the adapter cannot profile.
        samples: Calibration samples behind it.
        forwards: Forward passes over these samples that the probes took.
    """

    divergence: FrozenMap[float] = field(default_factory=FrozenMap)
    full: float = math.nan
    recipes: tuple[str, ...] = ()
    full_with_recipes: float = math.nan
    divergence_with_recipes: FrozenMap[float] = field(default_factory=FrozenMap)
    latency: LatencyProfile | None = None
    samples: int = 0
    forwards: int = 0
