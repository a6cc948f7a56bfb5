"""Reporters: what a person or a program sees of a run. The engine emits events and never prints.

`rich` is imported only when the console reporter is asked for.
"""

from __future__ import annotations

from neural_tune.errors import ConfigError
from neural_tune.protocols import Reporter

REPORTERS = ("console", "json", "quiet")


def make_reporter(name: str | None = None) -> Reporter:
    """Return the reporter of that name; None takes "console".

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
