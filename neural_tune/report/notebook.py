"""What a notebook gets: lines as plain output of the cell, and progress as one HTML output that is replaced while it moves.

It needs IPython, which is what runs a notebook, and no ipywidgets: so it is the same in Jupyter, VS Code and Colab, and nothing is left of the bar in
a saved notebook.
"""

from __future__ import annotations

import html
import importlib
import io
import sys
from typing import Any

from rich.console import Console
from rich.progress import Progress, Task

from neural_tune import words

WIDTH = 100  # characters that fit into the output of a cell


def is_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class NotebookProgress(Progress):
    """A progress whose rows are one HTML output of the cell that runs."""

    def __init__(self) -> None:
        nowhere = Console(file=io.StringIO(), force_terminal=False, force_jupyter=False)
        super().__init__(console=nowhere, auto_refresh=False)
        self._ipython: Any = importlib.import_module("IPython.display")
        self._output: Any = None

    def start(self) -> None:
        """Open the output, once."""
        if self._output is None:
            self._output = self._ipython.display(self._ipython.HTML(""), display_id=True)

    def stop(self) -> None:
        """Empty the output. May be called more than once."""
        if self._output is not None:
            self._output.update(self._ipython.HTML(""))

    def refresh(self) -> None:
        """Show the rows as they are now."""
        if self._output is not None:
            self._output.update(self._ipython.HTML(_table(self.tasks)))


def _table(tasks: list[Task]) -> str:
    rows = "".join(_row(task) for task in tasks)
    return f'<table style="margin: 0">{rows}</table>'


def _row(task: Task) -> str:
    # Without a value the bar says "busy", which is right as long as nobody knows how much there is to do.
    known = f' value="{task.completed:g}" max="{task.total:g}"' if task.total else ""
    texts = (html.escape(words.clean(str(text))) for text in (task.description, task.fields["text"]))
    name, numbers = (f'<td style="text-align: left">{text}</td>' for text in texts)
    return f"<tr>{name}<td><progress{known}></progress></td>{numbers}</tr>"
