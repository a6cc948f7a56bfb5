"""The rescaling of edges (`neural_tune.numerics.rescaling`) on an ONNX model: constants from its store, moments from its graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

from neural_tune.calibration.spool import Spool
from neural_tune.numerics import rescaling
from neural_tune.numerics.rescaling import Change, Edge, Refusal
from neural_tune_onnxruntime.model import OnnxModel
from neural_tune_onnxruntime.recipes import probe


def rescale(name: str, model: OnnxModel, found: Iterable[Edge | Refusal], spool: Spool) -> Change:
    """Return the rescaling of all edges of `model`."""
    ops = {op.name: op for op in model.graph.ops}

    def constant(op: str, position: int) -> NDArray[Any]:
        return model.store.array(ops[op].inputs[position])

    return rescaling.rescale(name, found, constant, lambda axes: probe.moments(model, axes, spool))
