"""`apply RECIPE MODEL`: quantize as a recipe says, without a search, and certify."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from neural_tune.commands.outcome import MET, Commands, code_of, say, show
from neural_tune.commands.run import add_shared, close
from neural_tune.errors import ConfigError

if TYPE_CHECKING:
    from neural_tune.command_record import CommandRecord


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "apply",
        help="quantize a model as a recipe says, without a search",
        description="Quantize a model as a recipe says and certify it. Data and metric come from a job: that of the recipe's run, or --job.",
    )
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="a recipe.yaml, or the directory of a run")
    parser.add_argument("model", metavar="MODEL", nargs="?", default="", help="the float model (default: the job's)")
    parser.add_argument("--job", type=Path, metavar="JOB.yaml", help="the job that says which data and metric to use")
    parser.add_argument("--output", type=Path, metavar="DIR", help="save the model here too")
    parser.add_argument("--best-effort", action="store_true", help="save it even if the criterion is not met")
    add_shared(parser)
    parser.set_defaults(command=_apply, reporter="console")


def _apply(arguments: argparse.Namespace) -> int:
    from neural_tune.commands.regression import task_of_command  # noqa: PLC0415
    from neural_tune.config import DEFAULT_WORKSPACE  # noqa: PLC0415
    from neural_tune.replay import from_recipe, replay  # noqa: PLC0415
    from neural_tune.report import make_reporter  # noqa: PLC0415

    recipe = arguments.recipe / "recipe.yaml" if arguments.recipe.is_dir() else arguments.recipe
    command = _command(recipe, arguments.job).with_overrides(arguments.overrides)
    reporter = make_reporter(arguments.reporter)
    try:
        task = task_of_command(command, DEFAULT_WORKSPACE, model=arguments.model, reporter=reporter)
        result = replay(task, from_recipe(recipe)).result
    finally:
        close(reporter)
    if arguments.output and (result.accepted or (arguments.best_effort and result.artifact is not None)):
        saved = result.save(arguments.output, best_effort=arguments.best_effort)
        if arguments.reporter == "console":
            show(f"saved as {saved}")
    elif arguments.output:
        say(f"not saved: {result.reason}" + ("; --best-effort saves it all the same" if result.artifact else ""))
    code = code_of(result)
    if code != MET and arguments.reporter == "quiet":
        say(f"{result.status.value}: {result.reason}")
    return code


def _command(recipe: Path, job: Path | None) -> CommandRecord:
    from neural_tune.command_record import CommandRecord  # noqa: PLC0415

    if not recipe.is_file():
        raise ConfigError(f"apply: found {str(recipe)!r}, but there is no such recipe")
    return CommandRecord(job=job) if job is not None else CommandRecord.of_run(recipe.parent)
