from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from neural_tune import journal
from neural_tune.errors import ConfigError
from neural_tune.journal import Journal


def test_records_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "run" / "journal.jsonl"
    with Journal(path) as log:
        log.append("run", identity={"model": "abc"})
        log.append("trial", number=1)
    assert [record["kind"] for record in journal.read(path)] == ["run", "trial"]
    assert journal.read(path)[1]["number"] == 1


@pytest.mark.parametrize("torn", ['{"v": 1, "kind": "tri', '{"v": 1, "kind": "trial", "number": 2}', "\x00\x00"])
def test_a_torn_last_line_is_dropped_when_reading_and_cut_when_writing(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as log:
        log.append("trial", number=1)
    with path.open("a") as file:
        file.write(torn)  # no newline: the process died here
    assert [record["number"] for record in journal.read(path)] == [1]
    with Journal(path) as log:
        log.append("trial", number=2)
    assert [record["number"] for record in journal.read(path)] == [1, 2]


def test_a_long_torn_line_is_cut_too(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as log:
        log.append("trial", number=1)
    with path.open("a") as file:
        file.write("x" * 10_000)
    with Journal(path) as log:
        log.append("trial", number=2)
    assert len(journal.read(path)) == 2


def test_a_journal_that_is_one_torn_line_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"v": 1')
    with Journal(path) as log:
        log.append("run")
    assert len(journal.read(path)) == 1


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"v": 1, "kind": "run"}\nnot json\n{"v": 1, "kind": "trial"}\n')
    with pytest.raises(ConfigError, match="line 2: not a JSON record"):
        journal.read(path)


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps({"v": 99, "kind": "run"}) + "\n")
    with pytest.raises(ConfigError, match="found record version 99, expected 1"):
        journal.read(path)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path), pytest.raises(ConfigError, match="in use by another process"):
        Journal(path)
    Journal(path).close()  # free again


def test_a_record_survives_kill_9_right_after_append(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    script = (
        "import os, signal, sys; from pathlib import Path; from neural_tune.journal import Journal\n"
        "log = Journal(Path(sys.argv[1])); log.append('trial', number=7); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -9
    assert [record["number"] for record in journal.read(path)] == [7]


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as log, pytest.raises(ValueError, match="Out of range float"):
        log.append("trial", value=float("nan"))
    assert journal.read(tmp_path / "journal.jsonl") == []
