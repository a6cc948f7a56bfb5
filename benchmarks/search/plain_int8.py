"""ONNX Runtime's own one-shot int8: the model that every search is supposed to repair. Needs onnx and onnxruntime only."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

Arrays = Mapping[str, NDArray[Any]]


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands out calibration samples in batches, once."""

    def __init__(self, inputs: Arrays, batch: int = 50) -> None:
        count = len(next(iter(inputs.values())))
        self._batches: Iterator[dict[str, NDArray[Any]]] = iter(
            {name: array[start : start + batch] for name, array in inputs.items()} for start in range(0, count, batch)
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next batch by input name; None at the end."""
        return next(self._batches, None)


def quantize(model: Path, target: Path, calibration: Arrays) -> None:
    """Write `target`: QDQ, every op type, unsigned activations by MinMax, signed weights per channel."""
    logging.disable(logging.WARNING)  # one line per LayerNormalization: its weight has no second axis
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(target),
            Reader(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    logging.disable(logging.NOTSET)


def session(model: Path | bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """Return a session with every graph optimization, on `threads` threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def outputs(model: Path, inputs: Arrays, batch: int = 50) -> NDArray[np.float32]:
    """Return the model's first output for all of `inputs`."""
    ready = session(model)
    count = len(next(iter(inputs.values())))
    parts = [
        ready.run(None, {name: array[start : start + batch] for name, array in inputs.items()})[0]
        for start in range(0, count, batch)
    ]
    return np.concatenate(parts)
