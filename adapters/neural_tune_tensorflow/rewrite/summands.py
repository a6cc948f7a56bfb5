"""The sum behind a matrix product that its int8 kernel can take over: float codes of the product plus a float tensor of the same shape.

The kernel does not look at the shape of what it adds: fewer rows and it reads beyond their end (measured: wrong sums, no error). So the same number of
rows is proven here, not assumed from two free axes that look alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from neural_tune_tensorflow.graph import Graph
from neural_tune_tensorflow.rewrite.activations import Readers

_SUMS = frozenset({"AddV2", "Add"})
# One row out per row in, whatever the values: element by element, or over the last axis.
_KEEPS_ROWS = frozenset(
    {
        *("MatMul", "BiasAdd", "Relu", "Relu6", "Elu", "Selu", "LeakyRelu", "Tanh", "Sigmoid", "Softmax", "Softplus"),
        *("Erf", "Erfc", "Sin", "Cos", "Exp", "Log", "Neg", "Abs", "Sqrt", "Rsqrt", "Square", "Cast"),
        *("Mul", "Sub", "RealDiv", "Maximum", "Minimum", "Pow", "SquaredDifference", *_SUMS),
    }
)


@dataclass(frozen=True, slots=True)
class Summand:
    """A sum that a product takes over.

    Attributes:
        add: The node of the sum.
        tensor: The other operand.
    """

    add: str
    tensor: str


def row_sources(graph: Graph) -> dict[str, str]:
    """Return, for every tensor that one node writes, the tensor whose rows it has, as far up as that is certain."""
    found: dict[str, str] = {}
    for node in graph:
        free = {found.get(name, name) for name in node.input if _has_rows(graph, name)}
        keeps = node.op in _KEEPS_ROWS and len(graph.shapes.get(node.name) or ()) == 2 and len(free) == 1
        found[node.name] = free.pop() if keeps else node.name
    return found


def find_summand(graph: Graph, tail: str, readers: Readers, rows: Mapping[str, str]) -> Summand | None:
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
    add = graph.nodes[following[0]]
    others = [name for name in add.input if name != tail]
    if add.op not in _SUMS or len(others) != 1 or graph.value(others[0]) is not None:
        return None
    shape = graph.shapes.get(tail)
    if not shape or len(shape) != 2 or shape != graph.shapes.get(others[0]) or shape[1] is None:
        return None
    is_certain = shape[0] is not None or rows.get(tail, tail) == rows.get(others[0], others[0])
    return Summand(add.name, others[0]) if is_certain else None


def _has_rows(graph: Graph, tensor: str) -> bool:
    """Return whether an operand may decide the number of rows: it is no constant, and no single row that is spread over all."""
    shape = graph.shapes.get(tensor)
    return graph.value(tensor) is None and (shape is None or len(shape) != 1) and (not shape or shape[0] != 1)
