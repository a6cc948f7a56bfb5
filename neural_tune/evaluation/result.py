"""What an evaluation found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from neural_tune.protocols import Array, Outputs
from neural_tune.values import FrozenMap

OUTPUT_PREFIX = "output:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The outcome of one evaluation.

    Attributes:
        metrics: Metric -> value on the whole evaluation set; empty when the evaluation was cut short.
        bounds: Metric -> best value that was still possible when it was cut short; +inf or -inf where nothing is known.
        samples: Samples that were run, repeated ones included; 0 for an opaque function.
        passes: `samples` over the size of the evaluation set; 1 per call of an opaque function.
        is_complete: True when every sample was seen.
        seconds: Wall time.
        values: Arrays in data order: metric -> value per sample, float64 (n,), for metrics that are a mean over samples; and
            "output:0", "output:1" ... -> the model's outputs, kept where intervals need them. None when there is none.
    """

    metrics: FrozenMap[float]
    bounds: FrozenMap[float] = field(default_factory=FrozenMap)
    samples: int = 0
    passes: float = 0.0
    is_complete: bool = True
    seconds: float = 0.0
    values: Mapping[str, Array] | None = field(default=None, compare=False, repr=False)

    @property
    def outputs(self) -> Outputs:
        """The outputs that were kept, in data order; () when none were."""
        kept = self.values or {}
        count = sum(name.startswith(OUTPUT_PREFIX) for name in kept)
        return tuple(kept[f"{OUTPUT_PREFIX}{position}"] for position in range(count))
