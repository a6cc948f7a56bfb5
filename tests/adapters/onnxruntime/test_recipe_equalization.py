"""Cross-layer equalization: the function stays, planted outlier channels vanish, what does not commute is refused with a reason."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import graphs
import numpy as np
from graphs import Tuned, graph_of, weights
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from neural_tune.numerics import preservation
from neural_tune.numerics.rescaling import Edge, Refusal
from neural_tune.values import Candidate
from neural_tune_onnxruntime import model as models
from neural_tune_onnxruntime.recipes import edges, variants

EQUALIZED = ("equalization",)


def pair(activation="Relu", *, seed=0, spread=0.0, depthwise=False, **attributes):
    """Two convolutions with an activation between; `spread` rescales the channels between them by log-normal factors."""
    rng = np.random.default_rng(seed)
    found = weights(seed, w1=(16, 8, 3, 3), b1=(16,), w2=(16, 1, 3, 3) if depthwise else (12, 16, 1, 1), b2=(12,))
    if depthwise:
        found["b2"] = rng.standard_normal(16).astype(np.float32)
    scale = np.exp(rng.normal(0, spread, 16)).astype(np.float32)
    found["w1"], found["b1"] = found["w1"] * scale.reshape(-1, 1, 1, 1), found["b1"] * scale
    found["w2"] = found["w2"] / (scale.reshape(-1, 1, 1, 1) if depthwise else scale.reshape(1, -1, 1, 1))
    extra = [attributes.pop(name) for name in ("low", "high") if name in attributes]
    found |= {f"bound{index}": np.array(value, np.float32) for index, value in enumerate(extra)}
    slopes = ["slopes"] if activation == "PRelu" else []
    found |= {"slopes": rng.random((16, 1, 1)).astype(np.float32)} if slopes else {}
    bounds = [f"bound{index}" for index in range(len(extra))]
    group = {"group": 16, "pads": [1, 1, 1, 1]} if depthwise else {}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node(activation, ["c1", *slopes, *bounds], ["r1"], "act", **attributes),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["y"], "conv2", **group),
    ]
    return graph_of(nodes, found, {"x": ["n", 8, 10, 10]})


def exact(model, feed):
    """The float64 outputs of a model, by the reference implementation of the ONNX operators."""
    wide = helper.make_model(helper.make_graph([], "g", [], []))
    wide.CopyFrom(model)
    for item in wide.graph.initializer:
        if item.data_type == graphs.FLOAT:
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float64), item.name))
    for value in (*wide.graph.input, *wide.graph.output, *wide.graph.value_info):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(np.float64))
    return ReferenceEvaluator(wide).run(None, {name: array.astype(np.float64) for name, array in feed.items()})


def whole(hold):
    """The float graph of a hold with all its weights inside."""
    result = helper.make_model(helper.make_graph([], "g", [], []))
    result.CopyFrom(hold.proto)
    del result.graph.initializer[:]
    used = {name for node in result.graph.node for name in node.input}
    result.graph.initializer.extend(
        numpy_helper.from_array(np.array(hold.store.array(name)), name) for name in hold.store.tensors if name in used
    )
    return result


def error(tuned, recipes=(), feed=None):
    """The relative L2 error of full int8 against the float model."""
    full = tuned.space.preferred()
    feed = tuned.feeds[0] if feed is None else feed
    expected = tuned.run(Candidate(), feed)[0]
    found = tuned.run(Candidate.of(full.ops, (), recipes), feed)[0]
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def refusals(model):
    found = edges.weight_edges(models.load(model, processor=graphs.VNNI))
    return {item.producer: item.reason for item in found if isinstance(item, Refusal)}


def edges_of(model):
    found = edges.weight_edges(models.load(model, processor=graphs.VNNI))
    return {item.producer: item for item in found if isinstance(item, Edge)}


@pytest.mark.parametrize("net", ["conv", "residual", "perceptron", "wide"])
def test_the_float_function_stays(net, tmp_path):
    model = tailed() if net == "wide" else graphs.NETS[net]()
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    variant = variants.prepare(tuned.hold, EQUALIZED, tuned.statistics)
    assert variant.model is not tuned.hold
    feed = tuned.feeds[0]
    before, after = exact(whole(tuned.hold), feed)[0], exact(whole(variant.model), feed)[0]
    assert np.linalg.norm(after - before) <= 1e-6 * np.linalg.norm(before)
    assert variants.difference(tuned.hold, variant.model, tuned.statistics.inputs) <= preservation.TOLERANCE


def tailed():
    """Every op that a factor may pass: LeakyRelu, PRelu, pooling, Pad, Slice, Transpose, Flatten with several positions per channel."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("LeakyRelu", ["c1"], ["l1"], "leaky", alpha=0.1),
        helper.make_node("AveragePool", ["l1"], ["p1"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Pad", ["p1", "pads"], ["q1"], "pad"),
        helper.make_node("Conv", ["q1", "w2", "b2"], ["c2"], "conv2", group=2),
        helper.make_node("PRelu", ["c2", "slope"], ["r2"], "prelu"),
        helper.make_node("Slice", ["r2", "one", "four", "two"], ["s2"], "slice"),
        helper.make_node("Conv", ["s2", "w3"], ["c3"], "conv3"),
        helper.make_node("Relu", ["c3"], ["r3"], "relu3"),
        helper.make_node("MaxPool", ["r3"], ["m3"], "max", kernel_shape=[2, 2]),
        helper.make_node("Flatten", ["m3"], ["f3"], "flatten"),
        helper.make_node("Gemm", ["f3", "w4", "b4"], ["g4"], "fc1", transB=1),
        helper.make_node("Relu", ["g4"], ["r4"], "relu4"),
        helper.make_node("MatMul", ["r4", "w5"], ["h5"], "fc2"),
        helper.make_node("Add", ["h5", "b5"], ["a5"], "bias5"),
        helper.make_node("Relu", ["a5"], ["r5"], "relu5"),
        helper.make_node("MatMul", ["r5", "w6"], ["y"], "fc3"),
    ]
    found = weights(
        4, w1=(8, 3, 3, 3), b1=(8,), w2=(12, 4, 3, 3), b2=(12,), w3=(6, 12, 1, 1), w4=(10, 36), b4=(10,), w5=(10, 9),
        b5=(9,), w6=(9, 4),
    )  # fmt: skip
    found |= {name: np.array(value, np.int64) for name, value in {"one": [1], "four": [4], "two": [2]}.items()}
    found |= {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "slope": np.full((12, 1, 1), 0.2, np.float32)}
    return graph_of(nodes, found, {"x": ["n", 3, 8, 8]})


def test_factors_pass_through_pooling_padding_slicing_and_flattening():
    found = edges_of(tailed())
    assert {name: [reader.op for reader in edge.readers] for name, edge in found.items()} == {
        "conv1": ["conv2"],
        "conv2": ["conv3"],
        "conv3": ["fc1"],
        "fc1": ["fc2"],
        "fc2": ["fc3"],
    }
    assert found["conv3"].readers[0].weight.repeat == 6
    assert [(part.op, part.position) for part in found["fc2"].divided] == [
        ("fc2", 1),
        ("fc2", 2),
    ]  # MatMul + Add became a Gemm


@settings(max_examples=15, deadline=None)
@example(seed=669, spread=2.0, activation="Relu", depthwise=True)
@given(
    seed=st.integers(0, 1000),
    spread=st.floats(0, 3),
    activation=st.sampled_from(["Relu", "LeakyRelu", "PRelu", "Identity"]),
    depthwise=st.booleans(),
)
def test_random_factors_leave_the_function(tmp_path_factory, seed, spread, activation, depthwise):
    model = pair(activation, seed=seed, spread=spread, depthwise=depthwise)
    tuned = Tuned(model, graphs.batches(model, 1, 4), tmp_path_factory.mktemp("statistics"))
    variant = variants.prepare(tuned.hold, EQUALIZED, tuned.statistics)
    assert not any("not applied" in note for note in variant.model.notes)
    before, after = exact(model, tuned.feeds[0])[0], exact(whole(variant.model), tuned.feeds[0])[0]
    assert np.linalg.norm(after - before) <= 1e-6 * np.linalg.norm(before)


@pytest.mark.parametrize("depthwise", [False, True])
def test_planted_outlier_channels_vanish(depthwise, tmp_path):
    model = pair(spread=2.0, depthwise=depthwise)
    clean = pair(spread=0.0, depthwise=depthwise)
    feeds = graphs.batches(model, 4, 8)
    sabotaged, reference = Tuned(model, feeds, tmp_path / "a"), Tuned(clean, feeds, tmp_path / "b")
    assert error(sabotaged) > 3 * error(reference)
    assert error(sabotaged, EQUALIZED) <= 2 * error(reference)


def test_equal_channels_are_left_alone_or_get_better(tmp_path):
    tuned = Tuned(pair(), graphs.batches(pair(), 4, 8), tmp_path)
    assert error(tuned, EQUALIZED) <= 1.1 * error(tuned)


def test_ranges_are_those_of_the_new_activations(tmp_path):
    tuned = Tuned(pair(spread=2.0), graphs.batches(pair(), 3, 4), tmp_path)
    variant = variants.prepare(tuned.hold, EQUALIZED, tuned.statistics)
    session = variant.model.session_for_outputs(["r1"])
    values = np.concatenate([session.run(None, feed)[0] for feed in tuned.feeds])
    seen = variant.statistics.of("r1")
    assert (seen.minimum, seen.maximum, seen.count) == (float(values.min()), float(values.max()), values.size)
    assert variant.statistics.of("x") is tuned.statistics.of("x")


def test_the_tensor_before_a_folded_relu_has_no_stale_range(tmp_path):
    tuned = Tuned(pair(spread=2.0), graphs.batches(pair(), 2, 4), tmp_path)
    variant = variants.prepare(tuned.hold, EQUALIZED, tuned.statistics)
    assert "c1" in tuned.statistics.tensors
    assert "c1" not in variant.statistics.tensors


def test_a_cut_at_six_is_refused_and_a_cut_at_zero_is_not():
    assert "Relu6" in refusals(pair("Clip", low=0.0, high=6.0))["conv1"]
    assert "conv1" in edges_of(pair("Clip", low=0.0))


def test_what_does_not_commute_is_refused_by_name():
    assert "'act' (Sigmoid) does not commute" in refusals(pair("Sigmoid"))["conv1"]
    assert "is an output of the model" in refusals(pair())["conv2"]


def test_residual_additions_and_shared_tensors_are_refused():
    found = refusals(graphs.residual_net())
    assert "2 readers" in found["stem"]
    assert "residual addition" in found["conv2"]
    assert "conv1" not in found


def test_graph_outputs_are_refused():
    model = pair()
    model.graph.output.append(helper.make_tensor_value_info("r1", graphs.FLOAT, None))
    assert "'r1' is an output of the model" in refusals(model)["conv1"]


def test_a_weight_that_two_ops_share_is_rescaled_for_one_only(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h1"], "first"),
        helper.make_node("Relu", ["h1"], ["r1"], "relu"),
        helper.make_node("MatMul", ["r1", "w"], ["y"], "second"),
    ]
    found = {"w": np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)}
    found["w"][:, 3] *= 40
    model = graph_of(nodes, found, {"x": ["n", 8]})
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    variant = variants.prepare(tuned.hold, EQUALIZED, tuned.statistics)
    ops = {op.name: op for op in variant.model.graph.ops}
    assert ops["first"].inputs[1] != ops["second"].inputs[1]
    before, after = exact(model, tuned.feeds[0])[0], exact(whole(variant.model), tuned.feeds[0])[0]
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
