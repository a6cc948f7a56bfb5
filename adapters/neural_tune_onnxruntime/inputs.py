"""One batch, in whatever form it came, as arrays by input name: checked, never silently cast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from neural_tune.errors import DataError
from neural_tune.protocols import Inputs, InputSpec

Feed: TypeAlias = dict[str, NDArray[Any]]
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint64)": np.uint64,
    "tensor(uint32)": np.uint32,
    "tensor(uint16)": np.uint16,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
_NAMES: dict[int, str] = {int(helper.np_dtype_to_tensor_dtype(np.dtype(kind))): name for name, kind in _TYPES.items()}


@dataclass(frozen=True, slots=True)
class InputInfo:
    """One input of a model.

    Attributes:
        name: Its name.
        type: The runtime's type, such as "tensor(float)".
        shape: Per axis its length, or a name (or None) where it is free.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...]

    @classmethod
    def of(cls, value: Any) -> InputInfo:
        """Return the info of a `NodeArg` of a session."""
        return cls(value.name, value.type, tuple(value.shape))

    @classmethod
    def of_graph(cls, value: onnx.ValueInfoProto) -> InputInfo:
        """Return the same from an input of a graph, which no session has to be started for."""
        kind = value.type.tensor_type
        shape = (item.dim_value if item.HasField("dim_value") else item.dim_param or None for item in kind.shape.dim)
        return cls(value.name, _NAMES.get(kind.elem_type, ""), tuple(shape))

    @property
    def spec(self) -> InputSpec:
        """The same in the core's words."""
        dtype = np.dtype(_TYPES.get(self.type, np.float32)).name
        return InputSpec(
            name=self.name,
            dtype=dtype,
            shape=tuple(length if isinstance(length, int) and length > 0 else None for length in self.shape),
        )


def to_feed(inputs: Inputs, wanted: Sequence[InputInfo]) -> Feed:
    """Return `inputs` as arrays by name.

    Takes an array or tensor (for a model of one input), a sequence in the order of the inputs, or a mapping by name. float64
    becomes float32 and narrow integers become the wider ones of the model; nothing else is cast.

    Raises:
        DataError: names, number, types or shapes do not fit.
    """
    found = _by_name(inputs, [info.name for info in wanted])
    return {info.name: _checked(found[info.name], info) for info in wanted}


def check_numbers(feed: Feed, where: str, finite: frozenset[str]) -> None:
    """Raise DataError if a float input holds NaN, or one of `finite` an infinity.

    Args:
        feed: One batch.
        where: Begins the message.
        finite: Inputs that no infinity belongs into. Of the others it may be an attention mask.
    """
    for name, values in feed.items():
        if values.dtype.kind == "f":
            bad = int(np.count_nonzero(~np.isfinite(values) if name in finite else np.isnan(values)))
            if bad:
                what = "NaN or infinite" if name in finite else "NaN"
                message = f"{where}: input {name!r} holds {bad} values that are {what}; check the preprocessing"
                raise DataError(message)


def _by_name(inputs: Inputs, names: list[str]) -> dict[str, object]:
    if isinstance(inputs, Mapping):
        if set(inputs) != set(names):
            message = f"found inputs {sorted(map(str, inputs))}, expected the names {sorted(names)}"
            raise DataError(message)
        return {str(name): value for name, value in inputs.items()}
    parts = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
    if len(parts) != len(names):
        message = f"found {len(parts)} inputs, expected {len(names)} in the order {names} (or a mapping by name)"
        raise DataError(message)
    return dict(zip(names, parts, strict=True))


def _checked(value: object, info: InputInfo) -> NDArray[Any]:
    array = _to_array(value, info)
    expected = _TYPES.get(info.type)
    if expected is not None and array.dtype != expected:
        array = _cast(array, np.dtype(expected), info)
    fits = len(array.shape) == len(info.shape) and all(
        not isinstance(length, int) or length == found for length, found in zip(info.shape, array.shape, strict=True)
    )
    if not fits:
        shown = ", ".join(str(length) if length is not None else "?" for length in info.shape)
        message = f"input {info.name!r}: found shape {array.shape}, expected ({shown})"
        if array.shape[1:] == tuple(info.shape[1:]) and info.shape and isinstance(info.shape[0], int):
            message += f"; the batch axis of this model is fixed: use batches of {info.shape[0]}"
        raise DataError(message)
    return array


def _to_array(value: object, info: InputInfo) -> NDArray[Any]:
    if hasattr(value, "detach") and hasattr(
        value, "cpu"
    ):  # a torch tensor, which may need a gradient or live elsewhere
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        message = f"input {info.name!r}: found a {type(value).__name__} that is no array ({error})"
        raise DataError(message) from error
    if array.dtype == object:
        message = f"input {info.name!r}: found a {type(value).__name__} of mixed or ragged values, expected one array"
        raise DataError(message)
    return array


def _cast(array: NDArray[Any], expected: np.dtype[Any], info: InputInfo) -> NDArray[Any]:
    narrows = array.dtype == np.float64 and expected == np.float32
    widens = array.dtype.kind in "iu" and expected.kind in "iu" and np.can_cast(array.dtype, expected, "safe")
    if not (narrows or widens):
        message = f"input {info.name!r}: found {array.dtype}, expected {expected}; convert it in the data loader"
        raise DataError(message)
    return array.astype(expected)
