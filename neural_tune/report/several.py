"""Several reporters as one."""

from __future__ import annotations

from collections.abc import Sequence

from neural_tune.protocols import Reporter


class Several:
    """Hands every event to all of its reporters, in order."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._reporters = tuple(reporters)

    def on_event(self, event: object) -> None:
        """Hand `event` on."""
        for reporter in self._reporters:
            reporter.on_event(event)

    def close(self) -> None:
        """Close those that can be closed."""
        for reporter in self._reporters:
            close = getattr(reporter, "close", None)
            if close is not None:
                close()
