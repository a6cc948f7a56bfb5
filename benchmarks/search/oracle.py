"""How few ops must stay in float? A greedy search that pays any number of evaluations, to hold strategies to (fallback only, no recipes).

    python benchmarks/search/oracle.py [--tasks t20,t60] [--near 1000] [--out benchmarks/.cache/results]

Forward: from full int8, the group whose return to float restores most accuracy - on the samples that the float model holds by the thinnest margin, ties by
the distance of the outputs from float - until the drop on the whole set is tolerable. Backward: every group that can go back to int8 does, the one that
hurts least first. About N * (floats + 2) evaluations, through the toggle model, so no candidate is built. Accuracy cannot be bought cheaper by single moves;
a pair of ops around one bad tensor that help only together may be missed on the way up, and the way down cannot undo a wrong start.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from contract import CALIBRATION_SAMPLES, Array, Task, batches
from tasks import CACHE, prepare

from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE
from neural_tune_onnxruntime.adapter import OnnxRuntimeAdapter

Floats = frozenset[str]


@dataclass(frozen=True)
class Judged:
    """A set of float groups: right answers among the samples looked at, and the distance of the outputs from float."""

    right: int
    distance: float

    @property
    def rank(self) -> tuple[int, float]:
        """The larger, the better."""
        return self.right, -self.distance


class Bench:
    """Evaluates sets of float groups of a task."""

    def __init__(self, task: Task, near: int) -> None:
        self._task = task
        self._adapter = adapter = OnnxRuntimeAdapter()
        model = adapter.load(str(task.model), AdapterOptions())
        self.space = TuningSpace.of(adapter.query(model))
        self._ops = {group.name: group.ops for group in self.space.groups}
        with tempfile.TemporaryDirectory() as folder:
            statistics = adapter.calibrate(model, list(batches(task.calibration)), Path(folder))
            self._toggles = adapter.toggles(model, self.space.preferred(), statistics, 1)
        reference = adapter.build(model, FLOAT_CANDIDATE, None, 1)
        outputs = [adapter.run(reference, batch)[0] for batch in batches(task.inputs)]
        self._float_outputs = np.concatenate(outputs)
        self._near = np.argsort(np.abs(margins(self._float_outputs)), kind="stable")[:near]
        self.float_right = int((self._float_outputs.argmax(1) == task.labels).sum())
        self.tolerated = int(task.loss * (self.float_right if task.is_relative else task.samples) + 1e-9)
        self.evaluations = 0

    def judge(self, floats: Floats, *, whole: bool = False) -> Judged:
        """Run the model in which exactly `floats` are float."""
        rows = np.arange(self._task.samples) if whole else self._near
        int8 = frozenset(op for name, ops in self._ops.items() if name not in floats for op in ops)
        inputs = {name: array[rows] for name, array in self._task.inputs.items()}
        found = np.concatenate([self._toggles.run(int8, batch)[0] for batch in batches(inputs)])
        self.evaluations += 1
        right = int((found.argmax(1) == self._task.labels[rows]).sum())
        return Judged(right, float(np.square(found - self._float_outputs[rows]).mean()))

    def is_tolerable(self, floats: Floats) -> bool:
        """Return whether the whole set loses no more than the task allows."""
        return self.float_right - self.judge(floats, whole=True).right <= self.tolerated


def margins(outputs: Array) -> Array:
    """Return the best score minus the second best."""
    two = np.sort(outputs, axis=1)[:, -2:]
    return np.asarray(two[:, 1] - two[:, 0])


def search(bench: Bench) -> list[str]:
    """Return the groups that stay in float."""
    names = [group.name for group in bench.space.groups]
    floats: Floats = frozenset()
    while not bench.is_tolerable(floats) and len(floats) < len(names):
        found = {name: bench.judge(floats | {name}).rank for name in names if name not in floats}
        best = max(found, key=found.__getitem__)
        floats |= {best}
        print(f"  + {best}: {found[best][0]} right, distance {-found[best][1]:.3g}", flush=True)
    order = sorted(floats, key=lambda name: bench.judge(floats - {name}).rank, reverse=True)
    for name in order:
        if bench.is_tolerable(floats - {name}):
            floats -= {name}
            print(f"  - {name}", flush=True)
    return sorted(floats)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="t20,t60")
    parser.add_argument("--near", type=int, default=1000, help="samples that steps are compared on")
    parser.add_argument("--out", type=Path, default=CACHE / "results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.tasks.split(","):
        task = prepare(name)
        if task.metric != "top1":
            parser.error(f"{name}: the oracle knows top-1 only")
        print(name, flush=True)
        bench = Bench(task, arguments.near)
        floats = search(bench)
        found: dict[str, Any] = {
            "task": name,
            "floats": floats,
            "groups": len(bench.space.groups),
            "evaluations": bench.evaluations,
            "calibration_samples": min(CALIBRATION_SAMPLES, len(next(iter(task.calibration.values())))),
        }
        (arguments.out / f"oracle-{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(
            f"{name}: {len(floats)} of {len(bench.space.groups)} groups in float after {bench.evaluations} evaluations: {', '.join(floats)}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
