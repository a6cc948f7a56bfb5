"""The toy model on disk: a folder with the graph as JSON and the constants as a numpy archive. Nothing is pickled."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from neural_tune.errors import AdapterError, ConfigError
from neural_tune.testing.toy_layers import Dense, FloatDense, Grid, IntegerDense, ToyBuilt
from neural_tune.values import OpConfig, from_jsonable, to_jsonable

_FOLDER = "toy_model"
_GRAPH = "graph.json"
_CONSTANTS = "constants.npz"
_VERSION = 1


def artifact_size(built: ToyBuilt) -> int:
    """Return the bytes that `write_artifact` takes."""
    return len(_graph(built)) + len(_constants(built))


def write_artifact(built: ToyBuilt, directory: Path) -> Path:
    """Write `built` below `directory` and return its folder."""
    folder = directory / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _GRAPH).write_bytes(_graph(built))
    (folder / _CONSTANTS).write_bytes(_constants(built))
    return folder


def read_artifact(folder: Path) -> ToyBuilt:
    """Return what `write_artifact` wrote. Raises AdapterError when the folder holds something else."""
    try:
        graph = json.loads((folder / _GRAPH).read_text(encoding="utf-8"))
        if graph["version"] != _VERSION:
            raise AdapterError(f"{folder}: found version {graph['version']}, expected {_VERSION}")
        with (folder / _CONSTANTS).open("rb") as file, np.load(file, allow_pickle=False) as constants:
            return ToyBuilt(tuple(_layer(record, constants) for record in graph["layers"]))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, ConfigError) as error:
        raise AdapterError(f"{folder}: no toy model ({error})") from error


def _graph(built: ToyBuilt) -> bytes:
    layers = [_record(layer) for layer in built.layers]
    return json.dumps({"version": _VERSION, "layers": layers}, separators=(",", ":")).encode()


def _record(layer: Dense) -> dict[str, Any]:
    record: dict[str, Any] = {"name": layer.name, "config": to_jsonable(layer.config), "fault": layer.fault}
    if isinstance(layer, IntegerDense):
        record["grid"] = [layer.grid.scale, layer.grid.zero_point, layer.grid.low, layer.grid.high]
    return record


def _constants(built: ToyBuilt) -> bytes:
    arrays: dict[str, Any] = {}
    for layer in built.layers:
        arrays |= {f"{layer.name}.weight": layer.weight, f"{layer.name}.bias": layer.bias}
        if isinstance(layer, IntegerDense):
            arrays[f"{layer.name}.scale"] = layer.weight_scale
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _layer(record: dict[str, Any], constants: Any) -> Dense:
    name, config = record["name"], from_jsonable(OpConfig, record["config"])
    weight, bias = constants[f"{name}.weight"], constants[f"{name}.bias"]
    if config.is_float:
        return FloatDense(name, weight, bias, config, record["fault"])
    return IntegerDense(name, weight, bias, constants[f"{name}.scale"], Grid(*record["grid"]), config, record["fault"])
