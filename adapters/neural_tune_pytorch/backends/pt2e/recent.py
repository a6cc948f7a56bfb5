"""The last few things that were made from files, by content: so that one artifact is compiled once in a process, however often and from wherever it is loaded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Recent(Generic[Made]):
    """At most so many things; the one that was asked for longest ago goes first. May be used by several threads, which then wait for each other."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[str, Made] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, content: str, make: Callable[[], Made]) -> Made:
        """Return what was made for this content before, or make it now."""
        with self._lock:
            if content not in self._kept:
                self._kept[content] = make()
            self._kept.move_to_end(content)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
            return self._kept[content]
