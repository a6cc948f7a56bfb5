"""The adapter through its protocol: options, inputs, errors. The conformance kit is in test_conformance.py."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import graphs
import numpy as np
import onnx
import onnxruntime
from graphs import ADAPTER, Tuned, graph_of, weights
from onnx import helper

from neural_tune.errors import AdapterError, CapabilityError, DataError
from neural_tune.protocols import AdapterOptions
from neural_tune.values import FLOAT_CANDIDATE, Candidate, Observer, TensorRange
from neural_tune_onnxruntime import model as models
from neural_tune_onnxruntime import session
from neural_tune_onnxruntime.inputs import InputInfo
from neural_tune_onnxruntime.plugin import accepts


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"approach": "qat"}, "qat"),
        ({"quant_format": "QLinear"}, "QOperator"),
        ({"device": "cuda"}, "cpu"),
        ({"backend": "itex"}, "default"),
        ({"outputs": ("nope",)}, "nope"),
        ({"inputs": ("nope",)}, "nope"),
    ],
)
def test_options_that_do_not_exist_are_refused_with_what_does(changes, word):
    with pytest.raises(CapabilityError, match=word):
        ADAPTER.load(graphs.conv_net(), AdapterOptions(**changes))


def test_outputs_can_be_chosen():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "a"), helper.make_node("Tanh", ["y"], ["z"], "b")]
    model = graph_of(nodes, weights(w=(4, 3)), {"x": ["n", 4]}, ["y", "z"])
    hold = ADAPTER.load(model, AdapterOptions(outputs=("y",)))
    assert [op.name for op in ADAPTER.query(hold).ops] == ["a"]
    built = ADAPTER.build(hold, FLOAT_CANDIDATE, None, 1)
    assert len(ADAPTER.run(built, np.ones((2, 4), np.float32))) == 1


def test_reduce_range_option_overrides_the_processor():
    hold = ADAPTER.load(graphs.perceptron(), AdapterOptions(reduce_range=True))
    assert all(op.choices[0].weight.reduce_range for op in ADAPTER.query(hold).ops if op.is_quantizable)
    hold = ADAPTER.load(graphs.perceptron(), AdapterOptions(reduce_range=False))
    assert not any(op.choices[0].weight.reduce_range for op in ADAPTER.query(hold).ops if op.is_quantizable)


def test_accepts_paths_protos_and_sessions_only(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(graphs.perceptron(), str(path))
    assert accepts(path)
    assert accepts(str(path))
    assert accepts(graphs.perceptron())
    assert accepts(onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]))
    assert not accepts(tmp_path / "m.pt")
    assert not accepts(b"bytes")
    assert not accepts(None)


def test_session_from_a_file_is_loaded_from_that_file_and_one_from_bytes_is_refused(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(graphs.perceptron(), str(path))
    started = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    hold = ADAPTER.load(started, AdapterOptions())
    assert ADAPTER.fingerprint(hold) == ADAPTER.fingerprint(ADAPTER.load(path, AdapterOptions()))
    nameless = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    with pytest.raises(AdapterError, match="from bytes"):
        ADAPTER.load(nameless, AdapterOptions())


@pytest.mark.parametrize("content", [b"", b"not an onnx model at all", b"\x08\x08"])
def test_file_that_is_no_model_is_refused(content, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(AdapterError, match="broken"):
        ADAPTER.load(path, AdapterOptions())


def test_missing_file_is_named():
    with pytest.raises(AdapterError, match="nowhere"):
        ADAPTER.load("nowhere.onnx", AdapterOptions())


@pytest.fixture
def two_inputs(tmp_path):
    nodes = [
        helper.make_node("Cast", ["ids"], ["f"], "cast", to=1),
        helper.make_node("Add", ["x", "f"], ["a"], "add"),
        helper.make_node("MatMul", ["a", "w"], ["y"], "mm"),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [
            helper.make_tensor_value_info("x", graphs.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n", 4]),
        ],
        [helper.make_tensor_value_info("y", graphs.FLOAT, None)],
        [onnx.numpy_helper.from_array(weights(w=(4, 3))["w"], "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ADAPTER.build(ADAPTER.load(model, AdapterOptions()), FLOAT_CANDIDATE, None, 1)


X, IDS = np.ones((2, 4), np.float32), np.ones((2, 4), np.int64)


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param((X, IDS), id="tuple"),
        pytest.param([X, IDS], id="list"),
        pytest.param({"ids": IDS, "x": X}, id="mapping"),
        pytest.param((X.astype(np.float64), IDS.astype(np.int32)), id="float64 and int32"),
        pytest.param((X.tolist(), IDS.astype(np.uint8)), id="lists of numbers"),
    ],
)
def test_inputs_are_taken_in_every_form(two_inputs, inputs):
    np.testing.assert_array_equal(ADAPTER.run(two_inputs, inputs)[0], ADAPTER.run(two_inputs, (X, IDS))[0])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        pytest.param(X, "found 1 inputs, expected 2", id="one of two"),
        pytest.param(
            {"x": X, "tokens": IDS}, r"found inputs \['tokens', 'x'\], expected the names \['ids', 'x'\]", id="name"
        ),
        pytest.param((X[:, :3], IDS), r"input 'x': found shape \(2, 3\), expected \(n, 4\)", id="shape"),
        pytest.param((X[0], IDS), r"input 'x': found shape \(4,\)", id="rank"),
        pytest.param((X, X), "input 'ids': found float32, expected int64", id="float for ids"),
        pytest.param((IDS, IDS), "input 'x': found int64, expected float32", id="integers for floats"),
        pytest.param((X.astype(np.float16), IDS), "input 'x': found float16", id="half"),
        pytest.param(([[1.0], [1.0, 2.0]], IDS), "input 'x'", id="ragged"),
    ],
)
def test_inputs_that_do_not_fit_are_named_with_what_was_expected(two_inputs, inputs, words):
    with pytest.raises(DataError, match=words):
        ADAPTER.run(two_inputs, inputs)


def test_fixed_batch_axis_is_explained():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "mm")]
    model = graph_of(nodes, weights(w=(4, 3)), {"x": [1, 4]})
    built = ADAPTER.build(ADAPTER.load(model, AdapterOptions()), FLOAT_CANDIDATE, None, 1)
    with pytest.raises(DataError, match="use batches of 1"):
        ADAPTER.run(built, np.ones((8, 4), np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_calibration_refuses_values_that_are_not_finite(bad, tmp_path):
    hold = ADAPTER.load(graphs.perceptron(), AdapterOptions())
    x = np.ones((2, 20), np.float32)
    x[1, 3] = bad
    with pytest.raises(DataError, match=r"batch 2.*'x'.*1 values"):
        ADAPTER.calibrate(hold, [np.ones((2, 20), np.float32), x], tmp_path)


def test_torch_tensors_are_taken(tmp_path):
    torch = pytest.importorskip("torch", reason="the test feeds torch tensors")
    hold = ADAPTER.load(graphs.perceptron(), AdapterOptions())
    built = ADAPTER.build(hold, FLOAT_CANDIDATE, None, 1)
    x = torch.ones((2, 20), requires_grad=True)
    np.testing.assert_array_equal(ADAPTER.run(built, x)[0], ADAPTER.run(built, np.ones((2, 20), np.float32))[0])


def test_candidate_with_unknown_names_is_refused(tmp_path):
    tuned = Tuned(graphs.perceptron(), graphs.batches(graphs.perceptron()), tmp_path)
    config = next(iter(tuned.space.preferred().ops.values()))
    with pytest.raises(CapabilityError, match="'nope'"):
        tuned.build(Candidate.of({"nope": config}))
    with pytest.raises(CapabilityError, match="'ghost'"):
        tuned.build(Candidate.of({}, [TensorRange(tensor="ghost", observer=Observer.KL)]))
    with pytest.raises(CapabilityError, match="no_such_recipe"):
        tuned.build(Candidate.of({}, [], ["no_such_recipe"]))
    with pytest.raises(CapabilityError, match="relu1"):
        tuned.build(Candidate.of({"relu1": config}))


def test_float_candidate_computes_what_the_callers_model_computes():
    for name, make in graphs.NETS.items():
        model = make()
        (feed,) = graphs.batches(model, 1)
        built = ADAPTER.build(ADAPTER.load(model, AdapterOptions()), FLOAT_CANDIDATE, None, 1)
        found, expected = ADAPTER.run(built, feed)[0], graphs.run(model, feed)[0]
        # Only a mean that became a pooling (in the residual net) sums in another order.
        tolerance = 1e-5 if name == "residual" else 0
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance, err_msg=name)


def test_every_float_op_has_a_reason(tmp_path):
    for number, make in enumerate(graphs.NETS.values()):
        model = make()
        tuned = Tuned(model, graphs.batches(model), tmp_path / str(number))
        for candidate in (tuned.space.preferred(), FLOAT_CANDIDATE):
            report = tuned.build(candidate).report
            assert all(op.reason for op in report.ops if op.is_float)
            assert [op.name for op in report.ops] == [op.name for op in tuned.capability.ops]


@pytest.mark.parametrize("name", sorted(graphs.NETS))
def test_inputs_read_from_the_graph_are_those_of_a_session(name):
    hold = models.load(graphs.NETS[name]())
    started = graphs.session_of(graphs.NETS[name]())
    found = [InputInfo.of_graph(value) for value in hold.proto.graph.input]
    assert found == [InputInfo.of(value) for value in started.get_inputs()]


def test_calibration_starts_no_optimized_session(monkeypatch, tmp_path):
    """Optimizing two gigabytes only to learn the names of the inputs took ten seconds."""
    source = graphs.perceptron()
    hold = models.load(source)
    asked = []
    options = session.options
    monkeypatch.setattr(session, "options", lambda *a, **k: asked.append(k.get("optimize", True)) or options(*a, **k))
    ADAPTER.calibrate(hold, graphs.batches(source), tmp_path)
    assert asked
    assert not any(asked)
