"""TensorBoard and MLflow get the numbers of a run, read back through their own libraries."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from neural_tune import AccuracyCriterion, PerformanceConfig, PostTrainingQuantConfig, TuneResult, TuningCriterion, fit
from neural_tune.testing import ToyAdapter, toy_task

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the trackers' own libraries


def tuned(tmp_path: Path, reporter: Any) -> TuneResult:
    task = toy_task()
    return fit(
        task.model,
        PostTrainingQuantConfig(
            workspace=str(tmp_path / "w"),
            performance=PerformanceConfig(warmup=1, repeats=12, seconds=0.05, batch_size=8),
            tuning_criterion=TuningCriterion(strategy="basic", max_trials=3),
            accuracy_criterion=AccuracyCriterion(True, "absolute", 0.01),
        ),
        calib_dataloader=task.batches(),
        eval_dataloader=(task.inputs, task.labels),
        eval_metric="topk",
        framework=ToyAdapter(),
        reporter=["quiet", reporter],
    )


@pytest.mark.slow
def test_tensorboard_has_every_trial(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from neural_tune.report.tensorboard import TensorBoardReporter

    result = tuned(tmp_path, TensorBoardReporter(tmp_path / "logs"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.util.tensor_util import make_ndarray
    (log,) = (path.parent for path in (tmp_path / "logs").rglob("events.*"))
    found = EventAccumulator(str(log))
    found.Reload()
    values = {event.step: float(make_ndarray(event.tensor_proto)) for event in found.Tensors("metric/topk")}
    assert result.best is not None
    assert values[result.best.trial.number] == pytest.approx(result.best.metrics["topk"])
    (accepted,) = found.Tensors("result/accepted")
    assert make_ndarray(accepted.tensor_proto) == 1.0


@pytest.mark.slow
def test_mlflow_has_the_run_its_trials_and_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    import mlflow

    from neural_tune.report.mlflow import MlflowReporter

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    place = (tmp_path / "mlruns").as_uri()
    result = tuned(tmp_path, MlflowReporter("nightly", tracking_uri=place))
    client = mlflow.MlflowClient(tracking_uri=place)
    (run,) = client.search_runs([client.get_experiment_by_name("nightly").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["status"] == "accepted"
    assert result.best is not None
    assert run.data.metrics["metric/topk"] == pytest.approx(result.best.metrics["topk"])
    assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {"recipe.yaml", "result.json"}
