"""Products with a constant side become MatMul of matrices, the one form that has an int8 kernel.

| found | becomes |
|---|---|
| BatchMatMul(x, constant matrix) | Reshape, MatMul, Reshape |
| Einsum("abc,cde->abde", x, constant) | Reshape, MatMul, Reshape |
| MatMul(x, constant, transpose_b) | MatMul(x, transposed constant) |
| explicitly padded DepthwiseConv2dNative | Pad, DepthwiseConv2dNative: the padded one aborts TensorFlow |
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neural_tune.protocols import Array
from neural_tune_tensorflow.graph import Graph, Shape
from neural_tune_tensorflow.runtime import tf

BATCHED = frozenset({"BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"})


def lower_products(graph: Graph) -> None:
    """Rewrite products with a constant right side; those of two activations stay."""
    for node in graph:
        if node.op in BATCHED:
            _lower_batched(graph, node)
        elif node.op == "Einsum" and len(node.input) == 2:
            _lower_einsum(graph, node)
        elif node.op == "MatMul":
            _untranspose(graph, node)
        elif node.op == "DepthwiseConv2dNative" and node.attr["padding"].s == b"EXPLICIT":
            _unpad(graph, node)
    graph.sort()


def _lower_batched(graph: Graph, node: Any) -> None:
    weight, shape = graph.value(node.input[1]), graph.shapes.get(node.input[0])
    if weight is None or shape is None or node.attr["adj_x"].b or weight.dtype != np.float32:
        return
    matrix = weight.reshape(weight.shape[-2:]) if weight.size == np.prod(weight.shape[-2:]) else None
    if matrix is None or len(shape) < max(2, weight.ndim):
        return
    _product(graph, node, matrix.T if node.attr["adj_y"].b else matrix, shape, len(shape) - 1, (matrix.shape[-1],))


def _lower_einsum(graph: Graph, node: Any) -> None:
    weight, shape = graph.value(node.input[1]), graph.shapes.get(node.input[0])
    equation = node.attr["equation"].s.decode().replace(" ", "")
    if weight is None or shape is None or "." in equation or "->" not in equation or weight.dtype != np.float32:
        return
    terms, result = equation.split("->")
    left, right = terms.split(",")
    shared = [label for label in left if label in right]
    free, kept = left[: len(left) - len(shared)], [label for label in right if label not in shared]
    is_plain = len(set(left)) == len(left) and len(set(right)) == len(right) and len(left) == len(shape)
    if not is_plain or not shared or left[len(free) :] != "".join(shared) or result != free + "".join(kept) or not free:
        return
    order = [right.index(label) for label in (*shared, *kept)]
    ordered = weight.transpose(order)
    depth = int(np.prod(ordered.shape[: len(shared)]))
    _product(graph, node, ordered.reshape(depth, -1), shape, len(free), ordered.shape[len(shared) :])


def _product(graph: Graph, node: Any, matrix: Array, shape: Shape, free: int, tail: tuple[int, ...]) -> None:
    """Write Reshape([-1, depth]), MatMul, Reshape(free axes + tail); the last one takes the place of `node`."""
    name, source, dtype = node.name, node.input[0], node.attr["T"].type
    weight = graph.constant(graph.fresh(f"{name}/matrix"), np.ascontiguousarray(matrix, np.float32))
    flat = source
    if len(shape) != 2:
        to = graph.constant(graph.fresh(f"{name}/flat_shape"), np.array([-1, matrix.shape[0]], np.int32))
        flat = graph.add("Reshape", graph.fresh(f"{name}/flat"), [source, to], T=attr_type(dtype), Tshape=np.int32)
    product = f"{name}/product" if len(shape) != 2 or len(tail) != 1 else name
    if product != name:
        product = graph.fresh(product)
    graph.add("MatMul", product, [flat, weight], T=attr_type(dtype), transpose_a=False, transpose_b=False)
    if product != name:
        back = _back(graph, name, source, shape[:free], tail)
        graph.add("Reshape", name, [product, back], T=attr_type(dtype), Tshape=np.int32)


def attr_type(number: int) -> Any:
    """Return a data type by its number."""
    return tf.as_dtype(number)


def _back(graph: Graph, name: str, source: str, free: Shape, tail: tuple[int, ...]) -> str:
    """Return the node that holds the shape of the product's result: a constant where one axis is free at most."""
    if free.count(None) <= 1:
        fixed = np.array([-1 if size is None else size for size in (*free, *tail)], np.int32)
        return graph.constant(graph.fresh(f"{name}/shape"), fixed)
    whole = graph.add("Shape", graph.fresh(f"{name}/source_shape"), [source], T=np.float32, out_type=np.int32)
    begin = graph.constant(graph.fresh(f"{name}/begin"), np.array([0], np.int32))
    size = graph.constant(graph.fresh(f"{name}/size"), np.array([len(free)], np.int32))
    head = graph.add("Slice", graph.fresh(f"{name}/free_axes"), [whole, begin, size], T=np.int32, Index=np.int32)
    rest = graph.constant(graph.fresh(f"{name}/tail"), np.array(tail, np.int32))
    axis = graph.constant(graph.fresh(f"{name}/axis"), np.array(0, np.int32))
    return graph.add("ConcatV2", graph.fresh(f"{name}/shape"), [head, rest, axis], N=2, T=np.int32, Tidx=np.int32)


def _untranspose(graph: Graph, node: Any) -> None:
    weight = graph.value(node.input[1])
    if weight is not None and node.attr["transpose_b"].b and weight.dtype == np.float32:
        node.input[1] = graph.constant(graph.fresh(f"{node.name}/transposed"), np.ascontiguousarray(weight.T))
        node.attr["transpose_b"].b = False


def _unpad(graph: Graph, node: Any) -> None:
    amounts = np.array(list(node.attr["explicit_paddings"].list.i), np.int32).reshape(-1, 2)
    to = graph.constant(graph.fresh(f"{node.name}/paddings"), amounts)
    padded = graph.add(
        "Pad",
        graph.fresh(f"{node.name}/pad"),
        [node.input[0], to],
        T=attr_type(node.attr["T"].type),
        Tpaddings=np.int32,
    )
    node.input[0] = padded
    node.attr["padding"].s = b"VALID"
    del node.attr["explicit_paddings"].list.i[:]
