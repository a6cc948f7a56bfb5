"""A text stream that never raises: a reporter must not end a search because nobody reads its output any more."""

from __future__ import annotations

import re
from typing import Any, TextIO


class Stream:
    """Wraps a text stream.

    After a broken pipe (`neural-tune run job.yaml | head -1`) or on a closed file everything written is dropped. A character that the
    encoding of the stream has not is written as its escape.
    """

    def __init__(self, inner: TextIO, *, is_plain: bool = False) -> None:
        """Wrap `inner`, which stays the caller's to close; `is_plain` takes the blanks from the ends of lines (tables pad them)."""
        self._inner = inner
        self._is_plain = is_plain
        self._is_broken = False

    def write(self, text: str) -> int:
        """Write `text` if anybody still reads."""
        if not self._is_broken:
            try:
                self._write(text)
            except (OSError, ValueError):
                self._is_broken = True
        return len(text)

    def flush(self) -> None:
        """Flush if anybody still reads."""
        if not self._is_broken:
            try:
                self._inner.flush()
            except (OSError, ValueError):
                self._is_broken = True

    def _write(self, text: str) -> None:
        if self._is_plain:
            text = re.sub(r" +(?=\n)", "", text)
        try:
            self._inner.write(text)
        except UnicodeEncodeError:
            encoding = getattr(self._inner, "encoding", None) or "ascii"
            self._inner.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def __getattr__(self, name: str) -> Any:
        """Anything else (isatty, fileno, encoding) is that of the wrapped stream."""
        return getattr(self._inner, name)
