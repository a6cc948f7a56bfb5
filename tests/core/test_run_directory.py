from __future__ import annotations

from pathlib import Path

import pytest

from neural_tune.errors import ConfigError
from neural_tune.run_directory import RunDirectory, harmless


def test_every_run_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    one, two = RunDirectory.create(tmp_path, "job"), RunDirectory.create(tmp_path, "job")
    assert one.root != two.root
    assert one.root.parent == two.root.parent == tmp_path / "job"


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b\\c", "..", "", "x" * 500, "na me\n$(rm)"])
def test_no_name_escapes_the_workspace(tmp_path: Path, name: str) -> None:
    root = RunDirectory.create(tmp_path / "w", name).root
    assert root.resolve().is_relative_to((tmp_path / "w").resolve())
    assert root.parent.parent == tmp_path / "w"


def test_harmless_keeps_what_is_harmless() -> None:
    assert harmless("resnet-20_v1.5") == "resnet-20_v1.5"


def test_a_workspace_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make"):
        RunDirectory.create(tmp_path / "file", "job")


def test_resuming_a_folder_without_a_journal_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no journal\.jsonl"):
        RunDirectory.existing(tmp_path)


def test_only_the_named_trials_are_kept(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, "job")
    for number in (1, 2, 3):
        directory.trial(number).mkdir(parents=True)
    directory.keep_only({2})
    assert [path.name for path in (directory.root / "trials").iterdir()] == ["2"]
