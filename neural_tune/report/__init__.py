"""Reporters: what a person or a program sees of a run. The engine emits events and never prints.

`rich` is imported only when the console reporter is asked for.
"""

from __future__ import annotations

from typing import Protocol

from neural_tune.errors import ConfigError

REPORTERS = ("console", "json", "quiet")


class ClosableReporter(Protocol):
    """A reporter that may hold the terminal until it is closed."""

    def on_event(self, event: object) -> None:
        """Take note of `event`."""

    def close(self) -> None:
        """Give the terminal back. May be called at any time, more than once."""


def make_reporter(name: str | None = None) -> ClosableReporter:
    """Return the reporter of that name; None takes "console". Whoever makes it closes it.

    Raises:
        ConfigError: there is no such reporter.
    """
    if name == "json":
        from neural_tune.report.json_lines import JsonReporter  # noqa: PLC0415

        return JsonReporter()
    if name == "quiet":
        from neural_tune.report.quiet import QuietReporter  # noqa: PLC0415

        return QuietReporter()
    if name in (None, "console"):
        from neural_tune.report.console import ConsoleReporter  # noqa: PLC0415 - rich takes 60 ms

        return ConsoleReporter()
    raise ConfigError(f"reporter: found {name!r}, expected one of {', '.join(REPORTERS)} or an object with on_event")
