"""The directory of a run: every path the engine writes to, in one place.

<workspace>/<job>/<run>/
    job.yaml          the configuration, as JSON (which is YAML)
    journal.jsonl     what happened, append-only
    statistics/       what calibration left behind
    baseline.npz      per-sample values of the float model
    trials/<n>/       artifact and per-sample values of the best trial so far; others are removed
    model/            the artifact of the result
    recipe.yaml       the result as rules
    result.json       the result as data
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from neural_tune.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths below one run's folder."""

    root: Path

    @classmethod
    def create(cls, workspace: str | Path, job: str) -> RunDirectory:
        """Make a new folder `<workspace>/<job>/<time>-<random>`; names from a model or a user are made harmless first.

        Raises:
            ConfigError: the workspace cannot be written.
        """
        name = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"  # noqa: DTZ005 - local time is what a person looks for
        root = Path(workspace) / harmless(job) / name
        try:
            root.mkdir(parents=True)
        except OSError as error:
            raise ConfigError(
                f"workspace {workspace}: cannot make {root} ({error.strerror}); choose another folder"
            ) from error
        return cls(root)

    @classmethod
    def existing(cls, root: str | Path) -> RunDirectory:
        """Return the folder of an earlier run.

        Raises:
            ConfigError: there is no journal in it.
        """
        directory = cls(Path(root))
        if not directory.journal.is_file():
            raise ConfigError(f"resume: found no journal.jsonl in {root}, expected the directory of an earlier run")
        return directory

    @property
    def journal(self) -> Path:
        """The journal."""
        return self.root / "journal.jsonl"

    @property
    def statistics(self) -> Path:
        """Calibration statistics."""
        return self.root / "statistics"

    @property
    def baseline(self) -> Path:
        """Per-sample values of the float model."""
        return self.root / "baseline.npz"

    @property
    def ranges(self) -> Path:
        """What calibration saw of every quantized tensor of the result, for the report page."""
        return self.root / "ranges.json"

    @property
    def model(self) -> Path:
        """The artifact of the result."""
        return self.root / "model"

    def trial(self, number: int) -> Path:
        """The folder of one trial."""
        return self.root / "trials" / str(number)

    def discard(self) -> None:
        """Remove everything of this run, and the job's folder when no other run is in it."""
        shutil.rmtree(self.root, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.root.parent.rmdir()

    def keep_only(self, numbers: set[int]) -> None:
        """Remove the folders of all trials but the given ones, so that a long search does not fill the disk."""
        for folder in (self.root / "trials").glob("*"):
            if folder.name.isdigit() and int(folder.name) not in numbers:
                shutil.rmtree(folder, ignore_errors=True)


def harmless(name: str) -> str:
    """Return `name` as a file name: letters, digits, dot, dash and underscore, no leading dot, at most 80 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".")[:80] or "job"
