"""Batches of a dataset, transformed as they are read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from neural_tune.data_files import Rows
from neural_tune.datasets.samples import Dataset
from neural_tune.protocols import Array
from neural_tune.transforms import Batch, Step, stacked


class BatchLoader:
    """Batches of a `Dataset`, transformed as they are read, any number of times and always in the same order.

    A batch is `(inputs, labels)`, or `(inputs,)` when there are no labels. Arrays are opened at the first iteration.
    """

    def __init__(
        self,
        dataset: Dataset,
        steps: Sequence[Step] = (),
        batch_size: int = 1,
        *,
        drop_last: bool = False,
        label_shift: int = 0,
    ) -> None:
        """Take a dataset, the steps in order, and how to cut batches; `drop_last` leaves out an incomplete last batch, `label_shift` is added to labels."""
        self.batch_size = batch_size
        self._dataset, self._steps, self._drop_last = dataset, tuple(steps), drop_last
        self._label_shift = label_shift
        self._arrays: tuple[Mapping[str, Rows], Rows | None] | None = None

    def with_labels_shifted(self, shift: int) -> BatchLoader:
        """Return the same batches with `shift` added to every label."""
        return BatchLoader(self._dataset, self._steps, self.batch_size, drop_last=self._drop_last, label_shift=shift)

    def __len__(self) -> int:
        """Return the number of batches."""
        count = len(next(iter(self._opened()[0].values())))
        return count // self.batch_size if self._drop_last else math.ceil(count / self.batch_size)

    def __iter__(self) -> Iterator[tuple[object, ...]]:
        """Yield the batches.

        Raises:
            DataError: the files hold something else than arrays, or a transform does not fit them.
        """
        inputs, labels = self._opened()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            rows = slice(start, start + self.batch_size)
            batch = self._dataset.arrange(
                {name: self._transformed(name, array[rows]) for name, array in inputs.items()}
            )
            yield (batch,) if labels is None else (batch, self._labels(labels[rows]))

    def _labels(self, rows: Any) -> Array:
        return np.asarray(rows) + self._label_shift if self._label_shift else np.asarray(rows)

    def _opened(self) -> tuple[Mapping[str, Rows], Rows | None]:
        if self._arrays is None:
            self._arrays = self._dataset.load()
        return self._arrays

    def _transformed(self, name: str, batch: Batch) -> Array:
        for step in self._steps:
            if not step.inputs or name in step.inputs:
                batch = step.apply(batch)
        return stacked(batch)
