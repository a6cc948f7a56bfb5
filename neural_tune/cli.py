"""The command line: `neural-tune run JOB.yaml`, `neural-tune inspect MODEL`, `neural-tune list`.

Exit codes: 0 the criterion is met, 1 it is not, 2 wrong usage or configuration, 3 failure at run time, 130 interrupted (the best so far is
saved). Framework, rich and yaml are imported by the commands that need them, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neural_tune.errors import CapabilityError, ConfigError, DataError, NeuralTuneError, PluginError

if TYPE_CHECKING:
    from neural_tune.result import TuneResult
    from neural_tune.space import TuningSpace

MET, NOT_MET, USAGE, FAILURE, INTERRUPTED = 0, 1, 2, 3, 130
_WRONG_INPUT = (ConfigError, DataError, PluginError, CapabilityError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; never raises and never ends the process.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
    """
    try:
        arguments = _parser().parse_args(argv)
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
    except BrokenPipeError:
        return MET
    except KeyboardInterrupt:
        print("neural-tune: interrupted before there was a result", file=sys.stderr)
        return INTERRUPTED
    except Exception:  # noqa: BLE001 - user code or a bug: its own traceback says most
        traceback.print_exc()
        return FAILURE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="neural-tune",
        description="Find the fastest low-precision form of a model that is still accurate enough.",
        epilog="Exit codes: 0 criterion met, 1 not met, 2 wrong usage or configuration, 3 failure at run time, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"neural-tune {version('neural-tune')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    tuning = commands.add_parser(
        "run", help="run a tuning job", description="Run the tuning job described in a YAML file."
    )
    tuning.add_argument(
        "job", metavar="JOB.yaml", type=Path, help="the job; it may name Python code, so run only what you trust"
    )
    tuning.add_argument(
        "--workspace", metavar="DIR", help="folder for run directories (default: the job's, else nt_workspace)"
    )
    tuning.add_argument("--resume", metavar="RUN", help="go on with the run in this directory")
    tuning.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="set a value of the job, such as tuning.exit_policy.max_trials=20; may be given several times",
    )
    shown = tuning.add_mutually_exclusive_group()
    shown.add_argument("--quiet", action="store_const", const="quiet", dest="reporter", help="print nothing but errors")
    shown.add_argument(
        "--json", action="store_const", const="json", dest="reporter", help="print one JSON object per event"
    )
    tuning.set_defaults(command=_run, reporter="console")

    inspect = commands.add_parser(
        "inspect",
        help="show what can be quantized in a model",
        description="Show the tuning space of a model, op by op.",
    )
    inspect.add_argument("model", metavar="MODEL", help="path of the model")
    inspect.add_argument("--framework", default="", metavar="NAME", help="the adapter, where several know the model")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(command=_inspect)

    listing = commands.add_parser(
        "list",
        help="list adapters, strategies and metrics",
        description="List adapters, strategies and metrics, and what to install for those that are not available.",
    )
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(command=_list)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from dataclasses import replace  # noqa: PLC0415

    from neural_tune.api import fit  # noqa: PLC0415
    from neural_tune.job import read_job  # noqa: PLC0415
    from neural_tune.report import make_reporter  # noqa: PLC0415

    job = read_job(arguments.job, arguments.overrides)
    call = job.arguments()
    if arguments.workspace:
        call["conf"] = replace(job.config, workspace=arguments.workspace)
    if arguments.resume:
        call["resume"] = arguments.resume
    reporter = make_reporter(arguments.reporter)
    try:
        result = fit(**call, reporter=reporter)
    finally:
        close: Callable[[], None] = getattr(reporter, "close", lambda: None)
        close()
    if arguments.reporter == "quiet" and not result.accepted:
        print(f"neural-tune: {result.status.value}: {result.reason}", file=sys.stderr)
    return _exit_code(result)


def _exit_code(result: TuneResult) -> int:
    if result.is_interrupted:
        return INTERRUPTED
    codes = {"accepted": MET, "best_effort": NOT_MET, "failed": FAILURE}
    return codes[result.status.value]


def _inspect(arguments: argparse.Namespace) -> int:
    from neural_tune import plugins  # noqa: PLC0415
    from neural_tune.protocols import AdapterOptions  # noqa: PLC0415
    from neural_tune.space import TuningSpace  # noqa: PLC0415

    if not Path(arguments.model).exists():
        raise ConfigError(f"inspect: found {arguments.model!r}, but there is no such file")
    adapter = plugins.adapter_for(arguments.model, arguments.framework)
    space = TuningSpace.of(adapter.query(adapter.load(arguments.model, AdapterOptions())))
    if arguments.json:
        print(json.dumps(_space_as_data(space), indent=1))
        return MET
    from neural_tune.report import tables  # noqa: PLC0415

    capability = space.capability
    lines = [
        f"{arguments.model}: {capability.framework} {capability.runtime_version} on {capability.instruction_set}",
        *tables.describe_space(space),
        *(f"recipes: {name}" for name in [", ".join(capability.recipes)] if name),
        *(f"NOTICE: {note}" for note in (*capability.notes, *space.notices)),
    ]
    ops, legend = tables.space_tables(space)
    _show(lines[0], "", ops, "", legend, "", *lines[1:])
    return MET


def _space_as_data(space: TuningSpace) -> dict[str, Any]:
    from neural_tune.values import to_jsonable  # noqa: PLC0415

    capability = space.capability
    choices = {op: group.choices for group in space.groups for op in group.ops}
    return {
        "framework": capability.framework,
        "runtime_version": capability.runtime_version,
        "instruction_set": capability.instruction_set,
        "inputs": list(capability.inputs),
        "recipes": list(capability.recipes),
        "notes": list(capability.notes),
        "quantizable": sum(op.is_quantizable for op in capability.ops),
        "groups": len(space.groups),
        "candidates": str(space.size),
        "ops": [
            {
                "name": op.name,
                "type": op.type,
                "role": op.role.value,
                "group": op.group,
                "why": op.why,
                "choices": to_jsonable(choices.get(op.name, ())),
                "parameters": op.parameters,
            }
            for op in capability.ops
        ],
    }


def _list(arguments: argparse.Namespace) -> int:
    found = {"adapters": _adapters(), "strategies": _strategies(), "metrics": _metrics()}
    if arguments.json:
        print(json.dumps(found, indent=1))
        return MET
    from neural_tune.report import tables  # noqa: PLC0415

    parts: list[Any] = []
    for kind, rows in found.items():
        shown = [(row["name"], _availability(row), row["summary"]) for row in rows]
        parts += ["", tables.table_of((kind, "available", "what it is"), shown)]
    _show(*parts[1:])
    return MET


def _availability(row: dict[str, Any]) -> str:
    return "yes" if row["available"] else f'no: pip install "{row["install"]}"'


def _adapters() -> list[dict[str, Any]]:
    from neural_tune import plugins  # noqa: PLC0415

    return [_row(plugin.name, plugin.summary, plugin.missing, plugin.install) for plugin in plugins.adapters().values()]


def _strategies() -> list[dict[str, Any]]:
    from neural_tune import plugins  # noqa: PLC0415

    found = plugins.strategies().values()
    return [_row(plugin.name, plugin.summary, plugin.missing, plugin.install) for plugin in found]


def _metrics() -> list[dict[str, Any]]:
    from importlib.util import find_spec  # noqa: PLC0415

    from neural_tune.evaluation import METRICS  # noqa: PLC0415

    rows = []
    for name, info in METRICS.items():
        missing = tuple(package for package in info.requires if find_spec(package.partition(".")[0]) is None)
        rows.append(_row(name, info.summary, missing, "neural-tune[metrics]"))
    return rows


def _row(name: str, summary: str, missing: tuple[str, ...], install: str) -> dict[str, Any]:
    return {
        "name": name,
        "summary": summary,
        "available": not missing,
        "missing": list(missing),
        "install": install,
    }


def _show(*parts: Any) -> None:
    """Print texts and tables as the console reporter does."""
    from rich.text import Text  # noqa: PLC0415

    from neural_tune.report import words  # noqa: PLC0415
    from neural_tune.report.console import console_on  # noqa: PLC0415

    console = console_on(sys.stdout)
    for part in parts:
        is_text = isinstance(part, str)
        console.print(Text(words.clean(part)) if is_text else part, soft_wrap=is_text and not console.is_terminal)


def _complain(error: NeuralTuneError, code: int) -> int:
    lines = str(error).splitlines() or [type(error).__name__]
    if len(lines) > 1:
        print(f"neural-tune: {len(lines)} errors", file=sys.stderr)
        for line in lines:
            print(f"  {line}", file=sys.stderr)
    else:
        print(f"neural-tune: {lines[0]}", file=sys.stderr)
    return code
