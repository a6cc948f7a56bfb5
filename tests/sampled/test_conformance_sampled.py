"""The conformance kit on the strategies behind Optuna's samplers; apart from tests/strategies, since they need Optuna and minutes."""

from __future__ import annotations

import pytest

from neural_tune.testing import StrategyConformance


class TestTpe(StrategyConformance):
    registered = "tpe"


class TestPareto(StrategyConformance):
    registered = "pareto"


class TestBayesian(StrategyConformance):
    registered = "bayesian"

    @pytest.fixture
    def make_strategy(self, plugin):
        # A fit takes a quarter of a second and the kit proposes thousands of times; test_sampled.py looks at the model.
        return lambda seed: plugin.create(seed=seed, startup=100)
