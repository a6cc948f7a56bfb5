"""What is measured, as a text that another process gives too: no memory address, no file name, no line number."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np

from neural_tune.evaluation.data import content_digest

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def described(value: object) -> str:
    """Return a text for an option or a callable: equal values give equal texts, in every process of one Python version.

    A callable is its module, its name and a SHA-256 of its code (constants, defaults, and functions in its closure included). What it
    reads from elsewhere (globals, other closures, attributes of its object) is not looked at: it may change while it is called.
    """
    return _described(value, frozenset())


def _described(value: object, seen: frozenset[int]) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, _PLAIN):
        return repr(value)
    if callable(value):
        return _callable(value, seen)
    if isinstance(value, np.ndarray):
        return f"array {content_digest(value)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(sorted(f"{_described(k, seen)}: {_described(v, seen)}" for k, v in value.items())) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(_described(item, seen) for item in value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_described(item, seen) for item in value) + "]"
    return _name(type(value))


def _callable(function: Any, seen: frozenset[int]) -> str:
    if id(function) in seen:
        return "itself"
    seen |= {id(function)}
    if isinstance(function, functools.partial):
        bound = _described((function.args, function.keywords), seen)
        return f"partial of {_callable(function.func, seen)} with {bound}"
    if isinstance(function, MethodType):
        return f"{_name(type(function.__self__))}: {_callable(function.__func__, seen)}"
    if isinstance(function, FunctionType):
        return f"{_name(function)} {_code_digest(function, seen)}"
    if hasattr(function, "__qualname__"):  # a class, or a function of a C extension
        return _name(function)
    return f"{_name(type(function))}: {_callable(type(function).__call__, seen)}"


def _name(named: Any) -> str:
    return f"{getattr(named, '__module__', None) or 'builtins'}.{named.__qualname__}"


def _code_digest(function: FunctionType, seen: frozenset[int]) -> str:
    state = hashlib.sha256()
    _feed(state, function.__code__, seen)
    keywords = sorted((function.__kwdefaults__ or {}).items())
    for value in (*(function.__defaults__ or ()), *keywords, *_functions_in_closure(function)):
        state.update(f"|{_fixed(value, seen)}".encode())
    return state.hexdigest()


def _functions_in_closure(function: FunctionType) -> Iterator[object]:
    """Yield what a decorator wraps: it is the code that counts. Other values may be counters, or data."""
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # assigned later
            continue
        if isinstance(content, FunctionType | MethodType | functools.partial):
            yield content


def _fixed(value: object, seen: frozenset[int]) -> str:
    """Return the text of what cannot change in place; of a list or an array only its type, since it may collect what is seen."""
    if isinstance(value, (*_PLAIN, tuple)) or callable(value):
        return _described(value, seen)
    return _name(type(value))


def _feed(state: Any, code: CodeType, seen: frozenset[int]) -> None:
    # The names too: `auc(x, y)` and `f1(x, y)` have one bytecode.
    state.update(code.co_code)
    state.update(repr((code.co_argcount, code.co_names)).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _feed(state, constant, seen)
        else:
            state.update(f"|{_described(constant, seen)}".encode())
