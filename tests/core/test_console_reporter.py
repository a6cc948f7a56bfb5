"""The console: what it says, and that it writes plain lines where nobody watches."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from neural_tune import PostTrainingQuantConfig, TuneResult, events, fit, plugins, words
from neural_tune.errors import ConfigError
from neural_tune.evaluation import Certificate, MetricCertificate
from neural_tune.measure import SpeedComparison
from neural_tune.protocols import Forecast, OpOutcome
from neural_tune.report import make_reporter
from neural_tune.report.bar import Bar
from neural_tune.report.console import ConsoleReporter, describe_trial
from neural_tune.result import Status
from neural_tune.space import TuningSpace
from neural_tune.testing import TOY_PLUGIN, ToyTask, sabotage, toy_task
from neural_tune.values import (
    FLOAT,
    AccuracyCriterion,
    Baseline,
    Candidate,
    Capability,
    DType,
    FrozenMap,
    History,
    Mode,
    Objective,
    Objectives,
    OpCapability,
    OpConfig,
    Origin,
    QuantSpec,
    Role,
    Trial,
    TrialResult,
    TrialStatus,
)

INT8 = OpConfig(mode=Mode.STATIC, activation=QuantSpec(dtype=DType.UINT8, symmetric=False))
BASELINE = Baseline(
    metrics=FrozenMap({"topk": 0.9}), objectives=FrozenMap({"latency": 2.0, "size": 4000.0}), samples=1000, seconds=2.5
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class ClosedPipe(io.StringIO):
    """A stream whose reader went away."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def space_of(count: int, why: str = "no int8 kernel") -> TuningSpace:
    """Return a space of `count` convolutions and one op that is never int8."""
    ops = [
        OpCapability(name=f"conv{number}", type="Conv", role=Role.ANCHOR, choices=(INT8, FLOAT))
        for number in range(count)
    ]
    never = OpCapability(name="soft\x1b[31mmax", type="Softmax", role=Role.NEVER, choices=(FLOAT,), why=why)
    return TuningSpace.of(
        Capability(framework="toy", runtime_version="1.0", instruction_set="numpy", ops=(*ops, never))
    )


def trial(number: int, status: TrialStatus = TrialStatus.COMPLETE, **values: Any) -> TrialResult:
    """Return a trial that quantizes conv0."""
    made = Trial(number=number, candidate=Candidate.of({"conv0": INT8}), origin=Origin("basic", "full int8"))
    return TrialResult(trial=made, status=status, **values)


def result_of(status: Status = Status.ACCEPTED, **changes: Any) -> TuneResult:
    """Return a result with everything in it."""
    best = trial(1, metrics=FrozenMap({"topk": 0.895}), is_accepted=status is Status.ACCEPTED)
    entry = MetricCertificate(
        name="topk",
        baseline=0.9,
        value=0.895,
        drop=0.005,
        low=-0.002,
        high=0.012,
        method="x",
        samples=1000,
        worse=12,
        better=7,
    )
    return TuneResult(
        status=status,
        reason="topk 0.895 against 0.9",
        model=None,
        framework="toy",
        baseline=BASELINE,
        best=best,
        trials=(best,),
        certificate=Certificate((entry,)),
        passes=2.0,
        speed=SpeedComparison(float_ms=2.0, ms=1.0, ratio=2.0, low=1.9, high=2.1, rounds=10, batch_size=4, threads=1),
        size_float=4000,
        size=1000,
        ops=(
            OpOutcome(name="conv0", type="Conv", precision="static"),
            OpOutcome(name="conv1", type="Conv", precision="float", reason="user rule: exclude['conv1']"),
        ),
        run_directory=Path("nt_workspace/net/run1"),
        artifact=Path("nt_workspace/net/run1/model/net.toy"),
        **changes,
    )


def shown(*happened: object, out: io.StringIO | None = None) -> str:
    """Return what a reporter writes about events."""
    out = out or io.StringIO()
    reporter = ConsoleReporter(out, io.StringIO())
    for event in happened:
        reporter.on_event(event)
    reporter.close()
    return out.getvalue()


def search(space: TuningSpace, *results: TrialResult) -> list[object]:
    """Return the events of a search."""
    history = History(baseline=BASELINE)
    found: list[object] = [
        events.RunStarted(job="net", run_directory="runs/net/1", space=space, strategy="basic", notices=("mind this",)),
        events.StageStarted(stage="baseline"),
        events.SamplesDone(stage="baseline", trial=0, done=500, total=1000),
        events.StageStarted(stage="search"),
        events.SearchPlanned(
            baseline=BASELINE,
            forecast=Forecast(expected=3, worst=60),
            eta_seconds=7.5,
            worst_seconds=150.0,
            max_trials=100,
        ),
    ]
    for item in results:
        history = history.with_result(item)
        found += [
            events.TrialStarted(trial=item.trial),
            events.SamplesDone(stage="search", trial=item.trial.number, done=10, total=0),
            events.TrialFinished(result=item, verdict=history.verdict(item), history=history, eta_seconds=3.0),
        ]
    return found


def test_before_the_search_it_says_how_large_it_is_and_how_long_it_takes() -> None:
    lines = shown(*search(space_of(60))).splitlines()
    assert "61 ops: 60 quantizable (60 anchor), 1 not" in lines
    assert "space: 60 tunable ops in 60 groups, 1.1e18 candidates" in lines
    assert "float: topk 0.9000, size 4 kB (1,000 samples in 2.5 s)" in lines
    assert "search: about 3 evaluations, at most 60; ETA 7.5 s, at most about 2 min 30 s" in lines
    assert "NOTICE: mind this" in lines


def test_every_trial_gets_one_line() -> None:
    objectives = FrozenMap({"latency": 1.0})
    text = shown(
        *search(
            space_of(2),
            trial(1, metrics=FrozenMap({"topk": 0.85}), durations=FrozenMap({"build": 0.5, "evaluate": 1.0})),
            trial(2, TrialStatus.REJECTED, bounds=FrozenMap({"topk": 0.88}), passes=0.12),
            trial(3, TrialStatus.FAILED, error="AdapterError: no kernel"),
            trial(4, metrics=FrozenMap({"topk": 0.899}), is_accepted=True, objectives=objectives),
            trial(5, metrics=FrozenMap({"topk": 0.85}), reused=1),
        )
    )
    assert [line for line in text.splitlines() if line.startswith("trial ")] == [
        "trial 1: missed, topk 0.8500 (loss 5.56 %), 1.5 s | full int8",
        "trial 2: rejected after 12 % of a pass, at best topk 0.8800 (loss 2.22 %), 0.0 s | full int8",
        "trial 3: FAILED, AdapterError: no kernel | full int8",
        "trial 4: accepted, topk 0.8990 (loss 0.11 %), 2.00x as fast, 0.0 s | full int8",
        "trial 5: same candidate as trial 1 | full int8",
    ]


def test_an_absolute_loss_is_shown_in_units_of_the_metric() -> None:
    criterion = AccuracyCriterion(criterion="absolute", tolerable_loss=0.02)
    objectives = Objectives((Objective("size"),))
    history = History(baseline=BASELINE, criterion=criterion, objectives=objectives)
    item = trial(1, metrics=FrozenMap({"topk": 0.85}), objectives=FrozenMap({"size": 1000.0}))
    assert (
        describe_trial(item, history) == "trial 1: missed, topk 0.8500 (loss 0.0500), 4.00x smaller, 0.0 s | full int8"
    )


def test_the_result_table_has_the_certificate_speed_size_and_effort() -> None:
    text = shown(events.RunFinished(result=result_of()))
    assert "ACCEPTED: topk 0.895 against 0.9" in text
    assert "drop 0.0050 (95 % CI -0.0020 to 0.0120); 12 worse, 7 better of" in text
    assert "2.00x as fast (95 % CI 1.90 to 2.10)" in text
    assert "4.00x smaller" in text
    assert "1 trial, 2.00 passes over the evaluation data" in text
    assert "conv1    | Conv | user rule: exclude['conv1']" in text
    assert "model: nt_workspace/net/run1/model/net.toy" in text


@pytest.mark.parametrize(
    ("status", "title"), [(Status.BEST_EFFORT, "NOT MET, nearest miss kept"), (Status.FAILED, "FAILED")]
)
def test_a_miss_is_never_dressed_as_accepted(status: Status, title: str) -> None:
    text = shown(events.RunFinished(result=result_of(status)))
    assert f"{title}: topk 0.895 against 0.9" in text
    assert "ccepted" not in text
    assert "ACCEPTED" not in text


def test_notices_of_the_result_are_loud() -> None:
    text = shown(events.RunFinished(result=result_of(notices=("accepted, but SLOWER than float",))))
    assert "\nNOTICE: accepted, but SLOWER than float\n" in text


def test_many_float_ops_are_shown_by_reason() -> None:
    ops = tuple(
        OpOutcome(name=f"op{number}", type="Add" if number % 2 else "Mul", precision="float", reason="no int8 kernel")
        for number in range(40)
    )
    text = shown(events.RunFinished(result=replace(result_of(), ops=ops)))
    assert "40        | Add, Mul | op0, op1, op2 ... | no int8 kernel" in text
    assert "op3" not in text


def test_a_metric_without_interval_says_why() -> None:
    entry = MetricCertificate(
        name="f",
        baseline=0.9,
        value=0.9,
        drop=0.0,
        low=float("nan"),
        high=float("nan"),
        method="none (opaque eval_func)",
    )
    text = shown(events.RunFinished(result=replace(result_of(), certificate=Certificate((entry,)))))
    assert "drop 0.0000, interval: none (opaque eval_func)" in text


def test_peak_memory_is_shown_where_it_was_measured() -> None:
    best = replace(trial(1), objectives=FrozenMap({"memory": 5e6}))
    baseline = replace(BASELINE, objectives=FrozenMap({"memory": 8e6}))
    text = shown(events.RunFinished(result=replace(result_of(), best=best, baseline=baseline)))
    assert [
        cell.strip() for cell in next(line for line in text.splitlines() if line.startswith("memory")).split("|")
    ] == [
        "memory",
        "8 MB",
        "5 MB",
        "0.625 of float",
    ]


def test_a_file_gets_plain_lines_without_control_characters_bars_or_trailing_blanks() -> None:
    text = shown(
        *search(space_of(3), trial(1, metrics=FrozenMap({"topk": 0.9}))), events.RunFinished(result=result_of())
    )
    assert all(char.isprintable() or char == "\n" for char in text)
    assert not any(line.endswith(" ") for line in text.splitlines())
    assert "500 of 1000" not in text


def test_names_from_a_model_cannot_steer_the_terminal() -> None:
    ops = (OpOutcome(name="a\x1b]0;gotcha\x07[bold]", type="T\r", precision="float", reason="b\x1b[2J"),)
    text = shown(events.RunFinished(result=replace(result_of(), ops=ops)), out=Terminal())
    assert "\x1b]0" not in text
    assert "\x1b[2J" not in text
    assert "\r" not in text.replace("\r\x1b[2K", "")
    assert "[bold]" in text.replace("\n", "")


def test_a_terminal_gets_a_bar_with_trial_best_loss_speed_and_eta(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    out = Terminal()
    reporter = ConsoleReporter(out, io.StringIO())
    first = trial(1, metrics=FrozenMap({"topk": 0.899}), is_accepted=True, objectives=FrozenMap({"latency": 1.0}))
    for event in search(space_of(3), first):
        reporter.on_event(event)
    _wait_for(lambda: "0.11 %, 2.00x as fast" in out.getvalue())
    reporter.close()
    assert "1 of 3..60, ETA 3.0 s, best loss 0.11 %, 2.00x as fast" in out.getvalue()
    assert "\x1b[?25h" in out.getvalue()[-40:]  # the cursor is back


def test_the_bar_fits_into_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    shown(*search(space_of(3), *(trial(n, metrics=FrozenMap({"topk": 0.9})) for n in range(1, 30))), out=out)
    import re

    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n")
    assert max(len(line) for line in plain.splitlines()) <= 80


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    happened = (events.RunFinished(result=result_of(notices=("look",))),)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;32m" in shown(*happened, out=Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "32m" not in shown(*happened, out=Terminal())


def test_a_broken_pipe_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        shown(
            *search(space_of(3), trial(1, metrics=FrozenMap({"topk": 0.9}))),
            events.RunFinished(result=result_of()),
            out=ClosedPipe(),
        )
    assert not caplog.records


def test_an_encoding_without_the_character_gets_its_escape() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    reporter = ConsoleReporter(out, io.StringIO())
    reporter.on_event(events.RunStarted(job="größe", run_directory="r", space=space_of(1), strategy="basic"))
    out.flush()
    assert b"job gr\\xf6\\xdfe" in raw.getvalue()


def test_a_fault_of_the_reporter_is_logged_and_swallowed(caplog: pytest.LogCaptureFixture) -> None:
    reporter = ConsoleReporter(io.StringIO(), io.StringIO())
    reporter.on_event(events.RunStarted(job="net", run_directory="r", space=None, strategy="basic"))  # type: ignore[arg-type]
    assert "cannot report RunStarted" in caplog.text


def test_an_unknown_event_is_ignored() -> None:
    assert shown(object(), events.Interrupted(signal="SIGINT")) == (
        "SIGINT: the search ends here; the best so far is being finished\n"
    )


@pytest.fixture(scope="module")
def task() -> ToyTask:
    """A trained toy model."""
    return toy_task()


def test_a_real_run_reports_through_a_pipe(task: ToyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "adapters", lambda: {"toy": TOY_PLUGIN})
    out = io.StringIO()
    conf = PostTrainingQuantConfig(workspace=str(tmp_path))
    model = sabotage(task.model, task.model.dense_names[1])
    fit(model, conf, task.batches(), task.accuracy, reporter=ConsoleReporter(out, io.StringIO()))
    text = out.getvalue()
    assert all(char.isprintable() or char == "\n" for char in text)
    assert text.index("space:") < text.index("float:") < text.index("trial 1:") < text.index("model: ")


def test_the_bar_does_not_outlive_what_a_users_function_raises(
    task: ToyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def breaks(model: Any) -> float:
        calls.append(model)
        if len(calls) > 1:
            raise ZeroDivisionError("mine")
        return task.accuracy(model)

    out = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(plugins, "adapters", lambda: {"toy": TOY_PLUGIN})
    monkeypatch.setattr("sys.stdout", out)
    with pytest.raises(ZeroDivisionError, match="mine"):
        fit(task.model, PostTrainingQuantConfig(workspace=str(tmp_path)), task.batches(), breaks)
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") > 0  # cursor hidden and shown again
    _wait_for(lambda: not _drawing())
    assert not _drawing()


def test_make_reporter_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ConfigError, match="found 'loud', expected one of console, json, quiet"):
        make_reporter("loud")


def test_the_default_reporter_needs_rich_only_when_it_is_made() -> None:
    code = "import neural_tune.report, sys; assert 'rich' not in sys.modules; neural_tune.report.make_reporter('json'); assert 'rich' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONWARNINGS": "default"})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (float("inf"), "unknown"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(512, "512 B"), (39800, "39.8 kB"), (999_700, "1000 kB"), (1.2e6, "1.2 MB"), (2.345e9, "2.35 GB")],
)
def test_sizes_read_well(count: float, text: str) -> None:
    assert words.size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.91234, "0.9123"), (0.0, "0.0000"), (0.00012345, "0.0001234"), (12345.6, "1.235e+04"), (-0.5, "-0.5000")],
)
def test_metrics_read_well(value: float, text: str) -> None:
    assert words.metric(value) == text


def _drawing() -> list[threading.Thread]:
    """Return the threads that still draw a bar."""
    return [thread for thread in threading.enumerate() if type(thread).__module__.startswith("rich.")]


def _wait_for(condition: Any, seconds: float = 5.0) -> None:
    """Wait for the thread that draws the bar."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        threading.Event().wait(0.02)


def test_the_bar_counts_probes_as_probes_and_samples_as_samples() -> None:
    progress = Progress(console=Console(file=io.StringIO()), auto_refresh=False)
    bar = Bar(progress)
    told = []
    for stage in ("probes", "baseline"):
        bar.stage(stage)
        bar.samples(events.SamplesDone(stage=stage, trial=0, done=3, total=20))
        told.append(progress.tasks[-1].fields["text"])
    bar.stop()
    assert told == ["3 of 20 probes", "3 of 20 samples"]
