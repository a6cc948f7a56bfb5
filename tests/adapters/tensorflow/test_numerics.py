"""Every fused op against exact integer arithmetic, within one step; and a shuffled weight that must not pass."""

from __future__ import annotations

from typing import Any

import models
import numpy as np
import pytest
from integer_emulation import ACTIVATIONS, FUSED, exact, integers, worst_step
from models import ADAPTER, full, graph_of, hold_of

from neural_tune.values import Candidate, Granularity
from neural_tune_tensorflow.backends import onednn
from neural_tune_tensorflow.graph import Graph
from neural_tune_tensorflow.rewrite.emit import CONV, DEPTHWISE, PRODUCT
from neural_tune_tensorflow.runtime import tf
from neural_tune_tensorflow.session import FixedSession


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
