"""`report RUN`: the HTML page of a run."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from neural_tune.commands.outcome import MET, Commands, show, show_json
from neural_tune.errors import ConfigError, PluginError


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "report", help="write the HTML report of a run", description="Write one self-contained HTML page for each run."
    )
    parser.add_argument("run", metavar="RUN", type=Path, nargs="+", help="directories of runs")
    parser.add_argument(
        "--serve", action="store_true", help="serve the page on this machine and refresh it while the run is under way"
    )
    parser.add_argument("--port", type=int, default=8123, help="for --serve (default %(default)s; 0 takes a free one)")
    parser.add_argument("--json", action="store_true", help="print the page's path as JSON")
    parser.set_defaults(command=_report)


def _report(arguments: argparse.Namespace) -> int:
    from neural_tune.run_directory import RunDirectory  # noqa: PLC0415

    runs: list[Path] = arguments.run
    for run in runs:
        RunDirectory.existing(run)
    if arguments.serve:
        if len(runs) > 1:
            raise ConfigError(f"report --serve: found {len(runs)} runs, expected one")
        return _serve(runs[0], arguments.port)
    pages = [_module("neural_tune.report.html", run).write(run) for run in runs]
    if arguments.json:
        # One run keeps the form of before; several are told apart by a list.
        show_json({"report": str(pages[0])} if len(pages) == 1 else {"reports": [str(page) for page in pages]})
    else:
        show(*(f"the report of {run} is {page}" for run, page in zip(runs, pages, strict=True)))
    return MET


def _serve(run: Path, port: int) -> int:
    try:
        server = _module("neural_tune.report.server", run).serve(run, port)
    except OSError as error:
        raise ConfigError(
            f"report: cannot serve on port {port} ({error.strerror}); name another one with --port"
        ) from error
    show(f"the report of {run} is at http://127.0.0.1:{server.server_address[1]}/ until Ctrl-C")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return MET
    finally:
        server.server_close()
    return MET


def _module(name: str, run: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PluginError(
            f'the HTML report cannot be loaded ({error}): pip install "neural-tune[report]"; '
            f"{run / 'result.json'} holds every number"
        ) from error
