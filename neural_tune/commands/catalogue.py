"""`list`: adapters, strategies, metrics, data sets and transforms. `schema`: the JSON Schema of job files, for editors."""

from __future__ import annotations

import argparse
from typing import Any

from neural_tune.commands.outcome import MET, Commands, show, show_json


def add(commands: Commands) -> None:
    """Describe both commands."""
    listing = commands.add_parser(
        "list",
        help="list adapters, strategies, metrics, datasets and transforms",
        description="List adapters, strategies, metrics, datasets and transforms, and what to install for those that are not available.",
    )
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(command=_list)
    schema = commands.add_parser(
        "schema",
        help="print the JSON Schema of job files",
        description="Print the JSON Schema of job files; editors complete and check YAML with it.",
    )
    schema.set_defaults(command=_schema)


def _schema(arguments: argparse.Namespace) -> int:  # noqa: ARG001 - a command
    from neural_tune.editor_schema import editor_schema  # noqa: PLC0415

    show_json(editor_schema())
    return MET


def _list(arguments: argparse.Namespace) -> int:
    found = {
        "adapters": _plugins("adapters"),
        "strategies": _plugins("strategies"),
        "metrics": _metrics(),
        "datasets": _datasets(),
        "transforms": _transforms(),
    }
    if arguments.json:
        show_json(found)
        return MET
    from neural_tune.report import tables  # noqa: PLC0415

    parts: list[Any] = []
    for kind, rows in found.items():
        shown = [(row["name"], _availability(row), row["summary"]) for row in rows]
        parts += ["", tables.table_of((kind, "available", "what it is"), shown)]
    show(*parts[1:])
    return MET


def _availability(row: dict[str, Any]) -> str:
    return "yes" if row["available"] else f'no: pip install "{row["install"]}"'


def _plugins(kind: str) -> list[dict[str, Any]]:
    from neural_tune import plugins  # noqa: PLC0415

    found: Any = getattr(plugins, kind)().values()
    return [_row(plugin.name, plugin.summary, plugin.missing, plugin.install) for plugin in found]


def _metrics() -> list[dict[str, Any]]:
    from neural_tune.evaluation import METRICS  # noqa: PLC0415
    from neural_tune.evaluation.metric import extra_of  # noqa: PLC0415

    rows = []
    for name, info in METRICS.items():
        missing = _absent(*info.requires)
        rows.append(_row(name, info.summary, missing, f"neural-tune[{extra_of((*missing, *info.requires)[0])}]"))
    return rows


def _datasets() -> list[dict[str, Any]]:
    from neural_tune.datasets import DATASETS  # noqa: PLC0415

    needs = {
        "image_folder": ("PIL", "pillow"),
        "tfrecord": ("tensorflow", "neural-tune[tensorflow]"),
        "hf_disk": ("datasets", "datasets"),
    }
    rows = []
    for name, kind in DATASETS.items():
        package, install = needs.get(name, ("numpy", "numpy"))
        rows.append(_row(name, kind.summary, _absent(package), install))
    return rows


def _transforms() -> list[dict[str, Any]]:
    from neural_tune.transforms import TRANSFORMS  # noqa: PLC0415

    needs = {"Resize": ("PIL", "pillow"), "ResizeCropImagenet": ("PIL", "pillow")}
    rows = []
    for name, kind in TRANSFORMS.items():
        package, install = needs.get(name, ("numpy", "numpy"))
        rows.append(_row(name, (kind.__doc__ or "").splitlines()[0], _absent(package), install))
    summary = "any class of torchvision.transforms.v2, on images one by one"
    return [*rows, _row("torchvision.NAME", summary, _absent("torchvision"), "torchvision")]


def _absent(*packages: str) -> tuple[str, ...]:
    from importlib.util import find_spec  # noqa: PLC0415

    return tuple(package for package in packages if find_spec(package.partition(".")[0]) is None)


def _row(name: str, summary: str, missing: tuple[str, ...], install: str) -> dict[str, Any]:
    return {
        "name": name,
        "summary": summary,
        "available": not missing,
        "missing": list(missing),
        "install": install,
    }
