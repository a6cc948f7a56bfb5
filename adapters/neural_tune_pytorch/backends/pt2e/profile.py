"""Where the time goes: the generated code of float and full int8, statement by statement, as times of the original ops and of the borders.

A statement that calls a kernel of oneDNN names the nodes that it was made of, and from these the graph leads back to the convolution or linear. What is left are loops that
Inductor wrote itself, several ops in each; they are shared out among the ops without a kernel by what these write. Loops that do nothing but quantize tell what a border costs.
Two compiles: the float one is the baseline's, so that a search pays for one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, fx

from neural_tune.errors import AdapterError
from neural_tune.measure import compare_speed
from neural_tune.values import Capability, FrozenMap, LatencyProfile, Mode, Role
from neural_tune_pytorch.backend import Feed
from neural_tune_pytorch.backends.pt2e import capability
from neural_tune_pytorch.backends.pt2e.capture import Captured
from neural_tune_pytorch.backends.pt2e.lowering import Compiled
from neural_tune_pytorch.backends.pt2e.ops import POOLS, Op
from neural_tune_pytorch.backends.pt2e.plan import Plan, observed_tensors
from neural_tune_pytorch.backends.pt2e.statements import Clocked, Statement
from neural_tune_pytorch.threads import inference

_SECONDS = 0.4
_LEAST_RUNS, _MOST_RUNS = 5, 60
# What the last fit may correct: more means that the machine was disturbed.
_LEAST_SCALE, _MOST_SCALE = 0.5, 2.0


@dataclass(slots=True)
class _Spent:
    """Milliseconds of one form: of ops by name, of loops that only quantize, and of everything else."""

    ops: dict[str, float]
    borders: float
    codes: int
    rest: float


def profile(
    floats: tuple[Captured, Compiled], int8: tuple[Captured, Compiled], planned: Plan, feed: Feed, threads: int
) -> LatencyProfile:
    """Return the times per op of the float model and of a plan (full int8), and the costs of its borders.

    Args:
        floats: The float model and its network.
        int8: The model that the plan belongs to (recipes change it), and the network of the plan.
        planned: What is quantized, and how.
        feed: One batch; predictions hold for its size.
        threads: Threads to run with.

    Raises:
        AdapterError: a network breaks, or its code cannot be timed.
    """
    (captured, slow), (changed, fast) = floats, int8
    with inference(threads):
        sizes = _Sizes(changed.graph).of(feed)
        slow(*feed)  # compiles
        fast(*feed)
        speed = compare_speed(
            partial(slow, *feed), partial(fast, *feed), batch_size=1, threads=threads, seconds=_SECONDS
        )
        whole = speed.float_ms / speed.ratio
        spent = _spent(captured, slow, feed, speed.float_ms, threads), _spent(changed, fast, feed, whole, threads)
    draft = _draft(changed, planned, *spent, sizes)
    rows = len(feed[0]) if feed[0].ndim else 1
    return _fitted(replace(draft, batch_size=rows, threads=threads), capability.query(captured), planned.configs, whole)


def _draft(captured: Captured, planned: Plan, floats: _Spent, int8: _Spent, sizes: Mapping[str, int]) -> LatencyProfile:
    """Return the profile as the statements tell it, for one row and one thread."""
    rate = _rate(captured, planned, floats, int8, sizes)
    int8_ms = {
        op.name: int8.ops.get(op.name, 0.0)
        for op in captured.ops
        if op.name in planned.configs and planned.configs[op.name].activation
        # An anchor that was not found has no time; a companion runs inside of its anchor.
        if op.name in int8.ops or op.role is not Role.ANCHOR
    }
    int8_ms |= {
        op.name: int8.ops[op.name] for op in captured.ops if op.role is Role.PASS_THROUGH and op.name in int8.ops
    }
    read_by: dict[str, list[str]] = {}
    for op in captured.ops:
        if op.name in planned.configs and planned.configs[op.name].mode is Mode.DYNAMIC:
            read_by.setdefault(op.inputs[0], []).append(op.name)
    # A range that is found when the op runs is found whoever wrote the tensor: no border that a neighbour could spare.
    for tensor, readers in read_by.items():
        for name in int8_ms.keys() & readers:
            int8_ms[name] += rate * sizes.get(tensor, 0) / len(readers)
    borders = {name: 0.0 if name in read_by else rate * sizes.get(name, 0) for name in observed_tensors(captured)}
    return LatencyProfile(
        float_ms=FrozenMap(floats.ops | _shared_out(captured, floats, sizes)),
        int8_ms=FrozenMap(int8_ms),
        border_ms=FrozenMap(borders),
        # Kernels hand out float as fast as codes.
        leave_ms=FrozenMap({op.node: 0.0 for op in captured.ops}),
    )


def _rate(captured: Captured, planned: Plan, floats: _Spent, int8: _Spent, sizes: Mapping[str, int]) -> float:
    """Return milliseconds per element quantized: from loops that do nothing else, or from what all loops cost more than in float."""
    if int8.codes:
        return int8.borders / int8.codes
    nodes = {node.name: node for node in captured.graph.graph.nodes}
    read = {str(nodes[name].args[position]) for name, position in (*planned.static, *planned.dynamic)}
    count = sum(sizes.get(tensor, 0) for tensor in read)
    return max(int8.rest - floats.rest, 0.0) / count if count else 0.0


def _shared_out(captured: Captured, floats: _Spent, sizes: Mapping[str, int]) -> dict[str, float]:
    """Return the time of loops as times of the ops that have no kernel of their own, by the elements that they write."""
    ops = [op for op in captured.ops if op.name not in floats.ops and op.role is Role.NEVER]
    total = sum(sizes.get(op.node, 0) for op in ops)
    if not total:
        return {op.name: floats.rest / max(len(captured.ops), 1) for op in captured.ops if op.name not in floats.ops}
    return {op.name: floats.rest * sizes.get(op.node, 0) / total for op in ops}


def _spent(captured: Captured, network: Compiled, feed: Feed, whole: float, threads: int) -> _Spent:
    """Return where a network's time goes, scaled to `whole` milliseconds: clocks cost time themselves."""
    form = network.form(feed)
    clocked = Clocked(form, clock=time.thread_time if threads == 1 else time.perf_counter)
    rows: list[list[float]] = []
    end = time.process_time() + _SECONDS
    with clocked.ticking():
        while len(rows) < _MOST_RUNS and (len(rows) < _LEAST_RUNS or time.process_time() < end):
            network(*feed)
            rows.append(clocked.seconds())
    times = np.median(np.array(rows), axis=0)
    return _attributed(captured, network.graph, clocked.statements, times * (whole / max(times.sum(), 1e-9)))


def _attributed(captured: Captured, graph: fx.GraphModule, statements: Collection[Statement], times: Any) -> _Spent:
    nodes = {node.name: node for node in graph.graph.nodes}
    ops = {op.node: op for op in captured.ops}
    found = _Spent({}, 0.0, 0, 0.0)
    for statement, cost in zip(statements, map(float, times), strict=True):
        owner = _owner([nodes[name] for name in statement.nodes if name in nodes], ops)
        if statement.only_quantizes:
            found.borders += cost
            found.codes += statement.codes
        elif owner:
            found.ops[owner] = found.ops.get(owner, 0.0) + cost
        else:
            found.rest += cost
    return found


def _owner(made_of: list[fx.Node], ops: Mapping[str, Op]) -> str:
    """Return the name of the op that a kernel computes: the last node of it, or what this one only activates, sums up, moves or quantizes."""
    for last in reversed(made_of):
        node: Any = last
        while isinstance(node, fx.Node) and node.op == "call_function":
            op = ops.get(node.name)
            if op is not None and op.role is Role.COMPANION:
                return op.anchor
            if op is not None and (op.role is not Role.PASS_THROUGH or node.target in POOLS):
                return op.name
            node = node.args[0] if node.args else None
    return ""


def _fitted(draft: LatencyProfile, offered: Capability, configs: Collection[str], whole: float) -> LatencyProfile:
    """Return `draft` with int8 times scaled so that it predicts full int8; float it predicts by construction."""
    free = replace(draft, int8_ms=FrozenMap(dict.fromkeys(draft.int8_ms, 0.0)))
    rest = free.predict(offered, configs)
    own = draft.predict(offered, configs) - rest
    if own <= 0.0:
        return draft
    scale = min(max((whole - rest) / own, _LEAST_SCALE), _MOST_SCALE)
    if not math.isfinite(scale):
        raise AdapterError("the times of the profile are no numbers: the machine was disturbed")
    return replace(draft, int8_ms=FrozenMap({name: value * scale for name, value in draft.int8_ms.items()}))


class _Sizes(fx.Interpreter):
    """Runs the float graph once and looks at how many elements every node writes."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self._found: dict[str, int] = {}

    def of(self, feed: Feed) -> dict[str, int]:
        """Return tensor -> elements."""
        self.run(*feed)
        return self._found

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self._found[n.name] = value.numel()
        return value
