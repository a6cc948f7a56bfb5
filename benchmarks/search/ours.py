"""neural_tune as a contestant: one strategy, one track, in a process of its own. The setting is "strategy:track:objective", as "auto:any:latency@1".

What stands behind "@" is the batch size that speed is measured with; without it, the largest of the task.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

# What `fit` imports at first use: every contestant's clock starts after its imports.
import onnx  # noqa: F401
import onnxruntime  # noqa: F401
import sklearn.metrics  # noqa: F401
from contract import CALIBRATION_SAMPLES, Stopwatch, Task, batches, child, pair_scores, spearman

from neural_tune import (
    AccuracyCriterion,
    CapabilityError,
    PerformanceConfig,
    PostTrainingQuantConfig,
    TuneResult,
    TuningCriterion,
    fit,
    plugins,
)
from neural_tune.events import RunStarted, StageStarted
from neural_tune.protocols import AdapterOptions

PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})


class Clock:
    """A reporter that notes when the search is over: what follows is the measurement of speed, which no peer does."""

    def __init__(self) -> None:
        self.watch = Stopwatch()
        self.stages: dict[str, float] = {}
        self.run_directory = Path()

    def on_event(self, event: object) -> None:
        """Remember the CPU seconds at which each stage began."""
        if isinstance(event, RunStarted):
            self.run_directory = Path(event.run_directory)
        elif isinstance(event, StageStarted):
            self.stages[event.stage] = self.watch.read()["cpu_s"]


def main(task: Task, folder: Path, setting: str) -> dict[str, Any]:
    strategy, track, wanted = setting.split(":")
    objective, _, batch = wanted.partition("@")
    installed = plugins.strategies()
    if strategy not in installed:
        return {"status": "skipped", "reason": f"no strategy named {strategy!r}; installed: {', '.join(installed)}"}
    offered = recipes(task.model)
    if track == "fallback" and not offered:
        return {"status": "skipped", "reason": "the adapter offers no recipes, so this track is the other one"}
    clock = Clock()
    shutil.rmtree(folder / "workspace", ignore_errors=True)
    conf = PostTrainingQuantConfig(
        recipes=dict.fromkeys(offered, False) if track == "fallback" else {},
        calibration_sampling_size=min(CALIBRATION_SAMPLES, len(next(iter(task.calibration.values())))),
        accuracy_criterion=AccuracyCriterion(True, "relative" if task.is_relative else "absolute", task.loss),
        tuning_criterion=TuningCriterion(strategy=strategy, objective=objective),
        performance=PerformanceConfig(threads=1, batch_size=int(batch or task.batches[-1])),
        threads=1,
        workspace=str(folder / "workspace"),
    )
    try:
        result = fit(
            str(task.model),
            conf,
            calib_dataloader=list(batches(task.calibration)),
            reporter=clock,
            **evaluation(task),
        )
    except CapabilityError as error:  # before anything is run: this strategy is not for this framework
        return {"status": "skipped", "reason": str(error)}
    used = clock.watch.read()
    return {**used, **described(result, clock, folder), "cpu_total_s": used["cpu_s"]} | accepted_at(clock, used)


def recipes(model: Path) -> tuple[str, ...]:
    """Return the names of the recipes on offer for the model."""
    adapter = plugins.adapter_for(str(model))
    return adapter.query(adapter.load(str(model), AdapterOptions())).recipes


def evaluation(task: Task) -> dict[str, Any]:
    """Return the arguments of `fit` that define accuracy: a built-in metric, or for pairs a callable on all embeddings."""
    if task.metric == "top1":
        parts = zip(batches(task.inputs), batches({"y": task.labels}), strict=True)
        return {"eval_dataloader": [(inputs, labels["y"]) for inputs, labels in parts], "eval_metric": {"topk": 1}}
    labels = np.concatenate([task.labels, task.labels])  # a label per row, the second half is not looked at
    parts = zip(batches(task.inputs), batches({"y": labels}), strict=True)

    def pairs(outputs: Any, wanted: Any) -> float:
        scores = pair_scores(np.asarray(outputs))
        return spearman(scores, np.asarray(wanted)[: len(scores)])

    return {"eval_dataloader": [(inputs, labels["y"]) for inputs, labels in parts], "eval_metric": pairs}


def accepted_at(clock: Clock, used: dict[str, float]) -> dict[str, Any]:
    """Return the CPU seconds until the accepted model was certified; without that event, all of them."""
    return {"cpu_s": round(clock.stages.get("measure", used["cpu_s"]), 2), "stages_cpu_s": clock.stages}


def described(result: TuneResult, clock: Clock, folder: Path) -> dict[str, Any]:
    products = [op for op in result.ops if op.type in PRODUCTS]
    found: dict[str, Any] = {
        "status": "accepted" if result.accepted else result.status.value,
        "reason": result.reason,
        "notices": list(result.notices),
        "passes": round(result.passes, 3),
        "calls": None,
        "trials": len(result.trials),
        "trial_list": [
            {
                "origin": trial.trial.origin.reason,
                "metrics": dict(trial.metrics),
                "passes": round(trial.passes, 3),
                "recipes": list(trial.trial.candidate.recipes),
                "status": trial.status.value,
            }
            for trial in result.trials
        ],
        "recipes": list(result.best.trial.candidate.recipes) if result.best else [],
        "float_decided": sum(op.is_float for op in products),
        "float_for_accuracy": sum(op.is_float and op.reason.startswith("accuracy") for op in products),
        "float_ops": {op.name: op.reason for op in products if op.is_float},
        "interrupted": result.is_interrupted,
        "own_speed": result.speedup,
        **probes(clock.run_directory),
    }
    if result.artifact is not None:
        saved = folder / "saved"
        shutil.rmtree(saved, ignore_errors=True)
        found |= {"artifact": str(result.save(saved, best_effort=True)), "runtime": "onnxruntime", "bytes": result.size}
    return found


def probes(run_directory: Path) -> dict[str, Any]:
    """Return what the probes before the search ran on calibration samples, which is no pass over the validation data."""
    journal = run_directory / "journal.jsonl"
    lines = journal.read_text().splitlines() if journal.is_file() else []
    insights = [record["insight"] for record in map(json.loads, lines) if record.get("kind") == "insight"]
    if not insights:
        return {"probe_samples": 0}
    return {"probe_samples": insights[-1].get("samples", 0) * insights[-1].get("forwards", 0)}


if __name__ == "__main__":
    sys.exit(child(main))
