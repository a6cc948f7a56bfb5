from __future__ import annotations

from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx", reason="the ONNX Runtime adapter needs onnx")
pytest.importorskip("onnxruntime", reason="the ONNX Runtime adapter needs onnxruntime")

from neural_tune_onnxruntime import shapes  # noqa: E402


def _model_with_a_stranger() -> onnx.ModelProto:
    """Relu -> an op of an unknown domain -> Relu: nobody can know the shapes behind the stranger."""
    make = onnx.helper
    nodes = [
        make.make_node("Relu", ["x"], ["a"], name="before"),
        make.make_node("Stranger", ["a"], ["b"], name="stranger", domain="somebody.else"),
        make.make_node("Relu", ["b"], ["y"], name="behind"),
    ]
    graph = make.make_graph(
        nodes,
        "graph",
        [make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 18), make.make_opsetid("somebody.else", 1)])


def test_incomplete_inference_leaves_no_file_and_says_what_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # ORT's symbolic inference writes its half-done model into the working directory
    inferred, notes = shapes.infer(_model_with_a_stranger(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(notes) == 1
    assert "type or shape unknown for 2 tensors: b, y" in notes[0]
    known = {value.name: value for value in inferred.graph.value_info}
    assert [dim.dim_param or dim.dim_value for dim in known["a"].type.tensor_type.shape.dim] == ["n", 4]
