"""`inspect MODEL`: what can be quantized."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neural_tune.commands.outcome import MET, Commands, show, show_json
from neural_tune.errors import ConfigError

if TYPE_CHECKING:
    from neural_tune.protocols import AnyAdapter, InputSpec
    from neural_tune.space import TuningSpace


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "inspect",
        help="show what can be quantized in a model",
        description="Show the tuning space of a model, op by op.",
    )
    parser.add_argument("model", metavar="MODEL", help="path of the model, or package.module:callable that makes it")
    parser.add_argument("--framework", default="", metavar="NAME", help="the adapter, where several know the model")
    parser.add_argument(
        "--approach", default="static", metavar="NAME", help="static (the default), dynamic, weight_only or auto"
    )
    parser.add_argument("--backend", default="default", metavar="NAME", help="backend of the framework")
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="INPUT=LENGTHS",
        help="needed for PyTorch modules: such as x=1,3,224,224 or ids=1,128:int64, by the names in forward",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=_inspect)


def model_of(text: str, what: str) -> object:
    """Return the path that `text` is, or what the callable that it names makes.

    Raises:
        ConfigError: it is neither.
    """
    if Path(text).exists():
        return text
    if ":" in text:
        from neural_tune.callables import import_callable  # noqa: PLC0415

        made: object = import_callable(text, Path.cwd())()
        return made
    raise ConfigError(f"{what}: found {text!r}, but there is no such file; expected a path or package.module:callable")


def _inspect(arguments: argparse.Namespace) -> int:
    from neural_tune import plugins  # noqa: PLC0415
    from neural_tune.made_inputs import blaming_names, parse_shapes  # noqa: PLC0415
    from neural_tune.protocols import AdapterOptions, TabulatesFormats  # noqa: PLC0415
    from neural_tune.space import TuningSpace  # noqa: PLC0415

    model = model_of(arguments.model, "inspect")
    adapter = plugins.adapter_for(model, arguments.framework)
    shapes = parse_shapes(arguments.shape)
    example = _example(adapter, model, shapes)
    options = AdapterOptions(approach=arguments.approach, backend=arguments.backend, example=example, has_data=True)
    with blaming_names(adapter, model, shapes):
        held = adapter.load(model, options)
    space = TuningSpace.of(adapter.query(held))
    formats = adapter.matrix(held) if isinstance(adapter, TabulatesFormats) else ()
    if arguments.json:
        show_json({**_space_as_data(space), "formats": [list(row) for row in formats]})
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
    matrix = (tables.table_of(formats[0], formats[1:]), "") if formats else ()
    show(lines[0], "", ops, "", legend, "", *matrix, *lines[1:])
    return MET


def _example(adapter: AnyAdapter, model: object, shapes: Mapping[str, InputSpec]) -> object:
    """Return a made-up batch for a model that is captured by calling it; None where that is not needed.

    Raises:
        ConfigError: it is needed, and nobody gave shapes.
    """
    from neural_tune.made_inputs import random_inputs, unknown_shapes  # noqa: PLC0415
    from neural_tune.protocols import CapturesByExample  # noqa: PLC0415

    if shapes:
        return random_inputs(tuple(shapes.values()), 1)
    if isinstance(adapter, CapturesByExample) and getattr(model, "example_inputs", None) is None:
        raise unknown_shapes(adapter, model)
    return None


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
