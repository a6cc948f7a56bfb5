"""A file that a reader finds whole or not at all, also after a crash or a power cut."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step; a failure leaves what was there before, and no litter.

    Several processes and threads may write the same path: the last one wins, whole.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name durable, where the platform lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
