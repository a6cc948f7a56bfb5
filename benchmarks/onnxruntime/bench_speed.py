"""Speed and size of our full int8 candidate against the float model at one thread: resnet20 (real weights), ResNet-50 and MobileNetV2.

    python benchmarks/onnxruntime/bench_speed.py [--repeats 15] [--networks resnet20 resnet50 mobilenet_v2] [--batches 1 8]

Float is what the same runtime makes of the float model with all its optimizations; stock is the model of `quantize_static` from the same
ranges. The sessions take turns; each measurement is a block of runs; medians of CPU time per run, quartiles of the ratio of neighbouring blocks.
Exit code 1 if a target is missed, or stock is more than 3 % faster than ours, on a processor with VNNI (elsewhere there is no target: int8 gains come
from that instruction).
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import networks
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from stock import stock_session, write_cache
from timing import interleaved, machine

from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE
from neural_tune_onnxruntime.adapter import OnnxRuntimeAdapter

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
# Mean and standard deviation of the training set, as the model's own README gives them.
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
BLOCK_SECONDS = 0.1
NETWORKS = ("resnet20", "resnet50", "mobilenet_v2")
LATENCY_SLACK = 0.97


@dataclass(frozen=True)
class Contest:
    """One float model, data for it, and what is expected of int8."""

    name: str
    path: Path
    calibration: list[NDArray[np.float32]]
    faster: float
    smaller: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="measurements per model and batch size, at least 5")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="batch sizes to measure")
    arguments = parser.parse_args()
    print(f"{machine()}; onnxruntime {onnxruntime.__version__}; 1 thread")
    with tempfile.TemporaryDirectory(prefix="nt-bench-") as folder:
        results = [
            measure(contest, Path(folder), arguments.batches, max(5, arguments.repeats))
            for contest in contests(Path(folder), arguments.networks)
        ]
    return 0 if all(results) or "vnni" not in machine() else 1


def contests(folder: Path, chosen: Collection[str]) -> Iterator[Contest]:
    """Yield what is chosen and can be measured here; resnet20 needs the real models beside the project."""
    if "resnet20" in chosen and SHARED_DATA.is_dir():
        with np.load(SHARED_DATA / "cifar10.npz") as data:
            pictures = (data["x_calib"][:64] / 255.0 - MEAN) / DEVIATION
        x = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), np.float32)
        yield Contest("resnet20", SHARED_DATA / "resnet20_cifar10.onnx", [x], 1.8, 3.2)
    elif "resnet20" in chosen:
        print("resnet20: not measured, no folder ../shared/data beside the project")
    for name, write, faster in (
        ("resnet50", networks.write_resnet50, 3.3),
        ("mobilenet_v2", networks.write_mobilenet_v2, 1.9),
    ):
        if name in chosen:
            yield Contest(name, write(folder), list(networks.images(2, batch=4)), faster, 3.6)


def measure(contest: Contest, folder: Path, batches: list[int], repeats: int) -> bool:
    """Print the lines of one model; return whether the targets hold (speed is judged at batch 1).

    The runtime's sessions are called directly, without our conversion of inputs: that is what users of the saved model run.
    """
    adapter = OnnxRuntimeAdapter()
    model = adapter.load(str(contest.path), AdapterOptions())
    statistics = adapter.calibrate(model, contest.calibration, folder / contest.name)
    candidate = TuningSpace.of(adapter.query(model)).preferred()
    int8 = adapter.build(model, candidate, statistics, threads=1)
    cache = write_cache(statistics, folder / f"{contest.name}-ranges.json")
    sessions = {
        "float": adapter.native(adapter.build(model, FLOAT_CANDIDATE, None, threads=1)),
        "int8": adapter.native(int8),
        "stock": stock_session(contest.path, cache, folder, ()),
    }
    saved = adapter.save(int8, folder / f"{contest.name}-int8")
    smaller = contest.path.stat().st_size / saved.stat().st_size
    good = smaller >= contest.smaller
    print(f"{contest.name:12} size   {smaller:5.2f}x smaller (target {contest.smaller}) {'PASS' if good else 'FAIL'}")
    source = np.concatenate(contest.calibration)
    for batch in batches:
        feed = {model.input_names[0]: np.resize(source, (batch, *source.shape[1:]))}
        calls = {name: functools.partial(session.run, None, feed) for name, session in sessions.items()}
        runs = block_of(calls["float"])
        times = interleaved({name: functools.partial(repeat, call, runs) for name, call in calls.items()}, repeats)
        cpu = {name: item.cpu_median / runs * 1e3 for name, item in times.items()}
        wall = {name: item.wall_median / runs * 1e3 for name, item in times.items()}
        faster = cpu["float"] / cpu["int8"]
        low, high = np.quantile(np.divide(times["float"].cpu, times["int8"].cpu), (0.25, 0.75))
        verdict = ""
        if batch == 1:
            reached = faster >= contest.faster and cpu["stock"] >= LATENCY_SLACK * cpu["int8"]
            good = good and reached
            verdict = f"(target {contest.faster}) {'PASS' if reached else 'FAIL'}"
        print(
            f"{contest.name:12} b{batch:<4} float {cpu['float']:8.3f}   int8 {cpu['int8']:8.3f}   stock {cpu['stock']:8.3f} ms CPU   "
            f"{faster:5.2f}x [{low:.2f}-{high:.2f}], stock {cpu['float'] / cpu['stock']:.2f}x {verdict}   (wall {wall['float']:.3f} / {wall['int8']:.3f} / {wall['stock']:.3f} ms)"
        )
    return good


def block_of(call: Callable[[], object]) -> int:
    """Return how many calls take about BLOCK_SECONDS."""
    once = interleaved({"once": call}, 3)["once"].wall_median
    return max(1, round(BLOCK_SECONDS / once))


def repeat(call: Callable[[], object], count: int) -> None:
    for _ in range(count):
        call()


if __name__ == "__main__":
    sys.exit(main())
