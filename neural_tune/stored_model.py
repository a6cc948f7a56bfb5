"""A model that training made, kept beside its lock: no second training gives it again, so it is checked as it is instead of being built."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, fields
from pathlib import Path

from neural_tune.errors import ConfigError
from neural_tune.protocols import BuildReport, OpOutcome
from neural_tune.trials import REPORT_FILE, Workbench, content_hash
from neural_tune.values import Candidate, FrozenMap, from_jsonable, to_jsonable


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A saved model, and what is known of its ops.

    Attributes:
        folder: Where its files are.
        artifact: Name of the file or folder in there that is loaded.
        report: What became of every op.
    """

    folder: Path
    artifact: str
    report: BuildReport

    @classmethod
    def of_run(cls, run: Path) -> StoredModel:
        """Return the model of a finished run.

        Raises:
            ConfigError: the run has none.
        """
        try:
            result = json.loads((run / "result.json").read_text(encoding="utf-8"))
            ops = from_jsonable(tuple[OpOutcome, ...], result["ops"], "ops")
            counts = FrozenMap({str(name): float(count) for name, count in result["counts"].items()})
            stored = cls(run / "model", str(result["artifact"]), BuildReport(ops=ops, counts=counts))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{run}: found no readable result.json, expected a finished run ({error})") from error
        if not (stored.folder / stored.artifact).exists():
            raise ConfigError(
                f"{run}: found no trained model ({stored.folder / stored.artifact}), which a lock has to keep"
            )
        return stored

    @classmethod
    def read(cls, folder: Path, artifact: str, expected: str) -> StoredModel:
        """Return the model that `keep` wrote into `folder`; `expected` is the hash that it returned.

        Raises:
            ConfigError: it is not there, or it is another one.
        """
        try:
            report = from_jsonable(BuildReport, json.loads((folder / REPORT_FILE).read_text(encoding="utf-8")))
            is_it = Path(artifact).name == artifact and _hash(folder) == expected
            found = "" if is_it else "another model"
        except (OSError, ValueError):
            report, found = BuildReport(ops=()), "no model"
        if found:
            raise ConfigError(
                f"{folder}: found {found}, expected the trained model that was written with the lock: commit it too, "
                "since training again would give another one"
            )
        return cls(folder, artifact, report)

    def keep(self, folder: Path) -> str:
        """Copy the model into `folder`, in place of the locked model that is there, and return the hash of its files.

        The old one goes only when the new one is complete.

        Raises:
            ConfigError: something else is there.
        """
        if folder.exists() and not (folder / REPORT_FILE).exists():
            raise ConfigError(
                f"{folder}: found something else than a locked model, which the lock would replace: name another lock file"
            )
        if folder.resolve() != self.folder.resolve():
            new, old = (folder.with_name(f".{folder.name}.{end}") for end in ("new", "old"))
            self.put(new)
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        return _hash(folder)

    def put(self, folder: Path) -> Path:
        """Copy model and report into a folder that is ours, in place of what is there, and return the artifact."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder)
        (folder / REPORT_FILE).write_text(json.dumps(to_jsonable(self.report)) + "\n", encoding="utf-8")
        return folder / self.artifact

    def on(self, bench: Workbench) -> Workbench:
        """Return a bench like `bench` on which this model stands for every candidate, and nothing is trained."""
        given = {field.name: getattr(bench, field.name) for field in fields(Workbench)}
        return _Shelf(**(given | {"train_func": None}), stored=self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shelf(Workbench):
    stored: StoredModel

    def build(self, candidate: Candidate, folder: Path) -> Path:
        # Without arguments, super() does not know a class with slots.
        return super(_Shelf, self).build(candidate, folder) if candidate.is_float else self.stored.put(folder)


def _hash(folder: Path) -> str:
    """Return the hash of the model's files and of the report on its ops."""
    return hashlib.sha256(content_hash(folder).encode() + (folder / REPORT_FILE).read_bytes()).hexdigest()
