"""How a Trainer's model is quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from neural_tune import (
    AccuracyCriterion,
    ConfigError,
    Objectives,
    PerformanceConfig,
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    TuningCriterion,
)
from neural_tune_pytorch.transformers.metrics import Metric
from neural_tune_pytorch.transformers.objectives import Objective, performance


class Approach(StrEnum):
    """The three approaches by their INC names."""

    STATIC = "PostTrainingStatic"
    DYNAMIC = "PostTrainingDynamic"
    TRAINING = "QuantizationAwareTraining"


_WORDS = {
    "posttrainingstatic": Approach.STATIC,
    "static": Approach.STATIC,
    "posttrainingdynamic": Approach.DYNAMIC,
    "dynamic": Approach.DYNAMIC,
    "quantizationawaretraining": Approach.TRAINING,
    "qat": Approach.TRAINING,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationConfig:
    """What `NLPTrainer.quantize` needs to know beside the Trainer itself.

    Attributes:
        framework: "pytorch".
        approach: "PostTrainingStatic", "PostTrainingDynamic" or "QuantizationAwareTraining" (also "static", "dynamic", "qat").
        strategy: Name of the tuning strategy.
        timeout: Seconds for the search; 0 stops at the first acceptable model.
        max_trials: The most candidates that are tried.
        metrics: One or several `metrics.Metric`; None takes the first number that `compute_metrics` returns, higher is better, within 1 %.
        objectives: One or several `objectives.Objective`.
        sampling_size: Calibration samples.
        backend: Backend of the PyTorch adapter.
        op_name_dict: Op name (or regular expression) -> wishes, as in `PostTrainingQuantConfig`.
        op_type_dict: Op type -> wishes.
        performance: How speed is measured.
        workspace: Folder for run directories.
        random_seed: Seed of everything random in the search.
    """

    framework: str = "pytorch"
    approach: str = Approach.STATIC
    strategy: str = "auto"
    timeout: float = 0
    max_trials: int = 100
    metrics: Metric | Sequence[Metric] | None = None
    objectives: Objective | Sequence[Objective] = performance
    sampling_size: int = 100
    backend: str = "default"
    op_name_dict: Mapping[str, Any] | None = None
    op_type_dict: Mapping[str, Any] | None = None
    performance: PerformanceConfig = field(default_factory=PerformanceConfig)
    workspace: str = "nt_workspace"
    random_seed: int = 0

    def __post_init__(self) -> None:
        """Settle the approach; refuse other frameworks."""
        if self.framework != "pytorch":
            raise ConfigError(
                f"framework: found {self.framework!r}, expected 'pytorch': a Trainer trains PyTorch modules"
            )
        word = str(self.approach).replace("_", "").replace("-", "").lower()
        if word not in _WORDS:
            raise ConfigError(
                f"approach: found {self.approach!r}, expected one of {', '.join(item.value for item in Approach)}"
            )
        object.__setattr__(self, "approach", _WORDS[word])

    @property
    def constrained(self) -> tuple[Metric, ...]:
        """The metrics with a criterion; () when none was named."""
        if self.metrics is None:
            return ()
        return (self.metrics,) if isinstance(self.metrics, Metric) else tuple(self.metrics)

    def to_conf(self, metrics: Sequence[Metric]) -> PostTrainingQuantConfig | QuantizationAwareTrainingConfig:
        """Return the configuration of `neural_tune.fit` with the criteria of `metrics`.

        Raises:
            ConfigError: a field is out of range.
        """
        wanted = (self.objectives,) if isinstance(self.objectives, Objective) else tuple(self.objectives)
        shared: dict[str, Any] = {
            "backend": self.backend,
            "op_name_dict": self.op_name_dict,
            "op_type_dict": self.op_type_dict,
            "accuracy_criterion": AccuracyCriterion(metrics={item.name: item.to_criterion() for item in metrics}),  # type: ignore[arg-type] # a dict is frozen there
            "tuning_criterion": TuningCriterion(
                strategy=self.strategy,
                timeout=self.timeout,
                max_trials=self.max_trials,
                objective=Objectives(tuple(item.to_objective() for item in wanted)),
            ),
            "performance": self.performance,
            "workspace": self.workspace,
            "random_seed": self.random_seed,
        }
        if self.approach is Approach.TRAINING:
            return QuantizationAwareTrainingConfig(**shared)
        approach = "static" if self.approach is Approach.STATIC else "dynamic"
        return PostTrainingQuantConfig(approach=approach, calibration_sampling_size=self.sampling_size, **shared)
