"""What it costs to keep groups in float: milliseconds from a latency profile, bytes, or the number of groups."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from neural_tune.space import TuningSpace
from neural_tune.values import FrozenMap, Insight, LatencyProfile, Objectives, Role
from neural_tune_strategies.auto.tensors import nodes

# An op is left in float for its speed only where the profile is clear: float must win by more than this share of the op's own time plus this
# share of a mean group's time. Int8 is smaller, and times within 5 % count as equal when models are compared.
_NOISE, _WORTH = 0.05, 0.1
# All weights in int8 instead of float are worth this share of the model's time, a group its part of that. So what is large and hardly runs (a table of embeddings)
# is not left in float for time that nobody can measure, and the whole of it stays below what counts as equal.
_SMALLER = 0.02
_BYTES_SAVED = 3.0  # per parameter, from four bytes to one


@dataclass(frozen=True, slots=True)
class Border:
    """A tensor that is converted, once, when it is written in one precision and read in the other.

    Attributes:
        producer: Group that writes it; "" is float whatever is chosen.
        consumers: Groups that read it, with the same meaning of "".
        enter: Cost of quantizing it.
        leave: Cost of dequantizing it.
    """

    producer: str
    consumers: tuple[str, ...]
    enter: float
    leave: float

    def is_around(self, groups: Collection[str]) -> bool:
        """Return whether one of `groups` writes or reads it."""
        return self.producer in groups or any(consumer in groups for consumer in self.consumers)


@dataclass(frozen=True, slots=True)
class Companion:
    """A group of one companion op, which runs in int8 only beside int8 ops, whatever a candidate says (`values.insight.Int8Regions`).

    Attributes:
        name: The group.
        inputs: Per input tensor, the group that writes it ("" is float whatever is chosen), and the groups of the anchors that read it.
    """

    name: str
    inputs: tuple[tuple[str, frozenset[str]], ...]

    def joins(self, floats: Collection[str]) -> bool:
        """Return whether it runs in int8 when `floats` are the groups (and "") in float."""
        reachable = all(writer not in floats or not anchors <= frozenset(floats) for writer, anchors in self.inputs)
        return reachable and any(writer not in floats for writer, _ in self.inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The predicted cost of every candidate; lower is better.

    Attributes:
        unit: "ms", "bytes" or "ops", for reasons shown to a person.
        extra: Group -> cost of float over int8; negative where int8 does not pay.
        borders: Conversions; milliseconds only.
        companions: Ops that may run in float though they are asked to run in int8, in execution order; milliseconds only.
        base: Cost of full int8 without conversions.
    """

    unit: str
    extra: FrozenMap[float]
    borders: tuple[Border, ...] = ()
    companions: tuple[Companion, ...] = ()
    base: float = 0.0

    @property
    def needs(self) -> Iterator[tuple[str, str]]:
        """Yield companion and writer, where the one runs in int8 only if the other does."""
        for companion in self.companions:
            for writer, anchors in companion.inputs:
                if not anchors:
                    yield companion.name, writer

    def predict(self, floats: Collection[str]) -> float:
        """Return the cost of the candidate in which exactly the groups `floats` are float."""
        kept = {*floats, ""}
        for companion in self.companions:
            if companion.name not in kept and not companion.joins(kept):
                kept.add(companion.name)
        conversions = 0.0
        for border in self.borders:
            is_float = border.producer in kept
            if any((consumer in kept) != is_float for consumer in border.consumers):
                conversions += border.enter if is_float else border.leave
        return self.base + math.fsum(self.extra[name] for name in kept if name) + conversions


def costs_of(space: TuningSpace, objectives: Objectives, insight: Insight | None) -> Costs:
    """Return the costs that the objectives ask for, as far as they are known before the search."""
    profile = insight.latency if insight else None
    if profile is not None and {"latency", "throughput"} & set(objectives.names):
        return latency_costs(space, profile)
    return size_costs(space) if objectives.names[0] == "size" else count_costs(space)


def count_costs(space: TuningSpace) -> Costs:
    """Return costs that count float groups."""
    return Costs(unit="ops", extra=FrozenMap({group.name: 1.0 for group in space.groups}))


def size_costs(space: TuningSpace) -> Costs:
    """Return the bytes that weights take more in float; a group without weights costs next to nothing."""
    parameters = {op.name: op.parameters for op in space.capability.ops}
    extra = {group.name: max(_BYTES_SAVED * sum(parameters[name] for name in group.ops), 1.0) for group in space.groups}
    return Costs(unit="bytes", extra=FrozenMap(extra))


def latency_costs(space: TuningSpace, profile: LatencyProfile, *, prefer_int8: bool = True) -> Costs:
    """Return predicted milliseconds; with `prefer_int8`, a small charge on every float group on top of them, larger where its weights are.

    An op that only carries data has the precision of the op that wrote it, and a companion is in int8 only where it joins a region.
    """
    node_of = nodes(space)
    read = {tensor for op in space.capability.ops for tensor in op.inputs}
    noise, worth, smaller = (_NOISE, _WORTH, _SMALLER) if prefer_int8 else (0.0, 0.0, 0.0)
    whole = math.fsum(profile.float_ms.values())
    mean = whole / max(len(space.groups), 1)
    share = _shares(space)
    extra = {group.name: worth * mean + smaller * whole * share[group.name] for group in space.groups}
    base = 0.0
    for op in space.capability.ops:
        in_float, in_int8 = profile.times(op)
        in_int8 += math.fsum(_leaving(profile, tensor) for tensor in op.outputs if tensor not in read)  # results
        node = node_of.get(op.name)
        base += in_float if node is None else in_int8
        if node is not None:
            extra[node] += in_float * (1.0 + noise) - in_int8
    return Costs(
        unit="ms",
        extra=FrozenMap(extra),
        borders=_borders(space, profile, node_of),
        companions=_companions(space, node_of),
        base=base,
    )


def _shares(space: TuningSpace) -> dict[str, float]:
    """Return what part of all weights that may be int8 each group holds."""
    parameters = {op.name: op.parameters for op in space.capability.ops}
    held = {group.name: sum(parameters[name] for name in group.ops) for group in space.groups}
    total = max(sum(held.values()), 1)
    return {name: count / total for name, count in held.items()}


def _companions(space: TuningSpace, node_of: dict[str, str]) -> tuple[Companion, ...]:
    groups = {group.ops[0]: group.name for group in space.groups if len(group.ops) == 1}
    writers = {tensor: node_of.get(op.name, "") for op in space.capability.ops for tensor in op.outputs}
    anchors: dict[str, set[str]] = {}
    for op in space.capability.ops:
        for tensor in op.inputs if op.role is Role.ANCHOR else ():
            anchors.setdefault(tensor, set()).add(node_of.get(op.name, ""))
    return tuple(
        Companion(groups[op.name], tuple((writers.get(t, ""), frozenset(anchors.get(t, ()))) for t in op.inputs))
        for op in space.capability.ops
        if op.role is Role.COMPANION and op.name in groups
    )


def _leaving(profile: LatencyProfile, tensor: str) -> float:
    return profile.leave_ms.get(tensor, profile.border_ms.get(tensor, 0.0))


def _borders(space: TuningSpace, profile: LatencyProfile, node_of: dict[str, str]) -> tuple[Border, ...]:
    writers = {tensor: node_of.get(op.name, "") for op in space.capability.ops for tensor in op.outputs}
    readers: dict[str, dict[str, None]] = {}
    for op in space.capability.ops:
        for tensor in op.inputs:
            readers.setdefault(tensor, {})[node_of.get(op.name, "")] = None
    found = []
    for tensor, names in readers.items():
        producer, enter, leave = writers.get(tensor, ""), profile.border_ms.get(tensor, 0.0), _leaving(profile, tensor)
        consumers = tuple(name for name in names if name != producer)
        if consumers and enter + leave > 0.0:
            found.append(Border(producer, consumers, enter, leave))
    return tuple(found)
