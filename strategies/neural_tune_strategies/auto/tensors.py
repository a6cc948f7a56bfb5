"""Which groups of ops meet at an activation tensor.

A range belongs to a tensor, not to an op: it is written by one producer, read by all consumers, and passes unchanged through
ops that only carry it (Relu, Reshape, MaxPool). So the tensors before and behind a pass-through op count as one.
"""

from __future__ import annotations

from neural_tune.space import TuningSpace
from neural_tune.values import OpCapability, Role


def families(space: TuningSpace) -> tuple[tuple[str, ...], ...]:
    """Return the names of the groups around every tensor that joins two groups or more, in execution order, none twice."""
    group_of = {name: group.name for group in space.groups for name in group.ops}
    joined = _carried_together(space.capability.ops, group_of)
    around: dict[str, dict[str, None]] = {}
    for op in space.capability.ops:
        if op.name in group_of:
            for tensor in (*op.inputs, *op.outputs):
                around.setdefault(joined(tensor), {})[group_of[op.name]] = None
    return tuple(dict.fromkeys(tuple(groups) for groups in around.values() if len(groups) > 1))


def nodes(space: TuningSpace) -> dict[str, str]:
    """Return op -> the group whose precision it has: its own, or, for an op that only carries data, that of what wrote its first input.

    Ops that are float whatever is chosen are missing.
    """
    found = {name: group.name for group in space.groups for name in group.ops}
    producers = {tensor: op.name for op in space.capability.ops for tensor in op.outputs}
    for op in space.capability.ops:  # in execution order, so producers come first
        if op.name not in found and op.role is Role.PASS_THROUGH:
            writer = producers.get(op.inputs[0], "") if op.inputs else ""
            if writer in found:
                found[op.name] = found[writer]
    return found


class _Sets:
    """Disjoint sets of names (union-find with path halving)."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        while (parent := self._parents.get(name, name)) != name:
            self._parents[name] = self._parents.get(parent, parent)
            name = parent
        return name

    def join(self, one: str, other: str) -> None:
        self._parents[self(one)] = self(other)


def _carried_together(ops: tuple[OpCapability, ...], group_of: dict[str, str]) -> _Sets:
    sets = _Sets()
    for op in ops:
        if op.role is Role.PASS_THROUGH and op.name not in group_of:
            tensors = (*op.inputs, *op.outputs)
            for tensor in tensors[1:]:
                sets.join(tensors[0], tensor)
    return sets
