from __future__ import annotations

import faulthandler
import os
import signal
import time

import pytest

from neural_tune.errors import NeuralTuneError
from neural_tune.executors import LocalExecutor, ProcessExecutor
from neural_tune.values import Candidate, FrozenMap, Origin, Trial, TrialResult, TrialStatus


def _trial(number: int) -> Trial:
    return Trial(number=number, candidate=Candidate(), origin=Origin("test"))


def _complete(trial: Trial) -> TrialResult:
    return TrialResult(trial=trial, status=TrialStatus.COMPLETE, metrics=FrozenMap({"pid": float(os.getpid())}))


def test_local_executor_runs_here_and_in_order() -> None:
    executor = LocalExecutor(_complete)
    executor.submit(_trial(1))
    result = executor.collect()
    assert result.trial.number == 1
    assert result.metrics["pid"] == os.getpid()


def test_process_executor_returns_an_equal_result_from_a_child() -> None:
    executor = ProcessExecutor(_complete, 1)
    executor.submit(_trial(3))
    result = executor.collect()
    assert result.trial == _trial(3)
    assert result.metrics["pid"] != os.getpid()


def test_process_executor_runs_children_at_the_same_time() -> None:
    def wait_for_the_other(trial: Trial) -> TrialResult:
        time.sleep(0.3)
        return TrialResult(trial=trial, status=TrialStatus.COMPLETE, metrics=FrozenMap({"at": time.monotonic()}))

    executor = ProcessExecutor(wait_for_the_other, 2)
    executor.submit(_trial(1))
    executor.submit(_trial(2))
    ends = [executor.collect().metrics["at"] for _ in range(2)]
    assert abs(ends[0] - ends[1]) < 0.29  # one after the other would be at least 0.3 s apart


def test_a_native_crash_is_a_failed_trial() -> None:
    def crash(trial: Trial) -> TrialResult:
        faulthandler.disable()  # its dump of this deliberate crash would look like a broken test
        os.kill(os.getpid(), signal.SIGSEGV)
        return _complete(trial)

    executor = ProcessExecutor(crash, 1)
    executor.submit(_trial(1))
    result = executor.collect()
    assert result.status is TrialStatus.FAILED
    assert "killed by SIGSEGV (a crash in native code)" in result.error


def test_a_child_that_exits_is_a_failed_trial() -> None:
    def leave(trial: Trial) -> TrialResult:
        os._exit(5)

    executor = ProcessExecutor(leave, 1)
    executor.submit(_trial(1))
    assert "exit code 5" in executor.collect().error


def test_an_exception_in_a_child_is_raised_with_its_traceback() -> None:
    def broken_eval_func(trial: Trial) -> TrialResult:
        raise KeyError("labels")

    executor = ProcessExecutor(broken_eval_func, 1)
    executor.submit(_trial(2))
    with pytest.raises(NeuralTuneError, match=r"(?s)trial 2 raised.*broken_eval_func.*KeyError: 'labels'"):
        executor.collect()


def test_close_kills_what_is_running() -> None:
    def sleep(trial: Trial) -> TrialResult:
        time.sleep(60)
        return _complete(trial)

    executor = ProcessExecutor(sleep, 1)
    executor.submit(_trial(1))
    started = time.monotonic()
    executor.close()
    assert time.monotonic() - started < 10
