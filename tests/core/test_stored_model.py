"""A stored model is never lost, and never another one than was locked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from neural_tune.errors import ConfigError
from neural_tune.protocols import BuildReport
from neural_tune.stored_model import StoredModel


@pytest.fixture
def trained(tmp_path: Path) -> StoredModel:
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(b"first")
    return StoredModel(folder, "model.bin", BuildReport(ops=()))


def test_a_kept_model_is_read_back_by_its_hash(trained: StoredModel, tmp_path: Path) -> None:
    digest = trained.keep(tmp_path / "lock.model")
    assert StoredModel.read(tmp_path / "lock.model", "model.bin", digest).artifact == "model.bin"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "lock.model",
        "run",
    ]  # nothing half-done is left beside it


def test_files_that_are_no_locked_model_are_never_replaced(trained: StoredModel, tmp_path: Path) -> None:
    (tmp_path / "resnet.model").mkdir()
    (tmp_path / "resnet.model" / "weights.bin").write_bytes(b"the only copy")
    with pytest.raises(ConfigError, match="something else than a locked model"):
        trained.keep(tmp_path / "resnet.model")
    assert (tmp_path / "resnet.model" / "weights.bin").read_bytes() == b"the only copy"


def test_a_copy_that_fails_leaves_the_locked_model(trained: StoredModel, tmp_path: Path) -> None:
    digest = trained.keep(tmp_path / "lock.model")
    shutil.rmtree(trained.folder)
    with pytest.raises(OSError):
        trained.keep(tmp_path / "lock.model")
    assert StoredModel.read(tmp_path / "lock.model", "model.bin", digest).folder.exists()


def test_keeping_a_model_where_it_lies_changes_nothing(trained: StoredModel, tmp_path: Path) -> None:
    digest = trained.keep(tmp_path / "lock.model")
    assert StoredModel.read(tmp_path / "lock.model", "model.bin", digest).keep(tmp_path / "lock.model") == digest


def test_an_edited_report_or_a_path_outside_is_another_model(trained: StoredModel, tmp_path: Path) -> None:
    digest = trained.keep(tmp_path / "lock.model")
    with pytest.raises(ConfigError, match="another model"):
        StoredModel.read(tmp_path / "lock.model", str(trained.folder / "model.bin"), digest)
    report = tmp_path / "lock.model" / "report.json"
    report.write_text(json.dumps(json.loads(report.read_text()) | {"counts": {"int8_ops": 99.0}}))
    with pytest.raises(ConfigError, match="another model"):
        StoredModel.read(tmp_path / "lock.model", "model.bin", digest)
