"""The journal of a run: append-only JSON lines, one record per event that must survive.

Every record is written with one `write`, flushed and fsynced before the run goes on, so a crash costs at most what had not ended. A last line without
its newline is torn (the process died while writing it) and is dropped; a broken line anywhere else means that somebody edited the
file, and is an error. Records carry a version; nothing is pickled.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from neural_tune.errors import ConfigError

VERSION = 1


class Journal:
    """The writing end. One process writes; a second writer is refused by a lock on the file."""

    def __init__(self, path: Path) -> None:
        """Open `path` for appending, cutting off a torn last line.

        Raises:
            ConfigError: another process holds the journal.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(self._file, path)
            _cut_torn_line(self._file)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, kind: str, **fields: Any) -> None:
        """Write one record durably. `fields` must be plain JSON data."""
        line = json.dumps({"v": VERSION, "kind": kind, **fields}, sort_keys=True, allow_nan=False) + "\n"
        data = line.encode()
        while data:  # a full disk may take a part of the line only; what is left torn is dropped by the next reader
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)

    def close(self) -> None:
        """Release the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of the journal at `path`, without a torn last line.

    Raises:
        ConfigError: there is no journal, a line other than the last is broken, or a record is of a newer version.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"no journal at {path}: expected the directory of an earlier run") from error
    lines = text.split(b"\n")[:-1]
    return [_parse(line, number, path) for number, line in enumerate(lines, 1) if line.strip()]


def _parse(line: bytes, number: int, path: Path) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ConfigError(
            f"{path}, line {number}: not a JSON record ({error}); the journal was edited or damaged"
        ) from error
    if not isinstance(record, dict) or record.get("v") != VERSION:
        found = record.get("v") if isinstance(record, dict) else record
        raise ConfigError(f"{path}, line {number}: found record version {found!r}, expected {VERSION}; start a new run")
    return record


def _cut_torn_line(file: int) -> None:
    size = os.lseek(file, 0, os.SEEK_END)
    position = size
    while position > 0:
        start = max(0, position - 4096)
        chunk = os.pread(file, position - start, start)
        newline = chunk.rfind(b"\n")
        if newline >= 0:
            position = start + newline + 1
            break
        position = start
    if position != size:
        os.ftruncate(file, position)
    os.lseek(file, position, os.SEEK_SET)


def _lock(file: int, path: Path) -> None:
    try:
        import fcntl  # noqa: PLC0415 - absent on Windows, where the journal goes unlocked
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigError(f"{path} is in use by another process: wait for that run, or start a new one") from error
