"""Int8 does not pay in narrow networks at batch 1: a result must say so, whatever it was accepted for."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the ONNX Runtime adapter needs onnxruntime")
import onnxruntime

from neural_tune import (
    AccuracyCriterion,
    PerformanceConfig,
    PostTrainingQuantConfig,
    TuneResult,
    TuningCriterion,
    fit,
)

pytestmark = [pytest.mark.slow, pytest.mark.shared_data]


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measured_speedup(float_model: Path, artifact: Path, x: Any) -> float:
    """Return float time over int8 time by CPU seconds, the median over alternating blocks: not the way that `fit` measures."""
    sessions = session(float_model), session(artifact)

    def seconds(each: Any) -> float:
        begun = time.process_time()
        for _ in range(60):
            each.run(None, {"x": x})
        return time.process_time() - begun

    for each in sessions:
        seconds(each)
    return statistics.median(seconds(sessions[0]) / seconds(sessions[1]) for _ in range(15))


def tuned(folder: Path, workspace: Path, objective: str) -> TuneResult:
    tasks = folder / "tasks"
    with np.load(tasks / "digits_calib.npz") as calib, np.load(tasks / "digits_val.npz") as val:
        calibration, x, y = calib["x"][:100], val["x"][:600], val["y"][:600]
    return fit(
        str(tasks / "t20.onnx"),
        PostTrainingQuantConfig(
            workspace=str(workspace),
            threads=1,
            accuracy_criterion=AccuracyCriterion(criterion="absolute", tolerable_loss=0.01),
            performance=PerformanceConfig(batch_size=1, threads=1),
            tuning_criterion=TuningCriterion(objective=objective),
        ),
        calib_dataloader=calibration.astype(np.float32) / 255,
        eval_dataloader=(x.astype(np.float32) / 255, y),
        eval_metric="topk",
        reporter="quiet",
    )


@pytest.mark.parametrize("objective", ["size", "latency"])
def test_an_accepted_model_that_is_slower_than_float_says_so(shared_data: Path, tmp_path: Path, objective: str) -> None:
    result = tuned(shared_data, tmp_path, objective)
    assert result.accepted
    assert result.artifact is not None
    x = np.random.default_rng(0).random((1, 1, 32, 32), np.float32)
    ratio = measured_speedup(shared_data / "tasks" / "t20.onnx", result.artifact, x)
    said = " ".join(result.notices)
    if objective == "size":
        assert ratio < 0.95, "t20 in full int8 is the example of a model that does not pay at batch 1"
    if ratio < 0.95:
        assert "accepted, but SLOWER than float" in said or "cannot be told from float's" in said
    if "SLOWER" in said:
        assert ratio < 1.05
