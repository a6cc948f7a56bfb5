"""Trials as TensorBoard scalars: step = number of the trial."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping
from typing import Any

from neural_tune import events
from neural_tune.errors import PluginError
from neural_tune.report import scalars
from neural_tune.result import TuneResult

logger = logging.getLogger(__name__)


class TensorBoardReporter:
    """Writes metrics, objectives and costs of every trial below a log folder. The journal stays the source of truth.

    `fit(..., reporter=["console", TensorBoardReporter("runs")])`, then `tensorboard --logdir runs`.

    Args:
        directory: The log folder; every run gets a folder of its own in it.

    Raises:
        PluginError: tensorboard is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        try:
            self._summary: Any = importlib.import_module("tensorboard.summary")
        except ImportError as error:
            raise PluginError(
                'TensorBoardReporter needs tensorboard, which is not installed: pip install "neural-tune[tensorboard]"'
            ) from error
        self._directory = os.fspath(directory)
        self._writer: Any = None

    def on_event(self, event: object) -> None:
        """Write what `event` says."""
        try:
            self._take(event)
        except Exception:  # a fault of the reporter must not end a search
            logger.exception("cannot report %s to TensorBoard", type(event).__name__)

    def close(self) -> None:
        """Write what is left and close the file. May be called more than once."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _take(self, event: object) -> None:
        if isinstance(event, events.RunStarted):
            name = os.path.join(event.job, os.path.basename(event.run_directory))  # noqa: PTH118, PTH119 - parts of a log folder
            self._writer = self._summary.Writer(os.path.join(self._directory, name))  # noqa: PTH118
        elif isinstance(event, events.SearchPlanned):
            self._write(scalars.of_baseline(event.baseline), 0)
        elif isinstance(event, events.TrialFinished):
            self._write(scalars.of_trial(event.result), event.result.trial.number)
        elif isinstance(event, events.RunFinished) and isinstance(event.result, TuneResult):
            self._write(scalars.of_result(event.result), len(event.result.trials))
            self.close()

    def _write(self, numbers: Mapping[str, float], step: int) -> None:
        if self._writer is not None:
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, step=step)
            self._writer.flush()
