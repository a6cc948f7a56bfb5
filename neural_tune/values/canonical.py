"""The canonical JSON form of every value, and the digest taken from it.

Rules: a frozen dataclass is an object whose fields that equal their default are left out (so a new field
with a default changes no digest of an old value); a tuple is an array; a `FrozenMap` is an object; an enum is
its value; a float that is not finite is one of the strings "nan", "inf", "-inf". Keys are sorted and there is no
white space, so equal values have equal text.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from neural_tune.errors import ConfigError
from neural_tune.values.frozen import FrozenMap

T = TypeVar("T")
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def to_jsonable(value: object) -> Any:
    """Return `value` as plain JSON data (dict, list, str, int, float, bool, None).

    Raises:
        TypeError: `value` holds something that has no JSON form.
    """
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_jsonable(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if not _is_default(field, getattr(value, field.name))
        }
    if isinstance(value, Mapping):
        return {str(name): to_jsonable(item) for name, item in sorted(value.items())}
    if isinstance(value, tuple | list | frozenset):
        return [to_jsonable(item) for item in value]
    found = f"no canonical JSON form for {type(value).__name__}: {value!r}"
    raise TypeError(found)


def canonical_json(value: object) -> str:
    """Return the one text that stands for `value`: sorted keys, no white space, no non-finite numbers."""
    return json.dumps(to_jsonable(value), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest(value: object) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def from_jsonable(kind: type[T], data: object, path: str = "$") -> T:
    """Return the value of type `kind` whose JSON form is `data`; the inverse of `to_jsonable`.

    Raises:
        ConfigError: `data` does not fit `kind`; the message carries the path of the misfit.
    """
    return _read(kind, data, path)  # type: ignore[no-any-return]


def _is_default(field: dataclasses.Field[Any], value: object) -> bool:
    if field.default is not dataclasses.MISSING:
        # Identity first: a default of NaN is not equal to itself.
        return value is field.default or (bool(value == field.default) and type(value) is type(field.default))
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    return False


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(kind: Any, data: object, path: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or kind is object:
        return data
    if origin in (Union, types.UnionType):
        return _read_union(arguments, data, path)
    if origin is Literal:
        if data not in arguments:
            _misfit(data, f"one of {list(arguments)}", path)
        return data
    if origin is tuple:
        return _read_tuple(arguments, data, path)
    if origin is FrozenMap or kind is FrozenMap:
        if not isinstance(data, Mapping):
            _misfit(data, "an object", path)
        item = arguments[0] if arguments else object
        return FrozenMap({name: _read(item, value, f"{path}.{name}") for name, value in data.items()})
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, data, path)
    return _read_scalar(kind, data, path)


def _read_union(arguments: tuple[Any, ...], data: object, path: str) -> Any:
    if data is None and type(None) in arguments:
        return None
    reasons = []
    for kind in arguments:
        if kind is type(None):
            continue
        try:
            return _read(kind, data, path)
        except ConfigError as error:
            reasons.append(str(error))
    raise ConfigError("; ".join(reasons) or f"{path}: found {data!r}, expected null")


def _read_tuple(arguments: tuple[Any, ...], data: object, path: str) -> Any:
    if not isinstance(data, list | tuple):
        _misfit(data, "an array", path)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_read(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(data))
    if len(arguments) != len(data):
        _misfit(data, f"an array of {len(arguments)}", path)
    return tuple(_read(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(arguments, data, strict=True)))


def _read_dataclass(kind: Any, data: object, path: str) -> Any:
    if not isinstance(data, Mapping):
        _misfit(data, f"an object with the fields of {kind.__name__}", path)
    hints = _hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(data) - names)
    if unknown:
        _misfit(unknown, f"only fields of {kind.__name__} ({', '.join(sorted(names))})", path)
    try:
        return kind(**{name: _read(hints[name], value, f"{path}.{name}") for name, value in data.items()})
    except TypeError as error:
        message = f"{path}: {error}"
        raise ConfigError(message) from error


def _read_scalar(kind: Any, data: object, path: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(data)
        except ValueError:
            return _misfit(data, f"one of {[member.value for member in kind]}", path)
    if kind is float:
        if isinstance(data, str) and data in _NON_FINITE:
            return _NON_FINITE[data]
        if isinstance(data, int | float) and not isinstance(data, bool):
            return float(data)
        return _misfit(data, "a number", path)
    if kind is int and isinstance(data, bool):
        _misfit(data, "an integer", path)
    if isinstance(kind, type) and isinstance(data, kind):
        return data
    return _misfit(data, getattr(kind, "__name__", str(kind)), path)


def _misfit(found: object, expected: str, path: str) -> NoReturn:
    message = f"{path}: found {found!r}, expected {expected}"
    raise ConfigError(message)
