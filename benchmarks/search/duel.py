"""Is our accepted model at least as fast as each peer's, on the same runtime? Both are timed in turns, in one process, after run.py.

    python benchmarks/search/duel.py [--tasks t20,resnet20] [--ours "neural_tune auto any"] [--out benchmarks/.cache/results]

Peers' models count where they run in ONNX Runtime and meet the criterion, by the judge's word. Two ratios to float of two rows were measured at different
times; this is the direct comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contract import compare
from judge import digest, runner
from tasks import CACHE, TASKS, prepare

COLUMNS = ("task", "ours", "peer", "ours is faster by (batch; quartiles)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--ours", default="neural_tune auto any")
    parser.add_argument("--out", type=Path, default=CACHE / "results")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for name in arguments.tasks.split(","):
        rows = [json.loads(path.read_text()) for path in sorted(arguments.out.glob(f"{name}--*.json"))]
        ours = next((row for row in rows if row["contestant"] == arguments.ours and row.get("is_met")), None)
        if ours is not None:
            lines += [line for peer in peers(rows) for line in duel(name, ours, peer)]
    (arguments.out / "duels.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


def peers(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of others whose model meets the criterion and runs in ONNX Runtime."""
    for row in rows:
        if (
            not row["contestant"].startswith("neural_tune")
            and row.get("runtime") == "onnxruntime"
            and row.get("is_met")
        ):
            yield row


def duel(name: str, ours: dict[str, Any], peer: dict[str, Any]) -> Iterator[str]:
    """Yield a line of the table: the ratio, or why the two are not timed."""
    head = f"| {name} | {ours['contestant']} | {peer['contestant']}"
    why = next(filter(None, map(stale, (ours, peer))), "")
    if why:
        yield f"{head} | not timed: {why} |"
        return
    task = prepare(name)
    first, second = Path(peer["artifact"]), Path(ours["artifact"])
    run_peer, run_ours = runner(first), runner(second)
    found = {size: compare(run_peer, run_ours, task, size) for size in task.batches}
    shown = "; ".join(
        f"{each['ratio']:.2f} ({size}; {each['quartile_low']:.2f}-{each['quartile_high']:.2f})"
        for size, each in found.items()
    )
    yield f"{head} | {shown} |"


def stale(row: dict[str, Any]) -> str:
    """Return why the model of a row cannot be timed for it, "" where it can: every new run of run.py writes its models into the same folders."""
    model, judged = Path(row["artifact"]), row.get("artifact_sha256", "")
    if not model.exists():
        return f"the model of {row['contestant']} is gone"
    if not judged:
        return f"the row of {row['contestant']} does not say which file was judged; repeat run.py"
    return "" if digest(model) == judged else f"the model of {row['contestant']} is that of another run; repeat run.py"


if __name__ == "__main__":
    sys.exit(main())
