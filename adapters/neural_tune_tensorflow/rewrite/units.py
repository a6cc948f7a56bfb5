"""Products with what is fused into them: the things that are int8 or float as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from neural_tune_tensorflow.graph import Graph, node_of
from neural_tune_tensorflow.passes.affine import ANCHORS, channels_of
from neural_tune_tensorflow.passes.padding import pad_amounts
from neural_tune_tensorflow.rewrite.activations import Activation, Readers, find
from neural_tune_tensorflow.rewrite.summands import Rows, find_summand, row_sources

Floats: TypeAlias = NDArray[np.float32]
# What the fused convolution does before it requantizes; Relu6 is a Relu whose range ends at 6, so saturation does the rest.
_CONV_ACTIVATIONS = frozenset({"Relu", "Relu6"})
# Ops that carry codes as they are: TensorFlow runs them on 8-bit codes, and the scale stays.
CARRIERS = frozenset(
    {"Reshape", "Squeeze", "ExpandDims", "Pad", "MaxPool", "ConcatV2", "StridedSlice", "Slice", "GatherV2"}
)
_NEVER_NEGATIVE = frozenset({"Relu", "Relu6", "Sigmoid", "Softmax", "Square", "Abs", "Exp", "SquaredDifference"})
_KEEPS_SIGN = frozenset(
    {*CARRIERS, "AvgPool", "Mean", "Max", "Sum", "Transpose", "ResizeBilinear", "ResizeNearestNeighbor"}
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unit:
    """One product, its bias and its activation.

    Attributes:
        name: Name of the product's node: the op's name everywhere.
        kind: Its op type.
        source: The activation tensor it reads (that before the Pad, where that is fused).
        weight: Name of the constant.
        bias: Name of the constant bias; "" where there is none.
        activation: What follows; None where nothing fusable does.
        tail: The tensor behind all of it.
        nodes: The nodes that are fused, besides the product itself.
        paddings: Explicit paddings taken over from a Pad; empty otherwise.
        channels: Output channels.
        summand: What a matrix product adds to its float result; "" for nothing.
    """

    name: str
    kind: str
    source: str
    weight: str
    bias: str
    activation: Activation | None
    tail: str
    nodes: tuple[str, ...]
    paddings: tuple[int, ...]
    channels: int
    summand: str = ""

    @property
    def is_product(self) -> bool:
        """True for a matrix product, which can hand out float; a convolution always hands out codes."""
        return self.kind == "MatMul"


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """All units of a graph.

    Attributes:
        by_name: Name -> unit, in execution order.
        refused: Product -> why it has no int8 form.
        owner: Fused node -> name of its unit.
        never_negative: Tensors that cannot be negative, whatever the input.
    """

    by_name: Mapping[str, Unit]
    refused: Mapping[str, str]
    owner: Mapping[str, str]
    never_negative: frozenset[str]


def find_units(graph: Graph) -> Units:
    """Return the units of a canonical graph."""
    readers, rows = graph.readers(), row_sources(graph)
    units: dict[str, Unit] = {}
    refused: dict[str, str] = {}
    owner: dict[str, str] = {}
    for node in graph:
        if node.op not in ANCHORS:
            continue
        why = _refusal(graph, node)
        if why:
            refused[node.name] = why
        else:
            unit = units[node.name] = _unit(graph, node, readers, rows, owner)
            owner.update(dict.fromkeys(unit.nodes, unit.name))
    return Units(units, refused, owner, _never_negative(graph))


def _refusal(graph: Graph, node: Any) -> str:
    weight = graph.value(node.input[1])
    if weight is None:
        return "both operands are activations: stock TensorFlow has no int8 kernel for that"
    if weight.dtype != np.float32:
        return f"the weight is {weight.dtype}: the int8 kernels start from float32"
    if not np.isfinite(weight).all():
        return "the weight holds values that are not finite"
    if graph.value(node.input[0]) is not None:
        return "the input is a constant"
    if node.op == "MatMul":
        return "transposed input: the int8 kernel has no such form" if node.attr["transpose_a"].b else ""
    if node.attr["data_format"].s not in (b"", b"NHWC"):
        return "NCHW: the int8 kernels take NHWC only"
    if node.op == "DepthwiseConv2dNative" and node.attr["padding"].s == b"EXPLICIT":
        return "explicitly padded depthwise convolution: TensorFlow aborts on it"
    shape = graph.shapes.get(node.input[0])
    if node.op == "Conv2D" and shape is not None and shape[-1] is not None and shape[-1] != weight.shape[2]:
        return "grouped convolution: stock TensorFlow has no int8 kernel for it"
    if any(size > 1 for size in node.attr["dilations"].list.i) and node.op == "DepthwiseConv2dNative":
        return "dilated depthwise convolution: its int8 kernel is not known to be right"
    return ""


def _unit(graph: Graph, node: Any, readers: Readers, rows: Mapping[str, Rows], owner: Mapping[str, str]) -> Unit:
    nodes: list[str] = []
    tail, bias = node.name, ""
    following = readers.get(tail, [])
    if len(following) == 1 and following[0] and graph.nodes[following[0]].op == "BiasAdd":
        adding = graph.nodes[following[0]]
        if adding.input[0] == tail and graph.value(adding.input[1]) is not None:
            nodes.append(adding.name)
            tail, bias = adding.name, adding.input[1]
    activation = find(graph, tail, readers)
    if activation is not None and node.op != "MatMul" and activation.kind not in _CONV_ACTIVATIONS:
        activation = None
    if activation is not None:
        nodes.extend(activation.nodes)
        tail = activation.result
    # The kernel knows a sum or an activation behind the bias, not both.
    summed = find_summand(graph, tail, readers, rows) if node.op == "MatMul" and activation is None else None
    if summed is not None and summed.add in owner:
        summed = None  # the other product of the sum has taken it over
    if summed is not None:
        nodes.append(summed.add)
        tail = summed.add
    source, paddings = node.input[0], None
    if node.op != "MatMul":
        paddings = pad_amounts(graph, node)
    if paddings is not None:
        pad = graph.nodes[node_of(node.input[0])]
        source = pad.input[0]
        if readers.get(pad.name) == [node.name]:
            nodes.append(pad.name)
    weight = graph.value(node.input[1])
    return Unit(
        name=node.name,
        kind=node.op,
        source=source,
        weight=node.input[1],
        bias=bias,
        activation=activation,
        tail=tail,
        nodes=tuple(nodes),
        paddings=tuple(paddings or ()),
        channels=channels_of(node, np.asarray(weight)),
        summand="" if summed is None else summed.tensor,
    )


def _never_negative(graph: Graph) -> frozenset[str]:
    found: set[str] = set()
    for node in graph:
        if node.op in _NEVER_NEGATIVE:
            found.add(node.name)
        elif node.op == "ConcatV2":
            if all(name in found for name in node.input[:-1]):
                found.add(node.name)
        elif node.op in ("AddV2", "Add", "Mul", "Maximum"):
            if all(name in found for name in node.input):
                found.add(node.name)
        elif node.op in _KEEPS_SIGN and node.input and node.input[0] in found:
            found.add(node.name)
    return frozenset(found)
