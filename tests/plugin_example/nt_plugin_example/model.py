"""The framework of this example: a chain of numpy layers that doubles as its own file format."""

from __future__ import annotations

from neural_tune.testing import ToyModel


class ExampleModel(ToyModel):
    """A model of the example framework: a toy model by another name, so that no other adapter claims it."""
