"""Imports of torchao, at one place: quiet, and before anything is compiled.

Importing its x86 quantizer registers the Inductor patterns that turn Q/DQ graphs into onednn int8 kernels; a compile without it may silently stay in float. The
import also tries to load CUDA libraries (which logs errors on a CPU) and warns of interfaces of torch that torchao itself will have to leave.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_SKIP = "TORCHAO_FORCE_SKIP_LOADING_SO_FILES"


@contextmanager
def quiet_import() -> Iterator[None]:
    """Import torchao inside the block without its complaints."""
    loggers = [logging.getLogger(name) for name in ("torch.utils._pytree", "torchao")]
    levels, before = [item.level for item in loggers], os.environ.get(_SKIP)
    os.environ[_SKIP] = "1"
    for item in loggers:
        item.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        for item, level in zip(loggers, levels, strict=True):
            item.setLevel(level)
        if before is None:
            del os.environ[_SKIP]
        else:
            os.environ[_SKIP] = before


@functools.cache
def x86_inductor() -> ModuleType:
    """Return torchao's x86 quantizer; from now on Inductor knows the int8 patterns and `torch.ops.quantized_decomposed` exists."""
    with quiet_import():
        return importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
