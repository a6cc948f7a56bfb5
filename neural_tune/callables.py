"""What a job names as "module:callable": imported with the job's folder on the path, during the import only."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neural_tune.errors import ConfigError
from neural_tune.options import close_to


def import_callable(spec: object, folder: Path | None = None) -> Callable[..., Any]:
    """Return the callable that "module:callable" names; `folder` is on sys.path during the import only.

    Raises:
        ConfigError: the text has another form, or there is no such module or callable.
        Exception: whatever the module raises when it is imported.
    """
    module_name, _, name = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if not module_name or not name:
        raise ConfigError(f'found {spec!r}, expected "package.module:callable"')
    with _on_path(folder):
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise ConfigError(
                f"found {spec!r}, but there is no module {error.name!r} beside the job file or among the installed ones"
            ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"found {spec!r}, but {module_name} has no {name!r}{close_to(part, dir(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"found {spec!r}, which is a {type(found).__name__}, expected something to call")
    return found  # type: ignore[no-any-return]


@contextmanager
def _on_path(folder: Path | None) -> Iterator[None]:
    if folder is None:
        yield
        return
    entry = str(folder)
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
