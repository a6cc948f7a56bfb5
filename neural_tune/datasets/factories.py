"""The user's own loader: a Python callable that a job names, with its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_tune.callables import import_callable
from neural_tune.errors import ConfigError
from neural_tune.options import only_known


@dataclass(frozen=True, slots=True, kw_only=True)
class Factory:
    """A Python callable that a job names, with its arguments.

    Attributes:
        spec: "module:callable", as written.
        function: The callable.
        args: Keyword arguments.
    """

    spec: str
    function: Callable[..., Any]
    args: Mapping[str, Any]

    def __call__(self) -> Any:
        """Return what the callable makes; what it raises propagates."""
        return self.function(**self.args)


def factory(options: Mapping[str, Any], folder: Path) -> Factory:
    """Return the factory that `{callable: "module:callable", args: {...}}` describes.

    Raises:
        ConfigError: an option is missing, unknown or wrong. One line per fault.
    """
    only_known(options, needed=("callable",), known=("callable", "args"))
    args = options.get("args") or {}
    if not isinstance(args, Mapping) or not all(isinstance(name, str) for name in args):
        raise ConfigError(f"args: found {args!r}, expected a mapping of keyword arguments")
    try:
        function = import_callable(options["callable"], folder)
    except ConfigError as error:
        raise ConfigError(f"callable: {error}") from error
    return Factory(spec=options["callable"], function=function, args=dict(args))
