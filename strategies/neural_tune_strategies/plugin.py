"""The strategies as plug-ins: light descriptions, loaded when one is created."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from neural_tune.errors import ConfigError
from neural_tune.plugins import StrategyPlugin
from neural_tune.protocols import Strategy


def _creator(name: str, class_name: str, options: tuple[str, ...] = ()) -> Callable[..., Strategy]:
    def create(*, seed: int = 0, **given: Any) -> Strategy:
        """Return the strategy for `seed`. Raises ConfigError for an unknown option."""
        unknown = sorted(set(given) - set(options))
        if unknown:
            known = f"it takes {', '.join(options)}" if options else "it takes none besides seed"
            raise ConfigError(f"strategy {name!r}: unknown options {', '.join(unknown)}; {known}")
        module = importlib.import_module(f"neural_tune_strategies.{name}")
        strategy: Strategy = getattr(module, class_name)(seed=seed, **given)
        return strategy

    return create


_SEARCH = "neural-tune[search]"

AUTO = StrategyPlugin(
    name="auto",
    summary="recipes, then a ladder of fallbacks by predicted error per gain, from below, pruned back",
    create=_creator("auto", "Auto", ("fallback_only", "max_prunes")),
)
BASIC = StrategyPlugin(
    name="basic",
    summary="full int8, options, fallback op by op, accumulated by impact, pruned back",
    create=_creator("basic", "Basic"),
)
BAYESIAN = StrategyPlugin(
    name="bayesian",
    summary="Gaussian process over all choices, cost under an accuracy constraint",
    create=_creator("bayesian", "Bayesian", ("startup",)),
    requires=("optuna", "scipy", "torch"),
    install="neural-tune[bayesian]",
)
CONSERVATIVE = StrategyPlugin(
    name="conservative",
    summary="from float, op type by op type into int8, keeping what holds",
    create=_creator("conservative", "Conservative"),
)
EXHAUSTIVE = StrategyPlugin(
    name="exhaustive",
    summary="every candidate in a fixed order, the preferred one first",
    create=_creator("exhaustive", "Exhaustive"),
)
HAWQ = StrategyPlugin(
    name="hawq",
    summary="fallback op by op in the order of Hessian trace times weight error; needs an adapter with gradients",
    create=_creator("hawq", "Hawq"),
)
MSE = StrategyPlugin(
    name="mse",
    summary="fallback op by op in the order of output divergence, then back to int8 from the least sensitive",
    create=_creator("mse", "Mse"),
)
PARETO = StrategyPlugin(
    name="pareto",
    summary="NSGA-II over accuracy and all objectives; the front is the result",
    create=_creator("pareto", "Pareto", ("population", "trials")),
    requires=("optuna",),
    install=_SEARCH,
)
RANDOM = StrategyPlugin(
    name="random",
    summary="uniform draws without repetition",
    create=_creator("random", "Random"),
)
TPE = StrategyPlugin(
    name="tpe",
    summary="tree-structured Parzen estimator over all choices, cost under an accuracy constraint",
    create=_creator("tpe", "Tpe", ("startup",)),
    requires=("optuna",),
    install=_SEARCH,
)
