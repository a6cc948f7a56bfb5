"""The reporter for people: lines on stdout, a progress bar on the terminal.

Where stdout is no terminal there are plain lines without control characters; where stdout is a file and stderr a terminal, the bar is on
stderr. NO_COLOR is honoured.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from importlib.metadata import version
from typing import TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from neural_tune import events
from neural_tune.report import tables, words
from neural_tune.report.stream import Stream
from neural_tune.result import Status, TuneResult
from neural_tune.values import History, TrialResult, TrialStatus

_FILE_WIDTH = 120
_STAGES = {
    "probes": "probing ops",
    "baseline": "float baseline",
    "calibration": "calibration",
    "search": "search",
    "certificate": "certificate",
    "measure": "measuring speed",
}
_STYLES = {Status.ACCEPTED: "bold green", Status.BEST_EFFORT: "bold yellow", Status.FAILED: "bold red"}
logger = logging.getLogger(__name__)


class ConsoleReporter:
    """Shows what a run does: its size before, progress during, the result after."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        """Write lines to `out` (stdout) and, where that is no terminal, the bar to `err` (stderr)."""
        self._console = console_on(out or sys.stdout)
        bar_console = self._console if self._console.is_terminal else console_on(err or sys.stderr)
        self._bar = _Bar(bar_console) if bar_console.is_terminal else None

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
        self._print(Text(words.clean(text), style=style))

    def _print(self, what: RenderableType) -> None:
        # In a file a line is a line, however long.
        self._console.print(what, soft_wrap=isinstance(what, Text) and not self._console.is_terminal)

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
            self._print(tables.result_table(result))
            why = tables.float_table(result.ops)
            if why:
                self._line("")
                self._print(why)
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
    ]
    if result.status is TrialStatus.REJECTED:
        head = f"trial {number}: rejected after {result.passes:.0%} of a pass, at best {', '.join(numbers)}".replace(
            "%", " %", 1
        )
    else:
        head = f"trial {number}: {'accepted' if result.is_accepted else 'missed'}, {', '.join(numbers)}"
    gain = words.gain(history.objectives, result.objectives, history.baseline.objectives)
    seconds = sum(result.durations.values())
    return ", ".join(part for part in (head, gain, words.duration(seconds)) if part) + tail


def _samples(count: int) -> str:
    return f"{words.plural(count, 'sample')} in " if count else ""


def console_on(stream: TextIO) -> Console:
    """Return a console that never raises, adds no markup, and writes plain lines where `stream` is no terminal."""
    is_terminal = stream.isatty() if not stream.closed else False
    wrapped: TextIO = Stream(stream, is_plain=not is_terminal)  # type: ignore[assignment]
    is_narrowed = "COLUMNS" in os.environ
    return Console(
        file=wrapped,
        force_terminal=is_terminal,
        width=None if is_terminal or is_narrowed else _FILE_WIDTH,
        markup=False,
        highlight=False,
        emoji=False,
    )


def _value(item: tuple[str, float]) -> float:
    return item[1]


class _Bar:
    """Two lines at the bottom of a terminal: the search, and the pass that is running."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            TextColumn(
                "{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
            ),
            console=console,
            transient=True,
            expand=True,
        )
        self._search: TaskID | None = None
        self._pass: TaskID | None = None
        self._expected = self._worst = 0
        self._number = 1

    def stop(self) -> None:
        self._progress.stop()

    def stage(self, stage: str) -> None:
        """Begin a stage: its line shows samples as soon as they are counted."""
        self._progress.start()
        if self._pass is not None:
            self._progress.remove_task(self._pass)
        if self._search is not None and stage != "search":
            self._progress.remove_task(self._search)
            self._search = None
        self._pass = self._progress.add_task(_STAGES.get(stage, stage), total=None, text="")

    def plan(self, expected: int, worst: int) -> None:
        """The search is about to begin: show how many trials there will be."""
        self._expected, self._worst = max(expected, 1), worst
        self._search = self._progress.add_task("trials", total=self._expected, text=f"0 of {self._range(0)}")

    def trial(self, number: int) -> None:
        """A trial begins."""
        self._number = number
        if self._pass is not None:
            self._progress.reset(self._pass, description=f"trial {number}", total=None, text="building")

    def samples(self, event: events.SamplesDone) -> None:
        """Samples of a pass were run."""
        if self._pass is None:
            return
        total = event.total or None
        text = f"{event.done} of {event.total} samples" if event.total else f"{event.done} samples"
        name = f"trial {event.trial}" if event.trial else _STAGES.get(event.stage, event.stage)
        self._progress.update(self._pass, description=name, completed=event.done, total=total, text=text)

    def finished(self, event: events.TrialFinished) -> None:
        """A trial ended: show the best so far and the time left."""
        if self._search is None:
            return
        history = event.history
        done = len(history.results)
        parts = [f"{done} of {self._range(done)}"]
        if event.eta_seconds > 0:  # 0: more trials than expected were needed, and nobody knows how many more
            parts.append(f"ETA {words.duration(event.eta_seconds)}")
        best = history.best
        verdict = history.verdict(best) if best else None
        if best and verdict and verdict.losses:
            parts.append(f"best loss {words.loss(*max(verdict.losses.items(), key=_value), history.criterion)}")
            parts.append(words.gain(history.objectives, best.objectives, history.baseline.objectives))
        total = max(self._expected, done)
        self._progress.update(self._search, completed=done, total=total, text=", ".join(filter(None, parts)))

    def _range(self, done: int) -> str:
        expected = max(self._expected, done)
        return f"{expected}" if expected >= self._worst else f"{expected}..{self._worst}"
