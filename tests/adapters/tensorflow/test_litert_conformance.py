"""The shipped conformance kit against the TensorFlow adapter on backend `litert`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="needs tensorflow")
pytest.importorskip("ai_edge_quantizer", reason="needs ai-edge-quantizer")

import keras

from neural_tune.protocols import AdapterOptions, Inputs, Outputs
from neural_tune.testing import AdapterConformance
from neural_tune_tensorflow.adapter import TensorFlowAdapter


@pytest.fixture(scope="module")
def small() -> Any:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    entry = keras.Input((6, 6, 3), name="image")
    first = layers.Conv2D(4, 3, padding="same", activation="relu", name="one")(entry)
    joined = layers.Add(name="add")([first, layers.Conv2D(4, 3, padding="same", name="two")(first)])
    return keras.Model(entry, layers.Dense(3, name="fc")(layers.Flatten(name="flat")(joined)), name="small")


class _Kit(AdapterConformance):
    registered = "tensorflow"
    approach = "static"

    @pytest.fixture
    def model(self, small: Any) -> object:
        return small

    @pytest.fixture
    def options(self) -> AdapterOptions:
        return AdapterOptions(approach=self.approach, backend="litert")

    # The conversion takes most of the time and is the same for every test.
    @pytest.fixture(scope="class")
    @classmethod
    def converted(cls, small: Any) -> Any:
        return TensorFlowAdapter().load(small, AdapterOptions(approach=cls.approach, backend="litert"))

    @pytest.fixture
    def hold(self, converted: Any) -> Any:
        return converted

    @pytest.fixture
    def calibration(self) -> Sequence[Inputs]:
        generator = np.random.default_rng(0)
        return [{"image": generator.normal(size=(8, 6, 6, 3)).astype(np.float32)} for _ in range(3)]

    @pytest.fixture
    def float_outputs(self, small: Any, calibration: Any) -> Outputs:
        return (np.asarray(small(calibration[0]["image"])),)


class TestStatic(_Kit):
    """Calibrated int8."""


class TestDynamic(_Kit):
    """Activations quantized at run time."""

    approach = "dynamic"
