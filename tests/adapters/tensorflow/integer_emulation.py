"""The fused int8 ops in exact integer arithmetic: from the codes an op really read to the codes it had to write."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from neural_tune_tensorflow.graph import Graph
from neural_tune_tensorflow.rewrite.emit import CONV, DEPTHWISE, PRODUCT
from neural_tune_tensorflow.runtime import tf
from neural_tune_tensorflow.session import FixedSession

FUSED = (CONV, DEPTHWISE, PRODUCT)
ACTIVATIONS = {
    "Relu": lambda y, _: np.maximum(y, 0.0),
    "Relu6": lambda y, _: np.clip(y, 0.0, 6.0),
    "Elu": lambda y, _: np.where(y > 0, y, np.expm1(np.minimum(y, 0.0))),
    "LeakyRelu": lambda y, alpha: np.where(y > 0, y, alpha * y),
    "Tanh": lambda y, _: np.tanh(y),
    "Sigmoid": lambda y, _: 1.0 / (1.0 + np.exp(-y)),
    "GeluExact": lambda y, _: 0.5 * y * (1.0 + np.vectorize(math.erf)(y / math.sqrt(2.0))),
    "GeluApproximate": lambda y, _: 0.5 * y * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (y + 0.044715 * y**3))),
}


def integers(values: Any) -> Any:
    """Return fetched codes as int64; TensorFlow hands them out in a type of its own."""
    array = np.asarray(values)
    return array.view(np.uint8 if "uint8" in str(array.dtype) else np.int8).astype(np.int64)


def exact(graph: Graph, node: Any, codes: Any, added: Any = 0.0) -> tuple[Any, float]:
    """Return the result of a fused op as real numbers, from its input codes, and the step of its output codes (0: float).

    Args:
        graph: Holds the op and its constants.
        node: The op.
        codes: Its input.
        added: What it sums up with its product, as it comes: codes for a convolution, float for a matrix product.
    """
    device = len(node.attr["Tdevice_inputs"].list.type)
    ends = [np.asarray(graph.value(name), np.float64) for name in node.input[device:]]
    is_signed = node.attr["T1" if node.op == PRODUCT else "Tinput"].type == tf.qint8.as_datatype_enum
    entry = ends[1] / (127.0 if is_signed else 255.0)
    weight = integers(tf.make_ndarray(graph.nodes[node.input[1]].attr["value"].tensor))
    total = codes @ weight if node.op == PRODUCT else convolve(node, codes, weight)
    result = total * entry * (ends[3] / 127.0) + np.asarray(graph.value(node.input[2]), np.float64)
    for name in node.attr["fused_ops"].list.s:
        if name in (b"Sum", b"Add"):
            result = result + added * (ends[5] / 255.0 if name == b"Sum" else 1.0)
        elif name.decode() in ACTIVATIONS:
            result = ACTIVATIONS[name.decode()](result, node.attr["leakyrelu_alpha"].f)
    if b"Requantize" not in node.attr["fused_ops"].list.s:
        return result, 0.0
    kind = node.attr["Tout" if node.op == PRODUCT else "out_type"].type
    return result, float(ends[-1]) / (127.0 if kind == tf.qint8.as_datatype_enum else 255.0)


def convolve(node: Any, codes: Any, weight: Any) -> Any:
    """Return the plain integer convolution, channels last, by loops over the kernel."""
    height, width = weight.shape[:2]
    stride = node.attr["strides"].list.i[1]
    rate = list(node.attr["dilations"].list.i)[1]
    reach = ((height - 1) * rate + 1, (width - 1) * rate + 1)
    pads = [(0, 0), (0, 0)]
    if node.attr["padding"].s == b"EXPLICIT":
        numbers = list(node.attr["explicit_paddings"].list.i)
        pads = [(numbers[2], numbers[3]), (numbers[4], numbers[5])]
    elif node.attr["padding"].s == b"SAME":
        for axis in (0, 1):
            size = codes.shape[1 + axis]
            extra = max((math.ceil(size / stride) - 1) * stride + reach[axis] - size, 0)
            pads[axis] = (extra // 2, extra - extra // 2)
    padded = np.pad(codes, ((0, 0), *pads, (0, 0)))
    rows = (padded.shape[1] - reach[0]) // stride + 1
    columns = (padded.shape[2] - reach[1]) // stride + 1
    total = 0
    for row in range(height):
        for column in range(width):
            top, left = row * rate, column * rate
            window = padded[
                :, top : top + stride * (rows - 1) + 1 : stride, left : left + stride * (columns - 1) + 1 : stride
            ]
            part = weight[row, column]
            total = total + (window * part[:, 0] if node.op == DEPTHWISE else window @ part)
    return total


def worst_step(graph: Graph, feed: dict[str, Any]) -> float:
    """Return how many steps the worst value of any fused op is off, given the codes it really read."""
    session = FixedSession(graph.graph_def(), 1)
    worst, seen = 0.0, 0
    for node in graph:
        if node.op == "QuantizeV2":
            worst = max(worst, border_step(graph, node, session, feed))
        if node.op not in FUSED:
            continue
        seen += 1
        # What a convolution adds is overwritten by its result, and TensorFlow crashes where both are asked for at once: a run of its own.
        added = summand(graph, node, session, feed)
        read, written = session.fetch(feed, [node.input[0], node.name])
        expected, step = exact(graph, node, integers(read), added)
        if step:
            limits = (0, 255) if "uint8" in str(np.asarray(written).dtype) else (-128, 127)
            off = np.abs(integers(written) - np.clip(np.round(expected / step), *limits)).max()
        else:
            off = np.abs(written - expected).max() / np.abs(expected).max() * 1e4
        worst = max(worst, float(off))
    assert seen, "the graph holds no fused op"
    return worst


def summand(graph: Graph, node: Any, session: FixedSession, feed: dict[str, Any]) -> Any:
    """Return what a fused op adds to its product: codes, float values, or zero."""
    if len(node.attr["Tdevice_inputs"].list.type) < 4:
        return 0.0
    (found,) = session.fetch(feed, [node.input[3]])
    return integers(found) if node.op != PRODUCT else found.astype(np.float64)


def border_step(graph: Graph, node: Any, session: FixedSession, feed: dict[str, Any]) -> float:
    """Return how many steps the codes of a QuantizeV2 are off; it must round to the nearest (one mode of the kernel does not)."""
    read, written = session.fetch(feed, [node.input[0], node.name])
    is_signed = node.attr["T"].type == tf.qint8.as_datatype_enum
    step = float(graph.value(node.input[2])) / (127.0 if is_signed else 255.0)
    limits = (-127, 127) if is_signed else (0, 255)
    off = float(np.abs(integers(written) - np.clip(read.astype(np.float64) / step, *limits)).max())
    return 0.0 if off <= 0.501 else off + 1.0
