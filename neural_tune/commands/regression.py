"""`lock RUN` and `check LOCK`: accuracy, speed, size and precision held in CI."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neural_tune.commands.outcome import MET, NOT_MET, Commands, say, show, show_json
from neural_tune.commands.run import add_overrides, close
from neural_tune.errors import ConfigError

if TYPE_CHECKING:
    from neural_tune.check import CheckReport, Tolerance
    from neural_tune.command_record import CommandRecord
    from neural_tune.lock import Lock
    from neural_tune.protocols import Reporter
    from neural_tune.stored_model import StoredModel
    from neural_tune.task import Task


def add(commands: Commands) -> None:
    """Describe both commands."""
    lock = commands.add_parser(
        "lock",
        help="write down what a tuned model is like, for `check`",
        description="Replay the recipe of a run and write down what is measured, so that CI can hold it: commit both files.",
    )
    lock.add_argument("run", metavar="RUN", type=Path, help="the directory of the run")
    lock.add_argument(
        "--output", type=Path, metavar="FILE", default=Path("neural-tune.lock.json"), help="default: %(default)s"
    )
    lock.add_argument(
        "--job", type=Path, metavar="JOB.yaml", help="the job, if it was moved or the run was started from Python"
    )
    lock.add_argument("--json", action="store_true", help="print the lock")
    lock.set_defaults(command=_lock)

    check = commands.add_parser(
        "check",
        help="fail when a locked model became worse",
        description="Replay a lock on today's code, versions and data. Exit code 1: accuracy fell, the latency ratio to float worsened, "
        "the artifact grew, or an op left low precision.",
    )
    check.add_argument("lock", metavar="LOCK", type=Path, nargs="+", help="files written by `neural-tune lock`")
    check.add_argument(
        "--model", default="", metavar="NEW", help="another float model, such as one that was trained anew"
    )
    add_overrides(check)
    check.add_argument(
        "--latency-tolerance", type=_share, default=0.15, metavar="SHARE", help="of the ratio to float (default 15%%)"
    )
    check.add_argument(
        "--distance-tolerance",
        type=_share,
        default=0.05,
        metavar="SHARE",
        help="of the distance from float (default 5%%)",
    )
    check.add_argument(
        "--size-tolerance", type=_share, default=0.01, metavar="SHARE", help="of the artifact's bytes (default 1%%)"
    )
    check.add_argument("--no-latency", action="store_true", help="do not measure speed")
    check.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML")
    check.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="append Markdown; by default to $GITHUB_STEP_SUMMARY where that is set",
    )
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(command=_check)


def _share(text: str) -> float:
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share < 100.0:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a share such as 10% or 0.1")
    return share


def _lock(arguments: argparse.Namespace) -> int:
    from neural_tune.command_record import CommandRecord  # noqa: PLC0415
    from neural_tune.lock import lock_of, model_folder, values_file  # noqa: PLC0415
    from neural_tune.replay import from_recipe, replay  # noqa: PLC0415
    from neural_tune.run_directory import RunDirectory  # noqa: PLC0415
    from neural_tune.stored_model import StoredModel  # noqa: PLC0415

    RunDirectory.existing(arguments.run)
    command = CommandRecord.of_run(arguments.run, arguments.job)
    with tempfile.TemporaryDirectory(prefix="neural_tune_") as workspace:
        task = task_of_command(command, workspace)
        stored = None if task.train_func is None else StoredModel.of_run(arguments.run)
        replayed = replay(task, from_recipe(arguments.run / "recipe.yaml"), stored)
        lock, values = lock_of(replayed, command, arguments.output)
    from dataclasses import replace  # noqa: PLC0415

    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    lock = replace(lock, values=values.write(values_file(arguments.output)))
    files = [arguments.output, values_file(arguments.output)]
    if stored is not None:
        files.append(model_folder(arguments.output))
        lock = replace(lock, artifact=stored.artifact, trained=stored.keep(files[-1]))
    lock.write(arguments.output)
    for notice in _differences(arguments.run, lock):
        say(notice)
    if arguments.json:
        sys.stdout.write(arguments.output.read_text(encoding="utf-8"))
    else:
        numbers = ", ".join(
            f"{metric.name} {metric.value:.4g} (float {metric.baseline:.4g})" for metric in lock.metrics
        )
        speed = f", {lock.speed.ratio:.2f}x as fast" if lock.speed else ""
        names = ", ".join(str(file) for file in files)
        show(f"locked {numbers}{speed}, {len(lock.ops)} ops in low precision: commit {names}")
    return MET


def _differences(run: Path, lock: Any) -> list[str]:
    """Return where the replay gave other numbers than the run did."""
    import json  # noqa: PLC0415

    try:
        then = json.loads((run / "result.json").read_text(encoding="utf-8"))["best"]["metrics"]
    except (OSError, ValueError, KeyError, TypeError):
        return ["the run has no readable result.json to compare the lock with"]
    return [
        f"NOTICE: {metric.name} was {then[metric.name]:.6g} in the run and is {metric.value:.6g} now; the lock holds what is now"
        for metric in lock.metrics
        if metric.name in then and then[metric.name] != metric.value
    ]


def _check(arguments: argparse.Namespace) -> int:
    from neural_tune.check import Tolerance  # noqa: PLC0415

    tolerance = Tolerance(
        latency=arguments.latency_tolerance, distance=arguments.distance_tolerance, size=arguments.size_tolerance
    )
    reports = [(path, _check_one(path, arguments, tolerance)) for path in arguments.lock]
    _write(reports, arguments)
    return MET if all(report.is_passed for _, report in reports) else NOT_MET


def _check_one(path: Path, arguments: argparse.Namespace, tolerance: Tolerance) -> CheckReport:
    from neural_tune.check import check  # noqa: PLC0415
    from neural_tune.lock import Lock, SampleValues, values_file  # noqa: PLC0415

    lock = Lock.read(path)
    values = SampleValues.read(values_file(path), lock.values)
    command = lock.command(path).with_overrides(arguments.overrides)
    with tempfile.TemporaryDirectory(prefix="neural_tune_") as workspace:
        task = task_of_command(command, workspace, model=arguments.model)
        return check(
            task,
            lock,
            values,
            tolerance,
            stored=_stored(path, lock, task, arguments.model),
            is_new_model=bool(arguments.model),
            has_latency=not arguments.no_latency,
        )


def _stored(path: Path, lock: Lock, task: Task, model: str) -> StoredModel | None:
    """Return the trained model of a lock; None for one that is built from its recipe. Nothing is ever trained to be checked."""
    stored = lock.stored(path)
    if stored is None and task.train_func is not None:
        raise ConfigError(
            f"lock {path}: found no trained model, but its job trains one: lock anew (neural-tune lock RUN)"
        )
    if stored is not None and model:
        raise ConfigError(
            f"--model: found {model!r}, but the locked model was trained and does not follow from another float model; "
            "run the job with it, and lock that run"
        )
    return stored


def _write(reports: Sequence[tuple[Path, CheckReport]], arguments: argparse.Namespace) -> None:
    from neural_tune import check_report  # noqa: PLC0415

    if arguments.json:
        data = [{"lock": str(path), **check_report.as_data(report)} for path, report in reports]
        show_json(data[0] if len(data) == 1 else data)
    else:
        for path, report in reports:
            show(f"{path}:", "", *check_report.console_parts(report), "")
    if arguments.junit:
        arguments.junit.parent.mkdir(parents=True, exist_ok=True)
        arguments.junit.write_text(
            check_report.as_junit([(str(path), report) for path, report in reports]), encoding="utf-8"
        )
    summary = arguments.markdown or os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.writelines(check_report.as_markdown(report, str(path)) + "\n" for path, report in reports)


def task_of_command(
    command: CommandRecord,
    workspace: str,
    *,
    model: str = "",
    reporter: Reporter | None = None,
    overrides: Sequence[str] = (),
) -> Task:
    """Return the task of a job, with its runs written below `workspace`; `model` takes the place of the job's."""
    from dataclasses import replace  # noqa: PLC0415

    from neural_tune.api import task_of  # noqa: PLC0415
    from neural_tune.job import read_job  # noqa: PLC0415
    from neural_tune.report import make_reporter  # noqa: PLC0415

    job = read_job(command.job, (*command.overrides, *overrides), model=model or command.model)
    call = job.arguments()
    call["conf"] = replace(job.config, workspace=workspace)
    quiet = make_reporter("quiet")
    close(quiet)
    return task_of(**call, reporter=reporter or quiet)
