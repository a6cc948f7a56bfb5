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


BASIC = StrategyPlugin(
    name="basic",
    summary="full int8, options, fallback op by op, accumulated by impact, pruned back",
    create=_creator("basic", "Basic"),
)
EXHAUSTIVE = StrategyPlugin(
    name="exhaustive",
    summary="every candidate in a fixed order, the preferred one first",
    create=_creator("exhaustive", "Exhaustive"),
)
RANDOM = StrategyPlugin(
    name="random",
    summary="uniform draws without repetition",
    create=_creator("random", "Random"),
)
