"""What a user may hand over as a batch, as a feed: input name -> array of the right type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neural_tune.errors import DataError
from neural_tune.protocols import Array, Inputs
from neural_tune_tensorflow.backend import Port


def to_feed(inputs: Inputs, ports: Sequence[Port]) -> dict[str, Array]:
    """Return `inputs` (an array or tensor, a sequence in the order of the inputs, or a mapping by name) as a feed.

    Raises:
        DataError: names, number, ranks, shapes or types do not fit the model.
    """
    names = [port.name for port in ports]
    if isinstance(inputs, Mapping):
        given = {str(name): value for name, value in inputs.items()}
        if set(given) != set(names):
            message = f"inputs: found the names {sorted(given)}, expected {sorted(names)}"
            raise DataError(message)
    else:
        members = list(inputs) if isinstance(inputs, tuple | list) and len(names) != 1 else [_only(inputs)]
        if len(members) != len(names):
            message = f"inputs: found {len(members)} arrays, expected {len(names)} ({', '.join(names)})"
            raise DataError(message)
        given = dict(zip(names, members, strict=True))
    return {port.name: _array(given[port.name], port) for port in ports}


def check_numbers(feed: Mapping[str, Array], where: str) -> None:
    """Refuse NaN and infinite inputs.

    Raises:
        DataError: an input holds one.
    """
    for name, values in feed.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            message = f"{where}: input {name!r} holds {int((~np.isfinite(values)).sum())} values that are not finite"
            raise DataError(message)


def _only(inputs: Any) -> Any:
    return inputs[0] if isinstance(inputs, tuple | list) and len(inputs) == 1 else inputs


def _array(value: Any, port: Port) -> Array:
    try:
        found = np.asarray(value)
    except Exception as error:
        message = f"input {port.name!r}: found {type(value).__name__}, which numpy cannot read: {error}"
        raise DataError(message) from error
    if found.dtype != port.dtype:
        if found.dtype.kind not in "fiub" or (found.dtype.kind == "f" and port.dtype.kind in "iu"):
            message = f"input {port.name!r}: found type {found.dtype}, expected {port.dtype}"
            raise DataError(message)
        found = found.astype(port.dtype)
    if port.shape is not None and (
        len(port.shape) != found.ndim
        or any(want is not None and want != have for want, have in zip(port.shape, found.shape, strict=True))
    ):
        wanted = ["?" if size is None else size for size in port.shape]
        message = f"input {port.name!r}: found shape {list(found.shape)}, expected {wanted}"
        raise DataError(message)
    return found
