"""Runs and trials in MLflow: one MLflow run per tuning run, step = number of the trial, the recipe and the result as artifacts."""

from __future__ import annotations

import importlib
import logging
import math
import re
from collections.abc import Mapping
from typing import Any

from neural_tune import events
from neural_tune.errors import PluginError
from neural_tune.report import scalars
from neural_tune.result import TuneResult

logger = logging.getLogger(__name__)
_UNNAMEABLE = re.compile(r"[^\w./ -]")


class MlflowReporter:
    """Logs metrics, objectives and costs of every trial, and recipe.yaml and result.json at the end. The journal stays the source of truth.

    Args:
        experiment: Name of the MLflow experiment; created if it does not exist.
        tracking_uri: Where MLflow keeps it; None takes MLflow's own setting.

    Raises:
        PluginError: mlflow is not installed.
    """

    def __init__(self, experiment: str = "neural_tune", tracking_uri: str | None = None) -> None:
        try:
            mlflow: Any = importlib.import_module("mlflow")
        except ImportError as error:
            raise PluginError(
                'MlflowReporter needs mlflow, which is not installed: pip install "neural-tune[mlflow]"'
            ) from error
        self._client: Any = mlflow.MlflowClient(tracking_uri=tracking_uri)
        self._experiment = experiment
        self._run = ""

    def on_event(self, event: object) -> None:
        """Log what `event` says."""
        try:
            self._take(event)
        except Exception:  # a fault of the reporter must not end a search
            logger.exception("cannot report %s to MLflow", type(event).__name__)

    def close(self) -> None:
        """End the MLflow run if it is still open: what was interrupted is marked as killed."""
        if self._run:
            self._client.set_terminated(self._run, "KILLED")
            self._run = ""

    def _take(self, event: object) -> None:
        if isinstance(event, events.RunStarted):
            self._start(event)
        elif isinstance(event, events.SearchPlanned):
            self._log(scalars.of_baseline(event.baseline), 0)
        elif isinstance(event, events.TrialFinished):
            self._log(scalars.of_trial(event.result), event.result.trial.number)
        elif isinstance(event, events.RunFinished) and isinstance(event.result, TuneResult):
            self._finish(event.result)

    def _start(self, event: events.RunStarted) -> None:
        known = self._client.get_experiment_by_name(self._experiment)
        number = known.experiment_id if known else self._client.create_experiment(self._experiment)
        self._run = self._client.create_run(number, run_name=event.job).info.run_id
        capability = event.space.capability
        told = {
            "job": event.job,
            "run_directory": event.run_directory,
            "strategy": event.strategy,
            "framework": capability.framework,
            "runtime_version": capability.runtime_version,
            "instruction_set": capability.instruction_set,
            "tunable_ops": len(event.space.op_names),
        }
        for name, value in told.items():
            self._client.log_param(self._run, name, value)

    def _log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            if self._run and math.isfinite(value):
                self._client.log_metric(self._run, _UNNAMEABLE.sub("_", name), value, step=step)

    def _finish(self, result: TuneResult) -> None:
        if not self._run:
            return
        self._log(scalars.of_result(result), len(result.trials))
        self._client.set_tag(self._run, "status", result.status.value)
        self._client.set_tag(self._run, "reason", result.reason[:5000])
        for name in ("recipe.yaml", "result.json", "journal.jsonl"):
            path = result.run_directory / name
            if path.is_file():
                self._client.log_artifact(self._run, str(path))
        self._client.set_terminated(self._run, "FINISHED" if result.artifact else "FAILED")
        self._run = ""
