"""What a plug-in author needs to test an adapter or a strategy; pytest is imported by the conformance kits only.

`AdapterConformance` and `StrategyConformance` are pytest classes to subclass: they check every sentence of the protocols.
`ToyAdapter` is a framework of its own, in numpy, for tests of a strategy, a reporter or an executor. `drive` runs a
strategy against a scripted evaluation, without an engine.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from neural_tune.testing.script import begin, drive, finish
from neural_tune.testing.toy import TOY_PLUGIN, ToyAdapter
from neural_tune.testing.toy_model import ToyModel, ToyTask, sabotage, toy_task

if TYPE_CHECKING:
    from neural_tune.testing.adapter_conformance import AdapterConformance
    from neural_tune.testing.strategy_conformance import StrategyConformance

__all__ = [
    "TOY_PLUGIN",
    "AdapterConformance",
    "StrategyConformance",
    "ToyAdapter",
    "ToyModel",
    "ToyTask",
    "begin",
    "drive",
    "finish",
    "sabotage",
    "toy_task",
]

_KITS = {"AdapterConformance": "adapter_conformance", "StrategyConformance": "strategy_conformance"}


def __getattr__(name: str) -> Any:
    """Import a conformance kit, and pytest with it, at first use."""
    if name not in _KITS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = f"{__name__}.{_KITS[name]}"
    importlib.import_module("pytest").register_assert_rewrite(module)
    return getattr(importlib.import_module(module), name)
