"""One batch, in whatever form it came, as tensors in the model's order; and tensors back to numpy. Checked, never silently cast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neural_tune.errors import DataError
from neural_tune.protocols import Inputs
from neural_tune.protocols import Outputs as Arrays
from neural_tune_pytorch.backend import Feed
from neural_tune_pytorch.calling import Calling, InputInfo

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def to_tensor(value: object, name: str = "input") -> Tensor:
    """Return an array, tensor (of any framework) or nested list as a CPU tensor that needs no gradient.

    Raises:
        DataError: it is no array of numbers.
    """
    if isinstance(value, Tensor):
        is_ready = value.is_cpu and not value.requires_grad
        return value if is_ready else value.detach().cpu()
    try:
        array = np.asarray(value)
        if not array.flags.writeable:  # torch warns of memory that it must not write to
            array = array.copy()
        return torch.from_numpy(np.ascontiguousarray(array) if array.ndim else array)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"input {name!r}: found a {type(value).__name__} that is no array of numbers ({error})"
        ) from error


def to_feed(inputs: Inputs, calling: Calling) -> Feed:
    """Return `inputs` (array, sequence in order, or mapping by name) as tensors in the model's order.

    float64 and half precision become the float32 of the model, integers the integers of the model; nothing else is cast.

    Raises:
        DataError: names, number, types, numbers of axes, or lengths that the model has fixed do not fit.
    """
    arguments = inputs if isinstance(inputs, tuple | list) and len(calling.inputs) > 1 else (inputs,)
    values = calling.bind(tuple(arguments), {})
    return tuple(fit(value, info) for value, info in zip(values, calling.inputs, strict=True))


def fit(value: object, info: InputInfo) -> Tensor:
    """Return one input as a tensor of the dtype that the model takes. Raises DataError as `to_feed` does."""
    tensor = to_tensor(value, info.name)
    wanted = info.torch_dtype
    if tensor.dtype != wanted:
        floats = tensor.is_floating_point() and wanted.is_floating_point
        integers = tensor.dtype in _INTEGERS and wanted in _INTEGERS
        if not (floats or integers):
            raise DataError(
                f"input {info.name!r}: found {tensor.dtype}, expected {wanted}; convert it in the dataloader"
            )
        tensor = tensor.to(wanted)
    if tensor.ndim != len(info.shape):
        raise DataError(
            f"input {info.name!r}: found shape {tuple(tensor.shape)}, expected {len(info.shape)} axes like {info.shape}"
        )
    if info.fixed:
        _check_sizes(tensor, info)
    return tensor


def _check_sizes(tensor: Tensor, info: InputInfo) -> None:
    """Raise DataError for a length that the captured graph does not take: it would compute with the one it knows."""
    shape = tensor.shape
    for axis, size in info.fixed:
        if shape[axis] != size:
            raise DataError(
                f"input {info.name!r}: found shape {tuple(shape)} with length {shape[axis]} along axis {axis}, expected {size}: the model was "
                "captured for that length only; resize, pad or crop in the dataloader, or capture it with an example of this shape"
            )


def check_numbers(feed: Feed, calling: Calling, where: str) -> None:
    """Raise DataError, beginning with `where`, if a float input holds NaN or an infinity."""
    for tensor, info in zip(feed, calling.inputs, strict=True):
        if tensor.is_floating_point():
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                raise DataError(
                    f"{where}: input {info.name!r} holds {bad} values that are NaN or infinite; check the preprocessing"
                )


def to_arrays(tensors: Sequence[Tensor]) -> Arrays:
    """Return outputs as numpy arrays; bfloat16, which numpy does not have, and float16 as float32."""
    halves = (torch.bfloat16, torch.float16)
    return tuple((item.float() if item.dtype in halves else item).detach().cpu().numpy() for item in tensors)


def shapes_of(feed: Feed) -> list[list[int]]:
    """Return the shapes, for messages."""
    return [list(tensor.shape) for tensor in feed]


def members(batch: Any) -> Any:
    """Return a batch with every member as a tensor, in the form it came (array, tuple or mapping)."""
    if isinstance(batch, Mapping):
        return {str(name): to_tensor(value, str(name)) for name, value in batch.items() if value is not None}
    if isinstance(batch, tuple | list) and any(hasattr(item, "shape") for item in batch):
        return tuple(to_tensor(item) for item in batch)
    return to_tensor(batch)
