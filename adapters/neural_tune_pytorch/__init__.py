"""The PyTorch adapter of neural_tune: int8 through PT2E and Inductor, FX and eager mode.

INC 3's calls are here too (`prepare`, `convert`, `autotune` ...), and `package`, which compiles a saved model ahead of time; a name is loaded, and torch with it, at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neural_tune_pytorch.backends.pt2e.package import package
    from neural_tune_pytorch.inc3 import (
        DynamicQuantConfig,
        StaticQuantConfig,
        TuningConfig,
        autotune,
        convert,
        prepare,
        save,
    )

__all__ = [
    "DynamicQuantConfig",
    "StaticQuantConfig",
    "TuningConfig",
    "autotune",
    "convert",
    "package",
    "prepare",
    "save",
]


def __getattr__(name: str) -> Any:
    """Load the module that holds a public name."""
    if name not in __all__:
        raise AttributeError(f"module 'neural_tune_pytorch' has no attribute {name!r}")
    home = "backends.pt2e.package" if name == "package" else "inc3"
    return getattr(importlib.import_module(f"neural_tune_pytorch.{home}"), name)
