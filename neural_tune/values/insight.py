"""What probes on unlabeled calibration samples say about a model before the search: how much each op hurts, and what it gains."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from neural_tune.values.capability import Capability, OpCapability, Role
from neural_tune.values.frozen import FrozenMap


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyProfile:
    """Time per op in both precisions, from two profiled runs, and what it costs to cross between them.

    Attributes:
        float_ms: Op -> milliseconds in the float model; ops that cost nothing measurable may be missing. An anchor that is missing was not
            found: its time is unknown, not 0.
        int8_ms: Op -> milliseconds in the full int8 model, 0 for what is folded away there; an op that is missing has its float time.
        border_ms: Tensor -> milliseconds to quantize it, where a float op writes it and int8 ops read it.
        leave_ms: Tensor -> milliseconds to dequantize it, where an int8 op writes it and float ops read it; a tensor that is missing
            costs what `border_ms` says. 0 where the int8 kernel hands out float anyway.
        batch_size: Samples per run.
        threads: Threads of the runtime.
    """

    float_ms: FrozenMap[float]
    int8_ms: FrozenMap[float]
    border_ms: FrozenMap[float] = field(default_factory=FrozenMap)
    leave_ms: FrozenMap[float] = field(default_factory=FrozenMap)
    batch_size: int = 1
    threads: int = 1

    def times(self, op: OpCapability) -> tuple[float, float]:
        """Return the milliseconds of an op in float and in int8; an anchor of which only one is known counts as equally fast in both."""
        in_int8 = self.int8_ms.get(op.name)
        unseen = in_int8 if in_int8 is not None and op.role is Role.ANCHOR else 0.0
        in_float = self.float_ms.get(op.name, unseen)
        return in_float, in_float if in_int8 is None else in_int8

    def compared(self, ops: Collection[str]) -> tuple[float, float] | None:
        """Return the milliseconds of some ops together in float and in int8; None if one of these times is unknown."""
        if not all(op in self.float_ms and op in self.int8_ms for op in ops):
            return None
        return math.fsum(self.float_ms[op] for op in ops), math.fsum(self.int8_ms[op] for op in ops)

    def predict(self, capability: Capability, int8_ops: Collection[str]) -> float:
        """Return the predicted milliseconds of a model in which exactly `int8_ops` run in int8.

        A tensor is converted once, however many ops read it on the other side.
        """
        regions = Int8Regions.of(capability, int8_ops)
        total = math.fsum(self.border_ms.get(tensor, 0.0) for tensor in regions.entered)
        total += math.fsum(self.leave_ms.get(tensor, self.border_ms.get(tensor, 0.0)) for tensor in regions.left)
        for op in capability.ops:
            in_float, in_int8 = self.times(op)
            total += in_int8 if op.name in regions.ops else in_float
        return total


@dataclass(frozen=True, slots=True)
class Int8Regions:
    """Which ops really run in int8 when some are asked to, and where values cross between int8 and float.

    A pass-through op goes with its input. A companion joins a region or stays float: every input must come from an int8 op or be read by
    an int8 anchor too, and at least one must come from an int8 op.

    Attributes:
        ops: Ops in int8.
        entered: Tensors written in float and read in int8.
        left: Tensors written in int8 and read in float, or read by nobody: results of the model.
    """

    ops: frozenset[str]
    entered: frozenset[str]
    left: frozenset[str]

    @classmethod
    def of(cls, capability: Capability, int8_ops: Collection[str]) -> Int8Regions:
        """Return the regions when exactly `int8_ops` are asked to run in int8."""
        asked = frozenset(int8_ops)
        by_anchor = {name for op in capability.ops if op.name in asked and op.role is Role.ANCHOR for name in op.inputs}
        ops: set[str] = set()
        written: set[str] = set()
        for op in capability.ops:
            if _joins(op, asked, written, by_anchor):
                ops.add(op.name)
                written.update(op.outputs)
        in_int8 = {tensor for op in capability.ops if op.name in ops for tensor in op.inputs}
        in_float = {tensor for op in capability.ops if op.name not in ops for tensor in op.inputs}
        results = written - in_int8 - in_float
        return cls(frozenset(ops), frozenset(in_int8 - written), frozenset((written & in_float) | results))


def _joins(op: OpCapability, asked: frozenset[str], written: Collection[str], by_anchor: Collection[str]) -> bool:
    """Return whether `op` runs in int8, given the tensors that int8 ops before it have written."""
    if op.role is Role.PASS_THROUGH and op.name not in asked:
        return bool(op.inputs) and op.inputs[0] in written
    if op.role is not Role.COMPANION:
        return op.name in asked
    reachable = all(tensor in written or tensor in by_anchor for tensor in op.inputs)
    return op.name in asked and reachable and any(tensor in written for tensor in op.inputs)


PROBES = ("recipes", "latency", "divergence", "divergence_with_recipes", "curvature")


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """What a strategy hands to the engine instead of a candidate when it must know more before it can go on.

    The engine runs the probes, puts what they found into `history.insight`, and asks the strategy again. So a probe is paid for
    only in a search that comes as far as needing it.

    Attributes:
        probes: Some of `PROBES`; none that `history.insight` has an answer to.
    """

    probes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Insight:
    """The findings of the probes; part of the history, so that a strategy stays a pure function of values.

    Attributes:
        probes: Names of the probes that were run, in that order. What the adapter could not do stays empty all the same.
        divergence: Group name -> divergence of the model's outputs from float when only this group has its preferred
            config ("one-in"); 0 is no difference. Divergences of single groups add up well, so they predict any subset.
        full: Divergence of full int8, without any recipe.
        recipes: Names of the recipes that were found to lower the divergence of full int8, to be used in every candidate.
        full_with_recipes: Divergence of full int8 with these recipes; equal to `full` when there is none.
        divergence_with_recipes: As `divergence`, with these recipes; empty when there is none.
        latency: Times per op; None when the adapter cannot profile.
        curvature: Group name -> what quantizing its weights adds to the loss by its curvature (HAWQ): the mean trace of the Hessian
            times the squared distance of the weights from their quantized selves.
        samples: Calibration samples behind it.
        forwards: Forward passes over these samples that the probes took.
        build_seconds: Mean wall time of building a candidate for them; 0 when none was built.
    """

    probes: tuple[str, ...] = ()
    divergence: FrozenMap[float] = field(default_factory=FrozenMap)
    full: float = math.nan
    recipes: tuple[str, ...] = ()
    full_with_recipes: float = math.nan
    divergence_with_recipes: FrozenMap[float] = field(default_factory=FrozenMap)
    latency: LatencyProfile | None = None
    curvature: FrozenMap[float] = field(default_factory=FrozenMap)
    samples: int = 0
    forwards: int = 0
    build_seconds: float = 0.0

    @property
    def answered(self) -> frozenset[str]:
        """Names of the probes that need not be run: they were, or their findings are here already."""
        given = {
            "latency": self.latency is not None,
            "divergence": bool(self.divergence),
            "divergence_with_recipes": bool(self.divergence_with_recipes),
            "curvature": bool(self.curvature),
        }
        return frozenset(self.probes) | {name for name, is_given in given.items() if is_given}
