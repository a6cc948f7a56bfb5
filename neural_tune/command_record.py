"""How a run was started, kept beside its journal, so that `resume`, `lock`, `apply` and the report can start it again.

    <run>/command.json    {"job": "../../../job.yaml", "overrides": ["tuning.objective=size"], "model": ""}

The job's path is relative to the run directory, so that a project can be moved as a whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from neural_tune import events
from neural_tune.errors import ConfigError
from neural_tune.protocols import Reporter

FILE = "command.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRecord:
    """What `neural-tune run` was told.

    Attributes:
        job: The job file.
        overrides: Values that were set on top of it.
        model: The model that took the place of the job's; empty for none.
    """

    job: Path
    overrides: tuple[str, ...] = ()
    model: str = ""

    @classmethod
    def of_run(cls, run: Path, job: Path | None = None) -> CommandRecord:
        """Return how `run` was started; `job` takes the place of the job file that is noted there.

        Raises:
            ConfigError: nothing is noted (the run was started from Python), or the job file is gone.
        """
        try:
            stored = json.loads((run / FILE).read_text(encoding="utf-8"))
            record = cls(job=run / stored["job"], overrides=tuple(stored["overrides"]), model=str(stored["model"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            if job is not None:
                return cls(job=job)
            raise ConfigError(
                f"{run}: found no readable {FILE}, which `neural-tune run` writes; name the job: --job JOB.yaml"
            ) from error
        record = record if job is None else replace(record, job=job)
        if not record.job.is_file():
            raise ConfigError(f"{run}: its job {record.job} is no longer there; name it: --job JOB.yaml")
        return replace(record, job=Path(os.path.relpath(record.job)))

    def with_overrides(self, overrides: Sequence[str]) -> CommandRecord:
        """Return the record with more values set."""
        return replace(self, overrides=(*self.overrides, *overrides))

    def write(self, run: Path) -> None:
        """Write the record into a run directory, unless it has one."""
        model = self.model if not self.model or not Path(self.model).exists() else str(Path(self.model).absolute())
        data = {"job": os.path.relpath(self.job, run), "overrides": list(self.overrides), "model": model}
        if not (run / FILE).exists():
            (run / FILE).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @property
    def line(self) -> str:
        """The command as a person types it."""
        parts = ["neural-tune run", _quoted(str(self.job))]
        parts += [f"--set {_quoted(item)}" for item in self.overrides]
        return " ".join(parts + ([f"--model {_quoted(self.model)}"] if self.model else []))


class RecordingReporter:
    """Hands events on, and writes the record as soon as the run directory is known."""

    def __init__(self, reporter: Reporter, record: CommandRecord) -> None:
        """Take the reporter that shows the events."""
        self._reporter, self._record = reporter, record
        self.run_directory: Path | None = None

    def on_event(self, event: object) -> None:
        """Take note of `event` and hand it on."""
        if isinstance(event, events.RunStarted):
            self.run_directory = Path(event.run_directory)
            self._record.write(self.run_directory)
        self._reporter.on_event(event)


def _quoted(text: str) -> str:
    import shlex  # noqa: PLC0415 - for this line only

    return shlex.quote(text)
