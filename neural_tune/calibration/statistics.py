"""What was seen of every tensor, and the range that each observer takes from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from neural_tune.calibration.spool import Spool
from neural_tune.errors import AdapterError
from neural_tune.numerics import observers
from neural_tune.numerics.observers import Observed
from neural_tune.values import Observer

_RangeKey: TypeAlias = tuple[str, Observer, float | None, bool, int]


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """The result of calibration: every range is a pure function of it, so no trial calibrates again.

    Attributes:
        tensors: Tensor name -> what was seen of it. Not to be changed.
        batches: Number of batches that were read.
        infinite: Tensors that took infinite values (attention masks do): they have no range, so what reads or writes them stays float.
        inputs: The calibration batches (or the first of them) on disk, for recipes that look at real activations again; None where they were not kept.
    """

    tensors: Mapping[str, Observed]
    batches: int = 0
    infinite: frozenset[str] = frozenset()
    inputs: Spool | None = None
    _ranges: dict[_RangeKey, tuple[float, float]] = field(default_factory=dict, init=False, repr=False)

    def of(self, tensor: str) -> Observed:
        """Return what was seen of `tensor`.

        Raises:
            AdapterError: the tensor was never observed, or has no range; a default in its place would silently be wrong.
        """
        if tensor in self.tensors:
            return self.tensors[tensor]
        if tensor in self.infinite:
            raise AdapterError(
                f"tensor {tensor!r} took infinite values in calibration, so it has no range: keep its neighbours in float"
            )
        raise AdapterError(
            f"tensor {tensor!r} was never observed in calibration ({len(self.tensors)} tensors were), so it has no range; "
            "add it to the observed tensors and calibrate again, or keep its consumers in float"
        )

    def range_of(
        self, tensor: str, observer: Observer, percentile: float | None = None, *, symmetric: bool, levels: int
    ) -> tuple[float, float]:
        """Return the (low, high) that `tensor` is to be quantized over.

        Asymmetric: within the observed minimum and maximum (the quantizer widens it to hold zero, and the observers reckon with
        that). Symmetric: (-t, t) with t at most the largest |x| observed. Computed once and remembered.

        Args:
            tensor: Name of an observed tensor.
            observer: How the range is found; see `neural_tune.numerics.observers`.
            percentile: Share of the values that is kept, in percent; for the percentile observer, None means 99.99.
            symmetric: Whether the range must be symmetric around zero.
            levels: Number of integers of the quantized type (256 for 8 bits, 128 with reduce_range).

        Raises:
            AdapterError: the tensor was never observed, or has no range.
        """
        key = (tensor, observer, percentile, symmetric, levels)
        if key not in self._ranges:
            self._ranges[key] = observers.find_range(
                self.of(tensor), observer, percentile=percentile, symmetric=symmetric, levels=levels
            )
        return self._ranges[key]
