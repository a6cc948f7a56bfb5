"""Peak memory and time of calibration on ResNet-50, each case in a fresh process.

    python benchmarks/onnxruntime/bench_calibration.py [--batch 8] [--samples 80]

Proves two claims: memory is flat (ten times the samples, the same peak within 20 %), and a calibration needs at most 1.3 times the
peak of a process that runs the float model on such a batch, one thread each. Exit code 1 if either fails.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import networks
from timing import machine

FLAT, OVER_FLOAT = 1.2, 1.3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="samples per batch")
    parser.add_argument(
        "--samples", type=int, default=80, help="samples of the larger calibration, a multiple of 10 batches"
    )
    parser.add_argument("--case", nargs=3, metavar=("KIND", "MODEL", "BATCHES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        kind, path, batches = arguments.case
        print(json.dumps(run_case(kind, Path(path), arguments.batch, int(batches))))
        return 0
    with tempfile.TemporaryDirectory(prefix="nt-bench-") as folder:
        return compare(networks.write_resnet50(Path(folder)), arguments.batch, arguments.samples // arguments.batch)


def compare(path: Path, batch: int, batches: int) -> int:
    print(f"{machine()}; batch {batch}")
    cases = {"float": ("float", 2), "few": ("calibrate", max(1, batches // 10)), "many": ("calibrate", batches)}
    results = {name: start_case(kind, path, batch, count) for name, (kind, count) in cases.items()}
    for name, (kind, count) in cases.items():
        found = results[name]
        print(
            f"{kind:9} {count * batch:5d} samples   peak {found['peak'] / 2**20:6.0f} MiB   {found['cpu'] / count / batch:.3f} CPU s per sample"
        )
    growth = results["many"]["peak"] / results["few"]["peak"]
    over = results["many"]["peak"] / results["float"]["peak"]
    print(f"ten times the samples: {growth:.2f}x the peak (at most {FLAT}) {'PASS' if growth <= FLAT else 'FAIL'}")
    print(
        f"over the float model: {over:.2f}x the peak (at most {OVER_FLOAT}) {'PASS' if over <= OVER_FLOAT else 'FAIL'}"
    )
    return 0 if growth <= FLAT and over <= OVER_FLOAT else 1


def start_case(kind: str, path: Path, batch: int, batches: int) -> dict[str, float]:
    """Run one case in a process of its own: peak memory cannot be reset."""
    command = [sys.executable, __file__, "--batch", str(batch), "--case", kind, str(path), str(batches)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def run_case(kind: str, path: Path, batch: int, batches: int) -> dict[str, float]:
    """Load the model as the adapter does, then run it or calibrate it; bytes and seconds."""
    from neural_tune.protocols import AdapterOptions
    from neural_tune_onnxruntime import calibrate
    from neural_tune_onnxruntime.adapter import OnnxRuntimeAdapter

    adapter = OnnxRuntimeAdapter()
    model = adapter.load(str(path), AdapterOptions())
    feeds = ({"image": image} for image in networks.images(batches, batch))
    begin = time.process_time()
    if kind == "float":
        from neural_tune.values import FLOAT_CANDIDATE

        session = adapter.native(adapter.build(model, FLOAT_CANDIDATE, None, threads=1))
        for feed in feeds:
            session.run(None, feed)
    else:
        calibrate.collect(lambda names: model.session_for_outputs(names, 1), model.observed_tensors(), feeds)
    return {"peak": peak_memory(), "cpu": time.process_time() - begin}


def peak_memory() -> int:
    """Return the largest resident size of this process in bytes.

    Linux hands the parent's peak on to `ru_maxrss` of a child that is started through vfork, so it is read from /proc there.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


if __name__ == "__main__":
    sys.exit(main())
