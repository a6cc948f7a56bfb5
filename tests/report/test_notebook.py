"""Notebooks: progress as one output of the cell that is replaced while it moves, lines as plain output, a result as a table."""

from __future__ import annotations

import io
import re
import sys
import types
from dataclasses import dataclass, field, replace

import pytest

from neural_tune import PostTrainingQuantConfig, TuneResult, events, fit, plugins
from neural_tune.report.console import ConsoleReporter
from neural_tune.result import Status
from neural_tune.testing import TOY_PLUGIN, toy_task


@dataclass
class Kernel:
    """IPython as a kernel sees it: what is displayed, and what a display becomes, in order."""

    shown: list[str] = field(default_factory=list)
    displays: int = 0

    def display(self, html: str, *, display_id: bool) -> Kernel:
        assert display_id
        self.displays += 1
        self.update(html)
        return self

    def update(self, html: str) -> None:
        self.shown.append(html)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=kernel)
    display = types.ModuleType("IPython.display")
    display.display, display.HTML = kernel.display, str
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return kernel


def tune(monkeypatch: pytest.MonkeyPatch, workspace: object) -> TuneResult:
    task = toy_task()
    monkeypatch.setattr(plugins, "adapters", lambda: {"toy": TOY_PLUGIN})
    conf = PostTrainingQuantConfig(workspace=str(workspace))
    return fit(task.model, conf, task.batches(), eval_dataloader=(task.inputs, task.labels), eval_metric="topk")


def test_a_run_shows_its_progress_in_one_output_of_the_cell_and_leaves_it_empty(
    kernel: Kernel, capsys: pytest.CaptureFixture[str], tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tune(monkeypatch, tmp_path).accepted
    assert kernel.displays == 1
    moving = [html for html in kernel.shown if "<progress" in html]
    assert any("float baseline" in html for html in moving)
    assert any(re.search(r"trial 1</td>.*trials</td>", html) for html in moving)
    assert re.search(r'<progress value="1" max="\d+"></progress></td><td[^>]*>1 of \d+', "".join(moving))
    assert kernel.shown[-1] == ""
    printed = capsys.readouterr().out
    assert "ACCEPTED" in printed
    assert "\x1b[?25l" not in printed  # a cell has no cursor to hide


def test_lines_are_wrapped_between_words_at_the_width_of_a_cell(
    kernel: Kernel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    reporter = ConsoleReporter()
    result = TuneResult(status=Status.FAILED, reason="word " * 50, model=None, framework="toy")
    reporter.on_event(events.RunFinished(result=result))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(len(line) for line in lines) <= 100
    assert all(set(line.replace("FAILED:", "").split()) <= {"word"} for line in lines)


def test_a_reporter_that_writes_elsewhere_leaves_the_cell_alone(
    kernel: Kernel, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = io.StringIO()
    reporter = ConsoleReporter(elsewhere)
    reporter.on_event(events.Interrupted(signal="SIGINT"))
    reporter.on_event(events.StageStarted(stage="baseline"))
    assert elsewhere.getvalue().startswith("SIGINT")
    assert (capsys.readouterr().out, kernel.shown) == ("", [])


def test_texts_of_the_bar_cannot_break_out(kernel: Kernel, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = ConsoleReporter()
    reporter.on_event(events.StageStarted(stage="<script>alert(1)</script>\x1b"))
    reporter.close()
    assert "&lt;script&gt;" in kernel.shown[1]
    assert "<script>" not in "".join(kernel.shown)


def test_a_result_is_the_same_table_as_on_the_console(toy_run: TuneResult) -> None:
    html = toy_run._repr_html_()
    assert f"<b>{toy_run.status.value}</b>: " in html
    for row in toy_run.comparison():
        assert all(cell in html for cell in row)
    assert {"latency, batch 8, 1 thread", "size", "effort"} <= {name for name, *_ in toy_run.comparison()}


def test_a_result_without_a_model_is_its_reason(toy_run: TuneResult) -> None:
    failed = replace(toy_run, status=Status.FAILED, reason="<no> model", best=None, artifact=None)
    html = failed._repr_html_()
    assert "&lt;no&gt; model" in html
    assert "<table>" not in html
