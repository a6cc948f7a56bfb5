"""The same judgement for every contestant: metric, drop with its interval, latency and float ops of what it handed back.

Runs as a child in the project's own environment, pinned to one core. A model in ONNX is run here, in ONNX Runtime, whatever its maker said of
it; one in another format is judged by the outputs that the contestant stored and timed by the contestant in its own runtime.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import plain_int8
from contract import Array, Arrays, Run, Task, compare, outputs_of, pair_scores, spearman

from neural_tune.evaluation import Evaluation, certify
from neural_tune.values import FrozenMap

# Products as they may be called after the runtime's own fusions.
FLOAT_PRODUCTS = frozenset(
    [
        "Conv",
        "FusedConv",
        "ConvTranspose",
        "MatMul",
        "FusedMatMul",
        "TransposeMatMul",
        "Gemm",
        "FusedGemm",
        "FusedMatMulActivation",
        "Attention",
        "MultiHeadAttention",
    ]
)
INT8_PRODUCTS = frozenset(
    [
        "QLinearConv",
        "QLinearMatMul",
        "QGemm",
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "QAttention",
        "ConvIntegerToFloat",
    ]
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    task = Task.read(arguments.task)
    found = json.loads((arguments.folder / "found.json").read_text())
    judged = judge(task, arguments.folder, found)
    (arguments.folder / "judged.json").write_text(json.dumps(judged, indent=1) + "\n")
    return 0


def judge(task: Task, folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Return what is true of the accepted model, in the words of `contract`."""
    if found.get("runtime") == "onnxruntime":
        run_float, run_tuned = runner(task.model), runner(Path(found["artifact"]))
        before, after = outputs_of(run_float, task.inputs), outputs_of(run_tuned, task.inputs)
        products, floats = running_products(task.model), running_products(Path(found["artifact"]))
        return {
            **drop(task, before, after),
            "artifact_sha256": digest(Path(found["artifact"])),
            "products": sum(products.values()),
            "float_running": sum(count for kind, count in floats.items() if kind in FLOAT_PRODUCTS),
            "int8_running": sum(count for kind, count in floats.items() if kind in INT8_PRODUCTS),
            "latency": {str(size): compare(run_float, run_tuned, task, size) for size in task.batches},
            "float_bytes": task.model.stat().st_size,
            "largest_output_difference": float(np.abs(before - after).max()),
        }
    with np.load(folder / "outputs.npz", allow_pickle=False) as stored:
        return drop(task, stored["float"], stored["tuned"])


def drop(task: Task, before: Array, after: Array) -> dict[str, Any]:
    """Return metric, drop and 95 % interval; right-or-wrong values by Bonett and Price, correlations by a paired bootstrap over pairs."""
    values = {"top1": (before.argmax(1) == task.labels).astype(np.float64)} if task.metric == "top1" else None
    tuned = {"top1": (after.argmax(1) == task.labels).astype(np.float64)} if task.metric == "top1" else None
    first, second = (
        Evaluation(
            metrics=FrozenMap({task.metric: task.score(outputs)}),
            samples=task.samples,
            passes=1.0,
            seconds=0.0,
            values=each,
        )
        for outputs, each in ((before, values), (after, tuned))
    )
    resampled = None
    if values is None:
        scores = pair_scores(before), pair_scores(after)

        def draw(rows: Array) -> tuple[float, float]:
            return spearman(scores[0][rows], task.labels[rows]), spearman(scores[1][rows], task.labels[rows])

        resampled = {task.metric: draw}
    entry = certify(first, second, {task.metric: True}, resampled=resampled)[task.metric]
    tolerable = task.loss * abs(entry.baseline) if task.is_relative else task.loss
    return {
        "metric_float": entry.baseline,
        "metric": entry.value,
        "drop": entry.drop,
        "drop_low": entry.low,
        "drop_high": entry.high,
        "tolerable": tolerable,
        "is_met": entry.drop <= tolerable + 1e-12,
        "worse": entry.worse,
        "better": entry.better,
    }


def digest(model: Path) -> str:
    """Return what tells the file from another one of the same name."""
    return hashlib.sha256(model.read_bytes()).hexdigest()[:16]


def runner(model: Path) -> Run:
    """Return a function that runs the model in ONNX Runtime with one thread."""
    session = plain_int8.session(model)

    def run(batch: Arrays) -> Array:
        return np.asarray(session.run(None, dict(batch))[0])

    return run


def running_products(model: Path) -> Counter[str]:
    """Return op type -> count of the products in the graph that ONNX Runtime really runs, after its own optimizations."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(target).graph
    return Counter(node.op_type for node in graph.node if node.op_type in FLOAT_PRODUCTS | INT8_PRODUCTS)


if __name__ == "__main__":
    sys.exit(main())
