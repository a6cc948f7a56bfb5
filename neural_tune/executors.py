"""Where trials run: in this process, or each in a child of its own.

A child costs a fork and keeps the run alive when a framework dies in native code: the trial fails with the name of the signal. Results come back
as canonical JSON through a pipe; nothing is pickled.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import traceback
import warnings
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from neural_tune.errors import CapabilityError, NeuralTuneError
from neural_tune.values import Trial, TrialResult, TrialStatus, from_jsonable, to_jsonable

RunTrial = Callable[[Trial], TrialResult]


class LocalExecutor:
    """Runs one trial at a time in this process; the default."""

    capacity = 1

    def __init__(self, run: RunTrial) -> None:
        """Take the function that runs a trial."""
        self._run = run
        self._waiting: deque[Trial] = deque()

    def submit(self, trial: Trial) -> None:
        """Note the trial; it runs when its result is collected."""
        self._waiting.append(trial)

    def collect(self) -> TrialResult:
        """Run the trial and return its result. What it raises propagates with its own traceback."""
        return self._run(self._waiting.popleft())

    def close(self) -> None:
        """Forget trials that were not run."""
        self._waiting.clear()


class ProcessExecutor:
    """Runs every trial in a forked child, up to `capacity` at a time.

    Fork hands the model, the statistics and the user's functions over without pickling them. A child that dies is a failed
    trial; an exception in it (other than AdapterError, which the trial handles) is raised here with the child's traceback as text.
    """

    def __init__(self, run: RunTrial, workers: int) -> None:
        """Take the function that runs a trial and the number of children.

        Raises:
            CapabilityError: this operating system cannot fork.
        """
        if "fork" not in multiprocessing.get_all_start_methods():
            raise CapabilityError("executor 'process' needs an operating system with fork; use executor 'local'")
        self.capacity = workers
        self._run = run
        self._context = multiprocessing.get_context("fork")
        self._children: dict[Connection, tuple[BaseProcess, Trial]] = {}

    def submit(self, trial: Trial) -> None:
        """Fork a child for the trial."""
        reader, writer = self._context.Pipe(duplex=False)
        child = self._context.Process(target=_run_in_child, args=(self._run, trial, writer), daemon=True)
        with warnings.catch_warnings():
            # Python 3.12 warns of any fork beside threads. The child only runs the trial, and takes no lock of the parent's.
            warnings.simplefilter("ignore", DeprecationWarning)
            child.start()
        writer.close()
        self._children[reader] = (child, trial)

    def collect(self) -> TrialResult:
        """Wait for the next child and return its result."""
        reader = wait(list(self._children))[0]
        if not isinstance(reader, Connection):
            raise NeuralTuneError(f"waited for a child's pipe, got {reader!r}")
        child, trial = self._children.pop(reader)
        try:
            message = json.loads(reader.recv_bytes())
        except EOFError:
            message = None
        finally:
            reader.close()
            child.join()
        if message is None:
            return TrialResult(trial=trial, status=TrialStatus.FAILED, error=_cause_of_death(child.exitcode))
        if "raised" in message:
            raise NeuralTuneError(f"trial {trial.number} raised in its process:\n{message['raised']}")
        return from_jsonable(TrialResult, message["result"])

    def close(self) -> None:
        """Kill the children that are still running."""
        for reader, (child, _) in self._children.items():
            child.kill()
            child.join()
            reader.close()
        self._children.clear()


def _run_in_child(run: RunTrial, trial: Trial, writer: Connection) -> None:
    # The driver decides what an interrupt means; a child just ends when it is told to.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        message = {"result": to_jsonable(run(trial))}
    except Exception:  # noqa: BLE001 - it is raised again in the driver
        message = {"raised": traceback.format_exc()}
    writer.send_bytes(json.dumps(message).encode())
    writer.close()


def _cause_of_death(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"the trial's process was killed by {name}" + (" (a crash in native code)" if name in _CRASHES else "")
    return f"the trial's process ended without a result (exit code {exit_code})"


_CRASHES = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"})
