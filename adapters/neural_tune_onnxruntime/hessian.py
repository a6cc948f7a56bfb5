"""The curvature of a product's error: H = mean of x x^T over its inputs x, taken on the calibration inputs that the run keeps.

Computed when a candidate first needs it, for a few tensors at a time, and kept on disk beside the calibration inputs: memory does not grow with the number of
samples or of layers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_tune.calibration.spool import DERIVED, Spool
from neural_tune.errors import AdapterError
from neural_tune_onnxruntime import session
from neural_tune_onnxruntime.model import OnnxModel

SAMPLES = 128
# Bytes of accumulators that are in memory together; a larger one is alone.
BUDGET = 256 << 20


def hessian(model: OnnxModel, tensor: str, wanted: Iterable[str] = ()) -> NDArray[np.float32]:
    """Return the mean of x x^T over the rows of `tensor`, shape (K, K), from disk or computed now.

    Args:
        model: The model; its `spool` holds the calibration inputs.
        tensor: An activation whose last axis is the one that a product sums over.
        wanted: Other tensors that will be asked for: as many as fit are computed in the same pass.

    Raises:
        AdapterError: there are no calibration inputs, or the runtime breaks on them.
    """
    spool = model.spool
    if spool is None:
        message = f"GPTQ looks at the calibration inputs of {tensor!r}, but there are none: pass calibration data, or use 'rtn'"
        raise AdapterError(message)
    path = _path(model, spool, tensor)
    if not path.is_file():
        missing = [name for name in dict.fromkeys((tensor, *wanted)) if not _path(model, spool, name).is_file()]
        _collect(model, spool, _fitting(model, missing))
    return np.asarray(np.load(path, allow_pickle=False), np.float32)


def rows_of(model: OnnxModel, tensor: str) -> int:
    """Return the length of the last axis of `tensor`, from the weights that multiply it; 0 where nothing tells."""
    for op in model.graph.consumers.get(tensor, ()):
        weight = model.graph.constants.get(op.input(1))
        if op.type in ("MatMul", "Gemm") and op.input(0) == tensor and weight is not None and len(weight.shape) == 2:
            return weight.shape[1 if op.attribute("transB", 0) else 0]
    return 0


def _fitting(model: OnnxModel, tensors: Sequence[str]) -> list[str]:
    """Return the first tensor, and those behind it that fit into memory beside it."""
    chosen, room = [tensors[0]], BUDGET - 8 * rows_of(model, tensors[0]) ** 2
    for name in tensors[1:]:
        room -= 8 * rows_of(model, name) ** 2
        if room < 0:
            break
        chosen.append(name)
    return chosen


def _collect(model: OnnxModel, spool: Spool, tensors: Sequence[str]) -> None:
    started = model.session_for_outputs(tensors)
    sums: list[NDArray[np.float64]] | None = None
    rows = 0
    for feed in spool.feeds(SAMPLES):
        try:
            found = list(started.run(None, feed))
        except session.RUNTIME_ERRORS as error:
            raise AdapterError(f"the model breaks on a calibration batch: {session.first_line(error)}") from error
        flat = [np.asarray(values, np.float32).reshape(-1, values.shape[-1]) for values in found]
        products = [part.T @ part for part in flat]
        if sums is None:
            sums = [np.zeros(part.shape) for part in products]
        sums = [total + part for total, part in zip(sums, products, strict=True)]
        rows += len(flat[0])
    for name, total in zip(tensors, sums or (), strict=True):
        _write(_path(model, spool, name), (total / max(1, rows)).astype(np.float32))


def _path(model: OnnxModel, spool: Spool, tensor: str) -> Path:
    # Recipes change activations: every variant of a model has a store with a prefix of its own. No name of a model becomes a file name.
    key = hashlib.sha256(f"{model.store.prefix}\n{tensor}".encode()).hexdigest()[:32]
    return spool.folder.parent / DERIVED / f"{key}.npy"


def _write(path: Path, values: NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    with draft.open("wb") as file:
        np.save(file, values, allow_pickle=False)
    draft.replace(path)
