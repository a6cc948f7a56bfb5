"""Calibration: one streaming pass over the data, in memory that does not grow with the number of samples.

The runtime's own calibrators keep every activation of every sample until the end (12 GB for 100 images of a ResNet-50, measured) or
throw some away; here each activation is folded into its statistics as soon as it is computed, and forgotten.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from neural_tune.calibration import Collector, Statistics
from neural_tune.errors import AdapterError, DataError
from neural_tune_onnxruntime.session import RUNTIME_ERRORS, Session, first_line

_LOG = logging.getLogger(__name__)

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Batch: TypeAlias = Mapping[str, Array]
MakeSession: TypeAlias = Callable[[Sequence[str]], Session]
Chunks: TypeAlias = tuple[tuple[str, ...], ...]

MEMORY_BUDGET = 1 << 28
_FLOAT_TYPES = ("tensor(float)", "tensor(float16)", "tensor(double)")
# Where shapes are unknown, the first batch reveals the sizes of this many tensors at a time.
_PROBED_AT_ONCE = 8


def collect(
    make_session: MakeSession,
    tensors: Sequence[str],
    batches: Iterable[Batch],
    *,
    memory_budget: int = MEMORY_BUDGET,
) -> Statistics:
    """Pull every batch once and return the statistics of `tensors`.

    Args:
        make_session: Returns a session of the float graph whose outputs are exactly the given tensors, in that order.
        tensors: Names of float tensors to observe.
        batches: Input name -> array; iterated once, nothing of a batch is kept.
        memory_budget: Bytes of activations that one run may hand out. Beyond it a batch is run in parts, or, where the model does not
            treat samples independently, through several sessions for some of the tensors each, one after the other (each is
            dropped before the next one starts, because it would keep its memory).

    Raises:
        DataError: no batch, a batch that does not fit the model, or one that makes an activation NaN. (Infinities are what a mask is made of:
            such a tensor has no range, and the statistics say so.)
        AdapterError: a tensor is not of a float type, or the runtime breaks.
    """
    _check_names(tensors)
    collector = Collector()
    runner = _Runner(make_session, tuple(tensors), memory_budget)
    for number, batch in enumerate(batches, start=1):
        for name, activation in runner.activations(batch, number):
            collector.see(name, activation)
        collector.end_batch()
    return collector.statistics()


def chunks_of(sizes: Mapping[str, int], budget: int) -> Chunks:
    """Return the names in order, cut so that the sizes of no part exceed `budget` (a larger tensor makes a part of its own)."""
    parts: list[list[str]] = []
    room = -1
    for name, size in sizes.items():
        if not parts or size > room:
            parts.append([])
            room = budget
        parts[-1].append(name)
        room -= size
    return tuple(tuple(part) for part in parts)


class _Runner:
    """Runs batches so that one run hands out no more activations than the budget allows.

    Above the budget a batch is cut along its first axis, where the model treats samples independently (tried out, not assumed); else,
    or if a single sample is too much, the tensors are cut into chunks, which costs a forward pass for each. Before the
    first batch sizes are estimated from the shapes that the runtime knows; from then on they are measured.
    """

    def __init__(self, make_session: MakeSession, tensors: tuple[str, ...], budget: int) -> None:
        self._make_session = make_session
        self._tensors = tensors
        self._budget = budget
        self._sizes: dict[str, int] = {}
        self._whole: Session | None = None
        self._chunks: Chunks = ()
        self._rows: int | None = None
        self._is_divisible: bool | None = None

    def activations(self, batch: Batch, number: int) -> Iterator[tuple[str, Array]]:
        """Yield names and activations for one batch, a tensor once per part of the batch; each may be forgotten at once."""
        if not self._chunks:
            self._prepare(batch, number)
        found = dict.fromkeys(self._tensors, 0)
        for part in _parts(batch, self._rows):
            for chunk in self._chunks:
                session = self._whole or self._make_session(chunk)
                activations = _run(session, part, number)
                del session
                for name in reversed(chunk):  # popping from the end frees each one as soon as it is folded
                    activation = activations.pop()
                    found[name] += activation.nbytes
                    yield name, activation
                    del activation
        largest = {name: max(size, self._sizes.get(name, 0)) for name, size in found.items()}
        if largest != self._sizes:
            self._sizes = largest
            self._plan(largest, batch, number)

    def _prepare(self, batch: Batch, number: int) -> None:
        session = self._make_session(self._tensors)
        _check_types(session)
        estimated = _estimated_sizes(session, batch)
        if len(estimated) == len(self._tensors):
            self._whole = session
            del session
            self._plan(estimated, batch, number)
            return
        unknown = [name for name in self._tensors if name not in estimated]
        probes = (tuple(unknown[i : i + _PROBED_AT_ONCE]) for i in range(0, len(unknown), _PROBED_AT_ONCE))
        self._chunks = (*chunks_of(estimated, self._budget), *probes)
        if len(self._chunks) == 1:
            self._whole = session

    def _plan(self, sizes: Mapping[str, int], batch: Batch, number: int) -> None:
        """Decide how a batch whose activations have these sizes is run."""
        total, self._rows = sum(sizes.values()), None
        if total > self._budget and self._divides(batch, number):
            rows = _row_count(batch)
            self._rows = max(1, self._budget * rows // total)
            sizes = {name: math.ceil(size * self._rows / rows) for name, size in sizes.items()}
        chunks = chunks_of({name: sizes[name] for name in self._tensors}, self._budget)
        if total > self._budget:
            _LOG.info(
                "%d bytes of activations per batch: %s samples and %d runs at a time", total, self._rows, len(chunks)
            )
        self._chunks = chunks
        if len(chunks) > 1:
            self._whole = None
        elif self._whole is None:
            self._whole = self._make_session(self._tensors)

    def _divides(self, batch: Batch, number: int) -> bool:
        """Return whether the model gives the same for a batch in two parts: its inputs say so, and the last tensor agrees."""
        if self._is_divisible is None and _row_count(batch) > 1:
            self._whole = None  # one session at a time
            last = self._make_session(self._tensors[-1:])
            firsts = {item.shape[0] if item.shape else None for item in last.get_inputs()}
            self._is_divisible = False
            if len(firsts) == 1 and isinstance(firsts.pop(), str):
                whole = _run(last, batch, number)[0]
                parts = [_run(last, part, number)[0] for part in _parts(batch, math.ceil(_row_count(batch) / 2))]
                self._is_divisible = _agree(whole, parts)
        return bool(self._is_divisible) and _row_count(batch) > 1


def _row_count(batch: Batch) -> int:
    """Return the common length of the first axis of all inputs; 1 where there is none."""
    lengths = {np.shape(value)[0] if np.ndim(value) else 0 for value in batch.values()}
    return lengths.pop() if len(lengths) == 1 else 1


def _parts(batch: Batch, rows: int | None) -> Iterator[Batch]:
    if rows is None or _row_count(batch) <= rows:
        yield batch
        return
    for begin in range(0, _row_count(batch), rows):
        yield {name: value[begin : begin + rows] for name, value in batch.items()}


def _agree(whole: Array, parts: Sequence[Array]) -> bool:
    """Return whether the parts are the whole, up to what another order of summation changes."""
    if any(part.ndim == 0 or part.shape[1:] != whole.shape[1:] for part in parts):
        return False
    joined = np.concatenate(parts)
    if joined.shape != whole.shape:
        return False
    if not np.isfinite(whole).all():  # a mask: nothing to subtract
        return bool(np.array_equal(joined, whole))
    return bool(np.abs(joined - whole).max(initial=0.0) <= 1e-3 * np.abs(whole).max(initial=0.0))


def _run(session: Session, batch: Batch, number: int) -> list[Array]:
    try:
        return list(session.run(None, dict(batch)))
    except ValueError as error:  # names that the runtime misses, or types it cannot take
        raise DataError(f"calibration batch {number} does not fit the model: {first_line(error)}") from error
    except RUNTIME_ERRORS as error:
        if type(error).__name__ == "InvalidArgument":  # a wrong shape, rank, type or name
            raise DataError(f"calibration batch {number} does not fit the model: {first_line(error)}") from error
        raise AdapterError(f"the runtime breaks on calibration batch {number}: {first_line(error)}") from error


def _estimated_sizes(session: Session, batch: Batch) -> dict[str, int]:
    """Return the bytes of those outputs whose shape follows from the model and the shapes of one batch."""
    dims: dict[str, int] = {}
    for item in session.get_inputs():
        if item.name in batch:
            found = zip(item.shape, np.shape(batch[item.name]), strict=False)
            dims.update({dim: size for dim, size in found if isinstance(dim, str)})
    sizes = {}
    for item in session.get_outputs():
        # The runtime gives an unknown rank as [], which a scalar has too: such a tensor counts as unknown.
        shape = [dims.get(dim, 0) if isinstance(dim, str) else int(dim or 0) for dim in item.shape]
        if shape and all(shape):
            sizes[item.name] = math.prod(shape) * (8 if item.type == "tensor(double)" else 4)
    return sizes


def _check_names(tensors: Sequence[str]) -> None:
    if len(set(tensors)) != len(tensors):
        twice = sorted({name for name in tensors if list(tensors).count(name) > 1})
        raise AdapterError(f"tensors to observe are named twice: {', '.join(twice)}; name each once")


def _check_types(session: Session) -> None:
    wrong = [f"{item.name!r} ({item.type})" for item in session.get_outputs() if item.type not in _FLOAT_TYPES]
    if wrong:
        raise AdapterError(
            f"only float tensors have a range, found {', '.join(wrong)}; leave them out of the observed tensors"
        )
