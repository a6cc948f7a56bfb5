"""The sum behind a matrix product that its int8 kernel can take over: float codes of the product plus a float tensor of the same shape.

The kernel does not look at the shape of what it adds: fewer rows and it reads beyond their end (measured: wrong sums, no error). So the same number of
rows is proven here, not assumed from two free axes that look alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from neural_tune_tensorflow.graph import Graph, Shape, node_of
from neural_tune_tensorflow.rewrite.activations import Readers

_SUMS = frozenset({"AddV2", "Add"})
# Element by element, or (Softmax) along the last axis: the result has the rows of the operands that are not spread over it.
_BROADCASTS = frozenset(
    {
        *("BiasAdd", "Relu", "Relu6", "Elu", "Selu", "LeakyRelu", "Tanh", "Sigmoid", "Softmax", "Softplus"),
        *("Erf", "Erfc", "Sin", "Cos", "Exp", "Log", "Neg", "Abs", "Sqrt", "Rsqrt", "Square", "Cast"),
        *("Mul", "Sub", "RealDiv", "Maximum", "Minimum", "Pow", "SquaredDifference", *_SUMS),
    }
)
_REDUCTIONS = frozenset({"Mean", "Sum", "Max", "Min"})


@dataclass(frozen=True, slots=True)
class Summand:
    """A sum that a product takes over.

    Attributes:
        add: The node of the sum.
        tensor: The other operand.
    """

    add: str
    tensor: str


@dataclass(frozen=True, slots=True)
class Rows:
    """The length of the first axis of a tensor: that of another tensor, times a constant.

    Attributes:
        source: A tensor whose length is not explained further.
        times: How often its length.
    """

    source: str
    times: Fraction = Fraction(1)


def row_sources(graph: Graph) -> dict[str, Rows]:
    """Return, for every tensor that is the first output of a node, how many rows it has, as far up as that is certain."""
    found: dict[str, Rows] = {}
    for node in graph:
        rule = _RULES.get(node.op)
        found[node.name] = (rule(graph, node, found) if rule is not None else None) or Rows(node.name)
    return found


def find_summand(graph: Graph, tail: str, readers: Readers, rows: Mapping[str, Rows]) -> Summand | None:
    """Return the sum that is all that reads the matrix `tail`; None where the kernel must not take it over.

    Args:
        graph: The canonical graph.
        tail: What the product writes, its bias included.
        readers: Tensor -> nodes that read it.
        rows: From `row_sources`.
    """
    following = readers.get(tail, [])
    if len(following) != 1 or not following[0]:
        return None
    other = _other(graph, graph.nodes[following[0]], tail)
    shape = graph.shapes.get(tail)
    is_matrix = shape is not None and len(shape) == 2
    return Summand(following[0], other) if other and is_matrix and _is_same_size(graph, tail, other, rows) else None


def lift_sums(graph: Graph) -> None:
    """Move the Reshape between a product and its residual sum behind the sum, where the two operands are proven to have one shape.

    Keras puts that Reshape behind every 3-D Dense, where it hides the sum from the fused kernel. The sum keeps its name and its value.
    """
    readers, rows = graph.readers(), row_sources(graph)
    for node in graph:
        product = graph.nodes[node_of(node.input[0])] if node.op == "Reshape" else None
        if product is None or product.op not in ("BiasAdd", "MatMul") or node.input[0] != product.name:
            continue
        following = readers.get(node.name, [])
        if len(following) != 1 or not following[0] or len(readers.get(product.name, [])) != 1:
            continue
        add = graph.nodes[following[0]]
        other, shape = _other(graph, add, node.name), graph.shapes.get(product.name)
        is_matrix = shape is not None and len(shape) == 2  # a convolution has a bias too
        if other and shape and is_matrix and shape[1] and _is_same_size(graph, node.name, other, rows):
            _lift(graph, add, node, other, shape[1])
    graph.sort()


def _lift(graph: Graph, add: Any, back: Any, other: str, width: int) -> None:
    """Let `add` be the Reshape of a sum of matrices."""
    kind = graph.dtypes[add.name]
    to = graph.constant(graph.fresh(f"{add.name}/flat_shape"), np.array([-1, width], np.int32))
    flat = graph.add("Reshape", graph.fresh(f"{add.name}/flat"), [other, to], T=kind, Tshape=np.int32)
    total = graph.add(add.op, graph.fresh(f"{add.name}/sum"), [back.input[0], flat], T=kind)
    graph.add("Reshape", add.name, [total, back.input[1]], T=kind, Tshape=graph.dtypes[back.input[1]])


def _other(graph: Graph, add: Any, tensor: str) -> str:
    """Return the second operand of a sum; "" where there is none, or a constant."""
    others = [name for name in add.input if name != tensor]
    is_sum = add.op in _SUMS and len(others) == 1 and graph.value(others[0]) is None
    return others[0] if is_sum else ""


def _is_same_size(graph: Graph, one: str, other: str, rows: Mapping[str, Rows]) -> bool:
    """Return whether two tensors are sure to have the same shape: none is spread over the other."""
    shape = graph.shapes.get(one)
    if not shape or shape != graph.shapes.get(other) or None in shape[1:]:
        return False
    return shape[0] is not None or rows.get(one, Rows(one)) == rows.get(other, Rows(other))


def _of(found: Mapping[str, Rows], tensor: str) -> Rows:
    return found.get(tensor, Rows(tensor))


def _of_product(_graph: Graph, node: Any, found: Mapping[str, Rows]) -> Rows | None:
    return None if node.attr["transpose_a"].b else _of(found, node.input[0])


def _of_operands(graph: Graph, node: Any, found: Mapping[str, Rows]) -> Rows | None:
    """The rows that all operands of full rank have, but for those with a single one, which is spread; None where they differ."""
    rank = len(graph.shapes.get(node.name) or ())
    known: set[Rows | None] = set()
    for name in node.input:
        shape = graph.shapes.get(name)
        if shape is None:
            return None
        if len(shape) == rank and shape[0] != 1:
            known.add(None if graph.value(name) is not None else _of(found, name))
    return known.pop() if rank and len(known) == 1 else None


def _of_reshape(graph: Graph, node: Any, found: Mapping[str, Rows]) -> Rows | None:
    """The number of elements stays: what the other axes lose, the first one gains."""
    before, after = _inner(graph.shapes.get(node.input[0])), _inner(graph.shapes.get(node.name))
    if not before or not after:
        return None
    rows = _of(found, node.input[0])
    return Rows(rows.source, rows.times * before / after)


def _inner(shape: Shape | None) -> int | None:
    """Return the elements per row; None where that is not fixed."""
    return math.prod(size or 0 for size in shape[1:]) if shape and None not in shape[1:] else None


def _of_reduction(graph: Graph, node: Any, found: Mapping[str, Rows]) -> Rows | None:
    shape, axes = graph.shapes.get(node.input[0]), graph.value(node.input[1])
    if not shape or axes is None or any(int(axis) % len(shape) == 0 for axis in axes.reshape(-1)):
        return None
    return _of(found, node.input[0])


def _of_transpose(graph: Graph, node: Any, found: Mapping[str, Rows]) -> Rows | None:
    order = graph.value(node.input[1])
    return _of(found, node.input[0]) if order is not None and order.size and order.reshape(-1)[0] == 0 else None


def _of_einsum(_graph: Graph, node: Any, found: Mapping[str, Rows]) -> Rows | None:
    """The first axis of the result is the first axis of an operand where both have one label; a label has one length throughout."""
    terms, _, result = node.attr["equation"].s.decode().replace(" ", "").partition("->")
    for term, name in zip(terms.split(","), node.input, strict=False):
        if result and term and term[0] == result[0] != ".":
            return _of(found, name)
    return None


_RULES: Mapping[str, Callable[[Graph, Any, Mapping[str, Rows]], Rows | None]] = {
    **dict.fromkeys(_BROADCASTS, _of_operands),
    **dict.fromkeys(_REDUCTIONS, _of_reduction),
    "MatMul": _of_product,
    "Reshape": _of_reshape,
    "Transpose": _of_transpose,
    "Einsum": _of_einsum,
}
