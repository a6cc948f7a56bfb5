"""The PyTorch adapter keeps the adapter protocol: on the Q/DQ graph run node by node (every sentence), and compiled (see test_lowering)."""

from __future__ import annotations

import numpy as np
import pytest

from neural_tune.protocols import AdapterOptions
from neural_tune.testing import AdapterConformance
from neural_tune.values import FrozenMap

torch = pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')
pytest.importorskip("torchao", reason='needs pip install "neural-tune[pytorch]"')

from neural_tune_pytorch.adapter import PyTorchAdapter  # noqa: E402
from neural_tune_pytorch.plugin import PLUGIN  # noqa: E402


class TestConvolutions(AdapterConformance):
    @pytest.fixture
    def adapter(self):
        return PyTorchAdapter()

    @pytest.fixture
    def plugin(self):
        return PLUGIN

    @pytest.fixture
    def model(self, networks):
        return networks.small()

    @pytest.fixture
    def calibration(self, networks):
        return [{"x": batch} for batch in networks.images(batches=6)]

    @pytest.fixture
    def options(self, calibration):
        return AdapterOptions(example=calibration[0], extra=FrozenMap({"compile": False}))

    @pytest.fixture
    def float_outputs(self, networks, inputs):
        """Torch itself, on another copy of the module."""
        with torch.no_grad():
            return (networks.small()(torch.from_numpy(inputs["x"])).numpy(),)


class TestTwoInputs(TestConvolutions):
    """Two inputs by name, a dict of outputs, static and dynamic linears mixed."""

    @pytest.fixture
    def model(self, networks):
        return networks.perceptron()

    @pytest.fixture
    def calibration(self):
        generator = np.random.default_rng(3)
        return [
            {name: generator.normal(size=(4, 16)).astype(np.float32) for name in ("left", "right")} for _ in range(6)
        ]

    @pytest.fixture
    def options(self, calibration):
        return AdapterOptions(approach="auto", example=calibration[0], extra=FrozenMap({"compile": False}))

    @pytest.fixture
    def float_outputs(self, networks, inputs):
        with torch.no_grad():
            outputs = networks.perceptron()(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return tuple(value.numpy() for value in outputs.values())
