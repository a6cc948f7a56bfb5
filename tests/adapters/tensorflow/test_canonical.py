"""The canonical graph: every pass on its own case, outputs equal to the original's to 1e-5, and time that grows with the size."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import models
import numpy as np
import pytest
from models import graph_of, hold_of, keras, ops_of, run_graph

from neural_tune.errors import AdapterError, CapabilityError
from neural_tune_tensorflow.graph import Graph
from neural_tune_tensorflow.runtime import GraphDef, tf
from neural_tune_tensorflow.session import FixedSession

GENERATOR = np.random.default_rng(11)


def normal(*shape: int) -> Any:
    return GENERATOR.normal(size=shape).astype(np.float32)


def norm_parameters(channels: int) -> dict[str, Any]:
    positive = GENERATOR.uniform(0.5, 2.0, (2, channels)).astype(np.float32)
    return {"scale": positive[0], "offset": normal(channels), "mean": normal(channels), "variance": positive[1]}


def fused_norm(x: Any, channels: int) -> Any:
    return tf.compat.v1.nn.fused_batch_norm(x, **norm_parameters(channels), epsilon=1e-3, is_training=False)[0]


def decomposed_norm(x: Any, channels: int) -> Any:
    parts = norm_parameters(channels)
    factor = tf.math.rsqrt(tf.constant(parts["variance"]) + 1e-3) * parts["scale"]
    return x * factor + (parts["offset"] - parts["mean"] * factor)


CONV, SLIM, MATRIX = normal(3, 3, 4, 6), normal(3, 3, 4, 1), normal(6, 5)
IMAGE, ROWS, TOKENS = (None, 8, 8, 4), (None, 6), (None, 7, 6)
CASES: dict[str, tuple[tuple[int | None, ...], Callable[[Any], Any], list[str]]] = {
    "a decomposed norm": (IMAGE, lambda x: decomposed_norm(tf.nn.conv2d(x, CONV, 1, "SAME"), 6), ["Conv2D", "BiasAdd"]),
    "a fused norm": (IMAGE, lambda x: fused_norm(tf.nn.conv2d(x, CONV, 1, "SAME"), 6), ["Conv2D", "BiasAdd"]),
    "a norm behind a bias": (
        IMAGE,
        lambda x: fused_norm(tf.nn.bias_add(tf.nn.conv2d(x, CONV, 1, "SAME"), normal(6)), 6),
        ["Conv2D", "BiasAdd"],
    ),
    "a norm behind a depthwise convolution": (
        IMAGE,
        lambda x: decomposed_norm(tf.nn.depthwise_conv2d(x, SLIM, [1, 1, 1, 1], "SAME"), 4),
        ["DepthwiseConv2dNative", "BiasAdd"],
    ),
    "a norm behind a product": (ROWS, lambda x: decomposed_norm(x @ MATRIX, 5), ["MatMul", "BiasAdd"]),
    "sub, div and mul": (ROWS, lambda x: (normal(5) - (x @ MATRIX) * 3.0) / 7.0, ["MatMul", "BiasAdd"]),
    "identities and constants": (
        ROWS,
        lambda x: tf.identity(tf.stop_gradient(x @ (tf.constant(MATRIX) * 2.0 + 1.0))),
        ["MatMul"],
    ),
    "a pad": (
        IMAGE,
        lambda x: tf.nn.conv2d(tf.pad(x, [[0, 0], [1, 2], [0, 1], [0, 0]]), CONV, 2, "VALID"),
        ["Conv2D"],
    ),
    "a batched product": (
        TOKENS,
        lambda x: tf.matmul(x, MATRIX[None]) + normal(5),
        ["Reshape", "MatMul", "BiasAdd", "Reshape"],
    ),
    "an einsum with heads": (
        TOKENS,
        lambda x: tf.einsum("abc,cde->abde", x, normal(6, 2, 4)) + normal(2, 4),
        ["Reshape", "MatMul", "BiasAdd", "Reshape"],
    ),
    "an einsum over heads": (
        (None, 7, 2, 3),
        lambda x: tf.einsum("abcd,cde->abe", x, normal(2, 3, 4)),
        ["Reshape", "MatMul", "Reshape"],
    ),
    "a dense layer in three dimensions with a gelu": (
        TOKENS,
        lambda x: tf.nn.gelu(tf.tensordot(x, MATRIX, 1) + normal(5)),
        ["Reshape", "MatMul", "BiasAdd", "Mul", "Neg", "Mul", "Erfc", "Mul", "Reshape"],
    ),
    "a transposed weight": (ROWS, lambda x: tf.matmul(x, MATRIX.T.copy(), transpose_b=True), ["MatMul"]),
}


@pytest.mark.parametrize("case", CASES)
def test_passes_leave_the_products_and_keep_the_function(case: str) -> None:
    shape, build, expected = CASES[case]
    graph_def = graph_of(build, {"x": shape})
    hold = hold_of(graph_def)
    assert sorted(ops_of(hold.graph)) == sorted(["Placeholder", *expected])
    for rows in (1, 3):  # the batch stays dynamic
        batch = normal(*(size or rows for size in shape))
        (found,) = FixedSession(hold.float_def, 1).fetch({"x": batch}, hold.graph.outputs)
        (wanted,) = run_graph(graph_def, {"x": batch})
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("case", "build", "kept"),
    [
        ("per position, not per channel", lambda x: (x @ normal(6, 6)) * normal(7, 6), "Mul"),
        ("as many positions as channels", lambda x: tf.matmul(x, normal(6, 7)[None]) + normal(7, 1), "AddV2"),
        (
            "a norm of the channels behind a reshape",
            lambda x: fused_norm(tf.reshape(x @ normal(6, 10), [-1, 7, 2, 5]), 5),
            "FusedBatchNormV3",
        ),
        ("a reader of the plain product", lambda x: (y := x @ normal(6, 6)) * 2.0 + tf.nn.relu(y), "Mul"),
    ],
)
def test_what_is_not_affine_by_channel_stays(case: str, build: Any, kept: str) -> None:
    graph_def = graph_of(build, {"x": TOKENS})
    hold = hold_of(graph_def)
    assert kept in ops_of(hold.graph), case
    batch = normal(2, 7, 6)
    (found,) = FixedSession(hold.float_def, 1).fetch({"x": batch}, hold.graph.outputs)
    np.testing.assert_allclose(found, run_graph(graph_def, {"x": batch})[0], rtol=1e-4, atol=1e-4)


def test_layers_that_share_a_weight_get_one_each() -> None:
    shared = tf.constant

    def build(x: Any) -> Any:
        weight = shared(MATRIX[:, :5] @ normal(5, 6))
        return tf.nn.relu(x @ weight) @ weight

    hold = hold_of(graph_of(build, {"x": ROWS}))
    products = [node for node in hold.graph if node.op == "MatMul"]
    assert len(products) == 2
    assert products[0].input[1] != products[1].input[1]


def test_an_explicitly_padded_depthwise_convolution_becomes_a_pad_and_works(tmp_path) -> None:
    graph_def = depthwise_explicit()
    hold = hold_of(graph_def)
    assert sorted(ops_of(hold.graph)) == ["DepthwiseConv2dNative", "Pad", "Placeholder"]
    batch = normal(2, 8, 8, 4)
    (found,) = FixedSession(hold.float_def, 1).fetch({"x": batch}, hold.graph.outputs)
    padded = np.pad(batch, ((0, 0), (1, 1), (1, 1), (0, 0)))
    wanted = tf.nn.depthwise_conv2d(padded, SLIM, [1, 1, 1, 1], "VALID").numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def depthwise_explicit(*, bias: bool = False) -> Any:
    def build(x: Any) -> Any:
        y = tf.nn.depthwise_conv2d(x, SLIM, [1, 1, 1, 1], "VALID")
        return tf.nn.relu(tf.nn.bias_add(y, normal(4))) if bias else y

    graph_def = graph_of(build, {"x": IMAGE})
    for node in graph_def.node:
        if node.op == "DepthwiseConv2dNative":
            node.attr["padding"].s = b"EXPLICIT"
            node.attr["explicit_paddings"].list.i.extend([0, 0, 1, 1, 1, 1, 0, 0])
    return graph_def


def test_time_grows_with_the_size_not_with_its_square() -> None:
    def chain(length: int) -> float:
        def build(x: Any) -> Any:
            for _ in range(length):
                x = tf.nn.relu((x @ MATRIX[:, :5] @ tf.constant(MATRIX.T[:5])) * 0.1 + 1.0) + x
            return x

        graph_def = graph_of(build, {"x": ROWS})
        start = time.process_time()
        hold_of(graph_def)
        return time.process_time() - start

    chain(10)
    short, long = chain(60), chain(240)
    assert long < short * 9.0, f"{short:.2f} s for 60 layers, {long:.2f} s for 240"


def test_several_inputs_and_outputs_keep_their_names_and_order() -> None:
    left, right = keras.Input((6,), name="left"), keras.Input((4,), name="right")
    joined = keras.layers.Concatenate()([left, right])
    outputs = {"small": keras.layers.Dense(2)(joined), "big": keras.layers.Dense(9)(joined)}
    model = keras.Model({"right": right, "left": left}, outputs)
    models.randomize(model)
    hold = hold_of(model)
    assert {port.name for port in hold.inputs} == {"left", "right"}
    assert [port.name for port in hold.outputs] == ["big", "small"]
    feed = {"left": normal(3, 6), "right": normal(3, 4)}
    native = models.ADAPTER.native(models.ADAPTER.build(hold, models.Candidate(), None, 1))
    found, wanted = native(feed), model(feed)
    assert set(found) == {"small", "big"}
    for name in found:
        np.testing.assert_allclose(found[name].numpy(), wanted[name].numpy(), atol=1e-5)
    np.testing.assert_allclose(native(left=feed["left"], right=feed["right"])["big"], wanted["big"], atol=1e-5)
    assert native.predict(feed, batch_size=2)["big"].shape == (3, 9)


def test_functions_with_a_signature_and_concrete_functions_are_read() -> None:
    weight = tf.Variable(MATRIX)

    @tf.function(input_signature=[tf.TensorSpec((None, 6), tf.float32, name="rows")])
    def product(rows: Any) -> Any:
        return tf.nn.relu(rows @ weight)

    batch = normal(4, 6)
    for model in (product, product.get_concrete_function()):
        hold = hold_of(model)
        assert [port.name for port in hold.inputs] == ["rows"]
        found = models.ADAPTER.run(models.ADAPTER.build(hold, models.Candidate(), None, 1), batch)
        np.testing.assert_allclose(found[0], product(batch).numpy(), atol=1e-5)
    with pytest.raises(CapabilityError, match="0 traces"):
        hold_of(tf.function(lambda x: x))


def test_files_of_keras_are_read_in_safe_mode(tmp_path) -> None:
    model = models.small_cnn()
    models.save(model, tmp_path / "model.keras")
    batch = normal(2, 8, 8, 4)
    hold = hold_of(tmp_path / "model.keras")
    found = models.ADAPTER.run(models.ADAPTER.build(hold, models.Candidate(), None, 1), batch)
    np.testing.assert_allclose(found[0], np.asarray(model(batch)), atol=1e-4)
    entry = keras.Input((3,))
    models.save(keras.Model(entry, keras.layers.Lambda(lambda x: x * 2)(entry)), tmp_path / "code.keras")
    with pytest.raises(AdapterError, match=r"[Ll]ambda"):
        hold_of(tmp_path / "code.keras")


def test_unreadable_graphs_are_errors_that_say_so(tmp_path) -> None:
    (tmp_path / "torn.pb").write_bytes(b"\xff\xfe no graph")
    with pytest.raises(AdapterError, match="no frozen GraphDef"):
        hold_of(tmp_path / "torn.pb")
    broken = GraphDef()
    broken.node.add(name="y", op="Relu").input.append("nowhere")
    with pytest.raises(AdapterError):
        hold_of(broken)
    with pytest.raises(AdapterError, match="no node writes"):
        Graph.of(broken, [], ["y"])
    with pytest.raises(CapabilityError, match="no tensor 'z'"):
        hold_of(graph_of(tf.nn.relu, {"x": ROWS}), outputs=("z",))
