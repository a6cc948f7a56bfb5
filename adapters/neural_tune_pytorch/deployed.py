"""The model that users get: it is called like the original and answers like it, whatever runs inside."""

from __future__ import annotations

from typing import Any, Self

from torch import nn

from neural_tune_pytorch.backend import Built
from neural_tune_pytorch.calling import unflatten
from neural_tune_pytorch.inputs import fit
from neural_tune_pytorch.threads import inference


class Deployed(nn.Module):
    """A quantized (or float) model for inference.

    Takes what the original took: positional, by keyword, a mapping or a `BatchEncoding`; arrays are fine too. Returns what the original returned, computed without
    gradients. `.eval()` is tolerated, `.train()` has no effect on the numbers: there is nothing left that trains.
    """

    def __init__(self, built: Built) -> None:
        super().__init__()
        self._built = built
        self.training = False

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """Return the outputs in the structure of the original. Raises DataError for inputs that do not fit."""
        built = self._built
        values = built.calling.bind(arguments, keywords)
        feed = tuple(fit(value, info) for value, info in zip(values, built.calling.inputs, strict=True))
        with inference(built.threads):
            return unflatten(built.network(*feed), built.calling.outputs)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002 - the signature of nn.Module
        """Stay in eval mode."""
        return self

    def eval(self) -> Self:
        """Stay in eval mode."""
        return self

    def extra_repr(self) -> str:
        """Say what it takes."""
        return f"inputs={list(self._built.calling.names)}"
