"""The ONNX Runtime adapter keeps the adapter protocol, on a small graph with convolutions, a residual add and a Gemm."""

from __future__ import annotations

import numpy as np
import pytest

from neural_tune.testing import AdapterConformance

onnx = pytest.importorskip("onnx", reason='needs pip install "neural-tune[onnxruntime]"')
ort = pytest.importorskip("onnxruntime", reason='needs pip install "neural-tune[onnxruntime]"')

from neural_tune_onnxruntime.adapter import OnnxRuntimeAdapter  # noqa: E402
from neural_tune_onnxruntime.plugin import PLUGIN  # noqa: E402

RANDOM_STATE = 20


def small_model():
    """Return conv-relu-conv-add-relu-pool-gemm on 3x8x8 images with a dynamic batch; wide enough that weights count."""
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(RANDOM_STATE)

    def constant(name, *shape):
        values = generator.normal(size=shape) * np.sqrt(2.0 / max(1, np.prod(shape[1:])))
        return numpy_helper.from_array(values.astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["a"], name="add"),
        helper.make_node("Relu", ["a"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5])],
        [
            constant("w1", 48, 3, 3, 3),
            constant("b1", 48),
            constant("w2", 48, 48, 3, 3),
            constant("b2", 48),
            constant("w3", 5, 48),
            constant("b3", 5),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


class TestModelObject(AdapterConformance):
    @pytest.fixture
    def adapter(self):
        return OnnxRuntimeAdapter()

    @pytest.fixture
    def plugin(self):
        return PLUGIN

    @pytest.fixture
    def model(self):
        return small_model()

    @pytest.fixture
    def calibration(self):
        generator = np.random.default_rng(RANDOM_STATE + 1)
        return [{"x": generator.normal(size=(4, 3, 8, 8)).astype(np.float32)} for _ in range(6)]

    @pytest.fixture
    def float_outputs(self, inputs):
        """The stock runtime on the untouched model, without any graph optimization."""
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(small_model().SerializeToString(), options, providers=["CPUExecutionProvider"])
        return tuple(session.run(None, inputs))


class TestModelFile(TestModelObject):
    @pytest.fixture
    def model(self, tmp_path_factory):
        path = tmp_path_factory.mktemp("float") / "small.onnx"
        onnx.save(small_model(), path)
        return path
