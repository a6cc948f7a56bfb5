"""Graph in, node types and numbers out: the patterns that a TensorFlow int8 rewrite has to know, each on a small graph of its own.

Convolutions, depthwise convolutions and products with bias, activation, batch norm, pad, pooling, concat and residual sum around them. What stock
TensorFlow has no kernel for (Conv3D, deconvolution, products of two activations) must stay float, say why, and stay right. The cases of Intel Neural
Compressor's tests are in test_inc_cases.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import (
    BIAS,
    CONV,
    DEPTH,
    GENERATOR,
    IMAGE,
    K1,
    K3,
    LONG,
    PRODUCT,
    ROWS,
    SLIM,
    SQUARE,
    Case,
    check,
    conv,
    norm,
    normal,
    pad,
    sqnr,
)
from models import ADAPTER, full, graph_of, hold_of, run_graph

from neural_tune.values import Candidate, FrozenMap
from neural_tune_tensorflow.backends import onednn
from neural_tune_tensorflow.runtime import tf


def residual(x: Any, summand: Any) -> Any:
    return tf.matmul(x, SQUARE if len(x.shape) == 2 else SQUARE[None]) + LONG + summand


CASES = {
    "conv as output": Case(conv, {CONV: 1, "QuantizeV2": 1, "Dequantize": 1}, ("Conv2D",)),
    "conv bias": Case(lambda x: conv(x) + BIAS, {CONV: 1, "Dequantize": 1}, ("BiasAdd", "AddV2")),
    "conv bias relu": Case(lambda x: tf.nn.relu(conv(x) + BIAS), {CONV: 1}, ("Relu", "BiasAdd")),
    "conv relu6": Case(lambda x: tf.nn.relu6(conv(x) * 9.0), {CONV: 1}, ("Relu6", "Mul")),
    "conv leaky relu": Case(lambda x: tf.nn.leaky_relu(conv(x)), {CONV: 1, "LeakyRelu": 1}, ("Conv2D",)),
    "conv batch norm relu": Case(
        lambda x: tf.nn.relu(norm(conv(x))), {CONV: 1}, ("FusedBatchNormV3", "FusedBatchNorm")
    ),
    "conv chain": Case(
        lambda x: tf.nn.relu(conv(tf.nn.relu(conv(x)), K1)), {CONV: 2, "QuantizeV2": 1, "Dequantize": 1}, ("Relu",)
    ),
    "conv add relu": Case(
        lambda x: tf.nn.relu(conv(y := tf.nn.relu(conv(x))) + y), {CONV: 2, "AddV2": 1, "Dequantize": 2}
    ),
    "conv sum relu in place": Case(
        lambda x: tf.nn.relu(conv(tf.nn.relu(conv(y := tf.nn.relu(conv(x))))) + y),
        {CONV: 3, "Dequantize": 1},
        ("AddV2", "Relu"),
        recipes=("sum_fusion",),
    ),
    "pad conv": Case(lambda x: conv(pad(x), padding="VALID"), {CONV: 1}, ("Pad",)),
    "pad conv stride": Case(lambda x: tf.nn.relu(conv(pad(x), stride=2, padding="VALID")), {CONV: 1}, ("Pad",)),
    "shared pad": Case(
        lambda x: conv(p := pad(x), padding="VALID") + conv(p, K3 * 0.5, padding="VALID"),
        {CONV: 2, "AddV2": 1},
        ("Pad",),
    ),
    "depthwise": Case(
        lambda x: tf.nn.relu6(tf.nn.depthwise_conv2d(x, DEPTH, [1, 1, 1, 1], "SAME") + BIAS), {SLIM: 1}, ("Relu6",)
    ),
    "pad depthwise": Case(
        lambda x: tf.nn.relu(tf.nn.depthwise_conv2d(pad(x), DEPTH, [1, 2, 2, 1], "VALID")), {SLIM: 1}, ("Pad",)
    ),
    "max pool": Case(
        lambda x: conv(tf.nn.max_pool2d(tf.nn.relu(conv(x)), 2, 2, "SAME"), K1),
        {CONV: 2, "QuantizedMaxPool": 1, "QuantizeV2": 1, "Dequantize": 1},
        ("MaxPool",),
    ),
    "pad before max pool": Case(
        lambda x: conv(tf.nn.max_pool2d(pad(tf.nn.relu(conv(x))), 3, 2, "VALID"), K1),
        {CONV: 2, "QuantizedMaxPool": 1, "Pad": 1, "Bitcast": 2, "QuantizeV2": 1, "Dequantize": 1},
    ),
    "average pool": Case(
        lambda x: conv(tf.nn.avg_pool2d(tf.nn.relu(conv(x)), 2, 2, "SAME"), K1),
        {CONV: 2, "AvgPool": 1, "QuantizeV2": 2},
        floats=(("AvgPool", "no int8 kernel"),),
    ),
    "concat": Case(
        lambda x: conv(tf.concat([tf.nn.relu(conv(x)), tf.nn.relu(conv(x, K1))], 3), normal(1, 1, 16, 8)),
        {CONV: 3, "ConcatV2": 1, "QuantizeV2": 1, "Dequantize": 1},
    ),
    "concat with a float branch": Case(
        lambda x: conv(tf.concat([tf.nn.relu(conv(x)), tf.sin(x)], 3), normal(1, 1, 16, 8)),
        {CONV: 2, "ConcatV2": 1, "Sin": 1, "QuantizeV2": 2, "Dequantize": 2},
    ),
    "matmul": Case(lambda x: x @ SQUARE, {PRODUCT: 1, "QuantizeV2": 1}, ("MatMul", "Dequantize"), ROWS),
    "matmul bias relu": Case(
        lambda x: tf.nn.relu(x @ SQUARE + LONG) @ SQUARE + LONG,
        {PRODUCT: 2, "QuantizeV2": 1},
        ("Relu", "BiasAdd"),
        ROWS,
    ),
    "matmul bias add": Case(
        lambda x: (x @ SQUARE + LONG) + tf.sin(x),
        {PRODUCT: 1, "Sin": 1},
        ("Dequantize", "AddV2"),
        ROWS,
        fused=("BiasAdd Add Dequantize",),
    ),
    "matmul gelu": Case(
        lambda x: tf.nn.gelu(x @ SQUARE + LONG) @ SQUARE, {PRODUCT: 2, "QuantizeV2": 1}, ("Erfc", "Mul"), ROWS
    ),
    "matmul approximate gelu": Case(
        lambda x: tf.nn.gelu(x @ SQUARE + LONG, approximate=True) @ SQUARE, {PRODUCT: 2}, ("Tanh", "Pow"), ROWS
    ),
    "matmul bias add behind a reshape": Case(
        lambda x: residual(tf.nn.relu(residual(x, tf.sin(x))), tf.reduce_mean(x, -1, keepdims=True) - x),
        {PRODUCT: 2},
        ("AddV2", "MatMul"),
        (None, 5, 16),
        fused=("BiasAdd Add Dequantize",) * 2,
    ),
    "matmul bias add that is read twice": Case(
        lambda x: (y := residual(x, z := tf.sin(x))) * z + residual(y, z),
        {PRODUCT: 2, "Mul": 1, "AddV2": 1},
        (),
        (None, 5, 16),
        fused=("BiasAdd Add Dequantize",) * 2,
    ),
    "batch matmul with a constant": Case(
        lambda x: tf.matmul(x, SQUARE[None]), {PRODUCT: 1, "QuantizeV2": 1}, ("BatchMatMulV2",), (None, 5, 16)
    ),
    "batch matmul of activations": Case(
        lambda x: tf.matmul(x, tf.matmul(x, SQUARE[None]), transpose_b=True),
        {PRODUCT: 1, "BatchMatMulV2": 1},
        (),
        (None, 5, 16),
        (("BatchMatMulV2", "both operands are activations"),),
    ),
    "conv 3d": Case(
        lambda x: tf.nn.conv3d(x, normal(3, 3, 3, 4, 4), [1, 1, 1, 1, 1], "SAME")[:, 0, :, :, :] @ normal(4, 4),
        {"Conv3D": 1, PRODUCT: 1},
        (),
        (None, 4, 4, 4, 4),
        (("Conv3D", "no int8 kernel"),),
    ),
    "deconvolution": Case(
        lambda x: conv(tf.nn.conv2d_transpose(x, normal(3, 3, 8, 8), [2, 16, 16, 8], 2)),
        {"Conv2DBackpropInput": 1, CONV: 1},
        (),
        IMAGE,
        (("Conv2DBackpropInput", "deconvolution"),),
    ),
    "pre-activation norm": Case(
        lambda x: conv(tf.nn.relu(norm(x))), {CONV: 1, "Relu": 1}, ("Conv2D",), floats=(("Relu", "no int8 kernel"),)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_pattern(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)


def read_later(x: Any) -> Any:
    y = tf.nn.relu(conv(x))
    return tf.nn.relu(conv(tf.nn.relu(conv(y))) + y) * 0.5 + conv(y, K1)


def read_by_itself(x: Any) -> Any:
    y = tf.nn.relu(conv(x))
    return tf.nn.relu(conv(y) + y)


@pytest.mark.parametrize("build", [read_later, read_by_itself])
def test_a_sum_is_not_taken_over_where_its_summand_is_still_read(build: Any, tmp_path: Any) -> None:
    """In place, the kernel would overwrite what another convolution (or it itself) still reads; TensorFlow crashes on the second graph."""
    hold = hold_of(graph_of(build, {"x": IMAGE}), recipes=FrozenMap({"sum_fusion": True}))
    batch = GENERATOR.normal(size=(2, 8, 8, 8)).astype(np.float32)
    statistics = ADAPTER.calibrate(hold, [batch], tmp_path)
    planned = onednn.planned_of(hold, Candidate.of(full(hold).ops, (), ("sum_fusion",)), statistics)
    assert planned.sums == {}


def looped(x: Any) -> Any:
    """Twice as many rows, by a loop whose shapes say nothing about them."""
    free = [tf.TensorShape([]), tf.TensorShape([None, 16])]
    return tf.while_loop(lambda i, _: i < 1, lambda i, h: (i + 1, tf.concat([h, h], 0)), [0, x], free)[1]


def branched(x: Any, z: Any) -> Any:
    return tf.cond(tf.reduce_sum(z) > 1e9, lambda: x, lambda: z)


# Sums of five rows of x and one of z whose shapes look alike before they run: one operand is spread over the other.
UNPROVEN = {
    "two free batches": lambda x, z: residual(x, tf.sin(z)),
    "fewer rows in the product": lambda x, z: residual(z, tf.sin(x)),
    "a product of both": lambda x, z: residual(z, tf.sin(z) * tf.cos(x)),
    "a row for all": lambda x, z: residual(x, tf.reduce_mean(x, 0, keepdims=True) * tf.reduce_sum(z)),
    "a slice": lambda x, z: residual(x, x[: tf.shape(z)[0]]),
    "gathered rows": lambda x, z: residual(x, tf.gather(x, tf.range(tf.shape(z)[0]))),
    "tiled rows": lambda x, z: residual(z, tf.tile(z, [tf.shape(x)[0], 1])),
    "joined rows": lambda x, z: residual(z, tf.concat([z, x], 0)),
    "two rows of each": lambda x, z: z @ SQUARE[:, :8] + tf.reshape(z, [-1, 8]) * tf.reduce_mean(x),
    "two rows of each, in batches": lambda x, z: (
        residual(tf.reshape(z, [-1, 1, 16]), tf.sin(tf.reshape(tf.concat([z, z], 1), [-1, 1, 16]))) * tf.reduce_mean(x)
    ),
    "the columns of a product that transposes": lambda x, z: residual(
        z,
        tf.matmul(
            tf.reduce_sum(z, 1, keepdims=True) * tf.transpose(tf.reduce_sum(x, 1, keepdims=True)),
            LONG[None],
            transpose_a=True,
        ),
    ),
    "two free batches of matrices": lambda x, z: residual(tf.reshape(x, [-1, 1, 16]), tf.reshape(z, [-1, 1, 16])),
    # No bias: with one, TensorFlow's optimizer makes just that error in the float graph, and the process dies of a broken heap (2.21).
    "a loop": lambda x, z: (z @ SQUARE + looped(z)) * tf.reduce_mean(x),
    "a branch": lambda x, z: residual(x, branched(x, z)),
}


@pytest.mark.parametrize("case", UNPROVEN)
def test_a_product_takes_over_no_sum_whose_rows_may_be_others(case: str, tmp_path: Path) -> None:
    """The kernel does not look at the number of rows, and would read beyond the end of a shorter summand."""
    hold = hold_of(graph_of(UNPROVEN[case], {"x": ROWS, "z": ROWS}), outputs=("y",))
    batch = {"x": normal(5, 16), "z": normal(1, 16)}
    statistics = ADAPTER.calibrate(hold, [batch], tmp_path)
    assert [unit.summand for unit in hold.units.by_name.values() if unit.summand] == []
    (found,) = ADAPTER.run(ADAPTER.build(hold, full(hold), statistics, 1), batch)
    (expected,) = run_graph(hold.source.graph_def, batch)
    assert sqnr(expected, found) > 26.0


def test_a_chain_of_residual_products_adds_within_its_kernels(tmp_path: Path) -> None:
    """The operand of a sum may be written after the product that takes the sum over: each is written where its sum was."""

    def build(x: Any) -> Any:
        y = x @ SQUARE
        late = tf.nn.relu(tf.sin(x @ SQUARE + LONG) @ SQUARE)
        z = y + late
        return z + tf.nn.tanh(z @ SQUARE) @ SQUARE

    case = Case(build, {PRODUCT: 5, "Sin": 1}, ("AddV2", "MatMul"), ROWS)
    check(case, tmp_path)
