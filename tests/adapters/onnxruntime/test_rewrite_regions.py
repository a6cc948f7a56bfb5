"""What a candidate means: who reads codes, what joins a region, how a tensor's range is chosen."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

from collections import Counter
from dataclasses import replace

import graphs
import numpy as np
import onnx
from graphs import Tuned, graph_of, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.numerics.qparams import activation_parameters
from neural_tune.values import Candidate, DType, Granularity, Observer, TensorRange
from neural_tune_onnxruntime import guard
from neural_tune_onnxruntime.rewrite import regions


def tune(model, folder):
    return Tuned(model, graphs.batches(model), folder)


def only(tuned, *names):
    full = tuned.space.preferred()
    return Candidate.of({name: full.ops[name] for name in names})


def planned(tuned, candidate):
    return regions.plan(tuned.hold, candidate, lambda tensor, spec, choice: activation_parameters(-1.0, 1.0, spec))


def outcome(tuned, candidate, name):
    return next(op for op in tuned.build(candidate).report.ops if op.name == name)


def test_tensor_of_a_float_op_is_coded_for_its_int8_readers_only(tmp_path):
    tuned = tune(graphs.residual_net(), tmp_path)
    coded = planned(tuned, only(tuned, "conv3")).coded
    assert coded["r2"].readers == {"conv3"}
    assert coded["c3"].readers is None


def test_add_between_float_ops_stays_float_and_says_which_input(tmp_path):
    tuned = tune(graphs.residual_net(), tmp_path)
    found = outcome(tuned, only(tuned, "add2", "conv2"), "add2")
    assert found.is_float
    assert found.reason == "does not join an int8 region: its input 'r0' comes from a float op"
    assert not outcome(tuned, only(tuned, "add2", "conv2", "stem"), "add2").is_float


def test_add_joins_where_its_float_input_is_coded_for_an_anchor_anyway(tmp_path):
    tuned = tune(graphs.residual_net(), tmp_path)
    candidate = only(tuned, "conv1", "conv2", "add2")
    assert not outcome(tuned, candidate, "add2").is_float
    assert planned(tuned, candidate).coded["r0"].readers == {"conv1", "add2"}


def test_product_hands_out_codes_only_where_an_anchor_reads_them(tmp_path):
    tuned = tune(graphs.matmul_net(), tmp_path)
    assert set(planned(tuned, tuned.space.preferred()).tails) == {"down"}
    assert set(planned(tuned, only(tuned, "up", "down")).tails) == set()


def test_product_before_an_activation_hands_out_codes_whoever_reads_them(tmp_path):
    tuned = tune(graphs.perceptron(), tmp_path)
    assert set(planned(tuned, tuned.space.preferred()).tails) == {"fc1", "fc2"}
    assert set(planned(tuned, only(tuned, "fc1", "fc3")).tails) == {"fc1"}
    emitting = tuned.space.preferred().ops["fc3"]
    candidate = tuned.space.preferred().with_ops({"fc3": replace(emitting, output=emitting.activation)})
    assert set(planned(tuned, candidate).tails) == {"fc1", "fc2", "fc3"}


def test_relu_is_folded_where_saturation_does_the_same_and_kept_where_not(tmp_path):
    tuned = tune(graphs.conv_net(), tmp_path)
    kinds = Counter(node.op_type for node in tuned.build().proto.graph.node)
    assert kinds["Relu"] == kinds["Clip"] == 0
    assert outcome(tuned, None, "relu1").reason == "part of 'conv1'"
    full = tuned.space.preferred()
    symmetric = {
        name: replace(
            config,
            activation=replace(config.activation, symmetric=True),
            output=config.output and replace(config.output, symmetric=True),
        )
        for name, config in full.ops.items()
    }
    kinds = Counter(node.op_type for node in tuned.build(Candidate.of(symmetric)).proto.graph.node)
    assert (kinds["Relu"], kinds["Clip"]) == (2, 1)


def test_reshaping_and_pooling_share_the_scale_of_their_input(tmp_path):
    tuned = tune(graphs.conv_net(), tmp_path)
    found = planned(tuned, tuned.space.preferred())
    assert found.coded["p2"].source == "r2"
    assert found.coded["f"].source == "g"
    assert found.carried == {"pool2", "flatten"}
    names = {tensor.name for tensor in tuned.build().proto.graph.initializer}
    assert "r2__scale" in names
    assert "p2__scale" not in names


def test_padding_of_codes_is_exact(tmp_path):
    """A padded shortcut as in ResNet-20: Slice and Pad carry codes, and the Add behind them is an integer one."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Slice", ["c", "first", "last", "width", "step"], ["s"], "slice"),
        helper.make_node("Pad", ["s", "pads"], ["p"], "pad"),
        helper.make_node("Conv", ["c", "v"], ["d"], "down", strides=[1, 2]),
        helper.make_node("Add", ["p", "d"], ["y"], "add"),
    ]
    found = weights(w=(8, 3, 3, 3), b=(8,), v=(16, 8, 1, 1))
    found["b"] += 1  # so that zero is not the first code
    found |= {name: np.array([value]) for name, value in {"first": 0, "last": 2**62, "width": 3, "step": 2}.items()}
    found["pads"] = np.array([0, 4, 0, 0, 0, 4, 0, 0])
    model = graph_of(nodes, found, {"x": ["n", 3, 8, 8]})
    tuned = tune(model, tmp_path)
    assert tuned.floats() == []
    path = graphs.ADAPTER.save(tuned.build(), tmp_path / "saved")
    fusion = guard.count_fusions(path)
    assert (fusion.lost, fusion.unfused, fusion.integer_kernels) == (0, 0, 3)
    stock = graphs.stock(model, tuned.feeds, tmp_path, op_types=["Conv", "Slice", "Pad", "Add"])
    np.testing.assert_array_equal(tuned.run()[0], graphs.run(stock, tuned.feeds[0])[0])


def test_range_of_a_tensor_comes_from_the_candidates_choice_then_the_producer_then_the_first_reader(tmp_path):
    tuned = tune(graphs.residual_net(), tmp_path)
    asked = {}

    def note(tensor, spec, choice):
        asked[tensor] = choice.observer if choice else spec.observer
        return activation_parameters(-1.0, 1.0, spec)

    def with_observer(name, observer):
        config = tuned.space.preferred().ops[name]
        spec = replace(config.activation, observer=observer)
        return replace(config, activation=spec, output=config.output and spec)

    full = tuned.space.preferred().with_ops(
        {"conv1": with_observer("conv1", Observer.KL), "conv3": with_observer("conv3", Observer.MSE)}
    )
    regions.plan(tuned.hold, full, note)
    assert asked["r0"] is Observer.MINMAX, "stem makes it"
    assert asked["r1"] is Observer.KL, "conv1 makes it"
    assert asked["r2"] is Observer.MINMAX, "add2 makes it"
    assert asked["c3"] is Observer.MSE
    asked.clear()
    regions.plan(tuned.hold, Candidate.of({"conv3": full.ops["conv3"], "shortcut": full.ops["shortcut"]}), note)
    assert asked["r2"] is Observer.MSE, "its first int8 reader is conv3"
    asked.clear()
    # By either name: the one behind the folded Relu, or the raw one.
    ranges = [TensorRange(tensor="r1", observer=Observer.PERCENTILE), TensorRange(tensor="c0", observer=Observer.MSE)]
    regions.plan(tuned.hold, Candidate.of(full.ops, ranges), note)
    assert asked["r1"] is Observer.PERCENTILE
    assert asked["r0"] is Observer.MSE


def test_chosen_range_changes_the_graph(tmp_path):
    tuned = tune(graphs.conv_net(), tmp_path)
    full = tuned.space.preferred()
    narrow = TensorRange(tensor="x", observer=Observer.PERCENTILE, percentile=60.0)
    first, second = tuned.build(full).proto, tuned.build(Candidate.of(full.ops, [narrow])).proto

    def scale(proto):
        tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "x__scale")
        return float(onnx.numpy_helper.to_array(tensor))

    assert scale(second) < 0.6 * scale(first)


def test_tensor_that_was_never_observed_is_an_adapter_error(tmp_path):
    tuned = tune(graphs.conv_net(), tmp_path)
    tuned.statistics = type(tuned.statistics)({}, 0)
    with pytest.raises(AdapterError, match="never observed"):
        tuned.build()


def test_config_that_cannot_run_names_the_op_and_the_reason(tmp_path):
    tuned = tune(graphs.conv_net(), tmp_path)
    config = tuned.space.preferred().ops["conv1"]
    wrong_axis = replace(config, weight=replace(config.weight, axis=1))
    with pytest.raises(CapabilityError, match=r"'conv1'.*axis 1: the channel axis of this op is 0"):
        tuned.build(Candidate.of({"conv1": wrong_axis}))
    wide = replace(config, activation=replace(config.activation, dtype=DType.INT4))
    with pytest.raises(CapabilityError, match="uint8 or int8"):
        tuned.build(Candidate.of({"conv1": wide}))


def test_op_that_shares_an_input_of_another_format_says_so(tmp_path):
    tuned = tune(graphs.residual_net(), tmp_path)
    config = tuned.space.preferred().ops["conv1"]
    signed = replace(config.activation, dtype=DType.INT8)
    candidate = tuned.space.preferred().with_ops({"conv1": replace(config, activation=signed, output=signed)})
    assert "shares input 'r0'" in outcome(tuned, candidate, "conv1").reason


def test_add_left_float_between_int8_ops_admits_that_the_runtime_fuses_it(tmp_path):
    tuned = tune(graphs.residual_net(), tmp_path)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "one"),
        helper.make_node("Conv", ["x", "v"], ["d"], "two"),
        helper.make_node("Add", ["c", "d"], ["a"], "add"),
        helper.make_node("Conv", ["a", "u"], ["y"], "head"),
    ]
    model = graph_of(nodes, weights(w=(8, 3, 3, 3), b=(8,), v=(8, 3, 3, 3), u=(4, 8, 1, 1)), {"x": ["n", 3, 8, 8]})
    tuned = tune(model, tmp_path)
    candidate = only(tuned, "one", "two", "head")
    assert "the runtime fuses it" in outcome(tuned, candidate, "add").reason
    path = graphs.ADAPTER.save(tuned.build(candidate), tmp_path / "saved")
    assert guard.count_fusions(path).integer_kernels == 4


@pytest.fixture(scope="module")
def all_nets(tmp_path_factory):
    return [tune(make(), tmp_path_factory.mktemp("net")) for make in graphs.NETS.values()]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_candidate_is_a_valid_graph_with_true_outcomes(all_nets, data):
    """Whatever is drawn from the space: onnx accepts the graph, the runtime runs it, and the report says what is in it."""
    tuned = data.draw(st.sampled_from(all_nets))
    groups = tuned.space.groups
    choices = {group.name: data.draw(st.sampled_from(group.choices)) for group in groups}
    candidate = tuned.space.candidate(choices)
    built = tuned.build(candidate)
    (feed,) = graphs.batches(tuned.hold.proto, 1, 2)
    assert all(np.isfinite(values).all() for values in graphs.ADAPTER.run(built, feed))
    proto = onnx.ModelProto()
    proto.CopyFrom(built.proto)
    check_with_blank_weights(proto)
    integer = {op.name for op in built.report.ops if not op.is_float and op.name in candidate.ops}
    coded = {
        node.name
        for node in built.proto.graph.node
        if node.name in tuned.hold.kernels
        and tuned.hold.kernels[node.name].weight is not None
        and node.input[1].endswith("weight_dq")
    }
    anchors = {name for name in integer if tuned.hold.kernels[name].weight is not None}
    assert coded == anchors
    assert anchors == {name for name in candidate.ops if tuned.hold.kernels[name].weight is not None}


def check_with_blank_weights(proto):
    """onnx.checker looks for external data on the disk: give every such tensor blank bytes inside the graph."""
    for tensor in proto.graph.initializer:
        if tensor.external_data:
            length = next(int(item.value) for item in tensor.external_data if item.key == "length")
            del tensor.external_data[:]
            tensor.ClearField("data_location")
            tensor.raw_data = bytes(length)
    onnx.checker.check_model(proto, full_check=True)


def test_granularity_is_that_of_the_candidate(tmp_path):
    tuned = tune(graphs.conv_net(), tmp_path)
    config = tuned.space.preferred().ops["conv1"]
    flat = replace(config, weight=replace(config.weight, granularity=Granularity.PER_TENSOR))
    proto = tuned.build(Candidate.of({"conv1": flat})).proto
    shapes = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    assert shapes["conv1__weight_scale"] == []
    proto = tuned.build(Candidate.of({"conv1": config})).proto
    shapes = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    assert shapes["conv1__weight_scale"] == [8]


def test_names_of_a_candidate_never_clash_with_names_of_the_model(tmp_path):
    model = graphs.conv_net()
    taken = {"c1": "x__q", "r1": "x__dq", "p2": "conv1__weight_dq", "g": "x__nt__scale"}
    for node in model.graph.node:
        node.input[:] = [taken.get(name, name) for name in node.input]
        node.output[:] = [taken.get(name, name) for name in node.output]
    tuned = tune(model, tmp_path)
    expected = tune(graphs.conv_net(), tmp_path / "plain").run()[0]
    np.testing.assert_array_equal(tuned.run()[0], expected)
