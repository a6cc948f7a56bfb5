"""Building one candidate: our adapter against `quantize_static` with a warm calibration cache, on ResNet-50.

    python benchmarks/onnxruntime/bench_build.py [--repeats 7]

Both start from the same float model and the same ranges (the stock tool's cache is written from our statistics) and end with a
session that is ready to run. Interleaved, medians. Proves two claims: candidates cost at most 1/13 of the stock way (CPU time; the full
candidate by itself, and full and mixed ones together, as a search builds them), and nothing is lost: the outputs of the full
candidate are equal bit for bit. Exit code 1 if either fails.

What is left of our cost is 80 to 90 % the start of the session. A candidate with many float ops costs more there, because the runtime
packs their weights anew for every session; so mixed candidates are the hard case, and each gets its own line.
"""

from __future__ import annotations

import argparse
import functools
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import networks
import numpy as np
import onnxruntime
from stock import stock_session, write_cache
from timing import Times, interleaved, machine

from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import Candidate
from neural_tune_onnxruntime.adapter import OnnxRuntimeAdapter

BUDGET = 1.0 / 13.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="measurements per contestant, at least 5")
    arguments = parser.parse_args()
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
    for name in candidates:
        print(row(name, times[f"ours, {name}"].cpu_median, times[f"stock, {name}"].cpu_median, walls(times, name)))
    totals = [sum(times[f"{who}, {name}"].cpu_median for name in candidates) for who in ("ours", "stock")]
    print(row("together", *totals))
    full = times["ours, full"].cpu_median / times["stock, full"].cpu_median
    fast = full <= BUDGET and totals[0] / totals[1] <= BUDGET

    image = next(iter(networks.images(1, seed=99)))
    mine = adapter.run(adapter.build(model, candidates["full"], statistics, threads=1), image)[0]
    theirs = stock_session(path, cache, folder, ()).run(None, {"image": image})[0]
    equal = bool(np.array_equal(mine, theirs))
    print(f"\nbudget 1/13 of the CPU time, full and together: {'PASS' if fast else 'FAIL'}")
    print(
        f"outputs of the full candidate equal bit for bit: {'PASS' if equal else 'FAIL'}, largest difference {np.abs(mine - theirs).max():g}"
    )
    return 0 if fast and equal else 1


def walls(times: Mapping[str, Times], name: str) -> str:
    """Return the wall times of one candidate, in words."""
    ours, stock = times[f"ours, {name}"].wall_median, times[f"stock, {name}"].wall_median
    return f"wall {ours:.3f} against {stock:.3f} s, 1/{stock / ours:.1f}"


def row(name: str, ours: float, stock: float, more: str = "") -> str:
    """Return one line of the table, from CPU seconds."""
    verdict = "PASS" if ours / stock <= BUDGET else "FAIL"
    return f"{name:9} ours {ours:6.3f}   stock {stock:6.3f} CPU s   1/{stock / ours:4.1f} {verdict}   {more}"


def half(space: TuningSpace, seed: int) -> Candidate:
    """Return the preferred candidate with a random half of the ops left in float."""
    full = space.preferred()
    names = sorted(full.ops)
    chosen = random.Random(seed).sample(names, len(names) // 2)
    return Candidate.of({name: full.ops[name] for name in chosen})


if __name__ == "__main__":
    sys.exit(main())
