"""Layer normalizations that stay in float become one oneDNN op each.

Keras 3 writes a layer norm as ten ops, four of which pass over the whole tensor. Beside int8 products they are a tenth of an encoder's time, and with several
threads each of them wakes the pool again. The float model is left as it is: only candidates with int8 ops, which need oneDNN anyway, get the fused form.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from neural_tune.protocols import Array
from neural_tune_tensorflow.graph import Graph, Shape
from neural_tune_tensorflow.rewrite.activations import Readers
from neural_tune_tensorflow.runtime import tf
from neural_tune_tensorflow.session import FixedSession

FUSED_NORM = "_MklLayerNorm"
# The kernel takes matrices and batches of them.
_RANKS = (2, 3)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Norm:
    """One layer norm: scale * (x - mean) / sqrt(variance + epsilon) + offset, over the last axis.

    Attributes:
        source: What it reads.
        result: The node that writes the result.
        inner: Its other nodes, which nobody else reads.
        scale: float32, one per element of the last axis.
        offset: As `scale`.
        epsilon: What is added to the variance.
    """

    source: str
    result: str
    inner: frozenset[str]
    scale: Array
    offset: Array
    epsilon: float


def fuse_norms(graph: Graph) -> None:
    """Write every layer norm of `graph` as one op under the name of its last node; do nothing where the kernel is missing."""
    if not any(node.op == "Rsqrt" for node in graph) or not is_available():
        return
    readers = graph.readers()
    for node in graph:
        norm = _find(graph, node, readers) if node.op == "Rsqrt" else None
        if norm is not None:
            for name in norm.inner:
                graph.nodes.pop(name)
            _write(graph, norm)


@cache
def is_available() -> bool:
    """Return whether the kernel exists here and computes what it should: tried on numbers with a known result."""
    values = np.array([[1.0, 3.0, -2.0, 6.0], [0.5, 0.5, 4.5, 2.5]], np.float32)
    scale, offset = np.array([1.0, -2.0, 0.5, 3.0], np.float32), np.array([0.0, 1.0, -1.0, 2.0], np.float32)
    graph = Graph({}, ["y"], [])
    graph.constant("x", values)
    _write(graph, Norm(source="x", result="y", inner=frozenset(), scale=scale, offset=offset, epsilon=0.25))
    graph.sort()
    try:
        found = FixedSession(graph.graph_def(), threads=1).fetch({}, ["y"])[0]
    except Exception:  # noqa: BLE001 - whatever breaks here must not break a user's model later
        return False
    centred = values - values.mean(axis=1, keepdims=True)
    expected = scale * centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 0.25) + offset
    return bool(np.allclose(found, expected, rtol=0.0, atol=1e-5))


def _write(graph: Graph, norm: Norm) -> None:
    scale = graph.constant(graph.fresh(f"{norm.result}/scale"), norm.scale)
    offset = graph.constant(graph.fresh(f"{norm.result}/offset"), norm.offset)
    graph.add(FUSED_NORM, norm.result, [norm.source, scale, offset], T=tf.float32, epsilon=norm.epsilon)


def _find(graph: Graph, rsqrt: Any, readers: Readers) -> Norm | None:
    """Return the layer norm that `rsqrt` belongs to; None where the nodes around it do not compute one."""
    moments = _moments(graph, rsqrt)
    if moments is None:
        return None
    source, mean, epsilon, above = moments
    shape = graph.shapes.get(source)
    spread = graph.shapes.get(rsqrt.name)
    if shape is None or spread is None or shape[-1] is None or graph.dtypes.get(source) != tf.float32:
        return None
    if len(shape) not in _RANKS or len(spread) != len(
        shape
    ):  # an epsilon of more axes than the source adds them to the result
        return None
    factor, scale = _scaled(graph, rsqrt, readers, shape)
    parts = [graph.nodes[name] for name in readers.get(factor, []) if name]
    data = next((part for part in parts if _is_product(part, source, factor)), None)
    shift = next((part for part in parts if part is not data), None)
    if scale is None or len(parts) != 2 or data is None or shift is None:
        return None
    found = _shifted(graph, data.name, shift, mean, factor, readers, shape)
    if found is None:
        return None
    result, offset, below = found
    inner = frozenset({*above, rsqrt.name, factor, data.name, shift.name, *below})
    within = inner | {result}
    if any(reader not in within for name in inner for reader in readers.get(name, [])):
        return None
    return Norm(source=source, result=result, inner=inner, scale=scale, offset=offset, epsilon=epsilon)


def _moments(graph: Graph, rsqrt: Any) -> tuple[str, str, float, set[str]] | None:
    """Return source, mean, epsilon and nodes of 1 / sqrt(variance + epsilon)."""
    widened = graph.nodes.get(rsqrt.input[0])
    if widened is None or widened.op not in ("AddV2", "Add"):
        return None
    epsilon, variance = _split(graph, widened)
    spread = _averaged(graph, variance)
    squares = graph.nodes.get(spread)
    if epsilon is None or epsilon.size != 1 or squares is None or squares.op != "SquaredDifference":
        return None
    for source, mean in (tuple(squares.input), tuple(reversed(squares.input))):
        if _averaged(graph, mean) == source:
            return source, mean, float(epsilon.reshape(())), {widened.name, variance, spread, mean}
    return None


def _averaged(graph: Graph, name: str) -> str:
    """Return what a mean over the last axis, kept as an axis of one, reads; "" where `name` is none."""
    node = graph.nodes.get(name)
    if node is None or node.op != "Mean" or not node.attr["keep_dims"].b:
        return ""
    axes, shape = graph.value(node.input[1]), graph.shapes.get(node.input[0])
    is_last = (
        axes is not None
        and shape is not None
        and axes.size == 1
        and int(axes.reshape(())) % len(shape) == len(shape) - 1
    )
    return str(node.input[0]) if is_last else ""


def _split(graph: Graph, node: Any) -> tuple[Array | None, str]:
    """Return the constant operand of a binary op (None without one) and the other operand."""
    first, second = graph.value(node.input[0]), graph.value(node.input[1])
    return (second, node.input[0]) if second is not None else (first, node.input[1])


def _scaled(graph: Graph, rsqrt: Any, readers: Readers, shape: Shape) -> tuple[str, Array | None]:
    """Return the node that holds scale / deviation, and the scale; the scale is None where it is not one vector."""
    following = readers.get(rsqrt.name, [])
    node = graph.nodes.get(following[0]) if len(following) == 1 else None
    if node is None or node.op != "Mul":
        return rsqrt.name, np.ones(shape[-1] or 0, np.float32)
    return node.name, _vector(_split(graph, node)[0], shape)


def _shifted(
    graph: Graph, data: str, shift: Any, mean: str, factor: str, readers: Readers, shape: Shape
) -> tuple[str, Array, set[str]] | None:
    """Return result, offset and nodes of data - mean * factor + offset, as Keras or tf.nn.batch_normalization write it."""
    negated = next((name for name in shift.input if name != factor), "")
    inverse = graph.nodes.get(negated)
    is_negative = inverse is not None and inverse.op == "Neg" and inverse.input[0] == mean
    if shift.op != "Mul" or factor not in shift.input or not (is_negative or negated == mean):
        return None
    nodes = {negated} if is_negative else set()
    last, offset = shift.name, np.zeros(shape[-1] or 0, np.float32)
    following = readers.get(last, [])
    node = graph.nodes.get(following[0]) if len(following) == 1 else None
    is_sum = node is not None and node.op in ("AddV2", "Add") and is_negative
    is_difference = node is not None and node.op == "Sub" and not is_negative and node.input[1] == last
    if node is None or not (is_sum or is_difference):
        return None
    if data not in node.input:
        vector = _vector(_split(graph, node)[0], shape)
        following = readers.get(node.name, [])
        total = graph.nodes.get(following[0]) if len(following) == 1 else None
        if vector is None or total is None or total.op not in ("AddV2", "Add"):
            return None
        nodes.add(node.name)
        node, last, offset = total, node.name, vector
    is_whole = sorted(node.input) == sorted((data, last))
    return (node.name, offset, nodes) if is_whole else None


def _is_product(node: Any, one: str, other: str) -> bool:
    return node.op == "Mul" and sorted(node.input) == sorted((one, other))


def _vector(value: Array | None, shape: Shape) -> Array | None:
    """Return a constant as one float32 per element of the last axis of `shape`; None when it is something else, or of more axes than `shape`."""
    if value is None or value.dtype != np.float32 or not 0 < value.ndim <= len(shape):
        return None
    return np.ascontiguousarray(value.reshape(-1)) if value.size == value.shape[-1] == shape[-1] else None
