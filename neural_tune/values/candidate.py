"""One point of the tuning space."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from neural_tune.values import canonical
from neural_tune.values.frozen import FrozenMap
from neural_tune.values.quant import FLOAT, Mode, Observer, OpConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRange:
    """How the range of one activation tensor is found, for its producer and all its consumers at once.

    It overrides the observers that the configs of the ops around it name.

    Attributes:
        tensor: Name of the tensor in the normalised model.
        observer: How the range is taken from the statistics.
        percentile: For the percentile observer, in percent; None means 99.99.
    """

    tensor: str
    observer: Observer
    percentile: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A precision for every op, as a value.

    Attributes:
        ops: Op name -> config, for the ops that are *not* float. An op that is missing is float, so that two equal
            candidates have one digest.
        ranges: Choices of range per tensor, ordered by tensor.
        recipes: Names of recipes that are on, sorted.
    """

    ops: FrozenMap[OpConfig] = field(default_factory=FrozenMap)
    ranges: tuple[TensorRange, ...] = ()
    recipes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, ops: Mapping[str, OpConfig], ranges: Iterable[TensorRange] = (), recipes: Iterable[str] = ()
    ) -> Candidate:
        """Return the canonical candidate: float ops dropped, ranges and recipes in order."""
        return cls(
            FrozenMap({name: config for name, config in ops.items() if not config.is_float}),
            tuple(sorted(ranges, key=lambda choice: choice.tensor)),
            tuple(sorted(set(recipes))),
        )

    @property
    def digest(self) -> str:
        """A stable hash: dedupe key and artifact name."""
        return _digest(self)

    @property
    def is_float(self) -> bool:
        """True for the float model itself."""
        return not self.ops

    @property
    def is_batch_bound(self) -> bool:
        """True when scales are taken while the model runs, over whatever samples share the batch."""
        return any(config.mode is Mode.DYNAMIC for config in self.ops.values())

    def config_of(self, op: str) -> OpConfig:
        """Return the config of `op`; FLOAT when the candidate does not name it."""
        return self.ops.get(op, FLOAT)

    def with_ops(self, changes: Mapping[str, OpConfig]) -> Candidate:
        """Return a copy in which the ops of `changes` have the given configs."""
        return Candidate.of({**self.ops, **changes}, self.ranges, self.recipes)


@functools.lru_cache(maxsize=8192)
def _digest(candidate: Candidate) -> str:
    # 2.6 ms for 150 ops, and `History.seen` asks for every trial at every proposal; the hash is remembered by FrozenMap.
    return canonical.digest(candidate)


FLOAT_CANDIDATE = Candidate()
