"""Activation functions as TensorFlow writes them: one op, or the half dozen that make a Gelu; found by structure, not by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from neural_tune_tensorflow.graph import Graph, node_of

SIMPLE = frozenset({"Relu", "Relu6", "Elu", "LeakyRelu", "Tanh", "Sigmoid"})
Readers = Mapping[str, list[str]]


@dataclass(frozen=True, slots=True)
class Activation:
    """One activation function in a graph.

    Attributes:
        kind: Name of the fused op: "Relu", "GeluExact" ...
        source: What it reads.
        result: The node that writes the result.
        nodes: All its nodes, constants left out.
        alpha: Slope of a LeakyRelu.
    """

    kind: str
    source: str
    result: str
    nodes: tuple[str, ...]
    alpha: float = 0.2


def find(graph: Graph, source: str, readers: Readers) -> Activation | None:
    """Return the activation that is all that reads `source`; None where there is none."""
    names = list(dict.fromkeys(readers.get(source, [])))
    if not names or "" in names:
        return None
    if len(names) == 1:
        node = graph.nodes[names[0]]
        if node.op in SIMPLE:
            alpha = float(node.attr["alpha"].f) if "alpha" in node.attr else 0.2
            return Activation(node.op, source, node.name, (node.name,), alpha)
    return _gelu(graph, source, names, readers)


def lift_activations(graph: Graph) -> None:
    """Move the Reshape between a product and its activation behind the activation; both work element by element.

    Keras puts that Reshape behind every 3-D Dense, where it hides the activation from the fused kernels.
    """
    readers = graph.readers()
    moved: dict[str, str] = {}
    for node in graph:
        if node.op != "Reshape":
            continue
        before = graph.nodes[node_of(node.input[0])]
        if before.op not in ("BiasAdd", "MatMul") or len(readers.get(before.name, [])) != 1:
            continue
        activation = find(graph, node.name, readers)
        if activation is None:
            continue
        source = node.input[0]
        for name in activation.nodes:
            inner = graph.nodes[name]
            for position, item in enumerate(inner.input):
                if item == node.name:
                    inner.input[position] = source
        again = graph.fresh(f"{activation.result}/reshape")
        graph.add(
            "Reshape", again, [activation.result, node.input[1]], T=np.float32, Tshape=graph.dtypes[node.input[1]]
        )
        moved[activation.result] = again
    # The new reshapes themselves go on reading the activation.
    kept = {name: list(graph.nodes[name].input) for name in moved.values()}
    graph.redirect(moved)
    for name, inputs in kept.items():
        del graph.nodes[name].input[:]
        graph.nodes[name].input.extend(inputs)
    graph.sort()


def _gelu(graph: Graph, source: str, names: list[str], readers: Readers) -> Activation | None:
    """Match 0.5 x (1 + erf(x / sqrt 2)), 0.5 x erfc(-x / sqrt 2) and 0.5 x (1 + tanh(0.798 (x + 0.0447 x^3)))."""
    seen = set(names)
    todo = list(names)
    # Everything that follows from `source` and constants alone, up to a size no Gelu exceeds.
    while todo and len(seen) <= 12:
        following = [name for name in readers.get(todo.pop(), []) if name and name not in seen]
        for name in following:
            if graph.nodes[name].op in _FORMULAS and all(
                node_of(item) in seen or item == source or graph.value(item) is not None
                for item in graph.nodes[name].input
            ):
                seen.add(name)
                todo.append(name)
    for result in sorted(seen, key=lambda name: name, reverse=True):
        if graph.nodes[result].op != "Mul":
            continue
        nodes = _ancestors(graph, result, source)
        if nodes is None or not nodes <= seen or not set(names) <= nodes:
            continue
        inside = all(reader in nodes for name in nodes - {result} for reader in readers.get(name, []))
        kind = _kind(graph, nodes) if inside else ""
        if kind and _agrees(graph, kind, result, source):
            return Activation(kind, source, result, tuple(sorted(nodes)))
    return None


def _ancestors(graph: Graph, result: str, source: str) -> set[str] | None:
    """Return the nodes between `source` and `result`; None when something else flows in."""
    found: set[str] = set()
    todo = [result]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        if len(found) > 12:
            return None
        for item in graph.nodes[name].input:
            if item == source or graph.value(item) is not None:
                continue
            if graph.nodes[node_of(item)].op == "Placeholder":
                return None
            todo.append(node_of(item))
    return found


def _kind(graph: Graph, nodes: set[str]) -> str:
    ops = {graph.nodes[name].op for name in nodes}
    if ops & {"Erf", "Erfc"}:
        return "GeluExact" if ops <= {"Erf", "Erfc", "Mul", "AddV2", "Add", "Neg", "RealDiv"} else ""
    return "GeluApproximate" if "Tanh" in ops and ops <= {"Tanh", "Mul", "AddV2", "Add", "Pow", "Square"} else ""


def _agrees(graph: Graph, kind: str, result: str, source: str) -> bool:
    """Return whether the nodes compute that Gelu: they are evaluated on a grid, whatever way the formula is written."""
    grid = np.linspace(-6.0, 6.0, 49)
    if kind == "GeluExact":
        expected = np.array([0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0))) for x in grid])
    else:
        expected = 0.5 * grid * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (grid + 0.044715 * grid**3)))
    values = _evaluate(graph, result, {source: grid})
    return values is not None and bool(np.allclose(values, expected, rtol=0.0, atol=2e-4))


def _evaluate(graph: Graph, name: str, known: dict[str, Any]) -> Any:
    if name in known:
        return known[name]
    constant = graph.value(name)
    if constant is not None:
        return np.asarray(constant, np.float64).reshape(()) if constant.size == 1 else None
    node = graph.nodes[node_of(name)]
    parts = [_evaluate(graph, item, known) for item in node.input]
    if any(part is None for part in parts) or node.op not in _FORMULAS:
        return None
    known[name] = _FORMULAS[node.op](*parts)
    return known[name]


_FORMULAS: Mapping[str, Any] = {
    "Mul": lambda x, y: x * y,
    "AddV2": lambda x, y: x + y,
    "Add": lambda x, y: x + y,
    "Neg": lambda x: -x,
    "RealDiv": lambda x, y: x / y,
    "Pow": lambda x, y: x**y,
    "Square": lambda x: x * x,
    "Tanh": np.tanh,
    "Erf": np.vectorize(math.erf),
    "Erfc": np.vectorize(math.erfc),
}
