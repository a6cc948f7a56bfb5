"""What a recipe wants to do to a model, before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from neural_tune_onnxruntime.recipes.derive import Edits


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Change:
    """A proposal of a recipe.

    Attributes:
        edits: New constants; empty when there is nothing to do.
        tensors: Activations whose values change with them, so that their statistics must be taken anew.
        refused: Op -> why the recipe leaves it alone.
        note: What was done, for a person.
    """

    edits: Edits
    tensors: tuple[str, ...] = ()
    refused: Mapping[str, str]
    note: str
