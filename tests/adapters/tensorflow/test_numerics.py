"""Every fused op against exact integer arithmetic, within one step; and a shuffled weight that must not pass."""

from __future__ import annotations

import math
from typing import Any

import models
import numpy as np
import pytest
from models import ADAPTER, full, graph_of, hold_of

from neural_tune.values import Candidate, Granularity
from neural_tune_tensorflow.backends import onednn
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


def exact(graph: Graph, node: Any, codes: Any) -> tuple[Any, float]:
    """Return the result of a fused op as real numbers, from its input codes, and the step of its output codes (0: float)."""
    ends = [np.asarray(graph.value(name), np.float64) for name in node.input[3:]]
    is_signed = node.attr["T1" if node.op == PRODUCT else "Tinput"].type == tf.qint8.as_datatype_enum
    entry = ends[1] / (127.0 if is_signed else 255.0)
    weight = integers(tf.make_ndarray(graph.nodes[node.input[1]].attr["value"].tensor))
    total = codes @ weight if node.op == PRODUCT else convolve(node, codes, weight)
    result = total * entry * (ends[3] / 127.0) + np.asarray(graph.value(node.input[2]), np.float64)
    for name in node.attr["fused_ops"].list.s:
        if name.decode() in ACTIVATIONS:
            result = ACTIVATIONS[name.decode()](result, node.attr["leakyrelu_alpha"].f)
    if b"Requantize" not in node.attr["fused_ops"].list.s:
        return result, 0.0
    kind = node.attr["Tout" if node.op == PRODUCT else "out_type"].type
    return result, float(ends[5]) / (127.0 if kind == tf.qint8.as_datatype_enum else 255.0)


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
        read, written = session.fetch(feed, [node.input[0], node.name])
        expected, step = exact(graph, node, integers(read))
        if step:
            limits = (0, 255) if "uint8" in str(np.asarray(written).dtype) else (-128, 127)
            off = np.abs(integers(written) - np.clip(np.round(expected / step), *limits)).max()
        else:
            off = np.abs(written - expected).max() / np.abs(expected).max() * 1e4
        worst = max(worst, float(off))
    assert seen, "the graph holds no fused op"
    return worst


def border_step(graph: Graph, node: Any, session: FixedSession, feed: dict[str, Any]) -> float:
    """Return how many steps the codes of a QuantizeV2 are off; it must round to the nearest (one mode of the kernel does not)."""
    read, written = session.fetch(feed, [node.input[0], node.name])
    is_signed = node.attr["T"].type == tf.qint8.as_datatype_enum
    step = float(graph.value(node.input[2])) / (127.0 if is_signed else 255.0)
    off = float(np.abs(integers(written) - read.astype(np.float64) / step).max())
    return 0.0 if off <= 0.501 else off + 1.0


def rewritten(graph_def: Any, batch: Any, candidate: Any = full, tmp: Any = None) -> tuple[Graph, dict[str, Any]]:
    """Calibrate a graph on one batch and return a candidate of it, with the feed."""
    hold = hold_of(graph_def)
    statistics = ADAPTER.calibrate(hold, [batch], tmp)
    return onednn.rewrite(hold, candidate(hold), statistics), {hold.inputs[0].tensor: batch}


def conv_net(generator: Any, act: str, stride: int, padding: str, *, pad: int = 0) -> Any:
    weight = (generator.normal(size=(3, 3, 8, 16)) * generator.uniform(0.05, 2.0, 16)).astype(np.float32)
    point = generator.normal(size=(1, 1, 16, 12)).astype(np.float32)
    slim = generator.normal(size=(3, 3, 16, 1)).astype(np.float32)
    bias = generator.normal(size=16).astype(np.float32)

    def build(x: Any) -> Any:
        if pad:
            x = tf.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
        y = tf.nn.bias_add(tf.nn.conv2d(x, weight, stride, padding), bias)
        y = {"relu": tf.nn.relu, "relu6": tf.nn.relu6, "none": tf.identity}[act](y)
        y = tf.nn.relu6(tf.nn.depthwise_conv2d(y, slim, [1, 1, 1, 1], "SAME") + bias)
        return tf.nn.conv2d(y, point, 1, "VALID")

    return graph_of(build, {"x": (None, 9, 9, 8)})


@pytest.mark.parametrize("act", ["relu", "relu6", "none"])
@pytest.mark.parametrize(("stride", "padding", "pad"), [(1, "SAME", 0), (2, "SAME", 0), (2, "VALID", 1)])
@pytest.mark.parametrize("granularity", list(Granularity)[:2])
def test_convolutions_equal_integer_arithmetic(tmp_path, act, stride, padding, pad, granularity) -> None:
    generator = np.random.default_rng([stride, pad, len(act)])
    batch = generator.normal(size=(2, 9, 9, 8)).astype(np.float32) * 2.0
    if act == "relu":
        batch = np.abs(batch)  # unsigned input codes

    def candidate(hold: Any) -> Candidate:
        ops = {
            op.name: next(c for c in (*op.choices, *op.extra) if c.weight and c.weight.granularity is granularity)
            for op in ADAPTER.query(hold).ops
            if op.is_quantizable
        }
        return Candidate.of(ops)

    graph, feed = rewritten(conv_net(generator, act, stride, padding, pad=pad), batch, candidate, tmp_path)
    assert models.ops_of(graph).count(CONV) == 2
    assert models.ops_of(graph).count(DEPTHWISE) == 1
    assert worst_step(graph, feed) <= 1.0


@pytest.mark.parametrize("act", list(ACTIVATIONS))
@pytest.mark.parametrize("unsigned", [False, True])
def test_products_equal_integer_arithmetic(tmp_path, act, unsigned) -> None:
    generator = np.random.default_rng(len(act))
    first, second = (generator.normal(size=size).astype(np.float32) for size in ((24, 32), (32, 8)))
    bias = generator.normal(size=32).astype(np.float32)
    functions = {
        "Relu": tf.nn.relu,
        "Relu6": tf.nn.relu6,
        "Elu": tf.nn.elu,
        "LeakyRelu": lambda y: tf.nn.leaky_relu(y, alpha=0.3),
        "Tanh": tf.nn.tanh,
        "Sigmoid": tf.nn.sigmoid,
        "GeluExact": lambda y: tf.nn.gelu(y, approximate=False),
        "GeluApproximate": lambda y: tf.nn.gelu(y, approximate=True),
    }

    def build(x: Any) -> Any:
        return functions[act](functions[act](tf.matmul(x, first) + bias) @ second)

    batch = generator.normal(size=(16, 24)).astype(np.float32)
    graph, feed = rewritten(graph_of(build, {"x": (None, 24)}), np.abs(batch) if unsigned else batch, full, tmp_path)
    fused = [node for node in graph if node.op == PRODUCT]
    assert [list(node.attr["fused_ops"].list.s)[1].decode() for node in fused] == [act, act]
    # The first hands codes to the second, which hands out float.
    assert [node.attr["fused_ops"].list.s[-1] for node in fused] == [b"Requantize", b"Dequantize"]
    assert models.ops_of(graph).count("QuantizeV2") == 1
    assert worst_step(graph, feed) <= 1.0


def test_a_shuffled_weight_fails_the_comparison(tmp_path) -> None:
    hold = hold_of(models.small_cnn())
    batch = np.random.default_rng(2).normal(size=(2, 8, 8, 4)).astype(np.float32)
    statistics = ADAPTER.calibrate(hold, [batch], tmp_path)
    graph, feed = onednn.rewrite(hold, full(hold), statistics), {hold.inputs[0].tensor: batch}
    assert worst_step(graph, feed) <= 1.0
    session = FixedSession(graph.graph_def(), 1)
    for name in [node.name for node in graph if node.op in FUSED]:
        spoiled = graph.copy()
        node = graph.nodes[name]
        weight = integers(tf.make_ndarray(graph.nodes[node.input[1]].attr["value"].tensor))
        mixed = np.random.default_rng(0).permutation(weight.reshape(-1)).reshape(weight.shape).astype(np.int8)
        spoiled.nodes.pop(node.input[1])
        spoiled.constant(node.input[1], mixed, tf.qint8)
        (found,) = FixedSession(spoiled.graph_def(), 1).fetch(feed, [name])
        (read,) = session.fetch(feed, [node.input[0]])
        expected, step = exact(graph, node, integers(read))
        off = (
            np.abs(integers(found) - np.round(expected / step))
            if step
            else np.abs(found - expected) / np.abs(expected).max() * 1e4
        )
        assert off.max() > 5.0, name


def test_dead_channels_and_tiny_weights_keep_their_bias(tmp_path) -> None:
    generator = np.random.default_rng(4)
    weight = generator.normal(size=(1, 1, 8, 16)).astype(np.float32)
    weight[..., 3] = 0.0
    weight[..., 5] *= 1e-7
    bias = generator.uniform(0.5, 3.0, 16).astype(np.float32)
    graph_def = graph_of(lambda x: tf.nn.relu(tf.nn.conv2d(x, weight, 1, "VALID") + bias), {"x": (None, 4, 4, 8)})
    batch = generator.normal(size=(2, 4, 4, 8)).astype(np.float32)
    graph, feed = rewritten(graph_def, batch, full, tmp_path)
    (found,) = FixedSession(graph.graph_def(), 1).fetch(feed, graph.outputs)
    (expected,) = models.run_graph(graph_def, {"x": batch})
    step = float(expected.max()) / 255.0
    for channel in (3, 5):
        np.testing.assert_allclose(found[..., channel], expected[..., channel], atol=step * 0.51)
