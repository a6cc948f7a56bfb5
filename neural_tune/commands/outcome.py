"""How a command ends (its exit code) and how it shows texts, tables and data."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from neural_tune.result import TuneResult

MET, NOT_MET, USAGE, FAILURE, INTERRUPTED = 0, 1, 2, 3, 130
# What `ArgumentParser.add_subparsers` returns.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no public name


def code_of(result: TuneResult) -> int:
    """Return the exit code of a run."""
    if result.is_interrupted:
        return INTERRUPTED
    return {"accepted": MET, "best_effort": NOT_MET, "failed": FAILURE}[result.status.value]


def show(*parts: Any) -> None:
    """Print texts and tables as the console reporter does."""
    from rich.text import Text  # noqa: PLC0415 - rich takes 60 ms, and --help needs none

    from neural_tune import words  # noqa: PLC0415
    from neural_tune.report.console import console_on, print_on  # noqa: PLC0415

    console = console_on(sys.stdout)
    for part in parts:
        print_on(console, Text(words.clean(part)) if isinstance(part, str) else part)


def show_json(data: Any) -> None:
    """Print data as one JSON document."""
    sys.stdout.write(json.dumps(data, indent=1, allow_nan=False) + "\n")


def say(text: str) -> None:
    """Print a line for a person on stderr."""
    sys.stderr.write(f"neural-tune: {text}\n")
