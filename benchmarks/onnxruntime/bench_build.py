"""Building one candidate: our adapter against `quantize_static` with a warm calibration cache, on ResNet-50.

    python benchmarks/onnxruntime/bench_build.py [--repeats 7]

Both start from the same float model and the same ranges (the stock tool's cache is written from our statistics) and end with a
session that is ready to run. Interleaved, medians. Proves two claims: a candidate costs at most 1/13 of the stock way (CPU time), and
nothing is lost, the outputs of the full candidate are equal bit for bit. Exit code 1 if either fails.
"""

from __future__ import annotations

import argparse
import functools
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorData, TensorsData, save_tensors_data

import networks
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import Candidate
from neural_tune_onnxruntime.adapter import OnnxRuntimeAdapter
from neural_tune_onnxruntime.statistics import Statistics
from timing import Times, interleaved, machine

BUDGET = 1.0 / 13.0
# What our adapter quantizes by default, said to the stock tool: uint8 activations, int8 weights per_channel, Gemm without output.
STOCK = {
    "quant_format": QuantFormat.QDQ,
    "activation_type": QuantType.QUInt8,
    "weight_type": QuantType.QInt8,
    "per_channel": True,
    "calibrate_method": CalibrationMethod.MinMax,
    "extra_options": {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="measurements per contestant, at least 5")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # the stock tool asks for preprocessing on every call; the model is already folded
    with tempfile.TemporaryDirectory(prefix="nt-bench-") as folder:
        return compare(Path(folder), max(5, arguments.repeats))


def compare(folder: Path, repeats: int) -> int:
    path = networks.write_resnet50(folder)
    adapter = OnnxRuntimeAdapter()
    model = adapter.load(str(path), AdapterOptions())
    space = TuningSpace.of(adapter.query(model))
    begin = time.process_time()
    statistics = adapter.calibrate(model, networks.images(4), folder / "statistics")
    print(f"{machine()}; onnxruntime {onnxruntime.__version__}")
    print(f"one calibration pass over 4 images: {time.process_time() - begin:.2f} CPU s (both sides use its ranges)")
    cache = write_cache(statistics, folder / "ranges.json")
    candidates = {"full": space.preferred(), "half a": half(space, 1), "half b": half(space, 2)}
    begin = time.process_time()
    adapter.build(model, candidates["full"], statistics, threads=1)
    first = time.process_time() - begin
    print(f"our first candidate, which quantizes all weights once: {first:.3f} CPU s\n")

    contestants: dict[str, Callable[[], object]] = {}
    for name, candidate in candidates.items():
        ours = functools.partial(adapter.build, model, candidate, statistics, threads=1)
        floats = [op for op in space.op_names if op not in candidate.ops]
        contestants[f"ours, {name}"] = ours
        contestants[f"stock, {name}"] = functools.partial(stock_session, path, cache, folder, floats)
    times = interleaved(contestants, repeats)
    fast = all([row(name, times[f"ours, {name}"], times[f"stock, {name}"]) for name in candidates])

    image = next(iter(networks.images(1, seed=99)))
    mine = adapter.run(adapter.build(model, candidates["full"], statistics, threads=1), image)[0]
    theirs = stock_session(path, cache, folder, ()).run(None, {"image": image})[0]
    equal = bool(np.array_equal(mine, theirs))
    print(f"\nbudget {BUDGET:.4f} (1/13) of the CPU time: {'PASS' if fast else 'FAIL'}")
    print(f"outputs of the full candidate equal bit for bit: {'PASS' if equal else 'FAIL'}, largest difference {np.abs(mine - theirs).max():g}")
    return 0 if fast and equal else 1


def row(name: str, ours: Times, stock: Times) -> bool:
    """Print one line of the table; return whether the budget holds."""
    cpu, wall = ours.cpu_median / stock.cpu_median, ours.wall_median / stock.wall_median
    print(
        f"{name:8} ours {ours.cpu_median:6.3f} CPU s {ours.wall_median:6.3f} s   "
        f"stock {stock.cpu_median:6.3f} CPU s {stock.wall_median:6.3f} s   "
        f"ratio 1/{1 / cpu:.1f} CPU, 1/{1 / wall:.1f} wall   {'PASS' if cpu <= BUDGET else 'FAIL'}"
    )
    return cpu <= BUDGET


def half(space: TuningSpace, seed: int) -> Candidate:
    """Return the preferred candidate with a random half of the ops left in float."""
    full = space.preferred()
    names = sorted(full.ops)
    chosen = random.Random(seed).sample(names, len(names) // 2)
    return Candidate.of({name: full.ops[name] for name in chosen})


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
    target = folder / "stock.onnx"
    quantize_static(
        str(path), str(target), None, calibration_cache_path=cache, nodes_to_exclude=list(floats), **STOCK
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    sys.exit(main())
