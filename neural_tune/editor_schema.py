"""The JSON Schema of job files, made from the table that the validator uses: editors complete keys and mark mistakes with it.

It says what a job may look like. Whether files, arrays, ops and callables exist is known only when the job is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neural_tune.datasets import DATASETS, INC_DATASETS
from neural_tune.job_schema import Each, Leaf, Short, Unsupported, table
from neural_tune.transforms import TRANSFORMS

ADDRESS = "https://json-schema.org/draft/2020-12/schema"


def editor_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a job."""
    schema = _of(table())
    return {
        "$schema": ADDRESS,
        "title": "A tuning job of neural_tune",
        "$defs": {"dataset": _dataset(), "transform": _transform()},
        **schema,
    }


def _of(node: Any) -> dict[str, Any]:
    if isinstance(node, Short):
        alone = next(inner for key, inner in node.section.items() if getattr(key, "schema", key) == node.key)
        return {"anyOf": [_of(node.section), {"type": ["string", "number"], "allOf": [_of(alone)]}]}
    if isinstance(node, Unsupported):
        if node.is_harmless:
            return {"description": f"No effect: {node.hint}", "deprecated": True}
        return {"description": f"Not supported: {node.hint}", "enum": list(node.off), "deprecated": True}
    if isinstance(node, Each):
        return {"type": ["object", "null"], "additionalProperties": _of(node.section)}
    if isinstance(node, Leaf):
        return dict(node.json)
    return _section(node)


def _section(node: Mapping[Any, Any]) -> dict[str, Any]:
    properties = {}
    for key, inner in node.items():
        name = getattr(key, "schema", key)
        found = _special(name, inner) or _of(inner)
        # A key without a value is a key that is not there.
        is_needed = isinstance(key, str)
        properties[name] = {**found, "not": {"type": "null"}} if is_needed else {"anyOf": [found, {"type": "null"}]}
    required = [key for key in node if isinstance(key, str)]
    kind: Any = "object" if required else ["object", "null"]
    section = {"type": kind, "properties": properties, "additionalProperties": False}
    return {**section, "required": required} if required else section


def _special(name: str, node: Any) -> dict[str, Any] | None:
    return {"$ref": f"#/$defs/{name}"} if name in ("dataset", "transform") and isinstance(node, Leaf) else None


def _dataset() -> dict[str, Any]:
    """One kind with its options. INC's names are allowed and not completed."""
    kinds = {
        name: {
            "description": kind.summary,
            "type": "object",
            "required": list(kind.needed),
            "properties": {option: {} for option in kind.known},
            "additionalProperties": False,
        }
        for name, kind in DATASETS.items()
        if not kind.aliases
    }
    # INC's words for options are allowed too, so a missing `path` is not reported here where `root` may stand for it.
    kinds |= {
        name: {
            "description": kind.summary,
            "type": "object",
            "properties": {option: {} for option in (*kind.known, *dict(kind.aliases))},
            "additionalProperties": False,
        }
        for name, kind in DATASETS.items()
        if kind.aliases
    }
    old = {name: {"type": "object", "description": f"INC's name of {ours}"} for name, ours in INC_DATASETS.items()}
    return {
        "type": "object",
        "properties": {**kinds, **old},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }


def _transform() -> dict[str, Any]:
    known = {name: {"description": _summary(kind), "type": ["object", "null"]} for name, kind in TRANSFORMS.items()}
    table_of_steps = {"type": "object", "properties": known, "minProperties": 1}
    steps = {"type": "array", "minItems": 1, "items": {"anyOf": [{"type": "string"}, table_of_steps]}}
    return {"anyOf": [table_of_steps, steps]}


def _summary(kind: object) -> str:
    return (kind.__doc__ or "").splitlines()[0]
