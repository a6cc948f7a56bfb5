"""The progress of a run in two rows: the search, and the pass that is running."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from neural_tune import events, words

_STAGES = {
    "probes": "probing ops",
    "baseline": "float baseline",
    "calibration": "calibration",
    "search": "search",
    "certificate": "certificate",
    "measure": "measuring speed",
}
_REDRAW_SECONDS = 0.2  # between two counts of samples that are pushed to somebody who draws them


def on_terminal(console: Console) -> Progress:
    """Return a progress that is drawn on the last lines of a terminal, and leaves nothing behind."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        TextColumn(
            "{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
        ),
        console=console,
        transient=True,
        expand=True,
    )


class Bar:
    """Turns events into rows of a `Progress`; where that one is drawn is its own affair."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        # One that draws itself from time to time need not be told.
        self._is_pushed = not progress.live.auto_refresh
        self._search: TaskID | None = None
        self._pass: TaskID | None = None
        self._expected = self._worst = 0
        self._drawn = 0.0

    def stop(self) -> None:
        """Take the bar away. May be called more than once."""
        self._progress.stop()

    def stage(self, stage: str) -> None:
        """Begin a stage: its row shows samples as soon as they are counted."""
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
        if self._pass is not None:
            self._progress.reset(self._pass, description=f"trial {number}", total=None, text="building")

    def samples(self, event: events.SamplesDone) -> None:
        """Samples of a pass, or probes, were run."""
        if self._pass is None:
            return
        unit = "probes" if event.stage == "probes" else "samples"
        text = f"{event.done} of {event.total} {unit}" if event.total else f"{event.done} {unit}"
        name = f"trial {event.trial}" if event.trial else _STAGES.get(event.stage, event.stage)
        is_due = time.monotonic() - self._drawn > _REDRAW_SECONDS or event.done == event.total
        self._update(self._pass, event.done, event.total or None, text, description=name, is_due=is_due)

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
        self._update(self._search, done, max(self._expected, done), ", ".join(filter(None, parts)))

    def _update(
        self,
        row: TaskID,
        done: int,
        total: int | None,
        text: str,
        *,
        description: str | None = None,
        is_due: bool = True,
    ) -> None:
        is_pushed = self._is_pushed and is_due
        self._drawn = time.monotonic() if is_pushed else self._drawn
        self._progress.update(row, completed=done, total=total, text=text, description=description, refresh=is_pushed)

    def _range(self, done: int) -> str:
        expected = max(self._expected, done)
        return f"{expected}" if expected >= self._worst else f"{expected}..{self._worst}"


def _value(item: tuple[str, float]) -> float:
    return item[1]
