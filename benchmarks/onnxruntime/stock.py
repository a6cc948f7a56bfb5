"""The runtime's own static tool: told to do what our adapter does by default, from our ranges; and left to itself."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorData, TensorsData, save_tensors_data

from neural_tune.calibration import Statistics

# What our adapter quantizes by default, said to the stock tool: uint8 activations, int8 weights per_channel, Gemm without output.
STOCK = {
    "quant_format": QuantFormat.QDQ,
    "activation_type": QuantType.QUInt8,
    "weight_type": QuantType.QInt8,
    "per_channel": True,
    "calibrate_method": CalibrationMethod.MinMax,
    "extra_options": {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
}


def write_cache(statistics: Statistics, path: Path) -> Path:
    """Write our minima and maxima as the stock tool's calibration cache."""
    ranges = {
        name: TensorData(lowest=np.float32(seen.minimum), highest=np.float32(seen.maximum))
        for name, seen in statistics.tensors.items()
    }
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, ranges), path)
    return path


def stock_session(path: Path, cache: Path, folder: Path, floats: Sequence[str]) -> onnxruntime.InferenceSession:
    """Return a ready session the stock way: quantize to a file, load the file."""
    logging.disable(logging.WARNING)  # it asks for preprocessing on every call; our networks are folded already
    target = folder / "stock.onnx"
    quantize_static(str(path), str(target), None, calibration_cache_path=cache, nodes_to_exclude=list(floats), **STOCK)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])


class Reader(CalibrationDataReader):
    """Hands batches to the tool."""

    def __init__(self, feeds: Iterable[Mapping[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """Return the next batch, None at the end."""
        return next(self._feeds, None)


def quantize_all(path: Path, target: Path, feed: Mapping[str, np.ndarray]) -> Path:
    """Write the int8 model of every op type the tool knows, with the fast types of x86, and return its path."""
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    quantize_static(str(path), str(target), Reader([feed]), quant_format=QuantFormat.QDQ, **types)
    return target
