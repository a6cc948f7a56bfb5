"""The first-party strategies keep the strategy protocol."""

from __future__ import annotations

from neural_tune.testing import StrategyConformance


class TestBasic(StrategyConformance):
    registered = "basic"


class TestExhaustive(StrategyConformance):
    registered = "exhaustive"


class TestRandom(StrategyConformance):
    registered = "random"


class TestAuto(StrategyConformance):
    registered = "auto"


class TestHawq(StrategyConformance):
    registered = "hawq"


class TestMse(StrategyConformance):
    registered = "mse"


class TestConservative(StrategyConformance):
    registered = "conservative"
