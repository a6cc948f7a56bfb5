"""What a dataset is, and those whose samples are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from neural_tune.data_files import Rows
from neural_tune.protocols import Array


class Dataset(Protocol):
    """Samples that can be read any number of times, always in the same order."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs, by which a transform can single one out."""

    def load(self) -> tuple[Mapping[str, Rows], Rows | None]:
        """Return the inputs by name and the labels. Raises DataError for files that cannot be read."""

    def arrange(self, inputs: Mapping[str, Array]) -> object:
        """Return one batch of inputs in the form the job asked for."""


@dataclass(frozen=True, slots=True)
class RowDataset:
    """One input whose samples are read when they are asked for: images, records, made-up numbers.

    Attributes:
        name: The input's name for transforms.
        open: Returns the samples and the labels; called at the first iteration.
    """

    name: str
    open: Callable[[], tuple[Rows, Rows | None]]

    @property
    def input_names(self) -> tuple[str, ...]:
        """The name of the one input."""
        return (self.name,)

    def load(self) -> tuple[Mapping[str, Rows], Rows | None]:
        """Return the samples and the labels."""
        rows, labels = self.open()
        return {self.name: rows}, labels

    def arrange(self, inputs: Mapping[str, Array]) -> object:
        """Return the array of the one input."""
        return inputs[self.name]


@dataclass(frozen=True, slots=True)
class ColumnDataset:
    """Several inputs by name, read when they are asked for.

    Attributes:
        input_names: Names of the model's inputs.
        open: Returns the samples of each, and the labels.
    """

    input_names: tuple[str, ...]
    open: Callable[[], tuple[Mapping[str, Rows], Rows | None]]

    def load(self) -> tuple[Mapping[str, Rows], Rows | None]:
        """Return the samples and the labels."""
        return self.open()

    def arrange(self, inputs: Mapping[str, Array]) -> object:
        """Return the arrays by input name."""
        return dict(inputs)
