"""An op that a candidate keeps in float runs in float, whatever the runtime makes of its surroundings."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import graphs
import numpy as np
import onnx
import onnxruntime
from graphs import ADAPTER, Tuned
from onnx import helper

from neural_tune.values import Candidate
from neural_tune_onnxruntime import session


def chain(kind):
    """Three ops of one kind in a row, each with a Relu behind it."""
    nodes, shapes, last = [], {}, "x"
    for i in (1, 2, 3):
        shapes |= {f"w{i}": (12, 12, 3, 3) if kind == "Conv" else (12, 12), f"b{i}": (12,)}
        extra = {"pads": [1, 1, 1, 1]} if kind == "Conv" else {"transB": i % 2}
        nodes.append(helper.make_node(kind, [last, f"w{i}", f"b{i}"], [f"c{i}"], f"op{i}", **extra))
        last = f"r{i}" if i < 3 else "y"
        nodes.append(helper.make_node("Relu", [f"c{i}"], [last], f"relu{i}"))
    shape = ["n", 12, 6, 6] if kind == "Conv" else ["n", 12]
    return graphs.graph_of(nodes, graphs.weights(5, **shapes), {"x": shape})


def test_a_float_op_before_a_pool_keeps_its_float_weights(tmp_path):
    model = graphs.conv_net()
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    full = tuned.space.preferred()
    assert_literal(tuned, Candidate.of({name: full.ops[name] for name in ("conv1", "conv3")}))


@pytest.mark.parametrize("kind", ["Conv", "Gemm"])
def test_a_float_op_between_int8_ops_keeps_its_float_weights(kind, tmp_path):
    model = chain(kind)
    tuned = Tuned(model, graphs.batches(model, size=16), tmp_path)
    full = tuned.space.preferred()
    assert_literal(tuned, Candidate.of({name: full.ops[name] for name in ("op1", "op3")}))


def with_source_codes(model, *tensors):
    """Let the model itself quantize and dequantize these tensors."""
    nodes = []
    for node in model.graph.node:
        node.input[:] = [f"{name}d" if name in tensors else name for name in node.input]
        nodes.append(node)
    for name in tensors:
        zero = "z" if name == "x" else "first"  # behind a Relu
        place = 0 if name == "x" else next(i for i, node in enumerate(nodes) if name in node.output) + 1
        nodes[place:place] = [
            helper.make_node("QuantizeLinear", [name, "s", zero], [f"{name}q"], f"{name}_quantize"),
            helper.make_node("DequantizeLinear", [f"{name}q", "s", zero], [f"{name}d"], f"{name}_dequantize"),
        ]
    values = {"s": np.float32(0.05), "z": np.uint8(128), "first": np.uint8(0)}
    found = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    model.graph.initializer.extend(found)
    graph = helper.make_graph(nodes, "coded", model.graph.input, model.graph.output, model.graph.initializer)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


@pytest.mark.parametrize("kind", ["Conv", "Gemm"])
def test_a_float_op_behind_codes_of_the_source_model_keeps_its_float_weights(kind, tmp_path):
    model = with_source_codes(chain(kind), "x")
    tuned = Tuned(model, graphs.batches(model, size=16), tmp_path)
    full = tuned.space.preferred()
    assert "op1" not in full.ops
    assert_literal(tuned, full)
    kinds = _optimized_kinds(ADAPTER.save(tuned.build(full), tmp_path / "saved"), tmp_path)
    assert kinds.count("QLinearConv") + kinds.count("QGemm") == 2, kinds


def test_what_the_runtime_makes_of_the_source_model_stays(tmp_path):
    """A float op between codes of the source runs in integers in the float model, and in candidates."""
    model = with_source_codes(chain("Conv"), "x", "r1")
    tuned = Tuned(model, graphs.batches(model, size=16), tmp_path)
    for candidate in (Candidate(), tuned.space.preferred()):
        path = ADAPTER.save(tuned.build(candidate), tmp_path / str(len(candidate.ops)))
        assert _optimized_kinds(path, tmp_path).count("QLinearConv") == 1 + len(candidate.ops)


def test_a_float_product_may_transpose_the_codes_that_it_reads(tmp_path):
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["c1"], "first"),
        helper.make_node("Relu", ["c1"], ["r1"], "relu"),
        helper.make_node("Gemm", ["r1", "w2"], ["c2"], "kept", transA=1),
        helper.make_node("Gemm", ["c2", "w3"], ["y"], "last"),
    ]
    model = graphs.graph_of(nodes, graphs.weights(9, w1=(12, 12), w2=(6, 12), w3=(12, 5)), {"x": [6, 12]})
    tuned = Tuned(model, graphs.batches(model, size=6), tmp_path)
    full = tuned.space.preferred()
    assert_literal(tuned, Candidate.of({name: full.ops[name] for name in ("first", "last")}))


@pytest.mark.parametrize("kind", ["MaxPool", "Transpose", "Reshape"])
def test_a_float_convolution_before_an_op_that_codes_pass_through_keeps_its_float_weights(kind, tmp_path):
    """The runtime moves the QuantizeLinear behind such an op backward, up to the convolution."""
    between = {
        "MaxPool": helper.make_node("MaxPool", ["r2"], ["p"], "between", kernel_shape=[2, 2], strides=[2, 2]),
        "Transpose": helper.make_node("Transpose", ["r2"], ["p"], "between", perm=[0, 2, 3, 1]),
        "Reshape": helper.make_node("Reshape", ["r2", "shape"], ["p"], "between"),
    }
    last = helper.make_node("MatMul" if kind == "Transpose" else "Conv", ["p", "w3"], ["y"], "last")
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "first"),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "kept"),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        between[kind],
        last,
    ]
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 8) if kind == "Transpose" else (8, 8, 3, 3)}
    found = graphs.weights(6, **shapes) | {"shape": np.array([-1, 8, 12, 12], np.int64)}
    model = graphs.graph_of(nodes, found, {"x": ["n", 3, 16, 16]})
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    full = tuned.space.preferred()
    candidate = Candidate.of({name: full.ops[name] for name in ("first", "last")})
    assert_literal(tuned, candidate)
    kinds = _optimized_kinds(ADAPTER.save(tuned.build(candidate), tmp_path / "saved"), tmp_path)
    assert kinds.count("Conv") == 1, kinds  # fused with its Relu
    assert kinds.count("QLinearConv") + kinds.count("MatMulIntegerToFloat") == 2, kinds


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_an_int8_product_with_an_activation_before_a_float_op_runs_in_an_integer_kernel(kind, activation, tmp_path):
    """The runtime would else fuse product and activation first, in float, and dequantize the weights in every call."""
    nodes = [
        helper.make_node(kind, ["x", "w1", *(["b1"] if kind == "Gemm" else [])], ["h"], "product"),
        helper.make_node(activation, ["h", *(["zero", "six"] if activation == "Clip" else [])], ["r"], "activation"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], "kept"),
    ]
    found = graphs.weights(7, w1=(20, 32), b1=(32,), w2=(32, 6))
    found |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    model = graphs.graph_of(nodes, found, {"x": ["n", 20]})
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    candidate = Candidate.of({"product": tuned.space.preferred().ops["product"]})
    built = tuned.build(candidate)
    assert {op.name: op.is_float for op in built.report.ops} == {"product": False, "activation": False, "kept": True}
    path = ADAPTER.save(built, tmp_path / "saved")
    kinds = _optimized_kinds(path, tmp_path)
    assert {"QGemm", "QLinearMatMul"} & set(kinds), kinds
    assert "FusedGemm" not in kinds, kinds
    assert ADAPTER.guard(path, tuned.feeds[0]) == ()


def assert_literal(tuned, candidate):
    """The optimized candidate computes what its graph says; int8 weights in a float op would show as 1e-2."""
    built = tuned.build(candidate)
    literal = session.start(
        built.proto.SerializeToString(), session.options(1, optimize=False, folder=tuned.hold.store.folder)
    )
    found, expected = ADAPTER.run(built, tuned.feeds[0])[0], literal.run(None, tuned.feeds[0])[0]
    assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected)


def test_the_runtime_would_quantize_it_otherwise(tmp_path):
    """Tells when the guard is no longer needed: the stock model, which lacks it, differs from its own literal meaning."""
    model = chain("Conv")
    feeds = graphs.batches(model, size=16)
    path = graphs.stock(model, feeds, tmp_path, op_types=["Conv", "Relu"], exclude=["op2", "relu2"])
    kinds = _optimized_kinds(path, tmp_path)
    assert kinds.count("QLinearConv") == 3, kinds  # though op2 was excluded


def test_no_integer_kernel_is_left_where_float_was_asked(tmp_path):
    model = chain("Conv")
    tuned = Tuned(model, graphs.batches(model, size=16), tmp_path)
    full = tuned.space.preferred()
    built = tuned.build(Candidate.of({name: full.ops[name] for name in ("op1", "op3")}))
    kinds = _optimized_kinds(ADAPTER.save(built, tmp_path / "saved"), tmp_path)
    assert kinds.count("QLinearConv") == 2, kinds


def _optimized_kinds(path, folder):
    import onnx

    target = folder / "optimized.onnx"
    options = session.options(1)
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(str(path), options, providers=session.PROVIDERS)
    return [node.op_type for node in onnx.load(str(target)).graph.node]
