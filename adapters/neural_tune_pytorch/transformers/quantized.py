"""A quantized model in the clothes of a Hugging Face model: labels in, loss out, a config, and no mode to switch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

import neural_tune


class QuantizedModel(nn.Module):
    """Wraps a model that answers with logits so that a Trainer can evaluate (and train) it.

    Args:
        model: Takes the inputs by name, returns a `ModelOutput`, a mapping or a tensor with the logits.
        config: Configuration of the original model.
        main_input_name: Name of the input that tells the batch size.
        is_trainable: Whether it trains (fake_quant); a finished model has no modes.
    """

    def __init__(
        self, model: nn.Module, config: Any, *, main_input_name: str = "input_ids", is_trainable: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.main_input_name = main_input_name
        self.model = model
        self._is_trainable = is_trainable
        self.training = is_trainable

    def forward(
        self,
        labels: Tensor | None = None,
        num_items_in_batch: Any = None,  # what a Trainer passes to models that scale their own loss
        **inputs: Any,
    ) -> ModelOutput:
        """Return the model's outputs; with `labels`, a loss in front of them (see `loss_of`)."""
        known = {name: value for name, value in inputs.items() if value is not None and isinstance(value, Tensor)}
        answer = self.model(**known)
        found = answer if isinstance(answer, dict) else {"logits": answer[0] if isinstance(answer, tuple) else answer}
        if labels is None:
            return ModelOutput(found)
        return ModelOutput(loss=loss_of(found["logits"], labels, self.config, num_items_in_batch), **found)

    def train(self, mode: bool = True) -> Self:
        """Switch the mode of a model that trains; a finished one stays as it is."""
        return super().train(mode) if self._is_trainable else self

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")


def load_quantized(directory: str | os.PathLike[str], *, threads: int | None = None) -> QuantizedModel:
    """Return the model that `NLPTrainer.save_model` wrote.

    Raises:
        ConfigError: the folder was not written by it.
    """
    config = transformers.AutoConfig.from_pretrained(Path(directory), local_files_only=True)
    return QuantizedModel(neural_tune.load(directory, threads=threads), config)


def loss_of(logits: Tensor, labels: Tensor, config: Any, items: Any = None) -> Tensor:
    """Return the loss that Hugging Face's heads compute: mean squared error for one output, binary cross-entropy for several labels at once, else cross-entropy.

    Args:
        logits: float, shape (..., classes).
        labels: Classes, shape (...), with -100 for what does not count; or floats of the shape of the logits.
        config: Its `num_labels` and `problem_type` decide.
        items: Number of labels that count in all batches of one optimizer step. With gradient accumulation a Trainer leaves it to the loss to divide by it
            (cross-entropy only, as in Hugging Face's heads); None takes the mean over this batch.
    """
    if getattr(config, "num_labels", 2) == 1:
        return nn.functional.mse_loss(logits.squeeze(-1).float(), labels.reshape(logits.shape[:-1]).float())
    if labels.is_floating_point() and labels.shape == logits.shape:
        return nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)
    rows, targets = logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1)
    if items is None:
        return nn.functional.cross_entropy(rows, targets)
    return nn.functional.cross_entropy(rows, targets, reduction="sum") / items
