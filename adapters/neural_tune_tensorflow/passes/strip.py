"""Drops what does nothing: identities, transposes that move no axis, reshapes of reshapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from neural_tune_tensorflow.graph import ALIASES, Graph, Shape, node_of


def strip(graph: Graph) -> None:
    """Let the readers of an identity read what it copies."""
    moved = {node.name: node.input[0] for node in graph if node.op in ALIASES and node.name not in graph.inputs}
    for node in graph:
        if node.op == "IdentityN":
            for number, source in enumerate(node.input):
                moved[node.name if number == 0 else f"{node.name}:{number}"] = source
    graph.redirect(moved)
    graph.sort()


def simplify_moves(graph: Graph) -> None:
    """Drop identity transposes, give reshapes constant shapes where one free axis is left, and join reshapes of reshapes.

    Keras lowers a 3-D Dense to a transposition by (0, 1, 2) and to reshapes whose shapes are computed by a dozen small ops.
    """
    moved: dict[str, str] = {}
    for node in graph:
        if node.op == "Transpose":
            order = graph.value(node.input[1])
            if order is not None and np.array_equal(order, np.arange(order.size)):
                moved[node.name] = node.input[0]
        elif node.op == "Reshape":
            _fix_shape(graph, node.name)
        elif node.op == "MatMul":
            _flatten(graph, node)
    graph.redirect(moved)
    for node in graph:
        if node.op == "Reshape" and graph.value(node.input[1]) is not None:
            source = graph.nodes[node_of(node.input[0])]
            while source.op == "Reshape" and node.input[0] == source.name:
                node.input[0] = source.input[0]
                source = graph.nodes[node_of(node.input[0])]
    # A reshape to the shape the tensor has already moves nothing.
    idle = {}
    for node in graph:
        before, after = graph.shapes.get(node.input[0]) if node.input else None, graph.shapes.get(node.name)
        if node.op == "Reshape" and before and after and before == after and before.count(None) <= 1:
            idle[node.name] = node.input[0]
    graph.redirect(idle)
    graph.sort()


def share_reshapes(graph: Graph) -> None:
    """Let equal reshapes of one tensor be one: query, key and value then read one tensor, which is quantized once."""
    first: dict[tuple[str, tuple[int, ...]], str] = {}
    moved = {}
    for node in graph:
        shape = graph.value(node.input[1]) if node.op == "Reshape" else None
        if shape is not None and node.name not in graph.outputs:
            key = (node.input[0], tuple(int(size) for size in shape.reshape(-1)))
            if first.setdefault(key, node.name) != node.name:
                moved[node.name] = first[key]
    graph.redirect(moved)
    graph.sort()


def _fix_shape(graph: Graph, name: str) -> None:
    node, shape = graph.nodes[name], graph.shapes.get(name)
    if graph.value(node.input[1]) is not None:
        return
    if shape is None or shape.count(None) > 1:
        shape = _gathered(graph, node.input[1])
    if shape is not None and shape.count(None) <= 1:
        _set_shape(graph, node, [-1 if size is None else size for size in shape])


def _flatten(graph: Graph, node: Any) -> None:
    """Give the Reshape before a product with a constant matrix its only possible shape."""
    weight, before = graph.value(node.input[1]), graph.nodes[node_of(node.input[0])]
    is_plain = weight is not None and not node.attr["transpose_a"].b and before.op == "Reshape"
    if is_plain and weight is not None and graph.value(before.input[1]) is None:
        _set_shape(graph, before, [-1, weight.shape[1 if node.attr["transpose_b"].b else 0]])


def _gathered(graph: Graph, reference: str) -> Shape | None:
    """Return what tensordot computes as the shape of its result: some axes of its input, and one more."""
    node = graph.nodes[node_of(reference)]
    if node.op != "ConcatV2" or len(node.input) != 3:
        return None
    gather, tail = graph.nodes[node_of(node.input[0])], graph.value(node.input[1])
    if gather.op != "GatherV2" or tail is None:
        return None
    whole, axes = graph.nodes[node_of(gather.input[0])], graph.value(gather.input[1])
    source = graph.shapes.get(whole.input[0]) if whole.op == "Shape" else None
    if source is None or axes is None:
        return None
    return (*(source[int(axis)] for axis in axes), *(int(size) for size in tail))


def _set_shape(graph: Graph, node: Any, shape: list[int]) -> None:
    node.input[1] = graph.constant(graph.fresh(f"{node.name}/fixed_shape"), np.array(shape, np.int32))
    node.attr["Tshape"].type = 3  # DT_INT32
