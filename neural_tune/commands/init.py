"""`init MODEL`: a commented job.yaml that runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from neural_tune.commands.outcome import MET, Commands, show, show_json


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "init",
        help="write a job file for a model",
        description="Write a commented job.yaml that runs. Without --data it runs on random numbers, compared with the float model itself.",
    )
    parser.add_argument("model", metavar="MODEL", help="path of the model, or package.module:callable that makes it")
    parser.add_argument(
        "--data", type=Path, metavar="PATH", help="an .npz file, or a folder with one folder of images per class"
    )
    parser.add_argument("--x", metavar="NAME", help="array of the inputs in the .npz file")
    parser.add_argument("--y", metavar="NAME", help="array of the labels")
    parser.add_argument(
        "--calibration", metavar="NAME", help="array of the calibration inputs (default: that of the inputs)"
    )
    parser.add_argument(
        "--shape", action="append", default=[], metavar="INPUT=LENGTHS", help="such as x=1,3,224,224 or ids=1,128:int64"
    )
    parser.add_argument("--framework", default="", metavar="NAME", help="the adapter, where several know the model")
    parser.add_argument("--output", type=Path, default=Path("job.yaml"), metavar="FILE", help="default: %(default)s")
    parser.add_argument("--force", action="store_true", help="overwrite an existing job file")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.set_defaults(command=_init)


def _init(arguments: argparse.Namespace) -> int:
    from neural_tune.draft import Wishes, draft  # noqa: PLC0415

    wishes = Wishes(
        model=arguments.model,
        data=arguments.data,
        x=arguments.x or "",
        y=arguments.y or "",
        calibration=arguments.calibration or "",
        shapes=tuple(arguments.shape),
        framework=arguments.framework,
        output=arguments.output,
        is_forced=arguments.force,
        ask=_ask if sys.stdin.isatty() and not arguments.json else None,
    )
    made = draft(wishes)
    if arguments.json:
        show_json({"job": str(made.job), "data": str(made.data) if made.data else None, "notes": list(made.notes)})
        return MET
    show(*(f"NOTICE: {note}" for note in made.notes), f"wrote {made.job}; run it with: neural-tune run {made.job}")
    return MET


def _ask(question: str, choices: tuple[str, ...]) -> str:
    """Ask on the terminal until the answer is one of `choices`."""
    while True:
        answer = input(f"{question} ({', '.join(choices)}): ").strip()
        if answer in choices:
            return answer
