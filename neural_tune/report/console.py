"""The reporter for people: lines on stdout, a progress bar on the terminal.

Where stdout is no terminal there are plain lines without control characters; where stdout is a file and stderr a terminal, the bar is on
stderr. In a notebook the bar is an output of the cell. NO_COLOR is honoured.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from importlib.metadata import version
from typing import TextIO

from rich.console import Console, RenderableType
from rich.text import Text

from neural_tune import events, words
from neural_tune.report import bar, notebook, tables
from neural_tune.report.stream import Stream
from neural_tune.result import Status, TuneResult
from neural_tune.values import History, TrialResult, TrialStatus

_FILE_WIDTH = 120
_STYLES = {Status.ACCEPTED: "bold green", Status.BEST_EFFORT: "bold yellow", Status.FAILED: "bold red"}
logger = logging.getLogger(__name__)


class ConsoleReporter:
    """Shows what a run does: its size before, progress during, the result after."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        """Write lines to `out` (stdout) and, where that is no terminal, the bar to `err` (stderr)."""
        self._console = console_on(out or sys.stdout)
        self._bar = _bar(self._console, console_on(err or sys.stderr), is_cell=out in (None, sys.stdout))

    def on_event(self, event: object) -> None:
        """Show `event`."""
        try:
            self._show(event)
        except Exception:  # a fault of the reporter must not end a search
            logger.exception("cannot report %s", type(event).__name__)

    def close(self) -> None:
        """Take the progress bar away and give the cursor back. May be called at any time, more than once."""
        if self._bar:
            with contextlib.suppress(OSError, ValueError):
                self._bar.stop()

    def _show(self, event: object) -> None:
        match event:
            case events.RunStarted():
                self._started(event)
            case events.StageStarted(stage=stage):
                if self._bar:
                    self._bar.stage(stage)
            case events.SamplesDone():
                if self._bar:
                    self._bar.samples(event)
            case events.SearchPlanned():
                self._planned(event)
            case events.TrialStarted(trial=trial):
                if self._bar:
                    self._bar.trial(trial.number)
            case events.TrialFinished():
                self._trial(event)
            case events.Interrupted(signal=name):
                self._line(f"{name}: the search ends here; the best so far is being finished", "bold yellow")
            case events.RunFinished(result=TuneResult() as result):
                self.close()
                self._finished(result)

    def _line(self, text: str, style: str = "") -> None:
        print_on(self._console, Text(words.clean(text), style=style))

    def _started(self, event: events.RunStarted) -> None:
        capability = event.space.capability
        runtime = f"{capability.framework} {capability.runtime_version} on {capability.instruction_set}"
        self._line(f"neural_tune {version('neural-tune')}: job {event.job}, {runtime}", "bold")
        for line in tables.describe_space(event.space):
            self._line(line)
        self._line(f"strategy {event.strategy}; everything is written to {event.run_directory}")
        if event.resumed_trials:
            self._line(f"resumed: {words.plural(event.resumed_trials, 'trial')} of the earlier run are taken over")
        self._notices(event.notices)

    def _planned(self, event: events.SearchPlanned) -> None:
        base, forecast = event.baseline, event.forecast
        numbers = [f"{name} {words.metric(value)}" for name, value in base.metrics.items()]
        # Speed is told once, by the result, where float and int8 are measured in turns: two float latencies would only puzzle.
        told = [name for name in base.objectives if name not in ("latency", "throughput")]
        numbers += [f"{name} {words.objective(name, base.objectives[name])}" for name in told]
        self._line(f"float: {', '.join(numbers)} ({_samples(base.samples)}{words.duration(base.seconds)})")
        worst = min(forecast.worst, event.max_trials)
        expected = min(forecast.expected, worst)
        self._line(
            f"search: about {words.plural(expected, 'evaluation')}, at most {words.amount(worst)}; "
            f"ETA {words.duration(event.eta_seconds)}, at most about {words.duration(event.worst_seconds)}"
        )
        if self._bar:
            self._bar.plan(expected, worst)

    def _trial(self, event: events.TrialFinished) -> None:
        style = "green" if event.result.is_accepted else "red" if event.result.status is TrialStatus.FAILED else ""
        self._line(describe_trial(event.result, event.history), style)
        if self._bar:
            self._bar.finished(event)

    def _notices(self, notices: tuple[str, ...]) -> None:
        for notice in notices:
            self._line(f"NOTICE: {notice}", "bold yellow")

    def _finished(self, result: TuneResult) -> None:
        self._line("")
        title = {Status.ACCEPTED: "ACCEPTED", Status.BEST_EFFORT: "NOT MET, nearest miss kept", Status.FAILED: "FAILED"}
        if result.is_interrupted and result.status is Status.FAILED:
            self._line(f"INTERRUPTED before there was a model: {result.reason}", "bold yellow")
        else:
            interrupted = " (interrupted)" if result.is_interrupted else ""
            self._line(f"{title[result.status]}{interrupted}: {result.reason}", _STYLES[result.status])
        if result.status is not Status.FAILED:
            self._line("")
            print_on(self._console, tables.result_table(result))
            why = tables.float_table(result.ops)
            if why:
                self._line("")
                print_on(self._console, why)
            if result.counts:
                self._line("counts: " + ", ".join(f"{name} {value:g}" for name, value in result.counts.items()))
        if result.notices:
            self._line("")
            self._notices(result.notices)
        self._line("")
        if result.artifact:
            self._line(f"model: {result.artifact}")
        if result.run_directory.name:
            what = "recipe.yaml, result.json, journal.jsonl" if result.best else "journal.jsonl"
            self._line(f"{what} in {result.run_directory}")


def describe_trial(result: TrialResult, history: History) -> str:
    """Return one line on a finished trial."""
    number, reason = result.trial.number, result.trial.origin.reason
    tail = f" | {reason}" if reason else ""
    if result.reused:
        return f"trial {number}: same candidate as trial {result.reused}{tail}"
    if result.status is TrialStatus.FAILED:
        return f"trial {number}: FAILED, {result.error}{tail}"
    verdict = history.verdict(result)
    losses = verdict.losses if verdict else {}
    values = result.metrics or result.bounds
    numbers = [
        f"{name} {words.metric(value)}"
        + (f" (loss {words.loss(name, losses[name], history.criterion)})" if name in losses else "")
        for name, value in values.items()
        # A metric that is no mean over samples has no bound; one that was measured and is no number must be seen.
        if math.isfinite(value) or result.metrics
    ]
    if result.status is TrialStatus.REJECTED:
        share = f"{result.passes:.0%}".replace("%", " %")
        head = f"trial {number}: rejected after {share} of a pass, at best {', '.join(numbers)}"
    else:
        head = f"trial {number}: {'accepted' if result.is_accepted else 'missed'}, {', '.join(numbers)}"
    gain = words.gain(history.objectives, result.objectives, history.baseline.objectives)
    seconds = sum(result.durations.values())
    return ", ".join(part for part in (head, gain, words.duration(seconds)) if part) + tail


def _samples(count: int) -> str:
    return f"{words.plural(count, 'sample')} in " if count else ""


def _bar(out: Console, err: Console, *, is_cell: bool) -> bar.Bar | None:
    """Return a bar where somebody watches: in a notebook's cell, or on the first of two consoles that is a terminal."""
    if is_cell and notebook.is_notebook():
        return bar.Bar(notebook.NotebookProgress())
    watched = next((console for console in (out, err) if console.is_terminal), None)
    # `!neural-tune run` in a cell runs on a terminal that cannot move its cursor up.
    return bar.Bar(bar.on_terminal(watched)) if watched and "JPY_PARENT_PID" not in os.environ else None


def console_on(stream: TextIO) -> Console:
    """Return a console that never raises, adds no markup, and writes plain lines where `stream` is no terminal."""
    is_terminal = stream.isatty() if not stream.closed else False
    wrapped: TextIO = Stream(stream, is_plain=not is_terminal)  # type: ignore[assignment]
    is_cell = notebook.is_notebook() and stream is sys.stdout
    is_narrowed = "COLUMNS" in os.environ
    return Console(
        file=wrapped,
        force_terminal=is_terminal,
        # rich would put every line into an output of its own, whatever `stream` is.
        force_jupyter=False,
        # A cell understands colours, but no movement of the cursor.
        color_system="standard" if is_cell else "auto",
        width=None if is_terminal or is_narrowed else notebook.WIDTH if is_cell else _FILE_WIDTH,
        markup=False,
        highlight=False,
        emoji=False,
    )


def print_on(console: Console, what: RenderableType) -> None:
    """Print a line or a table. In a file a line is a line, however long."""
    is_wrapped = console.is_terminal or notebook.is_notebook()
    console.print(what, soft_wrap=isinstance(what, Text) and not is_wrapped)
