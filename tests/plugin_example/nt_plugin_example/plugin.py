"""What the entry points name: light descriptions that import nothing heavy."""

from __future__ import annotations

import sys
from typing import Any

from neural_tune.errors import ConfigError
from neural_tune.plugins import AdapterPlugin, StrategyPlugin
from neural_tune.protocols import AnyAdapter, Strategy


def _accepts(model: object) -> bool:
    # Whoever holds an ExampleModel has imported its module: the question needs no import of its own.
    module = sys.modules.get("nt_plugin_example.model")
    return module is not None and isinstance(model, module.ExampleModel)


def _load() -> AnyAdapter:
    from nt_plugin_example.adapter import ExampleAdapter

    return ExampleAdapter()


def _create(*, seed: int = 0, **options: Any) -> Strategy:
    from nt_plugin_example.strategy import OneByOne

    unknown = sorted(set(options) - {"backwards"})
    if unknown:
        raise ConfigError(f"strategy 'one_by_one': unknown options {', '.join(unknown)}; it takes backwards")
    return OneByOne(seed, **options)


ADAPTER = AdapterPlugin(
    name="example",
    summary="models of the example framework",
    requires=("numpy",),
    install="nt-plugin-example",
    accepts=_accepts,
    load=_load,
)
STRATEGY = StrategyPlugin(name="one_by_one", summary="full int8, then one group at a time in float", create=_create)
