"""The adapter kit on small PyTorch networks; a test module says which backend runs them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neural_tune.protocols import AdapterOptions
from neural_tune.testing import AdapterConformance
from neural_tune.values import FrozenMap


class Convolutions(AdapterConformance):
    registered = "pytorch"
    backend = "default"
    approach = "static"
    extra = FrozenMap({})

    @pytest.fixture
    def model(self, networks):
        return networks.small()

    @pytest.fixture
    def calibration(self, networks):
        return [{"x": batch} for batch in networks.images(batches=6)]

    @pytest.fixture
    def options(self, calibration):
        return AdapterOptions(approach=self.approach, backend=self.backend, example=calibration[0], extra=self.extra)

    @pytest.fixture
    def float_outputs(self, networks, inputs):
        """Torch itself, on another copy of the module."""
        with torch.no_grad():
            return (networks.small()(torch.from_numpy(inputs["x"])).numpy(),)


class TwoInputs(Convolutions):
    """Two inputs by name, a dict of outputs, static and dynamic linears mixed."""

    approach = "auto"

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
    def float_outputs(self, networks, inputs):
        with torch.no_grad():
            outputs = networks.perceptron()(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return tuple(value.numpy() for value in outputs.values())
