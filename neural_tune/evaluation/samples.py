"""The evaluation set: in memory or re-read on every pass, in data order or in the order in which mistakes are likeliest."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neural_tune.errors import DataError
from neural_tune.evaluation.data import (
    batch_length,
    content_digest,
    is_sequence_of_arrays,
    map_members,
    members,
    owned,
    split_batch,
    to_numpy,
)
from neural_tune.protocols import Array, Inputs


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples, ready to run.

    Attributes:
        rows: Their numbers in data order, int64 (n,).
        inputs: Inputs of n samples, as numpy arrays that share no memory with the loader's.
        labels: Labels of the n samples (see `numpy_labels`), the same way; None without labels.
    """

    rows: Array
    inputs: Inputs
    labels: object


class SampleSet:
    """A loader's samples, cached while they fit into a budget and checked against the first reading when they do not.

    Attributes:
        input_names: Names of the model's inputs, where they are known; they decide how a batch is split.
        size: Number of samples; 0 before the first complete reading.
        digests: Content hash per batch of the first complete reading.
    """

    def __init__(self, loader: Iterable[object], cache_bytes: int, input_names: Sequence[str] = ()) -> None:
        """Take a loader that starts anew for every pass, and the bytes that inputs and labels may take in memory."""
        self.input_names = tuple(input_names)
        self.size = 0
        self.digests: tuple[str, ...] = ()
        self._loader = loader
        self._budget = cache_bytes
        self._cache: list[Batch] | None = None
        self._starts: Array = np.zeros(0, np.int64)
        self._labels: object = None

    @property
    def is_cached(self) -> bool:
        """True when every sample is in memory."""
        return self._cache is not None

    def in_data_order(self) -> Iterator[Batch]:
        """Yield every batch as the loader gives it, as numpy.

        Raises:
            DataError: there is no sample, a batch is malformed, or the data differ from the first reading.
        """
        return iter(self._cache) if self._cache is not None else self._read()

    def expect(self, digests: Sequence[str]) -> None:
        """Read the data without running anything, so that they are cached if they fit.

        Raises:
            DataError: their content is not what `digests` say.
        """
        self.digests = tuple(digests)
        for _ in self._read():
            pass

    def _read(self) -> Iterator[Batch]:
        # A budget that was exceeded once will be exceeded again.
        kept: list[Batch] | None = [] if not self.size else None
        digests: list[str] = []
        start = held = 0
        for raw in self._loader:
            batch = self._batch(raw, start)
            if not len(batch.rows):
                continue
            digests.append(content_digest(batch.inputs, batch.labels))
            self._compare(digests)
            start += len(batch.rows)
            held += _bytes(batch.inputs) + _bytes(batch.labels)
            if held > self._budget:
                kept = None
            if kept is not None:
                kept.append(batch)
            yield batch
        if not start:
            raise DataError(
                "the evaluation data are empty: they gave no sample. Give an iterable with at least one batch"
            )
        if self.digests and len(digests) != len(self.digests):
            raise DataError(_changed(f"{len(digests)} batches came, {len(self.digests)} at first"))
        self._keep(start, digests, kept)

    def _batch(self, raw: object, start: int) -> Batch:
        inputs, labels = split_batch(raw, self.input_names)
        # Copies: batches and labels are kept, and a loader may fill one buffer again and again.
        arrays = map_members(inputs, owned)
        length = batch_length(arrays)
        converted = _owned_labels(numpy_labels(labels, length))
        if converted is not None and (found := label_count(converted)) != length:
            raise DataError(
                f"a batch has {length} samples in its inputs and {found} in its labels; expected one label per sample"
            )
        return Batch(np.arange(start, start + length), arrays, converted)

    def _compare(self, digests: list[str]) -> None:
        position = len(digests) - 1
        if self.digests and (position >= len(self.digests) or digests[-1] != self.digests[position]):
            raise DataError(_changed(f"batch {position} differs"))

    def _keep(self, size: int, digests: list[str], kept: list[Batch] | None) -> None:
        self.size, self.digests = size, tuple(digests)
        if kept is not None:
            self._cache = kept
            self._starts = np.asarray([batch.rows[0] for batch in kept])
            self._labels = concatenate_labels([batch.labels for batch in kept])

    def labels(self) -> object:
        """Return the labels of all samples in data order. Needs `is_cached`."""
        return self._labels

    def gather(self, rows: Array) -> Batch:
        """Return the samples with the numbers `rows`, in that order, as one batch. Needs `is_cached`."""
        places = [self._place(row) for row in rows.tolist()]
        first = places[0][0].inputs
        tables = {id(batch): _arrays(batch.inputs) for batch, _ in places}
        columns = iter(
            [
                np.stack([tables[id(batch)][column][row] for batch, row in places])
                for column in range(len(_arrays(first)))
            ]
        )
        return Batch(rows, map_members(first, lambda _: next(columns)), take_labels(self._labels, rows))

    def _place(self, row: int) -> tuple[Batch, int]:
        if self._cache is None:
            raise AssertionError("gather is called only after is_cached was seen")
        batch = self._cache[int(np.searchsorted(self._starts, row, side="right")) - 1]
        return batch, int(row - batch.rows[0])

    def visits(self, margin: Array) -> list[Array]:
        """Return row numbers per batch so that samples come by ascending `margin`, in batches of the loader's own sizes.

        The sizes come in the loader's order, since a model may refuse any other. Samples whose inputs differ in shape or type cannot share a batch: they are sorted apart, and the batches then come by their
        mean margin. Needs `is_cached`.
        """
        if self._cache is None:
            raise AssertionError("visits is called only after is_cached was seen")
        margin = np.nan_to_num(margin, nan=-np.finfo(np.float64).max)
        groups: dict[tuple[object, ...], list[Array]] = {}
        for batch in self._cache:
            groups.setdefault(_form(batch.inputs), []).append(batch.rows)
        chunks = []
        for parts in groups.values():
            rows = np.concatenate(parts)
            rows = rows[np.argsort(margin[rows], kind="stable")]
            chunks += np.split(rows, np.cumsum([len(part) for part in parts])[:-1])
        # One form: the chunks are in order already, and a rounded mean of ties must not swap the short last one.
        return chunks if len(groups) == 1 else sorted(chunks, key=lambda rows: float((margin[rows] / len(rows)).sum()))


def _arrays(inputs: Inputs) -> list[Array]:
    return [to_numpy(value) for _, value in members(inputs)]


def _form(inputs: Inputs) -> tuple[object, ...]:
    arrays = [(name, to_numpy(value)) for name, value in members(inputs)]
    return tuple((name, array.dtype.str, array.shape[1:]) for name, array in arrays)


def _bytes(value: object) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(_bytes(item) for item in value.values())
    return sum(_bytes(item) for item in value) if isinstance(value, tuple | list) else 64


def _changed(how: str) -> str:
    return (
        f"the evaluation data changed between two readings ({how}), so that float and candidate cannot be compared sample by sample. "
        "Turn shuffling and random augmentation off, or raise cache_bytes so that the data are read once"
    )


# ---------------------------------------------------------------------------------------------------------------- labels


def numpy_labels(labels: object, length: int) -> object:
    """Return labels of one batch as an array, a dict of arrays, a tuple of arrays, or a list with one object per sample.

    A list of arrays that all have `length` rows counts as several label arrays (what a collate function makes of tuple targets); any other
    list that numpy cannot stack holds one object per sample, such as the boxes of an image.
    """
    if labels is None:
        return None
    if isinstance(labels, Mapping):
        return {str(name): to_numpy(value) for name, value in labels.items()}
    if isinstance(labels, tuple) and not all(isinstance(item, int | float | np.generic) for item in labels):
        return tuple(to_numpy(value) for value in labels)
    if isinstance(labels, list) and is_sequence_of_arrays(labels):
        shapes: list[Sequence[int]] = [getattr(item, "shape", ()) for item in labels]
        if all(len(shape) > 0 and shape[0] == length for shape in shapes):
            return tuple(to_numpy(item) for item in labels)
        return _stacked(labels)
    return to_numpy(list(labels) if isinstance(labels, tuple) else labels)


def _owned_labels(labels: object) -> object:
    """Return labels that share no memory with the loader's."""
    if labels is None:
        return None
    return copy.deepcopy(labels) if isinstance(labels, list) else map_members(labels, owned)


def _stacked(labels: list[Any]) -> object:
    """Return one array for a list of 0-d tensors or equal rows, else the list itself: one object per sample."""
    if any(isinstance(item, Mapping | tuple) for item in labels):
        return list(labels)
    rows = [to_numpy(item) for item in labels]
    return np.stack(rows) if len({row.shape for row in rows}) == 1 else list(labels)


def label_count(labels: object) -> int:
    """Return the number of samples that labels (as `numpy_labels` makes them) speak of. Raises DataError when members disagree."""
    return len(labels) if isinstance(labels, list) else batch_length(labels)


def concatenate_labels(parts: Sequence[object]) -> object:
    """Return the labels of all batches as one, in the form of the first.

    Raises:
        DataError: the batches' labels differ in form or in shape.
    """
    first = parts[0]
    if first is None or any(type(part) is not type(first) for part in parts):
        if all(part is None for part in parts):
            return None
        found = ", ".join(sorted({type(part).__name__ for part in parts}))
        raise DataError(f"the labels of the batches differ in form: found {found}, expected one form")
    if isinstance(first, list):
        return [item for part in parts for item in part]  # type: ignore[attr-defined]
    columns = zip(*([value for _, value in members(part)] for part in parts), strict=True)
    joined = iter([concatenate(column, "labels") for column in columns])
    return map_members(first, lambda _: next(joined))


def take_labels(labels: object, rows: Array) -> object:
    """Return the labels of the samples `rows`, in that order."""
    if labels is None:
        return None
    if isinstance(labels, list):
        return [labels[row] for row in rows]
    return map_members(labels, lambda value: value[rows])


def concatenate(parts: Sequence[Any], what: str) -> Array:
    """Return arrays joined along the batch axis.

    Raises:
        DataError: their other axes differ.
    """
    shapes = sorted({part.shape[1:] for part in parts})
    if len(shapes) != 1:
        raise DataError(
            f"the {what} of the batches have different shapes per sample: found {shapes[0]} and {shapes[-1]}, expected one. Pad the data "
            "to one length, or give an eval_func"
        )
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
