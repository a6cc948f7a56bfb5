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
        float_ms: Op -> milliseconds in the float model; ops that cost nothing measurable may be missing.
        int8_ms: Op -> milliseconds in the full int8 model, 0 for what is folded away there; an op that is missing has its float time.
        enter_ms: Tensor -> milliseconds to quantize it where a float op writes it and int8 ops read it.
        leave_ms: Tensor -> milliseconds to dequantize it where it is written as codes and float ops read it.
        batch_size: Samples per run.
        threads: Threads of the runtime.
    """

    float_ms: FrozenMap[float]
    int8_ms: FrozenMap[float]
    enter_ms: FrozenMap[float] = field(default_factory=FrozenMap)
    leave_ms: FrozenMap[float] = field(default_factory=FrozenMap)
    batch_size: int = 1
    threads: int = 1

    def predict(self, capability: Capability, int8_ops: Collection[str]) -> float:
        """Return the predicted milliseconds of a model in which exactly `int8_ops` run in int8."""
        regions = Int8Regions.of(capability, int8_ops)
        total = sum(self.enter_ms.get(tensor, 0.0) for tensor in regions.entered)
        total += sum(self.leave_ms.get(tensor, 0.0) for tensor in regions.left)
        for op in capability.ops:
            time = self.float_ms.get(op.name, 0.0)
            total += self.int8_ms.get(op.name, time) if op.name in regions.ops else time
        return total


@dataclass(frozen=True, slots=True)
class Int8Regions:
    """Which ops really compute on codes when some are asked to, and where values cross between codes and float.

    A companion joins only where all its inputs are there as codes; a pass-through op goes with its input; an op that needs no
    quantized output writes codes only where an int8 anchor reads them.

    Attributes:
        ops: Ops on codes.
        coded: Tensors written as codes.
        entered: Tensors written in float and read by ops on codes.
        left: Tensors written as codes and read by float ops, or by nobody: outputs.
    """

    ops: frozenset[str]
    coded: frozenset[str]
    entered: frozenset[str]
    left: frozenset[str]

    @classmethod
    def of(cls, capability: Capability, int8_ops: Collection[str]) -> Int8Regions:
        """Return the regions when exactly `int8_ops` are asked to run in int8."""
        asked = frozenset(int8_ops)
        anchors = {op.name for op in capability.ops if op.role is Role.ANCHOR and op.name in asked}
        read_by_anchor = {tensor for op in capability.ops if op.name in anchors for tensor in op.inputs}
        wanted = set(read_by_anchor)
        for op in reversed(capability.ops):
            if op.role is Role.PASS_THROUGH and any(tensor in wanted for tensor in op.outputs):
                wanted.update(op.inputs)
        ops: set[str] = set()
        coded: set[str] = set()
        for op in capability.ops:
            if op.role is Role.PASS_THROUGH:
                joins = bool(op.inputs) and op.inputs[0] in coded
                writes = joins
            elif op.name in anchors:
                joins, writes = True, _emits(op) or any(tensor in wanted for tensor in op.outputs)
            else:
                known = [tensor in coded or tensor in read_by_anchor for tensor in op.inputs]
                joins = op.name in asked and all(known) and any(tensor in coded for tensor in op.inputs)
                writes = joins
            if joins:
                ops.add(op.name)
            if writes:
                coded.update(op.outputs)
        entered = {tensor for op in capability.ops if op.name in ops for tensor in op.inputs} - coded
        in_float = {tensor for op in capability.ops if op.name not in ops for tensor in op.inputs}
        read = in_float | {tensor for op in capability.ops if op.name in ops for tensor in op.inputs}
        left = {tensor for tensor in coded if tensor in in_float or tensor not in read}
        return cls(frozenset(ops), frozenset(coded), frozenset(entered), frozenset(left))


def _emits(op: OpCapability) -> bool:
    """Return whether the int8 form of `op` always hands out codes."""
    return any(config.output is not None for config in op.choices)


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
