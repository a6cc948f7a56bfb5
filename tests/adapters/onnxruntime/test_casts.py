"""Float formats smaller than float32, offered only where the runtime computes in them; 16-bit integers, which it computes in float."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

from dataclasses import replace

import graphs
import numpy as np
import onnx
from graphs import ADAPTER, Tuned, options
from onnx import helper
from onnxruntime.quantization import QuantType

from neural_tune.config import parse_rules
from neural_tune.errors import CapabilityError
from neural_tune.space import TuningSpace
from neural_tune.values import Candidate, DType, Mode
from neural_tune_onnxruntime import forms, precisions

AMX = replace(graphs.VNNI, dots=True, tiles=True)


@pytest.mark.parametrize("kind", precisions.KINDS)
@pytest.mark.parametrize("op_type", precisions.TYPES)
def test_answer_of_the_trial_is_the_offer(op_type, kind):
    """On a processor whose kernels take the format the choice is there, on any other the refusal gives the reason."""
    computes = precisions.computes_in(op_type, kind)
    net = "conv" if op_type == "Conv" else "perceptron"
    hold = ADAPTER.load(graphs.NETS[net](), options(approach="auto"))
    ops = [op for op in ADAPTER.query(hold).ops if op.type == op_type]
    offered = [c for op in ops for c in op.extra if c.mode is Mode.CAST and c.activation.dtype is kind]
    assert bool(offered) == computes
    if not computes:
        with pytest.raises(CapabilityError, match=rf"{kind.value}: .*(float32|refuses)"):
            ADAPTER.build(hold, Candidate.of({ops[0].name: forms.cast_config(kind)}), None, 1)


def test_trial_sees_a_kernel_that_takes_the_format(monkeypatch):
    """The trial must be able to say yes: given a graph whose kernel is handed fp16 weights, it does."""
    monkeypatch.setattr(precisions, "_optimized", lambda model: model)
    assert precisions.why_not.__wrapped__("MatMul", DType.FP16) == ""
    assert precisions.why_not.__wrapped__("Conv", DType.BF16) == ""


def test_bf16_bytes_are_rounded_to_nearest_even():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="the oracle of bf16 rounding")
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(5000) * np.exp(rng.normal(0, 20, 5000))).astype(np.float32)
    values[:4] = [np.inf, -np.inf, 0.0, 1.00390625]
    assert precisions.as_bytes(values, DType.BF16) == values.astype(ml_dtypes.bfloat16).tobytes()
    assert np.isnan(
        np.frombuffer(precisions.as_bytes(np.array([np.nan], np.float32), DType.BF16), ml_dtypes.bfloat16)[0]
    )


@pytest.mark.parametrize("net", ["conv", "perceptron", "matmul"])
def test_cast_ops_compute_in_fp16_between_float_neighbours(net, monkeypatch, tmp_path):
    """The graph is right wherever it runs; here the runtime may convert around it, which gives the same values up to rounding."""
    monkeypatch.setattr(precisions, "computes_in", lambda op_type, kind: kind is DType.FP16)
    model = graphs.NETS[net]()
    hold = ADAPTER.load(model, options(approach="auto"))
    names = [op.name for op in ADAPTER.query(hold).ops if any(c.mode is Mode.CAST for c in op.extra)]
    assert names
    built = ADAPTER.build(hold, Candidate.of(dict.fromkeys(names, forms.cast_config(DType.FP16))), None, 1)
    path = ADAPTER.save(built, tmp_path)
    saved = onnx.load(str(path))
    halves = {item.name for item in saved.graph.initializer if item.data_type == onnx.TensorProto.FLOAT16}
    assert all(any(name in halves for name in node.input) for node in saved.graph.node if node.name in names)
    (feed,) = graphs.batches(model, 1)
    expected = graphs.run(model, feed)[0]
    found = ADAPTER.run(built, feed)[0]
    assert 0.0 < np.linalg.norm(found - expected) < 2e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("processor", [graphs.VNNI, AMX], ids=["plain", "dots"])
@pytest.mark.parametrize("opset", [17, 21])
def test_16_bit_activations_equal_the_stock_tool_and_come_with_a_warning(opset, processor, tmp_path):
    """Also where a stem of few channels is filled up in int8: there is no Pad for 16-bit integers."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["y"], "conv2", pads=[1, 1, 1, 1]),
    ]
    found = graphs.weights(1, w1=(16, 3, 3, 3), b1=(16,), w2=(6, 16, 3, 3), b2=(6,))
    model = graphs.graph_of(nodes, found, {"x": ["n", 3, 8, 8]}, opset=opset, ir_version=10)
    tuned = Tuned(model, graphs.batches(model), tmp_path, processor)
    wish = {"activation": {"dtype": "uint16", "scheme": "asym"}}
    space = TuningSpace.of(tuned.capability, parse_rules(op_type={"Conv": wish}))
    built = tuned.build(space.preferred())
    assert any("2 ops have 16-bit activations" in note and "float" in note for note in built.report.notes)
    assert space.precision == "int16"
    assert (built.report.counts["int8_ops"], built.report.counts["int16_ops"]) == (0, 3)
    path = graphs.stock(
        tuned.float_model(tmp_path), tuned.feeds, tmp_path, op_types=["Conv", "Relu"], activation=QuantType.QUInt16
    )
    (feed,) = graphs.batches(model, 1)
    ours, theirs = ADAPTER.run(built, feed)[0], graphs.run(path, feed)[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
    saved = onnx.load(str(ADAPTER.save(built, tmp_path / "saved")))
    assert {node.domain for node in saved.graph.node if node.op_type == "QuantizeLinear"} == {
        "com.microsoft" if opset < 21 else ""
    }


def test_a_pad_between_16_bit_ops_runs_in_float(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"], "conv1"),
        helper.make_node("Pad", ["c", "pads"], ["p"], "pad"),
        helper.make_node("Conv", ["p", "w2", "b2"], ["y"], "conv2"),
    ]
    found = graphs.weights(1, w1=(8, 4, 3, 3), b1=(8,), w2=(6, 8, 3, 3), b2=(6,))
    found["pads"] = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    model = graphs.graph_of(nodes, found, {"x": ["n", 4, 8, 8]})
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    wish = {"activation": {"dtype": "uint16", "scheme": "asym"}}
    built = tuned.build(TuningSpace.of(tuned.capability, parse_rules(op_type={"Conv": wish})).preferred())
    kinds = {node.name: node.op_type for node in onnx.load(str(ADAPTER.save(built, tmp_path / "saved"))).graph.node}
    assert kinds["pad"] == "Pad"
    expected, found = (
        run(tuned.feeds[0])[0] for run in (lambda x: graphs.run(model, x), lambda x: ADAPTER.run(built, x))
    )
    assert np.linalg.norm(found - expected) < 2e-2 * np.linalg.norm(expected)


def test_16_bits_are_never_searched_unless_asked_for():
    for approach in ("static", "auto"):
        hold = ADAPTER.load(graphs.conv_net(), options(approach=approach))
        wide = (DType.INT16, DType.UINT16)
        for op in ADAPTER.query(hold).ops:
            assert not any(c.activation is not None and c.activation.dtype in wide for c in op.choices[:-1])
