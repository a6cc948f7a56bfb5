"""The command line: `neural-tune COMMAND`. What a command does is in `neural_tune.commands`, one module per group.

Exit codes: 0 the criterion is met, 1 it is not (or a check found a regression), 2 wrong usage, configuration or data, 3 failure at run time, 130
interrupted (the best so far is saved). Framework, rich and yaml are imported by the commands that need them, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version

from neural_tune.commands import apply, bench, catalogue, completion, init, inspect, regression, report, run
from neural_tune.commands.outcome import FAILURE, INTERRUPTED, MET, USAGE, say
from neural_tune.errors import CapabilityError, ConfigError, DataError, NeuralTuneError, PluginError

_WRONG_INPUT = (ConfigError, DataError, PluginError, CapabilityError)
_GROUPS = (init, run, inspect, apply, bench, report, regression, catalogue, completion)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; never raises and never ends the process.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
    """
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as end:  # argparse: 0 for --help and --version, 2 for wrong usage
        return int(end.code or 0)
    code = _guarded(arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away (`| head`). Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _guarded(arguments: argparse.Namespace) -> int:
    """Run the chosen command; turn what it raises into a message and an exit code."""
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except _WRONG_INPUT as error:
        return _complain(error, USAGE)
    except NeuralTuneError as error:
        return _complain(error, FAILURE)
    except ModuleNotFoundError as error:
        traceback.print_exc()
        return _suggest(error)
    except BrokenPipeError:
        return MET
    except KeyboardInterrupt:
        say("interrupted before there was a result")
        return INTERRUPTED
    except Exception:  # noqa: BLE001 - user code or a bug: its own traceback says most
        traceback.print_exc()
        return FAILURE


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    made = argparse.ArgumentParser(
        prog="neural-tune",
        description="Find the fastest low-precision form of a model that is still accurate enough.",
        epilog="Exit codes: 0 criterion met, 1 not met or regressed, 2 wrong usage, configuration or data, "
        "3 failure at run time, 130 interrupted.",
    )
    made.add_argument("--version", action="version", version=f"neural-tune {version('neural-tune')}")
    commands = made.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for group in _GROUPS:
        group.add(commands)
    return made


def _suggest(error: ModuleNotFoundError) -> int:
    """Say how to get the module that user code lacks, where it is one of a framework's."""
    from neural_tune.plugins import hint_for  # noqa: PLC0415

    hint = hint_for(error.name or "")
    if hint:
        say(f"{error.name} is not installed: {hint}")
    return USAGE if hint else FAILURE


def _complain(error: NeuralTuneError, code: int) -> int:
    lines = str(error).splitlines() or [type(error).__name__]
    if len(lines) > 1:
        say(f"{len(lines)} errors")
        for line in lines:
            sys.stderr.write(f"  {line}\n")
    else:
        say(lines[0])
    return code
