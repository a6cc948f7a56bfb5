"""JSON lines: every event is one object that a program can read."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest

from neural_tune import PostTrainingQuantConfig, events, fit, plugins
from neural_tune.report.json_lines import JsonReporter
from neural_tune.report.quiet import QuietReporter
from neural_tune.testing import TOY_PLUGIN, ToyTask, toy_task


@pytest.fixture(scope="module")
def task() -> ToyTask:
    """A trained toy model."""
    return toy_task()


@pytest.fixture(autouse=True)
def _only_the_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "adapters", lambda: {"toy": TOY_PLUGIN})


def lines_of(task: ToyTask, workspace: Path) -> tuple[list[dict], object]:
    """Return the lines of a real run and its result."""
    out = io.StringIO()
    conf = PostTrainingQuantConfig(workspace=str(workspace))
    result = fit(
        task.model,
        conf,
        task.batches(),
        eval_dataloader=(task.inputs, task.labels),
        eval_metric="topk",
        reporter=JsonReporter(out),
    )
    return [json.loads(line) for line in out.getvalue().splitlines()], result


def test_a_run_is_one_object_per_event_from_start_to_finish(task: ToyTask, tmp_path: Path) -> None:
    lines, result = lines_of(task, tmp_path)
    kinds = [line["event"] for line in lines]
    assert kinds[0] == "run_started"
    assert kinds[-1] == "run_finished"
    assert {"stage_started", "search_planned", "trial_started", "trial_finished", "samples_done"} <= set(kinds)
    assert all(isinstance(line["time"], float) for line in lines)
    started, finished = lines[0], lines[-1]
    assert started["framework"] == "toy"
    assert int(started["candidates"]) > 1
    assert finished["status"] == result.status.value
    assert Path(finished["run_directory"]) == result.run_directory
    assert finished["passes"] == result.passes
    trials = [line for line in lines if line["event"] == "trial_finished"]
    assert [line["metrics"] for line in trials] == [dict(trial.metrics) for trial in result.trials]
    assert trials[-1]["best"] == result.best.trial.number


def test_progress_is_limited_to_ten_lines_a_second() -> None:
    out = io.StringIO()
    reporter = JsonReporter(out)
    for done in range(1, 1001):
        reporter.on_event(events.SamplesDone(stage="search", trial=1, done=done, total=1000))
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(lines) < 100
    assert (lines[0]["done"], lines[-1]["done"]) == (1, 1000)


def test_a_broken_pipe_and_a_closed_stream_are_no_errors(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    closed = io.StringIO()
    closed.close()
    with caplog.at_level(logging.DEBUG):
        for out in (Broken(), closed):
            JsonReporter(out).on_event(events.Interrupted(signal="SIGINT"))
    assert not caplog.records


def test_a_fault_of_the_reporter_is_logged_and_swallowed(caplog: pytest.LogCaptureFixture) -> None:
    JsonReporter(io.StringIO()).on_event(events.StageStarted(stage=object()))  # type: ignore[arg-type]
    assert "cannot report StageStarted" in caplog.text


def test_quiet_says_nothing(task: ToyTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(
        task.model,
        PostTrainingQuantConfig(workspace=str(tmp_path)),
        task.batches(),
        task.accuracy,
        reporter=QuietReporter(),
    )
    assert capsys.readouterr() == ("", "")
