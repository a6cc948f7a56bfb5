"""Batches as users have them, read without importing the framework they come from.

A *loader* is any iterable of batches; a batch is `(inputs, labels)` or `inputs`; inputs are one array (or framework tensor),
a sequence in the order of the model's inputs, or a mapping by input name. `split_batch` says exactly which is which.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from neural_tune.errors import ConfigError, DataError
from neural_tune.protocols import Array, Inputs

_LABEL_KEYS = ("labels", "label")


def split_batch(batch: object, input_names: Sequence[str] = ()) -> tuple[Inputs, object | None]:
    """Return `(inputs, labels)` of one batch; labels are None when it has none. Inputs that are lists of rows become numpy arrays.

    With k the number of `input_names` (nothing known counts as one input), the rules are, in this order:

    1. A mapping (a Hugging Face `BatchEncoding` too) is inputs by name. A key "labels" or "label" that is no input name is taken out
       as the labels.
    2. An array, a tensor or a list of plain numbers is the one input.
    3. A tuple, or a list that holds arrays, tensors, mappings or tuples, is a sequence of m members:
       one member is the inputs; two members are `(inputs, labels)`, unless k is 2 and the first member is a single array: one array
       cannot be the inputs of a model with two, so both members are inputs without labels; k members (m > 2) are inputs; k + 1
       members (k > 1) are the inputs followed by the labels; any m > 2 is inputs when no name is known.

    Raises:
        DataError: the batch is none of these, or the rows of a list differ in shape.
    """
    inputs, labels = _split(batch, input_names)
    if any(isinstance(value, list) for _, value in members(inputs)):
        # A list of rows is one array here; whoever gets it next would take it for a sequence of inputs.
        inputs = map_members(inputs, lambda value: to_numpy(value) if isinstance(value, list) else value)
    return inputs, labels


def _split(batch: object, input_names: Sequence[str]) -> tuple[Inputs, object | None]:
    if isinstance(batch, Mapping):
        return _split_mapping(batch, input_names)
    if not is_sequence_of_arrays(batch):
        if not is_array_like(batch):
            raise DataError(_not_a_batch(batch))
        return batch, None
    parts = as_sequence(batch)
    count, expected = len(parts), max(len(input_names), 1)
    if count == 1:
        # An inner tuple is the whole of the inputs; an array alone is the one input. Either way the wrapper goes.
        return parts[0], None
    if count == 2:
        both_are_inputs = len(input_names) == 2 and _is_single_array(parts[0])
        return (parts, None) if both_are_inputs else parts
    if count == expected or (count > 2 and not input_names):
        return parts, None
    if expected > 1 and count == expected + 1:
        return parts[:-1], parts[-1]
    raise DataError(
        f"a batch of {count} members was found ({', '.join(type(member).__name__ for member in parts)}), but the model has "
        f"{expected} input(s) ({', '.join(input_names) or 'unnamed'}); expected (inputs, labels) or inputs. Wrap the loader so "
        "that it yields one of them"
    )


def _split_mapping(batch: Mapping[str, object], input_names: Sequence[str]) -> tuple[Inputs, object | None]:
    key = next((name for name in _LABEL_KEYS if name in batch and name not in input_names), None)
    if not batch or (key is not None and len(batch) == 1):
        raise DataError(f"a batch without inputs was found: a mapping with the keys {sorted(map(str, batch))}")
    if key is None:
        return dict(batch.items()), None
    return {name: value for name, value in batch.items() if name != key}, batch[key]


def is_array_like(value: object) -> bool:
    """Return whether `value` is an array, a framework tensor, a number or a list of plain numbers (nested too)."""
    if hasattr(value, "shape") or isinstance(value, bool | int | float | np.generic):
        return True
    return isinstance(value, list) and not is_sequence_of_arrays(value)


def is_sequence_of_arrays(value: object) -> bool:
    """Return whether `value` is a tuple, or a list with an array, tensor, mapping or tuple in it, rather than one array."""
    if isinstance(value, tuple):
        return True
    return isinstance(value, list) and any(
        hasattr(item, "shape") or isinstance(item, tuple | Mapping) for item in value
    )


def as_sequence(value: object) -> tuple[Any, ...]:
    """Return the members of what `is_sequence_of_arrays` is true of."""
    return tuple(value)  # type: ignore[arg-type]


def _is_single_array(value: object) -> bool:
    return is_array_like(value) and not isinstance(value, Mapping)


def _not_a_batch(found: object) -> str:
    return (
        f"found a batch of type {type(found).__name__} ({found!r:.60}), expected (inputs, labels) or inputs, where inputs are an array "
        "or tensor, a sequence of them, or a mapping by input name"
    )


def to_numpy(value: object) -> Array:
    """Return `value` as a numpy array: numpy arrays as they are, torch and eager tf tensors, numbers and nested lists.

    A dtype numpy does not know (torch.bfloat16) becomes float32.

    Raises:
        DataError: `value` is ragged or holds something that is no number, text or bool.
    """
    if isinstance(value, np.ndarray):
        array = value
    elif hasattr(value, "detach") and hasattr(value, "cpu"):
        array = _from_torch(value)
    elif hasattr(value, "numpy") and callable(value.numpy):
        array = np.asarray(value.numpy())
    else:
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise DataError(
                f"found a ragged {type(value).__name__}, expected rows of one shape: pad or stack them ({error})"
            ) from error
    if array.dtype == object:
        raise DataError(
            f"found {value!r:.80} of type {type(value).__name__}, expected numbers: convert it to an array or tensor"
        )
    return array


def owned(value: object) -> Array:
    """Return `value` as a numpy array that shares no memory with it: a loader may fill one buffer again and again.

    Raises:
        DataError: see `to_numpy`.
    """
    return np.array(to_numpy(value), copy=True)


def _from_torch(tensor: Any) -> Array:
    host = tensor.detach().cpu()
    try:
        return np.asarray(host.numpy())
    except TypeError:  # numpy has no bfloat16
        return np.asarray(host.float().numpy())


def members(inputs: Inputs) -> list[tuple[str, object]]:
    """Return the arrays or tensors of `inputs` with a name each: its own, its position, or "" for a single one."""
    if isinstance(inputs, Mapping):
        return [(str(name), value) for name, value in inputs.items()]
    if is_sequence_of_arrays(inputs):
        return [(str(position), value) for position, value in enumerate(as_sequence(inputs))]
    return [("", inputs)]


def map_members(inputs: Inputs, change: Callable[[Any], object]) -> Inputs:
    """Return `inputs` in the same form (array, tuple or dict) with `change` applied to every member."""
    if isinstance(inputs, Mapping):
        return {name: change(value) for name, value in inputs.items()}
    if is_sequence_of_arrays(inputs):
        return tuple(change(value) for value in as_sequence(inputs))
    return change(inputs)


def _cut(inputs: Inputs, rows: slice) -> Inputs:
    return map_members(inputs, lambda value: value[rows])


def batch_length(inputs: Inputs) -> int:
    """Return the number of samples of a batch, the length of the first axis of every member.

    Raises:
        DataError: the members disagree, one has no axis, or there is none.
    """
    lengths = {name: _length(value, name) for name, value in members(inputs)}
    if len(set(lengths.values())) != 1:
        shown = ", ".join(f"{name or 'input'} has {length}" for name, length in lengths.items()) or "there is no member"
        raise DataError(
            f"the inputs of one batch disagree about the number of samples: {shown}. The first axis is the batch axis"
        )
    return next(iter(lengths.values()))


def _length(value: Any, name: str) -> int:
    shape = getattr(value, "shape", None)
    if shape is not None:
        if len(shape) == 0:
            raise DataError(f"input {name!r} is a single number, expected an array whose first axis is the batch axis")
        return int(shape[0])
    if isinstance(value, list):
        return len(value)
    raise DataError(_not_a_batch(value))


def content_digest(*parts: object) -> str:
    """Return 32 hexadecimal digits that stand for names, dtypes, shapes and bytes of inputs, and of labels of any form."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        _feed(state, part)
    return state.hexdigest()


def _feed(state: Any, value: object) -> None:
    state.update(b"|")
    if value is None:
        return
    if isinstance(value, Mapping) or is_sequence_of_arrays(value):
        for name, member in members(value):
            state.update(name.encode())
            _feed(state, member)
        return
    array = np.ascontiguousarray(to_numpy(value))
    state.update(f"{array.dtype.str}{array.shape}".encode())
    state.update(
        array.tobytes() if array.ndim == 0 or array.dtype.kind not in "biuf" else array.reshape(-1).view(np.uint8).data
    )


class CalibrationStream:
    """The first batches of a loader, until they hold `sampling_size` samples, as inputs; it can be read once.

    Batches are never cut, because a model may take batches of one size only: the last one may exceed the sampling size. They are numpy
    arrays of their own, so that a loader that fills one buffer again and again changes nothing that was handed out.

    Attributes:
        samples: Samples handed out so far.
        first_batch_digest: Content hash of the first batch of inputs; empty until it was read.
        first_inputs: Inputs of the first batch, for sanity checks; None until it was read.
        notices: What a person should know after reading, such as data that ended early, or samples beyond the sampling size.
    """

    def __init__(self, loader: object, sampling_size: int, input_names: Sequence[str] = ()) -> None:
        """Take `loader` (see `as_loader`; a one-shot iterator will do here). Raises ConfigError for a size below 1."""
        if isinstance(sampling_size, bool) or not isinstance(sampling_size, int) or sampling_size < 1:
            raise ConfigError(f"calibration sampling_size: found {sampling_size!r}, expected an integer, 1 or more")
        self.samples = 0
        self.first_batch_digest = ""
        self.first_inputs: Inputs = None
        self.notices: list[str] = []
        self._limit = sampling_size
        self._names = tuple(input_names)
        self._loader: Iterable[object] = as_loader(loader, once=True)
        self._source: Iterator[object] | None = None
        self._is_spent = False

    def peek(self) -> str:
        """Return `first_batch_digest`, reading the first batch if need be; the iteration still starts with it.

        Raises:
            DataError: there is no first batch.
        """
        if not self.first_batch_digest:
            self._read_first()
        return self.first_batch_digest

    def __iter__(self) -> Iterator[Inputs]:
        """Yield batches of inputs as the loader cut them.

        Raises:
            DataError: this is the second iteration, there is no sample, or a batch is malformed.
        """
        if self._is_spent:
            raise DataError(
                "calibration data is read once per run, but it was asked for a second time; keep what the first reading gave"
            )
        self._is_spent = True
        self.peek()
        return self._batches()

    def _batches(self) -> Iterator[Inputs]:
        batch: Inputs | None = self.first_inputs
        while batch is not None and self.samples < self._limit:
            self.samples += batch_length(batch)
            yield batch
            batch = self._next_inputs() if self.samples < self._limit else None
        if self.samples < self._limit:
            self.notices.append(
                f"calibration: {self._limit} samples were asked for, the data has {self.samples}; all of them are used. "
                "Give more data or a smaller sampling_size"
            )
        elif self.samples > 1.5 * self._limit:  # a little more than asked for surprises nobody
            self.notices.append(
                f"calibration: {self._limit} samples were asked for, {self.samples} are used: batches are taken whole, as the loader cuts "
                "them"
            )

    def _read_first(self) -> None:
        self._source = iter(self._loader)
        first = self._next_inputs()
        if first is None:
            raise DataError(
                "the calibration data is empty: it gave no sample. Give an iterable with at least one batch"
            )
        self.first_inputs = first
        self.first_batch_digest = content_digest(first)

    def _next_inputs(self) -> Inputs | None:
        """Return the next batch that is not empty; None at the end."""
        for batch in self._source or ():
            inputs, _ = split_batch(batch, self._names)
            if batch_length(inputs) > 0:
                return map_members(inputs, owned)
        return None


class ArrayLoader:
    """Whole arrays as a loader: it cuts `x` and `y` into batches, in order, any number of times."""

    def __init__(self, x: Inputs, y: object | None = None, batch_size: int = 32) -> None:
        """Take inputs of n samples and, optionally, labels of n samples.

        Raises:
            ConfigError: the batch size is below 1.
            DataError: x and y disagree about n.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size: found {batch_size!r}, expected an integer, 1 or more")
        self._x, self._y, self._batch_size = x, y, batch_size
        self._samples = batch_length(x)
        if y is not None and batch_length(y) != self._samples:
            raise DataError(f"x has {self._samples} samples and y has {batch_length(y)}; expected one label per sample")

    def __len__(self) -> int:
        """Return the number of batches."""
        return math.ceil(self._samples / self._batch_size)

    def __iter__(self) -> Iterator[object]:
        """Yield `(inputs, labels)`, or `inputs` alone in a tuple of one when there are no labels."""
        for start in range(0, self._samples, self._batch_size):
            rows = slice(start, start + self._batch_size)
            x = _cut(self._x, rows)
            yield (x,) if self._y is None else (x, _cut(self._y, rows))


class _FunctionLoader:
    """A generator *function* as a loader: it is called anew for every pass."""

    def __init__(self, function: Callable[[], Iterable[object]]) -> None:
        self._function = function

    def __iter__(self) -> Iterator[object]:
        made = self._function()
        if not isinstance(made, Iterable):
            raise DataError(f"the data function returned a {type(made).__name__}, expected an iterable of batches")
        return iter(made)


def as_loader(data: object, batch_size: int = 32, *, once: bool = False) -> Iterable[object]:
    """Return `data` as an iterable of batches.

    Accepted are a torch `DataLoader`, a `tf.data.Dataset`, a list of batches or any other iterable (all returned as they are and
    batched as they are); a generator function (called anew for every pass); and whole arrays, cut into batches of `batch_size`: one
    array, a dict of arrays by input name, or the *tuple* `(x, y)`. A list is always a list of batches.

    Args:
        data: What the user gave.
        batch_size: Size of the batches cut from whole arrays.
        once: True where the data are read once only (calibration), so that a one-shot iterator will do.

    Raises:
        DataError: `data` is no iterable, or a one-shot iterator where it would be read twice.
    """
    if isinstance(data, Mapping) or (hasattr(data, "shape") and not isinstance(data, Iterator)):
        return ArrayLoader(data, batch_size=batch_size)
    if isinstance(data, tuple) and len(data) == 2:
        return ArrayLoader(data[0], data[1], batch_size)
    if isinstance(data, str | bytes) or not (isinstance(data, Iterable) or callable(data)):
        raise DataError(
            f"found data of type {type(data).__name__} ({data!r:.60}), expected an iterable of batches: a DataLoader, a tf.data.Dataset, "
            "a list, or arrays as (x, y)"
        )
    if isinstance(data, Iterator):
        if not once:
            raise DataError(
                f"found a one-shot {type(data).__name__}: it is exhausted after one pass, and evaluation data are read several times. "
                "Pass the generator function itself, a list, a DataLoader, or any object whose __iter__ starts anew"
            )
        return data
    if isinstance(data, Iterable):
        return data
    return _FunctionLoader(data)
