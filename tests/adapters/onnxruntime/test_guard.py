"""The guard finds what the runtime fuses wrongly or not at all, and is silent about what is by design."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import graphs
import numpy as np
import onnx
from graphs import ADAPTER, Tuned, graph_of, weights
from onnx import helper, numpy_helper

from neural_tune.protocols import GuardsArtifact
from neural_tune.values import FLOAT_CANDIDATE
from neural_tune_onnxruntime import guard


def saved(name, folder, candidate=None):
    source = graphs.NETS[name]()
    tuned = Tuned(source, graphs.batches(source), folder)
    return tuned, ADAPTER.save(tuned.build(candidate), folder / "saved")


def test_adapter_guards_its_artifacts():
    assert isinstance(ADAPTER, GuardsArtifact)


@pytest.mark.parametrize("name", sorted(graphs.NETS))
@pytest.mark.parametrize("candidate", ["int8", "float"])
def test_sound_models_give_no_finding(name, candidate, tmp_path):
    tuned, path = saved(name, tmp_path, None if candidate == "int8" else FLOAT_CANDIDATE)
    assert ADAPTER.guard(path, tuned.feeds[0]) == ()


def test_integer_kernels_are_counted(tmp_path):
    _, path = saved("residual", tmp_path)
    # 5 convolutions, 2 adds, the mean as a pooling, 1 Gemm.
    assert guard.count_fusions(path) == guard.Fusion(unfused=0, integer_kernels=9, lost=0)


def test_gemm_fused_along_the_wrong_axis_is_found(tmp_path):
    """The runtime's own bug: per_channel along the input dimension is right node by node and wrong when fused."""
    found = weights(w=(16, 16))
    source = graph_of([helper.make_node("Gemm", ["x", "w"], ["y"], "fc", transB=1)], found, {"x": ["n", 16]})
    tuned = Tuned(source, graphs.batches(source), tmp_path)
    path = ADAPTER.save(tuned.build(), tmp_path / "saved")
    assert ADAPTER.guard(path, tuned.feeds[0]) == ()
    broken = onnx.load(str(path))
    scale = np.abs(found["w"]).max(axis=0) / np.float32(127)
    codes = np.round(found["w"] / scale).astype(np.int8)
    new = {"fc__weight_q": codes, "fc__weight_scale": scale}
    for tensor in broken.graph.initializer:
        if tensor.name in new:
            tensor.CopyFrom(numpy_helper.from_array(new[tensor.name], tensor.name))
    node = next(node for node in broken.graph.node if node.output[0] == "fc__weight_dq")
    node.attribute[0].i = 1
    onnx.save(broken, str(path))
    expected = graphs.run(source, tuned.feeds[0])[0]
    if guard.difference(graphs.run(path, tuned.feeds[0])[0], expected) < 0.1:
        pytest.skip("this runtime no longer has the bug")
    (finding,) = ADAPTER.guard(path, tuned.feeds[0])
    assert "'y' depends on the optimization level" in finding


def test_kernels_that_were_not_fused_are_found(tmp_path):
    """Signed activations with two readers are not turned into unsigned ones, so the runtime fuses nothing around them."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "z"], ["wd"]),
        helper.make_node("Conv", ["d", "wd"], ["c"], "conv"),
        helper.make_node("Tanh", ["c"], ["y"], "tanh"),  # and no output Q: a convolution is then never an integer one
    ]
    found = {"s": np.float32(0.02), "z": np.int8(0), "ws": np.float32(0.01)}
    found["w"] = np.random.default_rng(0).integers(-127, 127, (4, 3, 3, 3)).astype(np.int8)
    path = tmp_path / "unfused.onnx"
    onnx.save(graph_of(nodes, found, {"x": ["n", 3, 8, 8]}), str(path))
    fusion = guard.count_fusions(path)
    assert (fusion.integer_kernels, fusion.lost) == (0, 1)
    assert fusion.unfused >= 1
    findings = ADAPTER.guard(path, np.ones((1, 3, 8, 8), np.float32))
    assert any("unfused Q/DQ pairs" in finding for finding in findings)
    assert any("run in float" in finding for finding in findings)


def test_output_that_is_not_finite_is_found(tmp_path):
    nodes = [helper.make_node("Log", ["x"], ["y"], "log")]
    path = tmp_path / "log.onnx"
    onnx.save(graph_of(nodes, {}, {"x": ["n", 3]}), str(path))
    (finding,) = ADAPTER.guard(path, np.array([[1.0, 2.0, -1.0]], np.float32))
    assert "'y' holds NaN or infinite" in finding
    assert ADAPTER.guard(path, np.ones((1, 3), np.float32)) == ()


def test_difference_is_relative_and_infinite_for_a_new_nan():
    one = np.array([3.0, 4.0], np.float32)
    assert guard.difference(one, one) == 0
    assert guard.difference(one * 1.1, one) == pytest.approx(0.1, rel=1e-5)
    assert guard.difference(np.array([np.nan, 4.0], np.float32), one) == float("inf")
    assert guard.difference(np.zeros(2, np.float32), np.zeros(2, np.float32)) == 0
