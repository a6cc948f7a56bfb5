"""Accuracy-aware quantization tuning: faster and smaller models that keep their accuracy.

Importing this package loads no machine-learning framework.
"""

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
]
