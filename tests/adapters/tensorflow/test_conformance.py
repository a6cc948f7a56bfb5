"""The TensorFlow adapter keeps the adapter protocol on each form of model it takes."""

from __future__ import annotations

import models
import numpy as np
import pytest

from neural_tune.testing import AdapterConformance


@pytest.fixture(scope="module")
def network():
    return models.small_cnn()


class TestKerasModel(AdapterConformance):
    registered = "tensorflow"

    @pytest.fixture
    def model(self, network):
        return network

    @pytest.fixture
    def calibration(self):
        generator = np.random.default_rng(21)
        return [{"image": generator.normal(size=(4, 8, 8, 4)).astype(np.float32)} for _ in range(6)]

    @pytest.fixture
    def float_outputs(self, network, inputs):
        """Keras itself, on the caller's model."""
        return (np.asarray(network(inputs["image"], training=False)),)


class TestFrozenGraph(TestKerasModel):
    @pytest.fixture(scope="class")
    @classmethod
    def frozen(cls, network, tmp_path_factory):
        hold = models.hold_of(network)
        path = tmp_path_factory.mktemp("float") / "frozen.pb"
        graph_def = hold.source.graph_def
        path.write_bytes(graph_def.SerializeToString())
        return path

    @pytest.fixture
    def model(self, frozen):
        return frozen
