"""Quantization-aware training, as far as it is the same for every framework: copy, train, finish.

The engine calls it in a trial (`fit(..., train_func=...)`), `neural_tune.training` around a training loop of the user's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from neural_tune.errors import CapabilityError, ConfigError
from neural_tune.protocols import AnyAdapter, Training, Trains
from neural_tune.values import Candidate

TrainFunction = Callable[[Any], Any]


def open_training(adapter: AnyAdapter, model: Any, candidate: Candidate, statistics: Any | None) -> Training:
    """Return a trainable copy of `model` with fake_quant where `candidate` quantizes.

    Raises:
        CapabilityError: the adapter cannot train.
    """
    if not isinstance(adapter, Trains):
        raise CapabilityError(
            f"adapter {adapter.name!r} cannot train: quantization-aware training needs a framework that does; "
            "use PostTrainingQuantConfig here"
        )
    return adapter.training(model, candidate, statistics)


def train(training: Training, train_func: TrainFunction) -> None:
    """Let `train_func` train the model in place; what it returns is not looked at.

    Raises:
        ConfigError: it returned another model of the same kind, which would not be the one that is quantized.
        Exception: whatever `train_func` raises, untouched.
    """
    returned = train_func(training.model)
    if type(returned) is type(training.model) and returned is not training.model:
        raise ConfigError(
            f"train_func returned another {type(returned).__name__} than it was given; expected it to train its argument in place"
        )
