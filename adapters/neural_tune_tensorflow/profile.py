"""Where the time goes: TensorFlow's own traces of float and full int8, as times of the original ops and of the borders.

Fused nodes keep the name of the product they come from (ours) or of the last op they swallowed (the optimizer's). What the optimizer swallowed is gone from
the graph that runs, and from there each fused node is led back to its product. A sum or an activation that runs inside of a float product and apart from an
int8 one counts for the product in both. Tracing costs time itself: the sums are scaled to the unprofiled runs, which are taken in turn.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from neural_tune.measure import compare_speed
from neural_tune.protocols import Inputs
from neural_tune.values import FrozenMap, LatencyProfile
from neural_tune_tensorflow.backend import Built
from neural_tune_tensorflow.graph import Graph, node_of
from neural_tune_tensorflow.inputs import to_feed
from neural_tune_tensorflow.model import OnednnModel
from neural_tune_tensorflow.passes.affine import ANCHORS
from neural_tune_tensorflow.rewrite.plan import Plan
from neural_tune_tensorflow.session import full_name

_RUNS = 12
_SECONDS = 0.8


def profile(model: OnednnModel, plan: Plan, floats: Built, int8: Built, inputs: Inputs, threads: int) -> LatencyProfile:
    """Return the times per op of the float model and of a candidate, and the costs of its borders.

    Raises:
        AdapterError: the runtime breaks.
        DataError: the inputs do not fit the model.
    """
    feed = to_feed(inputs, model.inputs)
    speed = compare_speed(
        partial(floats.run, feed), partial(int8.run, feed), batch_size=1, threads=threads, seconds=_SECONDS
    )
    whole = (speed.float_ms, speed.float_ms / speed.ratio)
    traces = [_trace(model, built, feed) for built in (floats, int8)]
    scaled = [
        {name: value * total / max(sum(found.values()), 1e-9) for name, value in found.items()}
        for found, total in zip(traces, whole, strict=True)
    ]
    in_float, in_int8 = (swallowed(model.graph, _optimized(model, built, feed)) for built in (floats, int8))
    owner = {**model.units.owner, **in_float}
    float_ms, _, _ = _attribute(model, None, owner, scaled[0])
    int8_ms, enter, leave = _attribute(model, plan, {**owner, **in_int8}, scaled[1])
    fused = {name for unit in plan.configs for name in model.units.by_name[unit].nodes}
    quantized = {*plan.configs, *plan.casts, *plan.carried, *fused}
    # A product hands out float by itself; every other border that was not seen costs what a value costs on average.
    per_element = _rate(model, enter)
    borders = {tensor: enter.get(tensor, per_element * _elements(model, tensor)) for tensor in model.observed()}
    leaving = {tensor: leave.get(tensor, per_element * _elements(model, tensor)) for tensor in model.observed()}
    leaving.update({unit.tail: 0.0 for unit in model.units.by_name.values() if unit.is_product})
    return LatencyProfile(
        float_ms=FrozenMap(float_ms),
        # A product that was not found has no time; whatever else is not found is folded away.
        int8_ms=FrozenMap(
            {
                name: int8_ms.get(name, 0.0)
                for name in quantized
                if name in int8_ms or not _is_product(model.graph, name)
            }
        ),
        border_ms=FrozenMap(borders),
        leave_ms=FrozenMap(leaving),
        batch_size=next((len(values) for values in feed.values() if values.ndim), 1),
        threads=threads,
    )


def _trace(model: OnednnModel, built: Built, feed: Mapping[str, Any]) -> dict[str, float]:
    """Return node -> milliseconds, the median of some traced runs."""
    session: Any = built.run
    call = _call(model, built, feed)
    seen: dict[str, list[float]] = {}
    for number in range(_RUNS + 2):
        metadata = session.session.trace(*call)
        if number < 2:
            continue
        found: dict[str, float] = {}
        for device in metadata.step_stats.dev_stats:
            for item in device.node_stats:
                micros = item.op_end_rel_micros - item.op_start_rel_micros
                found[item.node_name] = found.get(item.node_name, 0.0) + micros / 1e3
        for name, value in found.items():
            seen.setdefault(name, []).append(value)
    return {name: float(np.median(values)) for name, values in seen.items()}


def _optimized(model: OnednnModel, built: Built, feed: Mapping[str, Any]) -> list[Any]:
    session: Any = built.run
    nodes: list[Any] = session.session.optimized(*_call(model, built, feed))
    return nodes


def _call(model: OnednnModel, built: Built, feed: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return what a session is fed, by tensor, and what it is asked for."""
    fed = {port.tensor: feed[port.name] for port in model.inputs}
    return fed, [full_name(port.tensor) for port in built.outputs]


def swallowed(graph: Graph, optimized: Sequence[Any]) -> dict[str, str]:
    """Return node -> the product in whose fused node it runs, for what the optimizer fused under another name than the product's.

    Args:
        graph: The graph of the model.
        optimized: The nodes that TensorFlow runs, for the same graph or for a candidate made from it.
    """
    running = {node.name for node in optimized}
    found: dict[str, str] = {}
    for fused in optimized:
        if not fused.attr["fused_ops"].list.s or fused.name not in graph.nodes or _is_product(graph, fused.name):
            continue
        inside = _inside(graph, fused.name, running)
        products = [name for name in inside if _is_product(graph, name)]
        # The fused node reads the weight of its product.
        products.sort(key=lambda name: graph.nodes[name].input[1] != fused.input[1])
        if products:
            found.update(dict.fromkeys(inside, products[0]))
    return found


def _inside(graph: Graph, last: str, running: Collection[str]) -> list[str]:
    """Return the nodes that run as `last`: itself and, up to the products, what it reads that does not run by itself."""
    found = [last]
    for name in found:
        if not _is_product(graph, name):
            before = dict.fromkeys(node_of(tensor) for tensor in graph.nodes[name].input)
            found += [item for item in before if item in graph.nodes and item not in running and item not in found]
    return found


def _is_product(graph: Graph, name: str) -> bool:
    return name in graph.nodes and graph.nodes[name].op in ANCHORS


def _attribute(
    model: OnednnModel, plan: Plan | None, owner: Mapping[str, str], costs: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Return op -> ms, entered tensor -> ms and left tensor -> ms; without a plan everything is the op's own."""
    left = {*plan.written, *plan.carried} if plan is not None else set()
    entered = plan.entered if plan is not None else frozenset[str]()
    own = {*plan.configs, *plan.carried} if plan is not None else set()
    ops: dict[str, float] = {}
    enter: dict[str, float] = {}
    leave: dict[str, float] = {}
    for node, cost in costs.items():
        into, back = node.removesuffix("/quantize"), node.removesuffix("/dequantize")
        if into != node and into in entered:
            enter[into] = enter.get(into, 0.0) + cost
        elif back in left and (back != node or back not in own):
            leave[back] = leave.get(back, 0.0) + cost
        elif node in model.graph.nodes:
            op = owner.get(node, node)
            ops[op] = ops.get(op, 0.0) + cost
    return ops, enter, leave


def _elements(model: OnednnModel, tensor: str) -> float:
    shape = model.graph.shapes.get(tensor)
    return float(np.prod([size or 1 for size in shape])) if shape else 0.0


def _rate(model: OnednnModel, costs: Mapping[str, float]) -> float:
    total = sum(_elements(model, tensor) for tensor in costs)
    return sum(costs.values()) / total if total else 0.0
