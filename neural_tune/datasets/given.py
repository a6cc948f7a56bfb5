"""What a job gave for one option, as the type it has to be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neural_tune.errors import ConfigError
from neural_tune.options import close_to


def existing_file(name: object, folder: Path, option: str) -> Path:
    """Return the path of a file. Raises ConfigError for anything else."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{option}: found {name!r}, expected a file name")
    path = folder / name
    if not path.is_file():
        raise ConfigError(f"{option}: found {name!r}, but there is no file {path}")
    return path


def existing_folder(options: Mapping[str, Any], folder: Path, option: str = "path") -> Path:
    """Return the path of a folder. Raises ConfigError for anything else."""
    name = options[option] if option in options else options["path"]
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{option}: found {name!r}, expected the name of a folder")
    path = folder / name
    if not path.is_dir():
        raise ConfigError(f"{option}: found {name!r}, but there is no folder {path}")
    return path


def one_of(options: Mapping[str, Any], name: str, allowed: tuple[str, ...], default: str) -> str:
    """Return one of the allowed words. Raises ConfigError for anything else."""
    value = options.get(name, default)
    if value not in allowed:
        raise ConfigError(f"{name}: found {value!r}{close_to(value, allowed)}, expected {' or '.join(allowed)}")
    return str(value)


def text(options: Mapping[str, Any], name: str, default: str) -> str:
    """Return a text that is not empty. Raises ConfigError for anything else."""
    value = options.get(name, default)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name}: found {value!r}, expected a text")
    return value


def integer(options: Mapping[str, Any], name: str, default: int) -> int:
    """Return an integer. Raises ConfigError for anything else."""
    value = options.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name}: found {value!r}, expected an integer")
    return value


def number(options: Mapping[str, Any], name: str, default: float) -> float:
    """Return a number. Raises ConfigError for anything else."""
    value = options.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigError(f"{name}: found {value!r}, expected a number")
    return float(value)
