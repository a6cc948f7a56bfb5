"""The conformance kit on the strategies behind Optuna's samplers; apart from tests/strategies, since they need Optuna and minutes."""

from __future__ import annotations

import pytest

from neural_tune import plugins
from neural_tune.testing import StrategyConformance


class _FirstParty(StrategyConformance):
    name = ""

    @pytest.fixture
    def plugin(self):
        return plugins.strategies()[self.name]

    @pytest.fixture
    def make_strategy(self, plugin):
        return lambda seed: plugin.create(seed=seed)


class _Sampled(_FirstParty):
    @pytest.fixture(autouse=True)
    def _optuna(self, plugin):
        if plugin.missing:
            pytest.skip(f"not installed: {', '.join(plugin.missing)}")


class TestTpe(_Sampled):
    name = "tpe"


class TestPareto(_Sampled):
    name = "pareto"


class TestBayesian(_Sampled):
    name = "bayesian"

    @pytest.fixture
    def make_strategy(self, plugin):
        # A fit takes a quarter of a second and the kit proposes thousands of times; test_sampled.py looks at the model.
        return lambda seed: plugin.create(seed=seed, startup=100)
