"""NNCF's accuracy control with OpenVINO, as a contestant. The setting is the batch size at which the samples it asks for are run, and ":plain".

1 is what its own examples do; a larger one is cheaper, and the values per sample that it ranks by are returned all the same. A transformer is
announced as one, which switches NNCF's preset for it on (SmoothQuant, and fewer ops quantized); with ":plain" NNCF keeps its own defaults.
"""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nncf
import numpy as np
import openvino
from contract import Array, Arrays, Meter, Run, Stopwatch, Task, child, compare, outputs_of

PRECISION = "INFERENCE_PRECISION_HINT"
# float32, because that is what NNCF sets while it validates, and so what it accepts a model in.
LIMITS = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", PRECISION: "f32"}
PRODUCTS = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul", "GroupConvolution"})


def main(task: Task, folder: Path, setting: str) -> dict[str, Any]:
    size_of_batch, _, plain = setting.partition(":")
    records = Records()
    logging.getLogger("nncf").addHandler(records)
    meter, watch = Meter(task, folder), Stopwatch()
    core = openvino.Core()
    core.set_property("CPU", LIMITS)
    model = core.read_model(str(task.model))
    samples = [{name: array[[row]] for name, array in task.calibration.items()} for row in range(calibrating(task))]

    def validate(compiled: Any, items: Iterable[int]) -> tuple[float, list[float]]:
        return meter.scores(runner(compiled), list(items), int(size_of_batch))

    tuned = nncf.quantize_with_accuracy_control(
        model,
        calibration_dataset=nncf.Dataset(samples),
        validation_dataset=nncf.Dataset(range(task.samples)),
        validation_fn=validate,
        max_drop=task.loss,
        drop_type=nncf.DropType.RELATIVE if task.is_relative else nncf.DropType.ABSOLUTE,
        subset_size=calibrating(task),
        model_type=nncf.ModelType.TRANSFORMER if task.is_transformer and not plain else None,
    )
    used = watch.read()
    target = folder / "tuned.xml"
    openvino.save_model(tuned, str(target), compress_to_fp16=False)
    openvino.save_model(model, str(folder / "float.xml"), compress_to_fp16=False)
    run_float, run_tuned = (runner(core.compile_model(str(path), "CPU")) for path in (folder / "float.xml", target))
    before, after = outputs_of(run_float, task.inputs), outputs_of(run_tuned, task.inputs)
    np.savez(folder / "outputs.npz", float=before, tuned=after)
    return {
        **used,
        "status": "accepted" if task.score(before) - task.score(after) <= tolerable(task, before) else "best_effort",
        "reason": records.last(),
        "calls": meter.calls,
        "passes": round(meter.passes, 3),
        "trials": meter.full - 1,
        "reverted": records.reverted(),
        "runtime": "openvino",
        "artifact": str(target),
        "bytes": size(target),
        "float_bytes": size(folder / "float.xml"),
        **running(core.compile_model(str(target), "CPU")),
        "latency": {str(count): compare(run_float, run_tuned, task, count) for count in task.batches},
        "by_default": by_default(task, folder),
        "log": records.lines,
        "versions": {"nncf": nncf.__version__, "openvino": openvino.__version__},
    }


def by_default(task: Task, folder: Path) -> dict[str, Any]:
    """Return metric and latency as OpenVINO runs the models without being told a precision: in bfloat16 where the processor has it."""
    core = openvino.Core()
    core.set_property("CPU", {name: value for name, value in LIMITS.items() if name != PRECISION})
    float_model, tuned = (core.compile_model(str(folder / f"{name}.xml"), "CPU") for name in ("float", "tuned"))
    pair = runner(float_model), runner(tuned)
    return {
        "precision": tuned.get_property(PRECISION).to_string(),
        "metric_float": task.score(outputs_of(pair[0], task.inputs)),
        "metric": task.score(outputs_of(pair[1], task.inputs)),
        "latency": {str(count): compare(*pair, task, count) for count in task.batches},
    }


def calibrating(task: Task) -> int:
    return len(next(iter(task.calibration.values())))


def tolerable(task: Task, before: Array) -> float:
    return (task.loss * abs(task.score(before)) if task.is_relative else task.loss) + 1e-12


def runner(compiled: Any) -> Run:
    """Return a function that runs a compiled model."""
    request = compiled.create_infer_request()

    def run(batch: Arrays) -> Array:
        return np.array(request.infer(dict(batch))[compiled.output(0)])

    return run


def size(path: Path) -> int:
    """Return the bytes of an IR: description and weights."""
    return path.stat().st_size + path.with_suffix(".bin").stat().st_size


def running(compiled: Any) -> dict[str, Any]:
    """Return how many products the runtime really runs in float and in int8, and its word for each precision."""
    kinds: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if (
            "layerType" in info
            and str(info["layerType"].value if hasattr(info["layerType"], "value") else info["layerType"]) in PRODUCTS
        ):
            precision = info["runtimePrecision"]
            kinds[str(precision.value if hasattr(precision, "value") else precision).lower()] += 1
    low = sum(count for kind, count in kinds.items() if kind in ("i8", "u8"))
    return {
        "products": sum(kinds.values()),
        "int8_running": low,
        "float_running": sum(kinds.values()) - low,
        "precisions": kinds,
    }


class Records(logging.Handler):
    """Keeps NNCF's log: it returns nothing but the model."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line."""
        self.lines.append(record.getMessage())

    def last(self) -> str:
        """Return the last lines about the outcome."""
        return " | ".join(line for line in self.lines if "ccuracy" in line)[-600:]

    def reverted(self) -> int | None:
        """Return how many operations it says it took back to float, where it says so."""
        for line in reversed(self.lines):
            match = re.search(r"(\d+) out of \d+ w(?:as|ere) reverted", line)
            if match:
                return int(match.group(1))
        return None


if __name__ == "__main__":
    sys.exit(child(main))
