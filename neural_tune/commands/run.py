"""`run JOB.yaml` and `resume RUN`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neural_tune.commands.outcome import Commands, code_of, say

if TYPE_CHECKING:
    from neural_tune.job import Job
    from neural_tune.result import TuneResult


def add(commands: Commands) -> None:
    """Describe both commands."""
    tuning = commands.add_parser(
        "run", help="run a tuning job", description="Run the tuning job described in a YAML file."
    )
    tuning.add_argument(
        "job", metavar="JOB.yaml", type=Path, help="the job; it may name Python code, so run only what you trust"
    )
    tuning.add_argument("--model", default="", metavar="MODEL", help="take this model instead of the job's")
    tuning.add_argument(
        "--workspace", metavar="DIR", help="folder for run directories (default: the job's, else nt_workspace)"
    )
    tuning.add_argument("--resume", metavar="RUN", help="go on with the run in this directory")
    add_shared(tuning)
    tuning.set_defaults(command=_run, reporter="console")

    again = commands.add_parser(
        "resume",
        help="go on with an interrupted run",
        description="Go on with a run that was interrupted; at most the trial that was running is lost.",
    )
    again.add_argument("run", metavar="RUN", type=Path, help="the directory of the run")
    again.add_argument("--job", type=Path, metavar="JOB.yaml", help="the job, if it was moved since")
    add_shared(again)
    again.set_defaults(command=_resume, reporter="console")


def add_shared(parser: argparse.ArgumentParser) -> None:
    """Add what every command takes that runs a job."""
    add_overrides(parser)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--quiet", action="store_const", const="quiet", dest="reporter", help="print nothing but errors")
    shown.add_argument(
        "--json", action="store_const", const="json", dest="reporter", help="print one JSON object per event"
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add --set."""
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="set a value of the job, such as tuning.exit_policy.max_trials=20; may be given several times",
    )


def _run(arguments: argparse.Namespace) -> int:
    from neural_tune.command_record import CommandRecord  # noqa: PLC0415
    from neural_tune.job import read_job  # noqa: PLC0415

    job = read_job(arguments.job, arguments.overrides, model=arguments.model)
    record = CommandRecord(job=arguments.job, overrides=tuple(arguments.overrides), model=arguments.model)
    return _tune(job, record, arguments.reporter, workspace=arguments.workspace, resume=arguments.resume)


def _resume(arguments: argparse.Namespace) -> int:
    from neural_tune.command_record import CommandRecord  # noqa: PLC0415
    from neural_tune.job import read_job  # noqa: PLC0415
    from neural_tune.run_directory import RunDirectory  # noqa: PLC0415

    RunDirectory.existing(arguments.run)
    record = CommandRecord.of_run(arguments.run, arguments.job).with_overrides(arguments.overrides)
    job = read_job(record.job, record.overrides, model=record.model)
    return _tune(job, record, arguments.reporter, workspace=None, resume=str(arguments.run))


def _tune(job: Job, record: Any, shown: str, *, workspace: str | None, resume: str | None) -> int:
    from dataclasses import replace  # noqa: PLC0415

    from neural_tune.api import fit  # noqa: PLC0415
    from neural_tune.command_record import RecordingReporter  # noqa: PLC0415
    from neural_tune.errors import NeuralTuneError  # noqa: PLC0415
    from neural_tune.report import make_reporter  # noqa: PLC0415

    call = job.arguments()
    if workspace:
        call["conf"] = replace(job.config, workspace=workspace)
    if resume:
        call["resume"] = resume
    reporter = make_reporter(shown)
    recording = RecordingReporter(reporter, record)
    try:
        result = fit(**call, reporter=recording)
    except NeuralTuneError:
        raise
    except BaseException:
        if recording.run_directory is not None and recording.run_directory.is_dir():
            close(reporter)
            say(f"what was measured so far is kept: neural-tune resume {recording.run_directory}")
        raise
    finally:
        close(reporter)
    if shown == "quiet" and not result.accepted:
        say(f"{result.status.value}: {result.reason}")
    _hint(result)
    return code_of(result)


def close(reporter: object) -> None:
    """Give the terminal back."""
    closing: Callable[[], None] = getattr(reporter, "close", lambda: None)
    closing()


def _hint(result: TuneResult) -> None:
    if result.is_interrupted:
        sys.stdout.flush()
        say(f"to go on with the search: neural-tune resume {result.run_directory}")
