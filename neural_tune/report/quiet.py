"""The reporter that says nothing. Errors are exceptions and results are values; neither needs a reporter."""

from __future__ import annotations


class QuietReporter:
    """Takes every event and shows none."""

    def on_event(self, event: object) -> None:
        """Ignore `event`."""

    def close(self) -> None:
        """Nothing is open."""
