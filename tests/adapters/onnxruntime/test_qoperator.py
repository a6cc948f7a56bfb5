"""Format QOperator: the kernels of the runtime in the file, with the bits of the Q/DQ graph, and the way back."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

from dataclasses import replace

import graphs
import numpy as np
import onnx
from graphs import ADAPTER, FLOAT, NETS, Tuned, graph_of, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantFormat

from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import Candidate, Granularity
from neural_tune_onnxruntime import guard
from neural_tune_onnxruntime.rewrite import qoperator


def kinds(proto):
    return [node.op_type for node in proto.graph.node]


def qoperator_of(tuned, candidate=None):
    hold = replace(tuned.hold, quant_format="QOperator")
    return ADAPTER.build(hold, candidate or tuned.space.preferred(), tuned.statistics, 1)


@pytest.fixture(scope="module")
def all_nets(tmp_path_factory):
    found = []
    for make in NETS.values():
        model = make()
        found.append(Tuned(model, graphs.batches(model), tmp_path_factory.mktemp("net")))
    return found


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_candidate_has_the_bits_of_its_qdq_graph(all_nets, data):
    tuned = data.draw(st.sampled_from(all_nets))
    choices = {group.name: data.draw(st.sampled_from(group.choices)) for group in tuned.space.groups}
    candidate = tuned.space.candidate(choices)
    literal, integer = tuned.build(candidate), qoperator_of(tuned, candidate)
    for one, two in zip(ADAPTER.run(literal, tuned.feeds[0]), ADAPTER.run(integer, tuned.feeds[0]), strict=True):
        np.testing.assert_array_equal(one, two)
    if integer.proto is not None:
        back = qoperator.to_qdq(integer.proto)
        assert sorted(kinds(back)) == sorted(kinds(literal.proto))
        assert {item.domain for item in back.opset_import} == {""}


@pytest.mark.parametrize("name", sorted(NETS))
@pytest.mark.parametrize("per_channel", [True, False])
def test_full_int8_equals_the_stock_tool_bit_for_bit(name, per_channel, tmp_path):
    model = NETS[name]()
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    granularity = Granularity.PER_CHANNEL if per_channel else Granularity.PER_TENSOR
    candidate = Candidate.of(
        {
            op: replace(
                config,
                output=config.activation,
                weight=config.weight and replace(config.weight, granularity=granularity),
            )
            for op, config in tuned.space.preferred().ops.items()
        }
    )
    built = qoperator_of(tuned, candidate)
    kept = [op.name for op in built.report.ops if op.is_float]
    types = sorted({op.type for op in built.report.ops if not op.is_float} | {"Relu", "Clip"})
    path = graphs.stock(
        tuned.float_model(tmp_path),
        tuned.feeds,
        tmp_path,
        op_types=types,
        exclude=kept,
        per_channel=per_channel,
        quant_format=QuantFormat.QOperator,
    )
    stock = onnx.load(str(path))
    expected = graphs.run(stock, tuned.feeds[0])
    np.testing.assert_array_equal(ADAPTER.run(built, tuned.feeds[0])[0], expected[0])
    np.testing.assert_array_equal(graphs.run(qoperator.to_qdq(stock), tuned.feeds[0])[0], expected[0])


def test_options_choose_the_format_and_plain_onnxruntime_runs_the_file(tmp_path):
    model = graphs.residual_net()
    feeds = graphs.batches(model)
    hold = ADAPTER.load(model, AdapterOptions(quant_format="QOperator"))
    statistics = ADAPTER.calibrate(hold, feeds, tmp_path / "statistics")
    built = ADAPTER.build(hold, TuningSpace.of(ADAPTER.query(hold)).preferred(), statistics, 1)
    path = ADAPTER.save(built, tmp_path / "saved")
    found = onnx.load(str(path))
    onnx.checker.check_model(found)
    assert {item.domain for item in found.opset_import} == {"", "com.microsoft"}
    assert kinds(found).count("QLinearConv") == 5
    assert not {"Conv", "Gemm", "Add", "Relu", "DequantizeLinear"} & set(kinds(found))
    np.testing.assert_array_equal(graphs.run(path, feeds[0])[0], ADAPTER.run(built, feeds[0])[0])
    assert guard.examine(path, feeds[0]) == ()
    assert built.report.counts["quantize_nodes"] == 1
    assert abs(ADAPTER.size(built) - path.stat().st_size) < 0.02 * path.stat().st_size


def test_toggles_and_profile_take_the_format(tmp_path):
    model = graphs.conv_net()
    hold = ADAPTER.load(model, AdapterOptions(quant_format="QOperator"))
    statistics = ADAPTER.calibrate(hold, graphs.batches(model), tmp_path)
    full = TuningSpace.of(ADAPTER.query(hold)).preferred()
    (feed,) = graphs.batches(model, 1)
    toggled = ADAPTER.toggles(hold, full, statistics, 1).run(frozenset(full.ops), feed)
    np.testing.assert_allclose(toggled[0], ADAPTER.run(ADAPTER.build(hold, full, statistics, 1), feed)[0], atol=0.05)
    profile = ADAPTER.profile(hold, full, statistics, feed, 1)
    assert {"conv1", "conv2", "conv3"} <= set(profile.float_ms)
    assert {"conv1", "conv2", "conv3"} <= set(profile.int8_ms)


def quantized(name, codes="u8"):
    """Nodes that quantize and dequantize a tensor."""
    return [
        helper.make_node("QuantizeLinear", [name, "s", codes], [f"{name}_q"]),
        helper.make_node("DequantizeLinear", [f"{name}_q", "s", codes], [f"{name}_d"]),
    ]


PAIR = {"s": np.float32(0.03), "u8": np.uint8(120), "s8": np.int8(0)}


def test_relu_between_codes_becomes_a_clip_of_codes():
    nodes = [*quantized("x"), helper.make_node("Relu", ["x_d"], ["r"]), *quantized("r")]
    model = graph_of(nodes, PAIR, {"x": [4, 9]}, ["r_d"])
    found = qoperator.from_qdq(model)
    assert kinds(found) == ["QuantizeLinear", "Clip", "DequantizeLinear"]
    feed = {"x": np.linspace(-5, 5, 36, dtype=np.float32).reshape(4, 9)}
    np.testing.assert_array_equal(graphs.run(found, feed)[0], graphs.run(model, feed)[0])
    np.testing.assert_array_equal(graphs.run(qoperator.to_qdq(found), feed)[0], graphs.run(model, feed)[0])


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.01), (0.2, 0.9), (-9.0, 0.0), (None, 0.5)])
def test_clip_between_codes_keeps_its_bounds(low, high):
    bounds = {name: np.float32(value) for name, value in (("low", low), ("high", high)) if value is not None}
    node = helper.make_node("Clip", ["x_d", "low" if low is not None else "", "high"], ["r"], "clip")
    model = graph_of([*quantized("x"), node, *quantized("r")], PAIR | bounds, {"x": [4, 9]}, ["r_d"])
    found = qoperator.from_qdq(model)
    assert "DequantizeLinear" not in kinds(found)[:-1]
    feed = {"x": np.linspace(-5, 5, 36, dtype=np.float32).reshape(4, 9)}
    for proto in (found, qoperator.to_qdq(found)):
        np.testing.assert_array_equal(graphs.run(proto, feed)[0], graphs.run(model, feed)[0])


@pytest.mark.parametrize("factors", [{"alpha": 2.0}, {"beta": 0.5}])
def test_gemm_with_factors_keeps_its_pairs_because_the_kernel_drops_them(factors):
    found = weights(w=(16, 12))
    codes = np.clip(np.rint(found["w"] / 0.02), -127, 127).astype(np.int8)
    constants = PAIR | {
        "w": codes,
        "ws": np.float32(0.02),
        "c": np.arange(12, dtype=np.int32),
        "cs": np.float32(0.0006),
        "z32": np.int32(0),
    }
    nodes = [
        *quantized("x"),
        helper.make_node("DequantizeLinear", ["w", "ws", "s8"], ["wd"]),
        helper.make_node("DequantizeLinear", ["c", "cs", "z32"], ["cd"]),
        helper.make_node("Gemm", ["x_d", "wd", "cd"], ["y"], **factors),
    ]
    proto = qoperator.from_qdq(graph_of(nodes, constants, {"x": [5, 16]}))
    assert "Gemm" in kinds(proto)
    plain = qoperator.from_qdq(
        graph_of([*nodes[:-1], helper.make_node("Gemm", ["x_d", "wd", "cd"], ["y"])], constants, {"x": [5, 16]})
    )
    assert "QGemm" in kinds(plain)


def test_bias_whose_scale_is_not_the_accumulators_keeps_its_pairs():
    constants = PAIR | {
        "w": np.ones((4, 3, 1, 1), np.int8),
        "ws": np.float32(0.02),
        "b": np.ones(4, np.int32),
        "z32": np.int32(0),
    }
    nodes = [
        *quantized("x"),
        helper.make_node("DequantizeLinear", ["w", "ws", "s8"], ["wd"]),
        helper.make_node("DequantizeLinear", ["b", "bs", "z32"], ["bd"]),
        helper.make_node("Conv", ["x_d", "wd", "bd"], ["c"]),
        *quantized("c"),
    ]
    for scale, expected in ((0.0006, "QLinearConv"), (0.5, "Conv")):
        model = graph_of(nodes, constants | {"bs": np.float32(scale)}, {"x": [1, 3, 4, 4]}, ["c_d"])
        found = qoperator.from_qdq(model)
        assert expected in kinds(found)
        (feed,) = graphs.batches(model, 1)
        np.testing.assert_array_equal(graphs.run(found, feed)[0], graphs.run(model, feed)[0])


def test_tensor_that_floats_and_codes_read_is_written_as_it_was():
    """One reader of the raw tensor, and the kernel must hand out floats."""
    nodes = [
        *quantized("x"),
        helper.make_node("Sigmoid", ["x_d"], ["a"]),
        *quantized("a"),
        helper.make_node("Tanh", ["a"], ["t"]),
    ]
    model = graph_of(nodes, PAIR, {"x": [4, 9]}, ["a_d", "t"])
    assert "Sigmoid" in kinds(qoperator.from_qdq(model))


def test_tensor_that_a_subgraph_reads_keeps_its_name(tmp_path):
    body = [helper.make_node("Identity", ["x_d"], ["t"])]
    part = helper.make_graph(body, "part", [], [helper.make_tensor_value_info("t", FLOAT, None)])
    nodes = [
        *quantized("x"),
        helper.make_node("Sigmoid", ["x_d"], ["a"]),
        *quantized("a"),
        helper.make_node("If", ["yes"], ["y"], then_branch=part, else_branch=part),
    ]
    model = graph_of(nodes, PAIR | {"yes": np.array(True)}, {"x": [4, 9]}, ["a_d", "y"])
    found = qoperator.from_qdq(model)
    assert "QLinearSigmoid" in kinds(found)
    (feed,) = graphs.batches(model, 1)
    for one, two in zip(graphs.run(found, feed), graphs.run(model, feed), strict=True):
        np.testing.assert_array_equal(one, two)


def contrib(nodes, constants, inputs, outputs=("y",)):
    model = graph_of(nodes, constants, inputs, outputs)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def test_what_has_no_qdq_form_is_refused_by_name():
    node = helper.make_node("QAttention", ["x"], ["y"], "attention", domain="com.microsoft")
    with pytest.raises(CapabilityError, match="QAttention 'attention'"):
        qoperator.to_qdq(contrib([node], {}, {"x": [1, 4, 8]}))
    last = helper.make_node(
        "QLinearAveragePool", ["x", "s", "u8", "s", "u8"], ["y"], "pool", domain="com.microsoft", channels_last=1
    )
    with pytest.raises(CapabilityError, match="channels last"):
        qoperator.to_qdq(contrib([last], PAIR, {"x": [1, 4, 4, 8]}))
    computed = helper.make_node("QLinearSigmoid", ["x", "scale", "u8", "s", "u8"], ["y"], domain="com.microsoft")
    with pytest.raises(CapabilityError, match=r"'scale'.*is computed"):
        qoperator.to_qdq(contrib([computed], PAIR, {"x": [1, 4], "scale": []}))


def test_scales_in_another_file_are_asked_for():
    model = graph_of(
        [*quantized("x"), helper.make_node("Relu", ["x_d"], ["r"]), *quantized("r")], PAIR, {"x": [4]}, ["r_d"]
    )
    scale = next(item for item in model.graph.initializer if item.name == "s")
    scale.ClearField("raw_data")
    scale.data_location = onnx.TensorProto.EXTERNAL
    scale.external_data.add(key="location", value="elsewhere.bin")
    with pytest.raises(AdapterError, match="'s' lies in another file"):
        qoperator.from_qdq(model)


def test_callers_model_is_not_touched(tmp_path):
    model = NETS["conv"]()
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    literal = onnx.load(str(ADAPTER.save(tuned.build(), tmp_path / "a")))
    integer = onnx.load(str(ADAPTER.save(qoperator_of(tuned), tmp_path / "b")))
    for proto, change in ((literal, qoperator.from_qdq), (integer, qoperator.to_qdq)):
        before = proto.SerializeToString(deterministic=True)
        change(proto)
        assert proto.SerializeToString(deterministic=True) == before


def test_model_without_codes_stays_as_it_is():
    model = NETS["conv"]()
    for change in (qoperator.from_qdq, qoperator.to_qdq):
        found = change(model)
        assert kinds(found) == kinds(model)
        assert {item.name: numpy_helper.to_array(item).tobytes() for item in found.graph.initializer} == {
            item.name: numpy_helper.to_array(item).tobytes() for item in model.graph.initializer
        }
