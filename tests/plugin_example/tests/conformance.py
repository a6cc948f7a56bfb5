"""The kits of neural_tune on both plug-ins; run it with pytest where the distribution is installed."""

from __future__ import annotations

import pytest
from nt_plugin_example.model import ExampleModel
from nt_plugin_example.plugin import ADAPTER, STRATEGY

from neural_tune.testing import AdapterConformance, StrategyConformance, toy_task


class TestAdapter(AdapterConformance):
    registered = ADAPTER.name

    @pytest.fixture(scope="class")
    def task(self):
        return toy_task()

    @pytest.fixture
    def model(self, task):
        return ExampleModel(task.model.weights, task.model.biases)

    @pytest.fixture
    def calibration(self, task):
        return task.batches()


class TestStrategy(StrategyConformance):
    registered = STRATEGY.name
