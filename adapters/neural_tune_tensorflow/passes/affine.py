"""Batch norms, scales and shifts behind a product are folded into its weight and one bias.

Covers FusedBatchNorm, the decomposed form that Keras 3 writes (Mul and AddV2 once constants are folded), BiasAdd, Sub and RealDiv by a
constant, also behind the Reshape that Keras puts after a 3-D Dense. (a x + b) W and W (x) a + b are the same function
up to rounding; Jacob et al. 2018, arXiv:1712.05877, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from neural_tune_tensorflow.graph import Graph, Shape

Floats: TypeAlias = NDArray[np.float64]
ANCHORS = frozenset({"Conv2D", "DepthwiseConv2dNative", "MatMul"})
NORMS = frozenset({"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"})
_SHIFTS = frozenset({"BiasAdd", "Add", "AddV2", "Sub", "Mul", "RealDiv"})


@dataclass(slots=True)
class _Chain:
    """What follows a product: y = scale * product + shift, after the ops in `gone`."""

    scale: Floats
    shift: Floats
    gone: list[str] = field(default_factory=list)
    reshapes: list[str] = field(default_factory=list)


def fold_affine(graph: Graph) -> None:
    """Fold everything affine behind every product with a constant weight, and leave one BiasAdd."""
    readers = graph.readers()
    moved: dict[str, str] = {}
    for node in graph:
        weight = graph.value(node.input[1]) if node.op in ANCHORS else None
        if weight is not None and weight.dtype == np.float32 and _is_plain(node):
            _fold(graph, node, weight, readers, moved)
    graph.redirect(moved)
    graph.sort()


def channels_of(node: Any, weight: NDArray[np.float32]) -> int:
    """Return the number of output channels of a product."""
    if node.op == "DepthwiseConv2dNative":
        return int(weight.shape[2] * weight.shape[3])
    return int(weight.shape[-1])


def is_channels_last(node: Any) -> bool:
    """Return whether an op with a data format has its channels in the last axis."""
    return node.attr["data_format"].s in (b"", b"NHWC")


def _is_plain(node: Any) -> bool:
    return not node.attr["transpose_b"].b if node.op == "MatMul" else is_channels_last(node)


def _fold(
    graph: Graph, node: Any, weight: NDArray[np.float32], readers: dict[str, list[str]], moved: dict[str, str]
) -> None:
    channels = channels_of(node, weight)
    chain = _Chain(np.ones(channels), np.zeros(channels))
    current, last = node.name, node.name
    while True:
        following = readers.get(current, [])
        if len(following) != 1 or not following[0]:
            break
        reader = graph.nodes[following[0]]
        if reader.op == "Reshape" and reader.input[0] == current and _keeps_channels(graph, reader, channels):
            chain.reshapes.append(reader.name)
        elif _absorb(graph, reader, current, chain, channels):
            chain.gone.append(reader.name)
            last = reader.name
        else:
            break
        current = reader.name
    if chain.gone:
        _write(graph, node, weight, chain, last, moved)


def _absorb(graph: Graph, reader: Any, current: str, chain: _Chain, channels: int) -> bool:
    """Take `reader` into the chain; return False when it is not affine by channel."""
    if reader.op in NORMS:
        return _absorb_norm(graph, reader, current, chain)
    if reader.op not in _SHIFTS or (reader.op == "BiasAdd" and not is_channels_last(reader)):
        return False
    is_first = reader.input[0] == current
    other = graph.value(reader.input[1 if is_first else 0])
    vector = None if other is None else _by_channel(other, channels, graph.shapes.get(current))
    if vector is None or (reader.op == "RealDiv" and (not is_first or not vector.all())):
        return False
    if reader.op in ("Mul", "RealDiv"):
        factor = vector if reader.op == "Mul" else 1.0 / vector
        chain.scale, chain.shift = chain.scale * factor, chain.shift * factor
    elif reader.op == "Sub" and not is_first:
        chain.scale, chain.shift = -chain.scale, vector - chain.shift
    else:
        chain.shift = chain.shift - vector if reader.op == "Sub" else chain.shift + vector
    return True


def _absorb_norm(graph: Graph, reader: Any, current: str, chain: _Chain) -> bool:
    values = [graph.value(name) for name in reader.input[1:5]]
    if reader.attr["is_training"].b or reader.input[0] != current or any(value is None for value in values):
        return False
    if not is_channels_last(reader):
        return False
    gamma, beta, mean, variance = (np.asarray(value, np.float64) for value in values)
    if gamma.size != chain.scale.size:  # behind a Reshape its channels are others than the product's
        return False
    factor = gamma / np.sqrt(variance + reader.attr["epsilon"].f)
    chain.scale, chain.shift = chain.scale * factor, (chain.shift - mean) * factor + beta
    return True


def _by_channel(value: Any, channels: int, shape: Shape | None) -> Floats | None:
    """Return a constant as one value per channel; None when it is not one of those, or would broaden the tensor."""
    array = np.asarray(value)
    if array.dtype.kind != "f" or (shape is not None and array.ndim > len(shape)):
        return None
    if array.size == 1:
        return np.full(channels, float(array.reshape(())), np.float64)
    trimmed = array.shape[next(axis for axis, size in enumerate(array.shape) if size != 1) :]
    # Several axes hold the channels behind a Reshape, such as heads and head size.
    expected = (channels,) if shape is None else shape[-len(trimmed) :]
    return array.astype(np.float64).reshape(-1) if array.size == channels and trimmed == expected else None


def _keeps_channels(graph: Graph, reader: Any, channels: int) -> bool:
    """Return whether a reshape leaves the channels in the trailing axes, next to each other."""
    before, after = graph.shapes.get(reader.input[0]), graph.shapes.get(reader.name)
    if not before or not after or before[-1] != channels:
        return False
    product = 1
    for size in reversed(after[1:]):
        if size is None:
            return False
        product *= size
        if product == channels:
            return True
    return False


def _write(
    graph: Graph, node: Any, weight: NDArray[np.float32], chain: _Chain, last: str, moved: dict[str, str]
) -> None:
    if not np.array_equal(chain.scale, np.ones_like(chain.scale)):
        factor = chain.scale.reshape(weight.shape[2:]) if node.op == "DepthwiseConv2dNative" else chain.scale
        scaled = (weight.astype(np.float64) * factor).astype(np.float32)
        node.input[1] = graph.constant(graph.fresh(f"{node.name}/folded_weight"), scaled)
    # The reshapes stay where they are, behind the bias; what read the last affine op reads the last tensor that is left.
    bias = graph.constant(graph.fresh(f"{node.name}/bias"), chain.shift.astype(np.float32))
    has_reshape = bool(chain.reshapes)
    name = graph.fresh(f"{node.name}/bias_add") if has_reshape else last
    for gone in chain.gone:
        graph.nodes.pop(gone)
    graph.add("BiasAdd", name, [node.name, bias], T=np.float32, data_format="NHWC")
    if has_reshape:
        previous = name
        for reshape in chain.reshapes:
            graph.nodes[reshape].input[0] = previous
            previous = reshape
        moved[last] = previous
        for gone in chain.gone:
            moved.setdefault(gone, previous)
