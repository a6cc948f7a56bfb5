"""Accuracy-aware quantization tuning: faster and smaller models that keep their accuracy.

Importing this package loads no machine-learning framework, and nothing else either: a public name loads what it needs at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neural_tune.api import fit, load
    from neural_tune.config import (
        PerformanceConfig,
        PostTrainingQuantConfig,
        QuantizationAwareTrainingConfig,
        TuneConfig,
        TuningCriterion,
    )
    from neural_tune.errors import (
        AdapterError,
        CapabilityError,
        ConfigError,
        CriterionNotMetError,
        DataError,
        NeuralTuneError,
        PluginError,
    )
    from neural_tune.result import Status, TuneResult
    from neural_tune.training import prepare_compression
    from neural_tune.values import AccuracyCriterion, Objective, Objectives

__all__ = [
    "AccuracyCriterion",
    "AdapterError",
    "CapabilityError",
    "ConfigError",
    "CriterionNotMetError",
    "DataError",
    "NeuralTuneError",
    "Objective",
    "Objectives",
    "PerformanceConfig",
    "PluginError",
    "PostTrainingQuantConfig",
    "QuantizationAwareTrainingConfig",
    "Status",
    "TuneConfig",
    "TuneResult",
    "TuningCriterion",
    "fit",
    "load",
    "prepare_compression",
]

_HOMES = {
    "neural_tune.api": ("fit", "load"),
    "neural_tune.config": (
        "PerformanceConfig",
        "PostTrainingQuantConfig",
        "QuantizationAwareTrainingConfig",
        "TuneConfig",
        "TuningCriterion",
    ),
    "neural_tune.errors": (
        "AdapterError",
        "CapabilityError",
        "ConfigError",
        "CriterionNotMetError",
        "DataError",
        "NeuralTuneError",
        "PluginError",
    ),
    "neural_tune.result": ("Status", "TuneResult"),
    "neural_tune.training": ("prepare_compression",),
    "neural_tune.values": ("AccuracyCriterion", "Objective", "Objectives"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load the module that holds a public name."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'neural_tune' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
