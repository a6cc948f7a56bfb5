"""Quantization-aware training for every backend: a module to train, called like the original, and its way into integers."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from neural_tune.calibration import Statistics
from neural_tune.errors import CapabilityError
from neural_tune.values import Candidate
from neural_tune_pytorch.backend import Built, TorchModel
from neural_tune_pytorch.calling import Calling, unflatten
from neural_tune_pytorch.inputs import fit


class Trainee(Protocol):
    """A backend's trainable form of a candidate.

    Attributes:
        network: Flat: tensors in the order of `Calling.inputs` in, a tuple of tensors out.
    """

    network: nn.Module

    def finish(self, threads: int | None) -> Built:
        """Return the trained model in integers."""


class TrainingModule(nn.Module):
    """What `train_func` gets: called like the original module and answering like it, with fake_quant inside.

    Batch norm is folded into the weights, dropout is off: the graph is that of inference. `.train()` and `.eval()` only say whether ranges that calibration did not give may
    still move.
    """

    def __init__(self, network: nn.Module, calling: Calling) -> None:
        super().__init__()
        self.network = network
        self._calling = calling

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """Return the outputs in the structure of the original, with gradients. Raises DataError for inputs that do not fit."""
        values = self._calling.bind(arguments, keywords)
        feed = tuple(fit(value, info) for value, info in zip(values, self._calling.inputs, strict=True))
        return unflatten(self.network(*feed), self._calling.outputs)


class TorchTraining:
    """Implements `neural_tune.protocols.Training`."""

    def __init__(self, trainee: Trainee, calling: Calling) -> None:
        self.model = TrainingModule(trainee.network, calling).train()
        self._trainee = trainee

    def finish(self, threads: int | None) -> Built:
        """Return the trained model in integers.

        Raises:
            AdapterError: training left a value that is not finite, or a range that never saw a batch.
        """
        self.model.eval()
        return self._trainee.finish(threads)


def training(model: TorchModel, candidate: Candidate, statistics: Statistics | None) -> TorchTraining:
    """Return a trainable copy of `model` with fake_quant where `candidate` quantizes.

    Raises:
        CapabilityError: the backend cannot train this candidate.
    """
    return TorchTraining(_trainee(model, candidate, statistics), model.source.calling)


def _trainee(model: TorchModel, candidate: Candidate, statistics: Statistics | None) -> Trainee:
    if model.backend.name == "fx":
        from neural_tune_pytorch.qat_fx import FxTrainee  # noqa: PLC0415 - only the backend in use is imported

        return FxTrainee(model.captured, candidate, statistics)
    if model.backend.name == "eager":
        from neural_tune_pytorch.qat_eager import EagerTrainee  # noqa: PLC0415

        return EagerTrainee(model.captured, candidate, statistics)
    if model.backend.name == "pt2e":
        from neural_tune_pytorch.qat_pt2e import Pt2eTrainee  # noqa: PLC0415

        return Pt2eTrainee(model.captured, candidate, statistics)
    raise CapabilityError(f"backend {model.backend.name!r} cannot train; use 'pt2e', 'fx' or 'eager'")
