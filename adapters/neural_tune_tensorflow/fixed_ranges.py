"""Ranges that training found, in the place of those that calibration finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from neural_tune.errors import AdapterError
from neural_tune.values import Observer


@dataclass(frozen=True, slots=True, eq=False)
class FixedRanges:
    """Ranges that training found: whatever observer is asked for, the answer is the trained range.

    Attributes:
        ranges: Tensor -> (low, high).
        infinite: Tensors that calibration saw as infinite: training leaves what reads them in float.
    """

    ranges: Mapping[str, tuple[float, float]]
    infinite: frozenset[str] = frozenset()

    def range_of(
        self,
        tensor: str,
        observer: Observer,  # noqa: ARG002 - part of the protocol
        percentile: float | None = None,  # noqa: ARG002
        *,
        symmetric: bool,
        levels: int,  # noqa: ARG002
    ) -> tuple[float, float]:
        """Return the trained range; made symmetric where that is asked for."""
        if tensor not in self.ranges:
            raise AdapterError(f"training left no range for tensor {tensor!r}")
        low, high = self.ranges[tensor]
        bound = max(abs(low), abs(high))
        return (-bound, bound) if symmetric else (low, high)
