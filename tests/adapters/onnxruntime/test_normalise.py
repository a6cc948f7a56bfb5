"""Normalisation keeps the function and the caller's model, and brings every model into one form."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import os
import subprocess
import sys

import graphs
import numpy as np
import onnx
from graphs import FLOAT, graph_of, weights
from onnx import helper, numpy_helper

from neural_tune.errors import AdapterError
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE
from neural_tune_onnxruntime import build, model, session
from neural_tune_onnxruntime.adapter import OnnxRuntimeAdapter


def outputs(hold, feed):
    return build.start(hold.proto, hold, 1).run(None, feed)


def types(hold):
    return [op.type for op in hold.graph.ops]


@pytest.mark.parametrize("name", sorted(graphs.NETS))
def test_callers_proto_is_not_touched(name):
    source = graphs.NETS[name]()
    before = source.SerializeToString(deterministic=True)
    hold = model.load(source)
    hold.session_for_outputs([hold.graph.ops[0].outputs[0]])
    assert source.SerializeToString(deterministic=True) == before


def test_fingerprint_is_that_of_the_content_not_of_the_container(tmp_path):
    source = graphs.conv_net()
    path, external = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(source, str(path))
    moved = onnx.load(str(path))  # saving with external data empties the object
    onnx.save(moved, str(external), save_as_external_data=True, location="b.data", size_threshold=0)
    floats = onnx.ModelProto()
    floats.CopyFrom(source)
    for tensor in floats.graph.initializer:  # the same values in another field
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, FLOAT, values.shape, values.reshape(-1).tolist()))
    found = {model.load(item).fingerprint() for item in (source, path, str(external), floats)}
    assert len(found) == 1


def test_fingerprint_is_the_same_in_another_process(tmp_path):
    path = tmp_path / "a.onnx"
    onnx.save(graphs.conv_net(), str(path))
    code = f"from neural_tune_onnxruntime import model; print(model.load({str(path)!r}).fingerprint())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == model.load(path).fingerprint()


def test_fingerprint_changes_with_one_weight_and_with_one_attribute():
    first, second, third = graphs.conv_net(), graphs.conv_net(), graphs.conv_net()
    values = numpy_helper.to_array(second.graph.initializer[0]).copy()
    values.flat[7] += 1e-6
    second.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, second.graph.initializer[0].name))
    third.graph.node[2].attribute[0].ints[0] = 1
    assert len({model.load(item).fingerprint() for item in (first, second, third)}) == 3


def test_constant_nodes_become_initializers():
    values = weights(w=(16, 12))["w"]
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(values)),
        helper.make_node("Constant", [], ["three"], value_float=3.0),
        helper.make_node("MatMul", ["x", "w"], ["m"], "mm"),
        helper.make_node("Mul", ["m", "three"], ["y"], "mul"),
    ]
    source = graph_of(nodes, {}, {"x": ["n", 16]})
    hold = model.load(source)
    assert types(hold) == ["MatMul", "Mul"]
    assert hold.kernels["mm"].is_quantizable
    (feed,) = graphs.batches(source, 1)
    np.testing.assert_array_equal(outputs(hold, feed)[0], graphs.run(source, feed)[0])


def test_weight_tied_through_identity_is_a_weight():
    nodes = [
        helper.make_node("Identity", ["w"], ["v"]),
        helper.make_node("MatMul", ["x", "v"], ["y"], "mm"),
    ]
    hold = model.load(graph_of(nodes, weights(w=(16, 12)), {"x": ["n", 16]}))
    assert types(hold) == ["MatMul"]
    assert hold.kernels["mm"].is_quantizable


def test_initializers_that_are_inputs_too_are_no_inputs():
    source = graph_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "mm")], weights(w=(16, 12)), {"x": ["n", 16], "w": [16, 12]}
    )
    hold = model.load(source)
    assert hold.input_names == ("x",)
    assert hold.kernels["mm"].is_quantizable


def norm_net(*, bias=True, second_reader=False):
    nodes = [
        helper.make_node("Conv", ["x", "w", *(["b"] if bias else [])], ["c"], "conv"),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"], "norm", epsilon=1e-3),
        helper.make_node("Relu", ["n"], ["y"], "relu"),
    ]
    if second_reader:
        nodes.append(helper.make_node("Tanh", ["c"], ["z"], "tanh"))
    found = weights(w=(8, 3, 3, 3), b=(8,), gamma=(8,), beta=(8,), mean=(8,))
    found["var"] = np.abs(weights(7, v=(8,))["v"]) + 0.1
    if not bias:
        del found["b"]
    return graph_of(nodes, found, {"x": ["n", 3, 8, 8]}, ["y", "z"] if second_reader else ["y"])


@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_is_folded_into_the_convolution(bias):
    source = norm_net(bias=bias)
    hold = model.load(source)
    assert types(hold) == ["Conv", "Relu"]
    (feed,) = graphs.batches(source, 1)
    np.testing.assert_allclose(outputs(hold, feed)[0], graphs.run(source, feed)[0], rtol=1e-4, atol=1e-5)


def test_batch_norm_stays_where_something_else_reads_the_convolution():
    source = norm_net(second_reader=True)
    hold = model.load(source)
    assert types(hold) == ["Conv", "BatchNormalization", "Relu", "Tanh"]
    (feed,) = graphs.batches(source, 1)
    for one, two in zip(outputs(hold, feed), graphs.run(source, feed), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("axes", "keepdims", "expected"),
    [
        ([2, 3], 0, ["Conv", "Relu", "GlobalAveragePool", "Flatten"]),
        ([2, 3], 1, ["Conv", "Relu", "GlobalAveragePool"]),
        ([-1, -2], 0, ["Conv", "Relu", "GlobalAveragePool", "Flatten"]),
        ([3], 0, ["Conv", "Relu", "ReduceMean"]),
        ([1, 2, 3], 0, ["Conv", "Relu", "ReduceMean"]),
        ([0, 1], 1, ["Conv", "Relu", "ReduceMean"]),
    ],
)
@pytest.mark.parametrize("opset", [17, 18])
def test_mean_over_all_spatial_axes_is_a_pooling(axes, keepdims, expected, opset):
    place = {"axes": axes} if opset == 17 else {}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("ReduceMean", ["r", *([] if place else ["axes"])], ["y"], "mean", keepdims=keepdims, **place),
    ]
    found = weights(w=(8, 3, 3, 3), b=(8,)) | ({} if place else {"axes": np.array(axes)})
    source = graph_of(nodes, found, {"x": ["n", 3, 8, 8]}, opset=opset)
    hold = model.load(source)
    assert types(hold) == expected
    assert hold.graph.ops[2].name == "mean"
    (feed,) = graphs.batches(source, 1)
    produced, wanted = outputs(hold, feed)[0], graphs.run(source, feed)[0]
    assert produced.shape == wanted.shape
    np.testing.assert_allclose(produced, wanted, rtol=1e-5, atol=1e-6)


def test_mean_over_tokens_and_features_of_unknown_rank_stays():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "mm"),
        helper.make_node("Tanh", ["m"], ["t"], "tanh"),
        helper.make_node("ReduceMean", ["t"], ["y"], "mean", axes=[1, 2], keepdims=0),
    ]
    assert types(model.load(graph_of(nodes, weights(w=(16, 12)), {"x": ["n", 7, 16]}))) == [
        "MatMul",
        "Tanh",
        "ReduceMean",
    ]


def test_names_that_are_unique_stay_and_the_others_become_so():
    source = graphs.conv_net()
    for node, name in zip(source.graph.node, ["a", "", "twice", "twice", ""], strict=False):
        node.name = name
    names = [op.name for op in model.load(source).graph.ops]
    assert names[0] == "a"
    assert names[5:] == [node.name for node in source.graph.node][5:]
    assert len(set(names)) == len(names)


def test_shapes_come_without_value_info():
    source = graphs.residual_net()
    assert not source.graph.value_info
    hold = model.load(source)
    made = {name for op in hold.graph.ops for name in op.outputs}
    assert made <= set(hold.graph.elem_types)
    assert made <= set(hold.graph.ranks)
    assert hold.notes == ()


def test_contrib_ops_get_their_shapes_from_a_later_step_of_the_ladder():
    nodes = [
        helper.make_node("FusedMatMul", ["x", "w"], ["a"], "fused", domain="com.microsoft", alpha=2.0),
        helper.make_node("MatMul", ["a", "v"], ["y"], "mm"),
    ]
    source = graph_of(nodes, weights(w=(16, 12), v=(12, 4)), {"x": ["n", 16]})
    source.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    hold = model.load(source)
    assert hold.graph.elem_types["a"] == FLOAT
    assert hold.graph.ranks["a"] == 2
    assert hold.notes == ()
    assert not hold.kernels["fused"].is_quantizable


def test_ladder_goes_on_when_a_step_breaks_and_says_what_is_missing(monkeypatch):
    def broken(*args, **kwargs):
        raise AssertionError("shape inference gave up")

    monkeypatch.setattr("neural_tune_onnxruntime.shapes._by_onnx", broken)
    monkeypatch.setattr("neural_tune_onnxruntime.shapes._by_symbols", broken)
    source = graphs.conv_net()
    assert model.load(source).notes == ()  # the runtime knew
    monkeypatch.setattr("neural_tune_onnxruntime.shapes._by_runtime", broken)
    hold = model.load(source)
    assert any("gave up" in note for note in hold.notes)
    assert hold.kernels["conv1"].is_quantizable  # its weight says what it works on


def test_external_data_outside_of_the_models_folder_is_refused(tmp_path):
    (tmp_path / "secret.bin").write_bytes(bytes(16 * 12 * 4))
    folder = tmp_path / "model"
    folder.mkdir()
    source = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], "mm")], weights(w=(16, 12)), {"x": ["n", 16]})
    onnx.save(source, str(folder / "m.onnx"), save_as_external_data=True, location="m.data", size_threshold=0)
    loaded = onnx.load(str(folder / "m.onnx"), load_external_data=False)
    for item in loaded.graph.initializer[0].external_data:
        if item.key == "location":
            item.value = "../secret.bin"
    (folder / "m.onnx").write_bytes(loaded.SerializeToString())
    with pytest.raises(AdapterError, match="below the model's folder"):
        model.load(folder / "m.onnx")


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_external_data_that_is_not_whole_is_refused(damage, tmp_path):
    path = tmp_path / "m.onnx"
    source = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], "mm")], weights(w=(16, 12)), {"x": ["n", 16]})
    onnx.save(source, str(path), save_as_external_data=True, location="m.data", size_threshold=0)
    if damage == "missing":
        (tmp_path / "m.data").unlink()
    else:
        os.truncate(tmp_path / "m.data", 100)
    with pytest.raises(AdapterError, match="'w'"):
        model.load(path)


def test_proto_whose_data_was_not_loaded_is_refused(tmp_path):
    path = tmp_path / "m.onnx"
    source = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], "mm")], weights(w=(16, 12)), {"x": ["n", 16]})
    onnx.save(source, str(path), save_as_external_data=True, location="m.data", size_threshold=0)
    with pytest.raises(AdapterError, match="pass the path"):
        model.load(onnx.load(str(path), load_external_data=False))


def test_model_newer_than_the_runtime_is_brought_down_to_an_ir_version_it_loads():
    source = graphs.conv_net()
    source.ir_version = onnx.IR_VERSION
    hold = model.load(source)
    assert hold.proto.ir_version <= session.newest_ir_version()
    (feed,) = graphs.batches(source, 1)
    assert outputs(hold, feed)[0].shape == (5, 5)


def test_local_functions_are_inlined():
    body = helper.make_function(
        "mine", "Layer", ["a", "w"], ["r"],
        [helper.make_node("MatMul", ["a", "w"], ["m"]), helper.make_node("Relu", ["m"], ["r"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    nodes = [helper.make_node("Layer", ["x", "w"], ["h"], "one", domain="mine")]
    nodes += [helper.make_node("Layer", ["h", "v"], ["y"], "two", domain="mine")]
    source = graph_of(nodes, weights(w=(16, 12), v=(12, 4)), {"x": ["n", 16]})
    source.opset_import.append(helper.make_opsetid("mine", 1))
    source.functions.append(body)
    hold = model.load(source)
    assert types(hold) == ["MatMul", "Relu", "MatMul", "Relu"]
    (feed,) = graphs.batches(source, 1)
    np.testing.assert_array_equal(outputs(hold, feed)[0], graphs.run(source, feed)[0])


def test_session_for_outputs_returns_exactly_the_tensors_asked_for():
    hold = model.load(graphs.residual_net())
    (feed,) = graphs.batches(graphs.residual_net(), 1)
    names = ["c2", "x", "r0"]
    started = hold.session_for_outputs(names)
    assert [value.name for value in started.get_outputs()] == names
    found = started.run(None, feed)
    np.testing.assert_array_equal(found[1], feed["x"])
    assert found[2].min() == 0.0
    with pytest.raises(AdapterError, match="nowhere"):
        hold.session_for_outputs(["nowhere"])


def layer_norm(width=8):
    """A product, a LayerNormalization in its parts, as exporters of opsets before 17 write it, and a product."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], "up"),
        helper.make_node("ReduceMean", ["h"], ["mu"], "mean", axes=[-1]),
        helper.make_node("Sub", ["h", "mu"], ["d"], "centre"),
        helper.make_node("Pow", ["d", "two"], ["sq"], "square"),
        helper.make_node("ReduceMean", ["sq"], ["var"], "variance", axes=[-1]),
        helper.make_node("Add", ["var", "eps"], ["ve"], "add"),
        helper.make_node("Sqrt", ["ve"], ["sd"], "sqrt"),
        helper.make_node("Div", ["d", "sd"], ["n"], "divide"),
        helper.make_node("Mul", ["n", "g"], ["ng"], "scale"),
        helper.make_node("Add", ["ng", "b"], ["ln"], "shift"),
        helper.make_node("MatMul", ["ln", "w2"], ["y"], "down"),
    ]
    constants = weights(w1=(width, width), w2=(width, width), g=(width,), b=(width,))
    constants |= {"two": np.array(2, np.float32), "eps": np.array(1e-5, np.float32)}
    return onnx.shape_inference.infer_shapes(graph_of(nodes, constants, {"x": ["n", 4, width]}, opset=13))


def test_layer_normalization_in_parts_is_still_fused_by_the_runtime(tmp_path):
    hold = model.load(layer_norm())
    assert types(hold).count("ReduceMean") == 2
    options = session.options(1, folder=hold.store.folder)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session.start(hold.proto.SerializeToString(), options)
    kinds = [node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node]
    assert sorted(kinds) == ["LayerNormalization", "MatMul", "MatMul"]


def test_mean_that_a_normalization_subtracts_stays_behind_a_convolution_too():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("ReduceMean", ["c"], ["m"], "mean", axes=[2, 3]),
        helper.make_node("Sub", ["c", "m"], ["y"], "centre"),
    ]
    hold = model.load(graph_of(nodes, weights(w=(4, 3, 1, 1)), {"x": ["n", 3, 4, 4]}, opset=13))
    assert types(hold) == ["Conv", "ReduceMean", "Sub"]


def test_mean_over_time_behind_a_convolution_is_a_pooling():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("ReduceMean", ["r"], ["y"], "mean", axes=[2], keepdims=0),
    ]
    source = graph_of(nodes, weights(w=(4, 3, 3)), {"x": ["n", 3, 9]}, opset=13)
    hold = model.load(source)
    assert types(hold) == ["Conv", "Relu", "GlobalAveragePool", "Flatten"]
    feed = graphs.batches(source)[0]
    np.testing.assert_allclose(outputs(hold, feed)[0], graphs.run(source, feed)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "dtype"), [(onnx.TensorProto.DOUBLE, np.float64), (onnx.TensorProto.INT32, np.int32)])
def test_mean_of_another_type_than_float32_stays(kind, dtype):
    value = helper.make_tensor_value_info("x", kind, ["n", 3, 4, 4])
    result = helper.make_tensor_value_info("y", kind, ["n", 3, 1, 1])
    node = helper.make_node("ReduceMean", ["x"], ["y"], "mean", axes=[2, 3])
    opset = helper.make_opsetid("", 13)
    source = helper.make_model(
        helper.make_graph([node], "mean", [value], [result]), opset_imports=[opset], ir_version=8
    )
    feed = {"x": np.arange(96).reshape(2, 3, 4, 4).astype(dtype)}
    np.testing.assert_array_equal(outputs(model.load(source), feed)[0], graphs.run(source, feed)[0])


@pytest.mark.parametrize("values", [32, 8192], ids=["inline", "external"])
@pytest.mark.parametrize("kind", ["INT4", "UINT4"])
def test_four_bit_initializers_come_through_unchanged(kind, values, tmp_path):
    rows = values // 4
    nodes = [
        helper.make_node("DequantizeLinear", ["w4", "scale"], ["w"], "widen"),
        helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
    ]
    source = graph_of(nodes, {"scale": np.array(0.1, np.float32)}, {"x": ["n", rows]}, opset=21, ir_version=10)
    codes = np.arange(values) % 15 - (7 if kind == "INT4" else 0)
    source.graph.initializer.append(helper.make_tensor("w4", getattr(onnx.TensorProto, kind), [rows, 4], codes))
    feed = graphs.batches(source)[0]
    expected = graphs.run(source, feed)[0]
    onnx.save(source, str(tmp_path / "float.onnx"), save_as_external_data=True, location="float.data", size_threshold=0)
    for given in (onnx.load(str(tmp_path / "float.onnx")), tmp_path / "float.onnx"):
        hold = model.load(given)
        np.testing.assert_array_equal(outputs(hold, feed)[0], expected)
        built = graphs.ADAPTER.build(hold, graphs.Candidate(), None, 1)
        saved = graphs.ADAPTER.save(built, tmp_path / f"saved{isinstance(given, onnx.ModelProto)}")
        np.testing.assert_array_equal(graphs.run(saved, feed)[0], expected)
        assert hold.fingerprint()
        if values > 4096:
            assert built.size < values, "two codes in one byte"


@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (np.inf, "an infinity")])
def test_broken_weight_is_named(value, what):
    source = graphs.perceptron()
    tensor = source.graph.initializer[0]
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] = value
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(AdapterError, match=f"initializer {tensor.name!r} holds {what}"):
        model.load(source)


def test_a_product_with_a_bias_becomes_a_gemm_that_runs_on_integers_before_any_activation(tmp_path):
    """ORT merges MatMul and Add behind DequantizeLinear and fuses the activation into a *float* Gemm."""
    for activation in ("Relu", "Sigmoid", "Tanh"):
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["h"], "fc1"),
            helper.make_node("Add", ["h", "b"], ["g"], "add"),
            helper.make_node(activation, ["g"], ["y"], "act"),
        ]
        net = graphs.graph_of(nodes, graphs.weights(1, w=(64, 32), b=(32,)), {"x": ["n", 64]})
        adapter = OnnxRuntimeAdapter()
        held = adapter.load(net, graphs.options())
        ops = {op.name: op.type for op in adapter.query(held).ops}
        assert ops["fc1"] == "Gemm"
        assert "add" not in ops
        batches = graphs.batches(net)
        found = adapter.calibrate(held, batches, tmp_path / activation)
        full = TuningSpace.of(adapter.query(held)).preferred()
        built = adapter.build(held, full, found, 1)
        (tmp_path / f"{activation}-model").mkdir()
        artifact = adapter.save(built, tmp_path / f"{activation}-model")
        assert adapter.guard(artifact, batches[0]) == ()
        # The float function is the caller's.
        plain = graphs.run(net, batches[0])[0]
        ours = adapter.run(adapter.build(held, FLOAT_CANDIDATE, None, 1), batches[0])[0]
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


def test_a_product_of_more_axes_keeps_its_add():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "fc1"),
        helper.make_node("Add", ["h", "b"], ["y"], "add"),
    ]
    net = graphs.graph_of(nodes, graphs.weights(1, w=(64, 32), b=(32,)), {"x": ["n", 7, 64]})
    held = OnnxRuntimeAdapter().load(net, graphs.options())
    assert [op.type for op in held.graph.ops] == ["MatMul", "Add"]
