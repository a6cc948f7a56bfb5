"""Speed and size of dynamic, automatic, static and weight-only models at one thread: BERT-base, LSTM and a perceptron with random weights.

    python benchmarks/onnxruntime/bench_dynamic.py [--repeats 15] [--networks bert-base lstm perceptron] [--batches 1 8] [--static] [--bits]

Float is what the same runtime makes of the float model with all its optimizations; stock is `quantize_dynamic` of the runtime with its
default types (int8 weights per tensor), and with int8 weights per channel; with --static also `quantize_static` with uint8 activations and int8
weights per channel, of all op types it knows. The sessions take turns; medians of CPU time per run. Exit code 1 if
a target is missed, or the best stock setting is more than 3 % faster than the best of ours, on a processor with VNNI.
"""

from __future__ import annotations

import argparse
import functools
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from bench_speed import block_of, repeat
from onnxruntime.quantization import QuantType, quantize_dynamic
from sequence_networks import NETWORKS, feed_of
from stock import quantize_all
from timing import interleaved, machine

from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE, Candidate, DType, Observer
from neural_tune_onnxruntime.adapter import OnnxRuntimeAdapter

ADAPTER = OnnxRuntimeAdapter()
LATENCY_SLACK = 0.97


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="measurements per model and batch size, at least 5")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="batch sizes to measure")
    parser.add_argument("--static", action="store_true", help="measure static models too")
    parser.add_argument("--bits", action="store_true", help="measure weight-only models too")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    print(f"{machine()}; onnxruntime {onnxruntime.__version__}; 1 thread")
    approaches = ["dynamic", "auto"]
    approaches += [name for name, wanted in (("static", arguments.static), ("weight_only", arguments.bits)) if wanted]
    good = [measure(name, arguments.batches, max(5, arguments.repeats), approaches) for name in arguments.networks]
    return 0 if all(good) or "vnni" not in machine() else 1


def measure(name: str, batches: list[int], repeats: int, approaches: list[str]) -> bool:
    """Print the lines of one network; return whether the targets hold (speed is judged at batch 1)."""
    make, faster, smaller = NETWORKS[name]
    with tempfile.TemporaryDirectory(prefix="nt-bench-") as folder:
        source = Path(folder) / "float.onnx"
        model = make()
        onnx.save(model, source)
        sessions, sizes = contestants(source, model, Path(folder), approaches)
        ratio = sizes["float"] / sizes["dynamic"]
        good = ratio >= smaller
        print(f"{name:10} size {ratio:5.2f}x smaller (target {smaller}) {'PASS' if good else 'FAIL'}")
        for batch in batches:
            found = speed(sessions, feed_of(model, batch), repeats)
            best = max(value for key, value in found.items() if key.startswith("stock"))
            ours = max(value for key, value in found.items() if key in approaches)
            reached = ours >= faster and ours >= LATENCY_SLACK * best
            shown = "  ".join(f"{key} {value:.2f}x" for key, value in found.items())
            verdict = f"(target {faster}) {'PASS' if reached else 'FAIL'}" if batch == 1 else ""
            good = good and (reached or batch != 1)
            print(f"{name:10} b{batch:<3} {shown} {verdict}", flush=True)
    return good


def contestants(
    source: Path, model: onnx.ModelProto, folder: Path, approaches: list[str]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return sessions and sizes by name; "float" is the runtime's own session of the float model."""
    sessions: dict[str, Any] = {}
    sizes: dict[str, int] = {"float": source.stat().st_size}
    for approach in approaches:
        held = ADAPTER.load(str(source), AdapterOptions(approach=approach))
        space = TuningSpace.of(ADAPTER.query(held))
        if "float" not in sessions:
            sessions["float"] = ADAPTER.native(ADAPTER.build(held, FLOAT_CANDIDATE, None, threads=1))
        statistics = None
        if approach in ("auto", "static"):
            statistics = ADAPTER.calibrate(held, [feed_of(model, 2)], folder / f"statistics-{approach}")
        for label, candidate in candidates(approach, space).items():
            built = ADAPTER.build(held, candidate, statistics, threads=1)
            sessions[label], sizes[label] = ADAPTER.native(built), ADAPTER.size(built)
    for label, types in (("stock", {}), ("stock int8", {"weight_type": QuantType.QInt8, "per_channel": True})):
        target = folder / f"{label}.onnx"
        quantize_dynamic(str(source), str(target), **types)
        sessions[label], sizes[label] = session_of(target), target.stat().st_size
    if "static" in approaches:
        target = quantize_all(source, folder / "stock-static.onnx", feed_of(model, 2))
        sessions["stock static"], sizes["stock static"] = session_of(target), target.stat().st_size
    return sessions, sizes


def candidates(approach: str, space: TuningSpace) -> dict[str, Candidate]:
    """Return the preferred candidate; of weight-only models the one with 8 and the one with 4 bits."""
    if approach != "weight_only":
        return {approach: space.preferred()}
    four = {g.name: next((c for c in g.choices[:-1] if c.weight.dtype is DType.INT4 and c.weight.observer is Observer.MINMAX), g.choices[0]) for g in space.groups}  # fmt: skip
    return {"8 bits": space.preferred(), "4 bits": space.candidate(four)}


def speed(sessions: dict[str, Any], feed: dict[str, Any], repeats: int) -> dict[str, float]:
    """Return how many times faster than float each session is, by CPU time."""
    calls = {name: functools.partial(session.run, None, feed) for name, session in sessions.items()}
    runs = block_of(calls["float"])
    times = interleaved({name: functools.partial(repeat, call, runs) for name, call in calls.items()}, repeats)
    return {name: times["float"].cpu_median / item.cpu_median for name, item in times.items() if name != "float"}


def session_of(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    sys.exit(main())
