"""The first-party strategies keep the strategy protocol."""

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


class TestBasic(_FirstParty):
    name = "basic"


class TestExhaustive(_FirstParty):
    name = "exhaustive"


class TestRandom(_FirstParty):
    name = "random"


class TestAuto(_FirstParty):
    name = "auto"


class TestHawq(_FirstParty):
    name = "hawq"


class TestMse(_FirstParty):
    name = "mse"


class TestConservative(_FirstParty):
    name = "conservative"
