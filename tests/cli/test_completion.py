"""Completion, in the shells themselves: what TAB makes of a line."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from neural_tune.cli import main


def script_for(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Return the file of a completion script, in a folder with files to complete; skip where there is no such shell."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed (Debian: apt-get install {shell})")
    assert main(["completion", shell]) == 0
    (folder / "my job.yaml").touch()
    script = folder / "script"
    script.write_text(capsys.readouterr().out)
    return script


def test_bash_completes_commands_options_choices_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = script_for("bash", tmp_path, capsys)

    def complete(*words: str) -> list[str]:
        quoted = " ".join(f"'{word}'" for word in words)
        code = f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _neural_tune; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        command = ["bash", "-c", code]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    assert complete("neural-tune", "in") == ["init", "inspect"]
    assert complete("neural-tune", "--v") == ["--version"]
    assert complete("neural-tune", "check", "--ju") == ["--junit"]
    assert complete("neural-tune", "completion", "z") == ["zsh"]
    assert complete("neural-tune", "run", "my") == ["my job.yaml"]


def test_fish_completes_commands_options_choices_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = script_for("fish", tmp_path, capsys)

    def complete(line: str) -> list[str]:
        command = ["fish", "--no-config", "-c", f"source {script}; complete -C '{line}'"]
        environment = {**os.environ, "HOME": str(tmp_path)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.splitlines()

    assert complete("neural-tune in") == [
        "init\twrite a job file for a model",
        "inspect\tshow what can be quantized in a model",
    ]
    assert complete("neural-tune --v") == ["--version\tshow the version and exit"]
    assert complete("neural-tune check --ju") == ["--junit\twrite JUnit XML"]
    assert complete("neural-tune run --mod") == ["--model\ttake this model instead of the job's"]
    assert complete("neural-tune completion z") == ["zsh"]
    assert complete("neural-tune run my") == ["my job.yaml"]


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("neural-tune ini", "neural-tune init "),
        ("neural-tune --v", "neural-tune --version "),
        ("neural-tune check --ju", "neural-tune check --junit "),
        ("neural-tune completion f", "neural-tune completion fish "),
        ("neural-tune run my", "neural-tune run my\\ job.yaml "),
    ],
)
def test_zsh_completes_commands_options_choices_and_files(
    typed: str, completed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = script_for("zsh", tmp_path, capsys)
    terminal, theirs = pty.openpty()
    environment = {**os.environ, "HOME": str(tmp_path), "TERM": "dumb", "PS1": "ready> "}
    shell = subprocess.Popen(
        ["zsh", "-f", "-i"],
        cwd=tmp_path,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        _read_until(terminal, "ready> ")
        os.write(terminal, f"source {script}; PS1='again> '\n".encode())
        _read_until(terminal, "again> ")
        os.write(terminal, f"{typed}\t".encode())
        assert completed in _read_until(terminal, completed)
    finally:
        shell.kill()
        shell.wait()
        os.close(terminal)


def _read_until(terminal: int, wanted: str, seconds: float = 60.0) -> str:
    """Return what a terminal shows, as soon as it shows `wanted` after the echo of what was typed, or time is up."""
    seen, end = "", time.monotonic() + seconds
    while wanted not in seen and time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            seen += os.read(terminal, 4096).decode(errors="replace")
    return seen


def test_an_unknown_shell_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err
