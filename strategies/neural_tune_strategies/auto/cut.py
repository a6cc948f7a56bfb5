"""The cheapest way to give every node one of two labels, exactly, by a minimum cut.

Costs of single nodes and "pay when this one is int8 and that one float" are what a minimum cut can minimise (they are submodular;
Kolmogorov and Zabih 2004). The flow is Dinic's algorithm on integers, so that a result depends on no rounding.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable

_SOURCE, _SINK = 0, 1  # int8 and float
_BITS = 40


class Labelling:
    """Costs of labelling nodes int8 or float; collect them, then call `solve` once.

    Nodes `int8` and `floats` are given their label beforehand and cost nothing to look at.
    """

    def __init__(self, int8: frozenset[Hashable], floats: frozenset[Hashable]) -> None:
        self._fixed = dict.fromkeys(int8, _SOURCE) | dict.fromkeys(floats, _SINK)
        self._nodes: dict[Hashable, int] = {}
        self._costs: list[tuple[int, int, float | None]] = []

    def prefer(self, node: Hashable, *, if_float: float, if_int8: float) -> None:
        """Charge `node` for its label; negative costs are allowed."""
        least = min(if_float, if_int8)
        self._costs.append((_SOURCE, self._index(node), if_float - least))
        self._costs.append((self._index(node), _SINK, if_int8 - least))

    def charge(self, int8: Hashable, floating: Hashable, cost: float | None) -> None:
        """Charge `cost` (None: forbid it) when node `int8` is int8 and node `floating` is float."""
        self._costs.append((self._index(int8), self._index(floating), cost))

    def solve(self) -> frozenset[Hashable]:
        """Return the free nodes that are float in the cheapest labelling; of several, in the one with the fewest."""
        flow = _Flow(len(self._nodes) + 2)
        largest = max((cost for _, _, cost in self._costs if cost is not None), default=0.0)
        # A power of two as the unit, so that equal sums of costs stay equal.
        places = _BITS - math.frexp(largest)[1]
        amounts = [None if cost is None else round(math.ldexp(cost, places)) for _, _, cost in self._costs]
        forbidden = sum(amount for amount in amounts if amount is not None) + 1
        for (tail, head, _), amount in zip(self._costs, amounts, strict=True):
            if tail != head:
                flow.connect(tail, head, forbidden if amount is None else amount)
        flow.saturate()
        reaching = flow.reaching_sink()
        return frozenset(node for node, index in self._nodes.items() if index in reaching)

    def _index(self, node: Hashable) -> int:
        if node in self._fixed:
            return self._fixed[node]
        return self._nodes.setdefault(node, len(self._nodes) + 2)


class _Flow:
    """A flow network; arc `2 k + 1` is the reverse of arc `2 k`."""

    def __init__(self, size: int) -> None:
        self._arcs: list[list[int]] = [[] for _ in range(size)]
        self._heads: list[int] = []
        self._room: list[int] = []

    def connect(self, tail: int, head: int, amount: int) -> None:
        if amount > 0:
            self._arcs[tail].append(len(self._heads))
            self._arcs[head].append(len(self._heads) + 1)
            self._heads += (head, tail)
            self._room += (amount, 0)

    def saturate(self) -> None:
        while (levels := self._levels())[_SINK] >= 0:
            self._block(levels)

    def reaching_sink(self) -> set[int]:
        """Return the nodes from which the sink can still be reached."""
        found, queue = {_SINK}, deque([_SINK])
        while queue:
            for arc in self._arcs[queue.popleft()]:
                if self._room[arc ^ 1] > 0 and self._heads[arc] not in found:
                    found.add(self._heads[arc])
                    queue.append(self._heads[arc])
        return found

    def _levels(self) -> list[int]:
        levels = [-1] * len(self._arcs)
        levels[_SOURCE] = 0
        queue = deque([_SOURCE])
        while queue and levels[_SINK] < 0:
            node = queue.popleft()
            for arc in self._arcs[node]:
                if self._room[arc] > 0 and levels[self._heads[arc]] < 0:
                    levels[self._heads[arc]] = levels[node] + 1
                    queue.append(self._heads[arc])
        return levels

    def _block(self, levels: list[int]) -> None:
        """Push along shortest paths until each of them has a full arc."""
        places = [0] * len(self._arcs)
        node, path = _SOURCE, list[int]()
        while True:
            if node == _SINK:
                amount = min(self._room[arc] for arc in path)
                for arc in path:
                    self._room[arc] -= amount
                    self._room[arc ^ 1] += amount
                node, path = _SOURCE, []
            onward = self._next_arc(node, levels, places)
            if onward is not None:
                path.append(onward)
                node = self._heads[onward]
            elif path:
                node = self._heads[path.pop() ^ 1]
                places[node] += 1
            else:
                return

    def _next_arc(self, node: int, levels: list[int], places: list[int]) -> int | None:
        arcs = self._arcs[node]
        while places[node] < len(arcs):
            arc = arcs[places[node]]
            if self._room[arc] > 0 and levels[self._heads[arc]] == levels[node] + 1:
                return arc
            places[node] += 1
        return None
