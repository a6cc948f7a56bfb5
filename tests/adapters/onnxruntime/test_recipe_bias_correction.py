"""Bias correction: the mean error that rounded weights make is put right, exactly, for the ops that are int8."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import graphs
import numpy as np
from graphs import Tuned, graph_of, weights
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from neural_tune.values import FLOAT_CANDIDATE, Candidate
from neural_tune_onnxruntime.recipes import bias_correction, variants

CORRECTED = ("bias_correction",)
KINDS = {
    "padded": ("Conv", (12, 6, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}, ["n", 6, 9, 9]),
    "depthwise": ("Conv", (6, 1, 3, 3), {"group": 6}, ["n", 6, 9, 9]),
    "gemm": ("Gemm", (6, 12), {}, ["n", 6]),
    "turned": ("Gemm", (12, 6), {"transB": 1}, ["n", 6]),
}


def layer(kind, *, bias):
    """One op with a weight, behind a Relu, so that its inputs are positive and rounding errors add up."""
    op, shape, attributes, inputs = KINDS[kind]
    found = weights(2, w=shape)
    channels = shape[1] if kind == "gemm" else shape[0]
    found |= weights(7, b=(channels,)) if bias else {}
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node(op, ["r", "w", *(["b"] if bias else [])], ["y"], "op", **attributes),
    ]
    return graph_of(nodes, found, {"x": inputs}), channels


def tuned_of(model, folder, samples=40):
    return Tuned(model, graphs.batches(model, 4, samples // 4), folder)


def mean_error(tuned, hold):
    """The mean per output channel of float64 op(x, dequantized W) + bias of `hold`, minus the float64 output of the float model."""
    full = tuned.space.preferred()
    op = next(op for op in hold.graph.ops if op.name == "op")
    weight = op.inputs[1]
    arrays = {name: np.array(hold.store.array(name), np.float64) for name in op.inputs[1:]}
    rounded = hold.store.dequantized((weight, hold.kernels["op"].axis), full.ops["op"].weight)
    source = np.maximum(np.concatenate([feed["x"] for feed in tuned.feeds]), 0).astype(np.float64)
    found = evaluate(op, source, {**arrays, weight: rounded})
    original = next(item for item in tuned.hold.graph.ops if item.name == "op")
    plain = {name: np.array(tuned.hold.store.array(name), np.float64) for name in original.inputs[1:]}
    axes = tuple(axis for axis in range(found.ndim) if axis != 1)
    return (found - evaluate(original, source, plain)).mean(axis=axes)


def evaluate(op, source, arrays):
    double = helper.np_dtype_to_tensor_dtype(np.dtype(np.float64))
    graph = helper.make_graph(
        [op.node],
        "one",
        [helper.make_tensor_value_info(op.inputs[0], double, source.shape)],
        [helper.make_tensor_value_info(op.outputs[0], double, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])).run(
        None, {op.inputs[0]: source}
    )[0]


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("bias", [True, False])
def test_the_mean_error_of_every_output_channel_vanishes(kind, bias, tmp_path):
    model, channels = layer(kind, bias=bias)
    tuned = tuned_of(model, tmp_path)
    variant = variants.prepare(tuned.hold, CORRECTED, tuned.statistics)
    full = tuned.space.preferred()
    before = mean_error(tuned, variant.model)
    after = mean_error(tuned, bias_correction.corrected(variant.model, full.ops, tuned.statistics))
    assert after.shape == (channels,)
    assert np.abs(before).max() > 1e-4
    assert np.abs(after).max() <= 1e-5


def test_a_product_is_corrected_in_the_addition_behind_it(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "w"], ["h"], "product"),
        helper.make_node("Add", ["b", "h"], ["y"], "bias"),
    ]
    model = graph_of(nodes, weights(2, w=(8, 5), b=(5,)), {"x": ["n", 7, 8]})
    tuned = tuned_of(model, tmp_path)
    full = tuned.space.preferred()
    expected = np.concatenate([tuned.run(FLOAT_CANDIDATE, feed)[0] for feed in tuned.feeds])
    errors = []
    for recipes in ((), CORRECTED):
        built = tuned.build(Candidate.of(full.ops, (), recipes))
        found = np.concatenate([graphs.ADAPTER.run(built, feed)[0] for feed in tuned.feeds])
        errors.append(np.abs((found - expected).mean(axis=(0, 1))).max())
    assert errors[1] < errors[0] / 2


def test_only_ops_that_are_int8_are_corrected(tmp_path):
    model = graphs.conv_net()
    tuned = tuned_of(model, tmp_path)
    full = tuned.space.preferred()
    variant = variants.prepare(tuned.hold, CORRECTED, tuned.statistics).model
    one = {"conv2": full.ops["conv2"]}
    store = bias_correction.corrected(variant, one, tuned.statistics).store
    for op in variant.graph.ops:
        if variant.kernels[op.name].weight is not None:
            same = np.array_equal(store.array(op.inputs[2]), variant.store.array(op.inputs[2]))
            assert same == (op.name != "conv2")


def test_weights_keep_their_codes(tmp_path):
    tuned = tuned_of(graphs.conv_net(), tmp_path)
    full = tuned.space.preferred()
    plain, corrected = (tuned.build(Candidate.of(full.ops, (), recipes)).proto for recipes in ((), CORRECTED))
    codes = [
        [
            np.asarray(tuned_codes(tensor, tuned))
            for tensor in proto.graph.initializer
            if tensor.name.endswith("weight_q")
        ]
        for proto in (plain, corrected)
    ]
    assert len(codes[0]) == len(codes[1]) == 4
    for one, two in zip(*codes, strict=True):
        np.testing.assert_array_equal(one, two)


def tuned_codes(tensor, tuned):
    from neural_tune_onnxruntime.weights import read

    return read(tensor, tuned.hold.store.folder)


def test_a_product_without_an_addition_is_left_alone_with_the_reason(tmp_path):
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], "fc1"),
        helper.make_node("MatMul", ["h", "w2"], ["y"], "fc2"),
    ]
    model = graph_of(nodes, weights(3, w1=(6, 8), b1=(8,), w2=(8, 4)), {"x": ["n", 6]})
    tuned = tuned_of(model, tmp_path)
    refused = variants.prepare(tuned.hold, CORRECTED, tuned.statistics).refused
    assert "no bias" in refused["bias_correction"]["fc2"]
