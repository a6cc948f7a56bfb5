"""What is offered for each op, in which order, and that the runtime really runs all of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import graphs
import numpy as np
import onnx
from graphs import Tuned, graph_of, weights
from onnx import helper

from neural_tune.space import Restriction, Rule, Scope, SpecRestriction, TuningSpace
from neural_tune.values import FLOAT, Candidate, DType, Granularity, Observer, OpConfig, Role
from neural_tune_onnxruntime import capability, guard, kernels, model
from neural_tune_onnxruntime.graph import Graph
from neural_tune_onnxruntime.processor import classify


def query(source, processor=graphs.VNNI):
    return {op.name: op for op in capability.query(model.load(source, processor=processor)).ops}


def describe(op):
    return [config.describe() for config in op.choices]


def test_preferred_choices_are_uint8_by_int8_per_channel_then_observers_then_per_tensor_then_float():
    ops = query(graphs.conv_net())
    weight = "weight int8 sym per_channel"
    expected = [
        f"static: uint8 asym per_tensor, {weight}",
        f"static: uint8 asym per_tensor percentile, {weight}",
        f"static: uint8 asym per_tensor kl, {weight}",
        f"static: uint8 asym per_tensor mse, {weight}",
        "static: uint8 asym per_tensor, weight int8 sym per_tensor",
        "float",
    ]
    for name in ("conv1", "fc"):
        assert describe(ops[name]) == expected
    assert ops["conv1"].choices[0].output == ops["conv1"].choices[0].activation
    assert ops["fc"].choices[0].output is None, "a Gemm hands out float as fast, and more exactly"
    assert ops["mean"].choices[-1] == FLOAT
    assert [config.activation.observer for config in ops["mean"].choices[:-1]] == list(capability.OBSERVERS)


def test_roles():
    ops = query(graphs.conv_net())
    roles = {name: op.role for name, op in ops.items()}
    assert roles == {
        "conv1": Role.ANCHOR,
        "relu1": Role.PASS_THROUGH,
        "conv2": Role.ANCHOR,
        "clip2": Role.PASS_THROUGH,
        "pool2": Role.PASS_THROUGH,
        "conv3": Role.ANCHOR,
        "relu3": Role.PASS_THROUGH,
        "mean": Role.COMPANION,
        "flatten": Role.PASS_THROUGH,
        "fc": Role.ANCHOR,
    }
    assert query(graphs.matmul_net())["bias1"].role is Role.NEVER


def test_inputs_and_outputs_are_activations_and_parameters_are_counted():
    conv = query(graphs.conv_net())["conv1"]
    assert (conv.inputs, conv.outputs, conv.parameters) == (("x",), ("c1",), 8 * 3 * 9 + 8)


def single(kind, inputs, shape=(2, 8, 6, 6), constants=None, **attributes):
    """A model with the one op, on random input of the given shape."""
    node = helper.make_node(kind, inputs, ["y"], "op", **attributes)
    return graph_of([node], constants or {}, {name: shape for name in inputs if name not in (constants or {}) and name})


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (lambda: single("Softmax", ["x"]), "five times slower"),
        (lambda: single("AveragePool", ["x"], kernel_shape=[2, 2]), "six times slower"),
        (lambda: single("Tanh", ["x"]), "not fused"),
        (lambda: single("InstanceNormalization", ["x", "s", "b"], constants=weights(s=(8,), b=(8,))), "not fused"),
        (lambda: single("Add", ["x", "b"], constants=weights(b=(6,))), "constant"),
        (lambda: single("Conv", ["x", "w"], shape=(8, 8, 3, 3)), "the weight is no float32 constant"),
        (lambda: single("MatMul", ["w", "x"], (8, 4), constants=weights(w=(4, 8))), "the left operand is a constant"),
        (lambda: single("MatMul", ["x", "w"], (4, 8), constants=weights(w=(8,))), "a vector"),
        (lambda: single("Floor", ["x"]), "no int8 kernel"),
        (lambda: single("Pad", ["x", "p", "v"], constants={"p": np.ones(8, np.int64), "v": np.float32(1)}), "pads with another"),
    ],
)  # fmt: skip
def test_ops_that_stay_float_say_why(source, words):
    (op,) = query(source()).values()
    assert not op.is_quantizable
    assert words in op.why


def test_grouped_convolution_and_product_of_activations_are_for_those_who_ask():
    grouped = single("Conv", ["x", "w"], constants=weights(w=(8, 4, 3, 3)), group=2)
    product = single("MatMul", ["x", "z"], (2, 6, 6))
    for source in (grouped, product):
        (op,) = query(source).values()
        assert op.choices == (FLOAT,)
        assert op.extra
        assert op.why
    depthwise = single("Conv", ["x", "w"], constants=weights(w=(8, 1, 3, 3)), group=8)
    (op,) = query(depthwise).values()
    assert len(op.choices) > 1
    assert "depthwise" in op.why


@pytest.mark.parametrize("observer", capability.OBSERVERS)
@pytest.mark.parametrize("granularity", [Granularity.PER_TENSOR, Granularity.PER_CHANNEL])
def test_every_combination_of_observer_and_granularity_can_be_ruled(observer, granularity):
    restriction = Restriction(
        activation=SpecRestriction(observer=(observer,)), weight=SpecRestriction(granularity=(granularity,))
    )
    rules = [Rule(scope=Scope.MODEL, pattern=".*", restriction=restriction)]
    space = TuningSpace.of(capability.query(model.load(graphs.conv_net(), processor=graphs.VNNI)), rules)
    configs = space.preferred().ops
    assert {"conv1", "fc", "mean"} <= set(configs)
    assert {config.activation.observer for config in configs.values()} == {observer}
    assert {config.weight.granularity for config in configs.values() if config.weight} == {granularity}


@pytest.mark.parametrize("dtype", [DType.INT8, DType.UINT8])
def test_every_activation_dtype_can_be_ruled(dtype):
    rules = [Rule(scope=Scope.MODEL, pattern=".*", restriction=Restriction(activation=SpecRestriction(dtype=(dtype,))))]
    space = TuningSpace.of(capability.query(model.load(graphs.residual_net(), processor=graphs.VNNI)), rules)
    assert {config.activation.dtype for config in space.preferred().ops.values()} == {dtype}


@pytest.mark.parametrize("name", ["residual", "perceptron"])
def test_everything_on_offer_runs_on_integer_kernels_and_is_near_float(name, tmp_path):
    """Each offer is applied to all ops that have it, so that regions form; minmax stands for the observers."""
    source = graphs.NETS[name]()
    tuned = Tuned(source, graphs.batches(source), tmp_path)
    expected = graphs.run(source, tuned.feeds[0])[0]
    offers = {
        config
        for op in tuned.capability.ops
        if op.role is Role.ANCHOR
        for config in (*op.choices[:-1], *op.extra)
        if config.activation.observer is Observer.MINMAX
    }
    assert len(offers) > 12
    for number, offer in enumerate(sorted(offers, key=lambda item: item.describe())):
        candidate = Candidate.of({op.name: fitted(op, offer) for op in tuned.capability.ops if op.is_quantizable})
        built = tuned.build(candidate)
        found = graphs.ADAPTER.run(built, tuned.feeds[0])[0]
        distance = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert 0 < distance < 0.12, offer
        path = graphs.ADAPTER.save(built, tmp_path / str(number))
        assert guard.count_fusions(path).lost == 0 or offer.activation.dtype is DType.INT8, offer
        assert distance_of_levels(path, tuned.feeds[0]) < 0.05, offer


def distance_of_levels(path, feed):
    return guard.difference(graphs.run(path, feed)[0], graphs.run(path, feed, optimize=False)[0])


def fitted(op, offer):
    has_weight, emits = op.choices[0].weight is not None, op.choices[0].output is not None
    return OpConfig(
        mode=offer.mode,
        activation=offer.activation,
        weight=offer.weight if has_weight else None,
        output=offer.activation if emits else None,
    )


@pytest.mark.parametrize(
    ("machine", "flags", "name", "signed", "saturates", "multiplies"),
    [
        ("x86_64", {"avx2", "avx512bw", "avx512_vnni"}, "x86 avx512_vnni", False, False, (True, False)),
        ("AMD64", {"avx2", "avx_vnni"}, "x86 avx_vnni", False, False, (True, False)),
        ("x86_64", {"avx512_vnni", "amx_int8"}, "x86 amx_int8", False, False, (True, True)),
        ("x86_64", {"avx2"}, "x86 avx2", False, True, (False, False)),
        ("x86_64", set(), "x86 sse2", False, True, (False, False)),
        ("aarch64", {"asimddp", "i8mm"}, "arm64 i8mm", True, False, (False, False)),
        ("arm64", set(), "arm64 neon", True, False, (False, False)),
    ],
)
def test_processor_decides_the_formats(machine, flags, name, signed, saturates, multiplies):
    found = classify(machine, frozenset(flags))
    assert (found.name, found.signed_activations, found.saturates) == (name, signed, saturates)
    assert (found.dots, found.tiles) == multiplies


def test_defaults_follow_the_processor():
    old = query(graphs.conv_net(), classify("x86_64", frozenset({"avx2"})))["conv1"]
    assert old.choices[0].weight.reduce_range
    assert not old.choices[0].activation.reduce_range
    arm = query(graphs.conv_net(), classify("aarch64", frozenset()))["conv1"]
    assert arm.choices[0].activation.dtype is DType.INT8
    assert not arm.choices[0].weight.reduce_range


def test_every_rule_of_the_table_is_a_standard_op():
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert set(kernels._TABLE) <= known
    assert {name for name in kernels._WHY_NEVER if "." not in name} <= known  # a name with a dot is the runtime's own
    assert not set(kernels._TABLE) & set(kernels._WHY_NEVER)


def test_graph_knows_producers_consumers_and_what_must_keep_its_name():
    graph = Graph.of(graphs.residual_net())
    assert graph.producers["r2"].name == "relu2"
    assert [op.name for op in graph.consumers["r2"]] == ["conv3", "shortcut"]
    assert graph.sole_consumer("r2") is None
    assert graph.sole_consumer("c1").name == "relu1"
    assert graph.fixed == {"y"}


def test_companion_that_no_int8_op_can_reach_has_no_choice():
    """As in a model that is quantized already: its convolutions are not ours to quantize, so the Add between them can never join."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"], "q"),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"], "dq"),
        helper.make_node("Conv", ["xd", "w"], ["c"], "conv"),
        helper.make_node("Add", ["c", "xd"], ["a"], "add"),
        helper.make_node("GlobalAveragePool", ["a"], ["y"], "mean"),
    ]
    constants = weights(w=(3, 3, 1, 1)) | {"scale": np.array(0.02, np.float32), "zero": np.array(128, np.uint8)}
    ops = query(graph_of(nodes, constants, {"x": ["n", 3, 4, 4]}))
    assert not any(op.is_quantizable for op in ops.values())
    assert ops["mean"].choices == (FLOAT,)
    assert ops["mean"].extra == ()
    assert "none is within reach" in ops["mean"].why


def test_companions_behind_an_int8_op_keep_their_choices():
    ops = query(graphs.residual_net())
    assert all(ops[name].is_quantizable for name in ("add2", "add4", "mean"))


def test_capability_is_found_out_once_per_model_and_anew_for_another_one():
    held = model.load(graphs.conv_net(), processor=graphs.VNNI)
    assert capability.query(held) is capability.query(held)
    other = replace(held, approach="dynamic")
    assert capability.query(other) is not capability.query(held)
    assert {op.name: op.choices for op in capability.query(other).ops} != {
        op.name: op.choices for op in capability.query(held).ops
    }
