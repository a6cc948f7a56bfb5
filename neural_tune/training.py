"""Quantization-aware training in a loop of one's own: `prepare_compression`, train `.model`, `finish` (or `save`).

INC 2.x has it under the same name in the same module. Nothing is searched and nothing is certified here; `fit(..., train_func=...)` does both.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from neural_tune import plugins
from neural_tune.artifact import write_uncertified
from neural_tune.config import QuantizationAwareTrainingConfig, TuneConfig
from neural_tune.errors import ConfigError
from neural_tune.evaluation import CalibrationStream, as_loader
from neural_tune.preparation import adapter_options
from neural_tune.protocols import AnyAdapter, Training
from neural_tune.qat import open_training
from neural_tune.space import TuningSpace


class TrainingCallbacks:
    """The hooks of INC's training loops. Only `on_train_end` does something: it finishes the model."""

    def __init__(self, manager: CompressionManager) -> None:
        self._manager = manager

    def on_train_begin(self, dataloader: Any = None) -> None:
        """Do nothing: the model has its fake_quant already."""

    def on_epoch_begin(self, epoch: int) -> None:
        """Do nothing."""

    def on_step_begin(self, batch_id: int) -> None:
        """Do nothing."""

    def on_after_compute_loss(self, inputs: Any, outputs: Any, loss: Any, teacher_output: Any = None) -> Any:  # noqa: ARG002 - INC's signature
        """Return the loss as it is."""
        return loss

    def on_before_optimizer_step(self) -> None:
        """Do nothing."""

    def on_after_optimizer_step(self) -> None:
        """Do nothing."""

    def on_step_end(self) -> None:
        """Do nothing."""

    def on_epoch_end(self) -> None:
        """Do nothing."""

    def on_train_end(self) -> None:
        """Turn the trained model into integers."""
        self._manager.finish()


class CompressionManager:
    """A model under quantization-aware training.

    Attributes:
        model: Train this one, in place; after `finish` it is the native integer model.
        callbacks: Hooks for a training loop in INC's manner.
    """

    def __init__(self, adapter: AnyAdapter, training: Training, threads: int | None) -> None:
        self.model: Any = training.model
        self.callbacks = TrainingCallbacks(self)
        self._adapter = adapter
        self._training = training
        self._threads = threads
        self._built: Any = None

    def finish(self) -> Any:
        """Return the native integer model; the second call returns the same one.

        Raises:
            AdapterError: training left something that cannot be quantized.
        """
        if self._built is None:
            self._built = self._training.finish(self._threads)
            self.model = self._adapter.native(self._built)
        return self.model

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the native artifact and a result.json for `neural_tune.load`; return the artifact's path.

        Raises:
            ConfigError: `directory` is a file.
        """
        self.finish()
        reason = "trained with prepare_compression; no accuracy was measured"
        return write_uncertified(self._adapter, self._built, directory, reason)


def prepare_compression(
    model: object,
    confs: QuantizationAwareTrainingConfig | TuneConfig,
    calib_dataloader: Iterable[Any] | None = None,
    *,
    example_inputs: Any = None,
    framework: str | AnyAdapter = "",
) -> CompressionManager:
    """Return a manager around a trainable copy of `model` with fake_quant on every op that the configuration leaves in the tuning space.

    The caller's model is never changed.

    Args:
        model: A model object of a framework that trains, or a path to one.
        confs: The configuration.
        calib_dataloader: Iterable of batches, read once: the ranges training starts from. None lets training find them.
        example_inputs: One batch, for frameworks that capture a model by calling it; None takes the first calibration batch.
        framework: Name of the adapter, or an adapter object of your own; empty lets the model decide.

    Raises:
        ConfigError: the configuration is not one of quantization-aware training, or leaves nothing to quantize.
        CapabilityError: the framework cannot train.
    """
    config = confs.to_tune_config() if isinstance(confs, QuantizationAwareTrainingConfig) else confs
    if not isinstance(config, TuneConfig) or config.approach != "qat":
        found = getattr(config, "approach", type(confs).__name__)
        raise ConfigError(f"confs: found {found!r}, expected a QuantizationAwareTrainingConfig")
    adapter = plugins.adapter_for(model, framework)
    example = example_inputs
    if example is None and calib_dataloader is not None:
        batches = iter(as_loader(calib_dataloader, once=True))
        example = next(batches, None)
        calib_dataloader = itertools.chain([] if example is None else [example], batches)
    held = adapter.load(model, replace(adapter_options(config), example=example))
    space = TuningSpace.of(adapter.query(held), config.rules, config.recipes)
    if not space.groups:
        raise ConfigError(
            "nothing is left to train in integers: the rules keep every op in float, or no op has an integer kernel"
        )
    statistics = None
    if calib_dataloader is not None:
        stream = CalibrationStream(
            as_loader(calib_dataloader, once=True), config.sampling_size, space.capability.inputs
        )
        scratch = Path(tempfile.mkdtemp(prefix="neural_tune-"))
        try:
            statistics = adapter.calibrate(held, stream, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    training = open_training(adapter, held, space.preferred(), statistics)
    return CompressionManager(adapter, training, config.threads)
