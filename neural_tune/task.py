"""What a run is asked to do."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from neural_tune.config import ObjectiveFunction, TuneConfig
from neural_tune.evaluation import Evaluator
from neural_tune.protocols import AnyAdapter, Reporter, Strategy
from neural_tune.qat import TrainFunction


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What `fit` was asked to do.

    Attributes:
        model: The caller's model or a path to one.
        config: The configuration.
        evaluator: Runs the evaluation.
        calibration: Calibration batches; None for approaches that need none.
        evaluation_loader: The evaluation batches, to measure speed with where there is no calibration; None for an opaque eval_func.
        reporter: Receives the events.
        framework: Name of the adapter, or an adapter; empty lets the model decide.
        job: Name of the job; empty takes the model's.
        resume: Directory of the run to go on with; None starts a new one.
        objective_functions: The user's objectives by name.
        train_func: Trains a candidate in place; given exactly if the approach is "qat".
        strategy: A strategy that takes the place of the configuration's; None takes the one that is named there.
    """

    model: object
    config: TuneConfig
    evaluator: Evaluator
    reporter: Reporter
    calibration: Iterable[Any] | None = None
    evaluation_loader: Iterable[Any] | None = None
    framework: str | AnyAdapter = ""
    job: str = ""
    resume: str | os.PathLike[str] | None = None
    objective_functions: Mapping[str, ObjectiveFunction] = field(default_factory=dict)
    train_func: TrainFunction | None = None
    strategy: Strategy | None = None
