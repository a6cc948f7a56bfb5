"""What candidates do with the float ops between int8 products: layer norms in one op, residual sums over quantized float tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import ADAPTER, full, graph_of, hold_of, ops_of, randomize, run_graph

from neural_tune.values import Candidate, FrozenMap
from neural_tune_tensorflow.backends import onednn
from neural_tune_tensorflow.rewrite import norms
from neural_tune_tensorflow.rewrite.norms import FUSED_NORM
from neural_tune_tensorflow.runtime import tf
from neural_tune_tensorflow.session import FixedSession

GENERATOR = np.random.default_rng(41)
WEIGHT = GENERATOR.normal(size=(16, 16)).astype(np.float32) / 4.0
SCALE = GENERATOR.uniform(0.5, 2.0, 16).astype(np.float32)
OFFSET = GENERATOR.normal(size=16).astype(np.float32)


def rewritten(model: Any, batch: Any, folder: Path) -> Any:
    """Return the graph of full int8."""
    hold = hold_of(model)
    return onednn.rewrite(hold, full(hold), ADAPTER.calibrate(hold, [batch], folder))


def outputs(graph: Any, batch: Any) -> Any:
    return FixedSession(graph.graph_def(), 1).fetch({graph.inputs[0]: batch}, graph.outputs)[0]


def normed(x: Any, scale: Any = None, offset: Any = None, axis: int = -1, epsilon: Any = 1e-3) -> Any:
    """Normalize as tf.nn does."""
    mean, variance = tf.nn.moments(x, [axis], keepdims=True)
    return tf.nn.batch_normalization(x, mean, variance, offset, scale, epsilon)


@pytest.mark.parametrize(("center", "scale"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("rank", [2, 3])
def test_a_layer_norm_of_keras_is_one_op_and_computes_the_same(tmp_path, monkeypatch, rank, center, scale) -> None:
    import keras

    shape = (16,) if rank == 2 else (5, 16)
    entry = keras.Input(shape, name="x")
    x = keras.layers.Dense(16)(entry)
    # An epsilon as large as the variance: one that is lost or misread shows.
    x = keras.layers.LayerNormalization(epsilon=0.7, center=center, scale=scale)(keras.layers.Add()([x, entry]))
    model = keras.Model(entry, x, name="normed")
    randomize(model)
    batch = (GENERATOR.normal(size=(3, *shape)) + 0.5).astype(np.float32)
    fused = rewritten(model, batch, tmp_path / "fused")
    assert ops_of(fused).count(FUSED_NORM) == 1
    assert not {"Rsqrt", "SquaredDifference", "Mean"} & set(ops_of(fused))
    monkeypatch.setattr(norms, "is_available", lambda: False)
    plain = rewritten(model, batch, tmp_path / "plain")
    assert FUSED_NORM not in ops_of(plain)
    np.testing.assert_allclose(outputs(fused, batch), outputs(plain, batch), rtol=0.0, atol=2e-5)


@pytest.mark.parametrize(("scale", "offset"), [(SCALE, OFFSET), (None, OFFSET)])
def test_a_layer_norm_of_tensorflow_is_one_op(tmp_path, monkeypatch, scale, offset) -> None:
    graph_def = graph_of(lambda x: normed(x @ WEIGHT, scale, offset), {"x": (None, 16)})
    batch = GENERATOR.normal(size=(6, 16)).astype(np.float32)
    fused = rewritten(graph_def, batch, tmp_path / "fused")
    assert ops_of(fused).count(FUSED_NORM) == 1
    monkeypatch.setattr(norms, "is_available", lambda: False)
    np.testing.assert_allclose(
        outputs(fused, batch), outputs(rewritten(graph_def, batch, tmp_path / "plain"), batch), rtol=0.0, atol=2e-5
    )


@pytest.mark.parametrize(
    ("case", "build"),
    [
        ("over rows", lambda x: normed(x @ WEIGHT, SCALE, OFFSET, axis=0)),
        ("a moment is read elsewhere", lambda x: _with_mean(x @ WEIGHT)),
        ("another tensor is scaled", lambda x: _of_two(x @ WEIGHT, x)),
        ("the offset is computed", lambda x: normed(x @ WEIGHT, SCALE, tf.reduce_mean(x, -1, keepdims=True))),
        ("one column, scaled by a number", lambda x: normed(x @ WEIGHT[:, :1], np.float32(2.0), np.float32(0.5))),
        ("in float64", lambda x: tf.cast(normed(tf.cast(x @ WEIGHT, tf.float64)), tf.float32)),
        ("the scale adds an axis", lambda x: normed(x @ WEIGHT, SCALE[None, None], OFFSET)),
        ("the offset adds an axis", lambda x: normed(x @ WEIGHT, SCALE, OFFSET[None, None])),
        ("epsilon adds an axis", lambda x: normed(x @ WEIGHT, SCALE, OFFSET, epsilon=[[[1e-3]]])),
    ],
)
def test_what_only_looks_like_a_layer_norm_stays_as_it_is(tmp_path, case: str, build: Any) -> None:
    graph_def = graph_of(build, {"x": (None, 16)})
    batch = GENERATOR.normal(size=(6, 16)).astype(np.float32)
    graph = rewritten(graph_def, batch, tmp_path)
    assert FUSED_NORM not in ops_of(graph), case
    (expected,) = run_graph(graph_def, {"x": batch})
    found = outputs(graph, batch)
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)


def _with_mean(x: Any) -> Any:
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    return tf.nn.batch_normalization(x, mean, variance, OFFSET, SCALE, 1e-3) + mean


def _of_two(x: Any, other: Any) -> Any:
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    return tf.nn.batch_normalization(other, mean, variance, OFFSET, SCALE, 1e-3)


def test_a_residual_sum_over_a_quantized_float_tensor_is_taken_over(tmp_path) -> None:
    """As in every ResNet: the first block of a stage adds a projection in float, the blocks behind it add its result."""
    kernels = [GENERATOR.normal(size=(1, 1, 8, 8)).astype(np.float32) / 2.0 for _ in range(6)]

    def conv(x: Any, number: int) -> Any:
        return tf.nn.conv2d(x, kernels[number], 1, "SAME") + OFFSET[:8]

    def build(x: Any) -> Any:
        x = tf.nn.relu(conv(x, 0) + conv(x, 1))
        x = tf.nn.relu(x + conv(tf.nn.relu(conv(x, 2)), 3))
        return tf.nn.relu(x + conv(tf.nn.relu(conv(x, 4)), 5))

    batch = GENERATOR.normal(size=(4, 6, 6, 8)).astype(np.float32)
    hold = hold_of(graph_of(build, {"x": (None, 6, 6, 8)}), recipes=FrozenMap({"sum_fusion": True}))
    statistics = ADAPTER.calibrate(hold, [batch], tmp_path)
    (expected,) = run_graph(hold.source.graph_def, {"x": batch})
    errors = {}
    for recipes in ((), ("sum_fusion",)):
        candidate = Candidate.of(full(hold).ops, (), recipes)
        graph = onednn.rewrite(hold, candidate, statistics)
        assert ops_of(graph).count("AddV2") == (1 if recipes else 3)
        errors[recipes] = float(np.linalg.norm(outputs(graph, batch) - expected) / np.linalg.norm(expected))
    # One rounding less per sum.
    assert errors["sum_fusion",] < 1.1 * errors[()] < 0.05
    # The kernel writes in place: what comes out must not depend on what ran before.
    built = ADAPTER.build(hold, Candidate.of(full(hold).ops, (), ("sum_fusion",)), statistics, 2)
    first = ADAPTER.run(built, batch)[0]
    for _ in range(20):
        np.testing.assert_array_equal(ADAPTER.run(built, batch)[0], first)


def test_every_residual_sum_of_a_keras_encoder_is_taken_over(tmp_path: Path) -> None:
    """Behind the attention the proof goes through two Einsum, behind the feed-forward layers through a Reshape each way."""
    import keras

    layers = keras.layers
    x = entry = keras.Input((5, 16), name="x")
    x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(2, 8)(x, x)]))
    y = layers.Dense(16)(layers.Dense(32, activation="gelu")(x))
    model = keras.Model(entry, layers.LayerNormalization()(layers.Add()([x, y])), name="encoder")
    randomize(model)
    batch = GENERATOR.normal(size=(3, 5, 16)).astype(np.float32)
    fused = rewritten(model, batch, tmp_path)
    kinds = [node.attr["fused_ops"].list.s[1] for node in fused if node.op == "_QuantizedMatMul"]
    assert kinds.count(b"Add") == 2
    assert "AddV2" not in ops_of(fused)
    expected = np.asarray(model(batch))
    signal = np.sum((expected - expected.mean()) ** 2)
    assert np.sum((outputs(fused, batch) - expected) ** 2) < signal / 400.0  # 26 dB
