"""The ONNX Runtime adapter keeps the adapter protocol, on small graphs: convolutions, a residual sum, a perceptron, a file."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import graphs
import onnx

from neural_tune.testing import AdapterConformance


class Conformance(AdapterConformance):
    """What all nets share."""

    registered = "onnxruntime"
    net = "conv"

    @pytest.fixture
    def model(self):
        return graphs.NETS[self.net]()

    @pytest.fixture
    def calibration(self, model):
        return graphs.batches(model)

    @pytest.fixture
    def float_outputs(self, model, inputs):
        """The stock runtime on the untouched model, without any graph optimization."""
        return tuple(graphs.run(model, inputs, optimize=False))


class TestConvolutions(Conformance):
    net = "conv"


class TestResidual(Conformance):
    net = "residual"


class TestPerceptron(Conformance):
    net = "perceptron"


class TestFile(Conformance):
    """A path instead of an object."""

    @pytest.fixture
    def model(self, tmp_path_factory):
        path = tmp_path_factory.mktemp("source") / "net.onnx"
        onnx.save(graphs.depthwise_net(), str(path))
        return path

    @pytest.fixture
    def calibration(self):
        return graphs.batches(graphs.depthwise_net())
