"""ONNX Runtime's own `quantize_static`, as a contestant: one shot, no search, no criterion."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import plain_int8
from contract import Stopwatch, Task, child


def main(task: Task, folder: Path, setting: str) -> dict[str, Any]:  # noqa: ARG001 - there is one setting
    watch, target = Stopwatch(), folder / "tuned.onnx"
    plain_int8.quantize(task.model, target, task.calibration)
    return {
        **watch.read(),
        "status": "not judged",
        "reason": "one shot: it evaluates nothing",
        "calls": 0,
        "passes": 0.0,
        "trials": 0,
        "artifact": str(target),
        "runtime": "onnxruntime",
        "bytes": target.stat().st_size,
        "versions": {name: version(name) for name in ("onnxruntime", "onnx", "numpy")},
    }


if __name__ == "__main__":
    sys.exit(child(main))
