"""The whole way through `fit`, on the toy adapter: real int8 arithmetic, no framework."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neural_tune
from neural_tune import (
    AccuracyCriterion,
    AdapterError,
    CapabilityError,
    ConfigError,
    CriterionNotMetError,
    DataError,
    NeuralTuneError,
    PerformanceConfig,
    PluginError,
    PostTrainingQuantConfig,
    Status,
    TuneResult,
    TuningCriterion,
    events,
    fit,
    journal,
)
from neural_tune.testing import ToyAdapter, ToyTask, sabotage, toy_task
from neural_tune.trials import content_hash
from neural_tune.values import ProbeRequest, TrialStatus

_kill = os.kill
QUICK = PerformanceConfig(warmup=1, repeats=12, seconds=0.05, batch_size=8)


@pytest.fixture(scope="module")
def task() -> ToyTask:
    return toy_task()


class Recorder:
    """A reporter that keeps every event."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_event(self, event: object) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def is_float(model: Any) -> bool:
    return all(layer.config.is_float for layer in model.layers)


def conf(tmp_path: Path, **changes: Any) -> PostTrainingQuantConfig:
    tuning = {name: changes.pop(name) for name in ("strategy", "timeout", "max_trials", "objective") if name in changes}
    settings: dict[str, Any] = {
        "workspace": str(tmp_path / "w"),
        "performance": QUICK,
        # Most tests here are about the loop: `basic` needs no probes and its sequence is known.
        "tuning_criterion": TuningCriterion(**{"strategy": "basic", **tuning}),
        "accuracy_criterion": AccuracyCriterion(True, "absolute", 0.005),
    }
    return PostTrainingQuantConfig(**{**settings, **changes})


def run(task: ToyTask, config: PostTrainingQuantConfig, model: Any = None, **changes: Any) -> TuneResult:
    settings: dict[str, Any] = {
        "calib_dataloader": task.batches(),
        "eval_dataloader": (task.inputs, task.labels),
        "eval_metric": "topk",
        "framework": ToyAdapter(),
        "reporter": "quiet",
    }
    return fit(model or task.model, config, **{**settings, **changes})


def test_full_int8_is_accepted_after_two_passes_over_the_data(task: ToyTask, tmp_path: Path) -> None:
    result = run(task, conf(tmp_path))
    assert result.status is Status.ACCEPTED
    assert len(result.trials) == 1
    assert result.passes == pytest.approx(
        2.0, abs=0.1
    )  # a batch more, to see that the model does not depend on its batch
    assert result.size_ratio is not None
    assert result.size_ratio > 2.0
    assert all(not op.is_float for op in result.ops)


def test_the_accepted_number_is_that_of_the_saved_artifact(task: ToyTask, tmp_path: Path) -> None:
    result = run(task, conf(tmp_path))
    result.save(tmp_path / "saved")
    loaded = neural_tune.load(tmp_path / "saved", framework=ToyAdapter())
    assert result.best is not None
    assert task.accuracy(loaded) == pytest.approx(result.best.metrics["topk"], abs=1e-12)
    assert result.certificate is not None
    (certified,) = result.certificate.metrics
    assert certified.value == pytest.approx(task.accuracy(loaded), abs=1e-12)
    assert certified.baseline == pytest.approx(task.accuracy(task.model), abs=1e-12)
    assert certified.samples == len(task.labels)
    right = {
        name: np.argmax(model(task.inputs), 1) == task.labels for name, model in (("f", task.model), ("q", loaded))
    }
    assert certified.worse == int((right["f"] & ~right["q"]).sum())
    assert certified.better == int((~right["f"] & right["q"]).sum())


def test_the_callers_model_is_not_changed(task: ToyTask, tmp_path: Path) -> None:
    before = task.model.copy()
    run(task, conf(tmp_path))
    for mine, theirs in zip(before.weights + before.biases, task.model.weights + task.model.biases, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_an_opaque_eval_func_gets_the_native_model_and_one_pass_per_call(task: ToyTask, tmp_path: Path) -> None:
    calls = []

    def accuracy(model: Any) -> float:
        calls.append(model)
        return task.accuracy(model)

    result = run(task, conf(tmp_path), eval_func=accuracy, eval_dataloader=None, eval_metric=None)
    assert result.accepted
    assert result.passes == len(calls) == 2


def test_a_bad_op_falls_back_and_the_report_says_why(task: ToyTask, tmp_path: Path) -> None:
    result = run(task, conf(tmp_path), model=sabotage(task.model, "dense3", 4096.0))
    assert result.accepted
    floats = {op.name: op.reason for op in result.ops if op.is_float and op.type == "Dense"}
    assert set(floats) == {"dense3"}
    assert "accuracy: float changes topk by +" in floats["dense3"]


def test_the_default_strategy_probes_once_and_says_why(task: ToyTask, tmp_path: Path) -> None:
    assert PostTrainingQuantConfig().to_tune_config().strategy == "auto"
    recorder = Recorder()
    result = run(task, conf(tmp_path, strategy="auto"), model=sabotage(task.model, "dense3", 4096.0), reporter=recorder)
    assert result.accepted
    assert result.passes < 3.0
    floats = {op.name: op.reason for op in result.ops if op.is_float and op.type == "Dense"}
    assert set(floats) == {"dense3"}
    assert "accuracy: in int8 alone it moves the outputs by" in floats["dense3"]
    assert "(rank 1 of 4)" in floats["dense3"]
    assert [event.stage for event in recorder.of(events.StageStarted)].count("probes") == 1


@pytest.mark.parametrize(("done", "probed"), [(1, 1), (2, 0)])
def test_probes_come_when_they_are_needed_and_are_not_repeated_on_resume(
    task: ToyTask, tmp_path: Path, done: int, probed: int
) -> None:
    strict, model = AccuracyCriterion(True, "absolute", 0.0), sabotage(task.model, "dense2", 4096.0)
    first = Recorder()
    config = conf(tmp_path, strategy="auto", max_trials=done, accuracy_criterion=strict)
    begun = run(task, config, model=model, reporter=first)
    assert "probes" not in [event.stage for event in first.of(events.StageStarted)][:3]  # full int8 comes without them
    recorder = Recorder()
    config = conf(tmp_path, strategy="auto", max_trials=4, accuracy_criterion=strict)
    resumed = run(task, config, model=model, resume=begun.run_directory, reporter=recorder)
    assert [event.stage for event in recorder.of(events.StageStarted)].count("probes") == probed
    whole = run(task, config, model=model)
    assert [t.trial.candidate for t in resumed.trials] == [t.trial.candidate for t in whole.trials]


def test_a_strategy_that_asks_for_what_it_knows_is_an_error_and_no_endless_loop(
    task: ToyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neural_tune_strategies.auto.strategy.Auto.propose", lambda *_: ProbeRequest(("latency",)))
    with pytest.raises(PluginError, match="asked for the probes"):
        run(task, conf(tmp_path, strategy="auto"))


def test_a_search_without_a_rejection_runs_no_ranking(task: ToyTask, tmp_path: Path) -> None:
    recorder = Recorder()
    result = run(task, conf(tmp_path, strategy="auto"), reporter=recorder)
    assert result.accepted
    assert len(result.trials) == 1
    assert "probes" not in [event.stage for event in recorder.of(events.StageStarted)]


def test_many_workers_do_not_probe_before_a_rejection_asks_for_it(task: ToyTask, tmp_path: Path) -> None:
    result = run(task, conf(tmp_path, strategy="auto", executor="process", workers=2))
    assert result.accepted
    assert len(result.trials) == 1
    records = journal.read(result.run_directory / "journal.jsonl")
    assert not any("divergence" in record["insight"]["probes"] for record in records if record["kind"] == "insight")


def test_a_parallel_run_of_auto_holds_the_trials_of_the_serial_one_in_their_order(
    task: ToyTask, tmp_path: Path
) -> None:
    model = sabotage(sabotage(task.model, "dense2", 4096.0), "dense3", 4096.0)
    serial = run(task, conf(tmp_path, strategy="auto", objective="size"), model=model)
    parallel = run(task, conf(tmp_path, strategy="auto", objective="size", executor="process", workers=2), model=model)
    wanted = [trial.trial.candidate.digest for trial in serial.trials]
    assert len(wanted) > 1
    found = sorted(parallel.trials, key=lambda trial: trial.trial.number)
    assert [trial.trial.candidate.digest for trial in found if trial.trial.candidate.digest in wanted] == wanted
    assert parallel.best is not None
    assert serial.best is not None
    assert parallel.best.trial.candidate == serial.best.trial.candidate


def test_left_over_time_is_spent_and_the_reason_says_what_it_gained(task: ToyTask, tmp_path: Path) -> None:
    config = conf(tmp_path, strategy="conservative", timeout=600, max_trials=8, objective="size")
    result = run(task, config, model=sabotage(task.model, "dense3", 4096.0))
    accepted = [trial for trial in result.trials if trial.is_accepted]
    assert result.best is not None
    assert len(accepted) > 1
    first, best = accepted[0].objectives["size"], result.best.objectives["size"]
    later = len(result.trials) - result.trials.index(accepted[0]) - 1
    said = f"since trial {accepted[0].trial.number}, the first accepted, {later} more gained"
    assert said in result.reason
    assert f"size {first:.4g} to {best:.4g}" in result.reason
    assert best < first


def test_hawq_ranks_by_curvature_and_is_refused_where_there_is_none(task: ToyTask, tmp_path: Path) -> None:
    result = run(task, conf(tmp_path, strategy="hawq"), model=sabotage(task.model, "dense3", 4096.0))
    assert result.accepted
    assert {op.name for op in result.ops if op.is_float and op.type == "Dense"} == {"dense3"}

    class Blunt(ToyAdapter):
        hessian_traces = None  # type: ignore[assignment]

    with pytest.raises(CapabilityError, match="'toy' adapter cannot differentiate"):
        run(task, conf(tmp_path, strategy="hawq"), framework=Blunt())


def test_a_user_rule_keeps_an_op_in_float_and_is_named_as_the_reason(task: ToyTask, tmp_path: Path) -> None:
    result = run(task, conf(tmp_path, exclude=["dense2"]))
    reasons = {op.name: op.reason for op in result.ops if op.is_float}
    assert reasons["dense2"] == "user rule: exclude['dense2']"


def test_a_criterion_that_cannot_be_met_gives_the_nearest_miss_with_the_reason(task: ToyTask, tmp_path: Path) -> None:
    config = conf(tmp_path, max_trials=2, accuracy_criterion=AccuracyCriterion(True, "absolute", 0.0))
    result = run(task, config, model=sabotage(task.model, "dense2", 4096.0))
    assert result.status is Status.BEST_EFFORT
    assert "above the tolerable 0 (max_trials (2) is reached)" in result.reason
    assert result.best is not None
    slacks = [trial.metrics["topk"] for trial in result.trials]
    assert result.best.metrics["topk"] == max(slacks)
    with pytest.raises(CriterionNotMetError, match="best_effort=True"):
        result.save(tmp_path / "saved")
    assert result.save(tmp_path / "saved", best_effort=True).exists()
    assert task.accuracy(result.model) == pytest.approx(result.best.metrics["topk"], abs=1e-12)


def test_a_model_that_is_no_faster_is_reported_loudly(task: ToyTask, tmp_path: Path) -> None:
    # numpy's integer products are far slower than its float ones, so here int8 really is slower.
    result = run(task, conf(tmp_path, performance=PerformanceConfig(warmup=2, repeats=40, seconds=0.5)))
    assert result.accepted
    assert result.speedup is not None
    assert result.speedup < 1.0
    assert any("accepted, but SLOWER than float" in notice for notice in result.notices)


def test_a_raising_eval_func_propagates_with_its_own_traceback_and_loses_nothing(task: ToyTask, tmp_path: Path) -> None:
    calls = []

    def flaky(model: Any) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise ZeroDivisionError("my own bug")
        return 0.9 if len(calls) == 1 else 0.1

    opaque = {"eval_func": flaky, "eval_dataloader": None, "eval_metric": None}
    with pytest.raises(ZeroDivisionError, match="my own bug") as caught:
        run(task, conf(tmp_path), **opaque)
    assert any(entry.name == "flaky" for entry in caught.traceback)
    (root,) = (tmp_path / "w").glob("*/*")
    assert [
        record["result"]["status"] for record in journal.read(root / "journal.jsonl") if record["kind"] == "trial"
    ] == ["complete"]
    result = run(task, conf(tmp_path, max_trials=3), resume=root, **opaque)
    assert [trial.trial.number for trial in result.trials] == [1, 2, 3]
    assert len(calls) == 3 + 2  # neither the baseline nor trial 1 ran again


@pytest.mark.parametrize("how", ["ctrl-c", "sigterm"])
def test_an_interrupt_returns_the_best_so_far(task: ToyTask, tmp_path: Path, how: str) -> None:
    calls = []

    def interrupted(model: Any) -> float:
        calls.append(1)
        if len(calls) == 4:
            if how == "ctrl-c":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
        return {1: 0.9, 2: 0.5, 3: 0.7}.get(len(calls), 0.0)

    recorder = Recorder()
    earlier = signal.getsignal(signal.SIGTERM)
    result = run(task, conf(tmp_path), eval_func=interrupted, eval_dataloader=None, eval_metric=None, reporter=recorder)
    assert result.is_interrupted
    assert result.status is Status.BEST_EFFORT
    assert result.best is not None
    assert result.best.trial.number == 2
    assert len(calls) == 4  # the best was evaluated already; nothing runs again after Ctrl-C
    assert len(recorder.of(events.Interrupted)) == 1
    assert signal.getsignal(signal.SIGTERM) is earlier


KILLED = """
    import os, signal, sys
    from neural_tune import AccuracyCriterion, PerformanceConfig, PostTrainingQuantConfig, TuningCriterion, fit
    from neural_tune.testing import ToyAdapter, toy_task

    task, calls = toy_task(), []

    def accuracy(model):
        calls.append(1)
        if len(calls) == int(sys.argv[2]) + 1:  # call 1 is the baseline
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.9 if len(calls) == 1 else 0.1

    fit(task.model, PostTrainingQuantConfig(workspace=sys.argv[1], tuning_criterion=TuningCriterion("basic"), performance=PerformanceConfig(repeats=10, seconds=0.05),
        accuracy_criterion=AccuracyCriterion(True, "absolute", 0.005)), task.batches(), accuracy, framework=ToyAdapter(), reporter="quiet")
"""


def test_kill_9_during_trial_k_loses_only_trial_k(task: ToyTask, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "w"), "3"], check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (root,) = (tmp_path / "w").glob("*/*")
    records = journal.read(root / "journal.jsonl")
    assert [record["result"]["trial"]["number"] for record in records if record["kind"] == "trial"] == [1, 2]
    assert records[-1]["kind"] == "started"
    evaluations = []

    def accuracy(model: Any) -> float:  # another function than the killed one's, which says the same of the float model
        if is_float(model):
            return 0.9
        evaluations.append(1)
        return 0.1

    config = conf(tmp_path, max_trials=4, performance=PerformanceConfig(repeats=10, seconds=0.05))
    recorder = Recorder()
    result = run(
        task, config, resume=root, eval_func=accuracy, eval_dataloader=None, eval_metric=None, reporter=recorder
    )
    assert [trial.trial.number for trial in result.trials] == [1, 2, 3, 4]
    assert len(evaluations) == 2  # trials 3 and 4
    assert recorder.of(events.RunStarted)[0].resumed_trials == 2
    assert not any(event.stage == "calibration" for event in recorder.of(events.StageStarted))


def test_resume_proposes_exactly_what_an_uninterrupted_run_would_have(task: ToyTask, tmp_path: Path) -> None:
    model = sabotage(task.model, "dense2", 4096.0)
    whole = run(task, conf(tmp_path, max_trials=6, strategy="random"), model=model)
    begun = run(task, conf(tmp_path, max_trials=2, strategy="random"), model=model)
    resumed = run(task, conf(tmp_path, max_trials=6, strategy="random"), model=model, resume=begun.run_directory)
    assert [t.trial.candidate for t in resumed.trials] == [t.trial.candidate for t in whole.trials]
    assert [t.metrics for t in resumed.trials] == [t.metrics for t in whole.trials]
    assert resumed.status is whole.status


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": lambda task: sabotage(task.model, "dense3", 2.0)}, "model"),
        ({"calib_dataloader": lambda task: task.batches()[1:]}, "calibration data"),
        ({"config": {"random_seed": 5}}, r"configuration \(seed\)"),
        ({"config": {"accuracy_criterion": AccuracyCriterion(True, "absolute", 0.5)}}, r"configuration \(criterion\)"),
        ({"config": {"exclude": ["dense1"]}}, "space"),
    ],
)
def test_resuming_on_something_else_is_refused(task: ToyTask, tmp_path: Path, change: Any, named: str) -> None:
    begun = run(task, conf(tmp_path, max_trials=1))
    config = conf(tmp_path, max_trials=2, **change.pop("config", {}))
    changed = {name: value(task) for name, value in change.items()}
    with pytest.raises(ConfigError, match=rf"resume: .*{named}.* changed since that run"):
        run(task, config, resume=begun.run_directory, **changed)


def test_resuming_on_other_evaluation_data_is_refused(task: ToyTask, tmp_path: Path) -> None:
    strict, model = AccuracyCriterion(True, "absolute", 0.0), sabotage(task.model, "dense2", 4096.0)
    begun = run(task, conf(tmp_path, strategy="random", max_trials=2, accuracy_criterion=strict), model=model)
    config = conf(tmp_path, strategy="random", max_trials=3, accuracy_criterion=strict)
    inputs = task.inputs.copy()
    inputs[-1, 0] += 1.0  # one number of the last sample
    with pytest.raises(DataError, match="evaluation data"):
        run(task, config, model=model, resume=begun.run_directory, eval_dataloader=(inputs, task.labels))


def test_a_native_crash_is_a_failed_trial_and_the_run_goes_on(
    task: ToyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest's dump of a deliberate crash would look like a broken test.
    monkeypatch.setattr(os, "kill", lambda pid, number: (faulthandler.disable(), _kill(pid, number)))
    config = conf(tmp_path, executor="process", max_trials=30)
    result = run(task, config, framework=ToyAdapter(faults={"dense2": "segv"}))
    assert result.accepted
    assert result.trials[0].status is TrialStatus.FAILED
    assert "SIGSEGV" in result.trials[0].error
    assert {op.name for op in result.ops if op.is_float and op.type == "Dense"} == {"dense2"}


def test_an_adapter_error_is_a_failed_trial(task: ToyTask, tmp_path: Path) -> None:
    result = run(task, conf(tmp_path, max_trials=30), framework=ToyAdapter(faults={"dense2": "raise"}))
    assert result.accepted
    assert result.trials[0].error.startswith("AdapterError: ")


def test_nan_outputs_are_not_accepted(task: ToyTask, tmp_path: Path) -> None:
    result = run(task, conf(tmp_path, max_trials=30), framework=ToyAdapter(faults={"dense2": "nan"}))
    assert result.accepted
    assert not result.trials[0].is_accepted
    assert {op.name for op in result.ops if op.is_float and op.type == "Dense"} == {"dense2"}


def test_a_run_in_which_every_trial_fails_says_the_first_cause(task: ToyTask, tmp_path: Path) -> None:
    faults = dict.fromkeys(task.model.dense_names, "raise")
    result = run(task, conf(tmp_path, max_trials=3), framework=ToyAdapter(faults=faults))
    assert result.status is Status.FAILED
    assert result.model is None
    assert "every trial failed; the first one: AdapterError: toy: dense1 was told to fail" in result.reason
    with pytest.raises(CriterionNotMetError, match="there is no model to save"):
        result.save(tmp_path / "saved")


def test_parallel_and_serial_runs_give_the_same_trials(task: ToyTask, tmp_path: Path) -> None:
    model = sabotage(task.model, "dense2", 4096.0)
    serial = run(task, conf(tmp_path, strategy="exhaustive", max_trials=6), model=model)
    parallel = run(
        task, conf(tmp_path, strategy="exhaustive", max_trials=6, executor="process", workers=2), model=model
    )
    metrics = {t.trial.candidate.digest: t.metrics for t in serial.trials}
    assert {t.trial.candidate.digest: t.metrics for t in parallel.trials} == metrics


def test_calibration_data_is_read_once_and_only_as_far_as_asked(task: ToyTask, tmp_path: Path) -> None:
    pulled = []

    def loader() -> Iterator[Any]:
        for batch in task.batches(10):
            pulled.append(len(batch))
            yield batch

    result = run(task, conf(tmp_path, calibration_sampling_size=35), calib_dataloader=loader())
    assert result.accepted
    assert len(pulled) == 4


def test_a_one_shot_evaluation_loader_is_refused_before_anything_runs(task: ToyTask, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one-shot"):
        run(task, conf(tmp_path), eval_dataloader=iter([(task.inputs, task.labels)]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eval_dataloader": None, "eval_metric": None}, "nothing defines accuracy"),
        ({"eval_func": lambda model: 1.0}, "both eval_func and eval_metric"),
        ({"eval_func": 3, "eval_metric": None}, "eval_func: found a int"),
        ({"calib_dataloader": None}, "needs calibration data"),
        ({"framework": "keras2"}, "no adapter named 'keras2'"),
        ({"framework": ""}, "no adapter accepts a neural_tune.testing.toy_model.ToyModel"),
        ({"reporter": "loud"}, "loud"),
    ],
)
def test_wrong_arguments_get_a_clear_error(task: ToyTask, tmp_path: Path, arguments: Any, message: str) -> None:
    with pytest.raises(NeuralTuneError) as caught:
        run(task, conf(tmp_path), **arguments)
    assert message in str(caught.value)


def test_an_unknown_strategy_gets_a_clear_error(task: ToyTask, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"no strategy named 'basik' \(did you mean 'basic'\?\); installed: .*basic"):
        run(task, conf(tmp_path, strategy="basik"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.9", None, True, [0.9]])
def test_a_baseline_that_is_no_finite_number_stops_the_run(task: ToyTask, tmp_path: Path, value: Any) -> None:
    opaque = {"eval_func": lambda model: value, "eval_dataloader": None, "eval_metric": None}
    if isinstance(value, float):
        result = run(task, conf(tmp_path), **opaque)
        assert result.status is Status.FAILED
        assert "baseline is not sane" in result.reason
    else:
        with pytest.raises(DataError, match="eval_func"):
            run(task, conf(tmp_path), **opaque)


def test_a_timeout_keeps_improving_the_objective(task: ToyTask, tmp_path: Path) -> None:
    result = run(task, conf(tmp_path, strategy="exhaustive", timeout=30, max_trials=5, objective="size"))
    assert len(result.trials) == 5
    accepted = [trial for trial in result.trials if trial.is_accepted]
    assert result.best is not None
    assert result.best.objectives["size"] == min(trial.objectives["size"] for trial in accepted)


def test_a_users_objective_decides_among_the_accepted(task: ToyTask, tmp_path: Path) -> None:
    def first_weight_bytes(model: Any) -> float:
        return float(sum(layer.config.is_float for layer in model.layers) + 1)

    config = conf(tmp_path, strategy="exhaustive", timeout=30, max_trials=4, objective=first_weight_bytes)
    result = run(task, config)
    assert result.best is not None
    assert result.best.objectives["first_weight_bytes"] == 1.0


def test_memory_is_measured_in_a_fresh_process_for_adapters_known_by_name(task: ToyTask, tmp_path: Path) -> None:
    # A toy adapter object cannot be found by name from another process; the error says so and fails the run, not the interpreter.
    result = run(task, conf(tmp_path, objective="memory", max_trials=1))
    assert result.status is Status.FAILED
    assert "memory" in result.reason


def test_several_metrics_each_have_their_direction(task: ToyTask, tmp_path: Path) -> None:
    config = conf(tmp_path, accuracy_criterion=AccuracyCriterion(True, "relative", 0.05))
    one_hot = np.eye(6, dtype=np.float32)[task.labels]

    def evaluate(model: Any) -> dict[str, float]:
        logits = model(task.inputs)
        return {"top1": float(np.mean(logits.argmax(1) == task.labels)), "mse": float(np.mean((logits - one_hot) ** 2))}

    criterion = AccuracyCriterion(
        metrics={"top1": AccuracyCriterion(True, "absolute", 0.01), "mse": AccuracyCriterion(False, "relative", 0.05)}  # type: ignore[arg-type]
    )
    config = conf(tmp_path, accuracy_criterion=criterion)
    result = run(task, config, eval_func=evaluate, eval_dataloader=None, eval_metric=None)
    assert result.accepted
    assert "top1" in result.reason
    assert "mse" in result.reason


def test_progress_and_eta_are_reported_before_the_search(task: ToyTask, tmp_path: Path) -> None:
    recorder = Recorder()
    run(task, conf(tmp_path), reporter=recorder)
    kinds = [type(event).__name__ for event in recorder.events]
    assert kinds.index("SearchPlanned") < kinds.index("TrialStarted")
    planned = recorder.of(events.SearchPlanned)[0]
    assert planned.forecast.expected >= 1
    assert planned.worst_seconds >= planned.eta_seconds >= 0
    assert kinds[-1] == "RunFinished"


class SlowToBuild(ToyAdapter):
    """Takes its time to build, as a runtime does that compiles."""

    def build(self, *arguments: Any) -> Any:
        time.sleep(0.1)
        return super().build(*arguments)


@pytest.mark.parametrize("strategy", ["basic", "auto"])
def test_the_eta_counts_the_time_to_build_a_candidate(task: ToyTask, tmp_path: Path, strategy: str) -> None:
    recorder = Recorder()
    run(task, conf(tmp_path, strategy=strategy), framework=SlowToBuild(), reporter=recorder)
    (planned,) = recorder.of(events.SearchPlanned)
    assert planned.eta_seconds >= 0.1 * planned.forecast.expected


def test_the_run_directory_holds_everything_as_plain_data(task: ToyTask, tmp_path: Path) -> None:
    result = run(task, conf(tmp_path))
    names = {path.name for path in result.run_directory.iterdir()}
    assert names >= {"job.yaml", "journal.jsonl", "statistics", "model", "recipe.yaml", "result.json"}
    stored = json.loads((result.run_directory / "result.json").read_text())
    assert stored["status"] == "accepted"
    assert stored["passes"] == result.passes
    assert str(tmp_path) not in (result.run_directory / "journal.jsonl").read_text()


def test_only_the_best_artifact_stays_on_disk(task: ToyTask, tmp_path: Path) -> None:
    result = run(task, conf(tmp_path, strategy="exhaustive", timeout=60, max_trials=5))
    assert len(list((result.run_directory / "trials").iterdir())) == 1


class Interrupting(ToyAdapter):
    """A toy at which Ctrl-C arrives in one of its methods."""

    def __init__(self, method: str, error: BaseException) -> None:
        super().__init__()
        self.method, self.error = method, error

    def calibrate(self, *arguments: Any) -> Any:
        if self.method == "calibrate":
            raise self.error
        return super().calibrate(*arguments)

    def guard(self, *arguments: Any) -> Any:
        if self.method == "guard":
            raise self.error
        return super().guard(*arguments)


def test_an_interrupt_before_the_search_is_a_recorded_result(task: ToyTask, tmp_path: Path) -> None:
    result = run(task, conf(tmp_path), framework=Interrupting("calibrate", KeyboardInterrupt()))
    assert result.status is Status.FAILED
    assert result.is_interrupted
    assert "before the search" in result.reason
    assert json.loads((result.run_directory / "result.json").read_text())["is_interrupted"] is True
    assert journal.read(result.run_directory / "journal.jsonl")[-1]["kind"] == "end"


def test_an_adapter_that_cannot_calibrate_is_a_recorded_failure(task: ToyTask, tmp_path: Path) -> None:
    result = run(task, conf(tmp_path), framework=Interrupting("calibrate", AdapterError("no kernel")))
    assert result.status is Status.FAILED
    assert "no kernel" in result.reason
    assert (result.run_directory / "result.json").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), AdapterError("guard broke")])
def test_a_guard_that_breaks_or_is_interrupted_does_not_lose_the_accepted_model(
    task: ToyTask, tmp_path: Path, error: BaseException
) -> None:
    result = run(task, conf(tmp_path), framework=Interrupting("guard", error))
    assert result.accepted
    assert task.accuracy(result.model) == pytest.approx(result.best.metrics["topk"])  # type: ignore[union-attr]
    assert any("guard" in notice for notice in result.notices)
    assert result.is_interrupted is isinstance(error, KeyboardInterrupt)


def test_an_interrupt_while_speed_is_measured_skips_the_rest_and_keeps_the_model(
    task: ToyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("neural_tune.measure.compare_speed", interrupt)
    result = run(task, conf(tmp_path, objective="size"))
    assert result.accepted
    assert result.is_interrupted
    assert result.certificate is not None
    assert result.speed is None
    assert any("no measurement of speed" in notice for notice in result.notices)


def test_an_interrupt_while_the_winner_is_moved_into_place_keeps_it(
    task: ToyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = content_hash

    def interrupt_once(folder: Path) -> str:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(folder)

    monkeypatch.setattr("neural_tune.finish.content_hash", interrupt_once)
    result = run(task, conf(tmp_path))
    assert result.accepted
    assert result.is_interrupted
    assert len(calls) == 2


def test_an_artifact_that_was_touched_after_its_trial_is_built_and_evaluated_again(
    task: ToyTask, tmp_path: Path
) -> None:
    class Tamper:
        def on_event(self, event: object) -> None:
            if isinstance(event, events.TrialFinished):
                (next(tmp_path.glob("w/*/*/trials/1")) / "toy_model" / "extra").write_text("tampered")

    untouched = run(task, conf(tmp_path / "a", objective="size"))
    tampered = run(task, conf(tmp_path, objective="size"), reporter=Tamper())
    assert tampered.accepted
    assert tampered.passes == pytest.approx(untouched.passes + 1.0, abs=0.1)
    assert not list(tampered.run_directory.glob("model/**/extra"))


class Timed(ToyAdapter):
    """A toy whose int8 models take a quarter of the time of float: sleeping is what a busy machine cannot change."""

    def run(self, built: Any, inputs: Any) -> Any:
        if len(inputs) == QUICK.batch_size:
            time.sleep(0.06 if is_float(built) else 0.015)
        return super().run(built, inputs)


def test_latency_and_throughput_are_those_of_the_candidate_and_not_their_inverse(task: ToyTask, tmp_path: Path) -> None:
    result = run(task, conf(tmp_path, objective=["latency", "throughput"]), framework=Timed())
    assert result.best is not None
    assert result.baseline is not None
    now, before = result.best.objectives, result.baseline.objectives
    assert before["latency"] / now["latency"] == pytest.approx(4.0, rel=0.4)
    assert now["throughput"] / before["throughput"] == pytest.approx(4.0, rel=0.4)
    assert now["throughput"] == pytest.approx(QUICK.batch_size / now["latency"] * 1e3, rel=0.4)  # type: ignore[operator]
    assert result.speedup == pytest.approx(4.0, rel=0.4)


def test_a_users_objective_that_is_not_positive_is_refused_before_the_search(task: ToyTask, tmp_path: Path) -> None:
    def energy(model: Any) -> float:
        return -1.0

    with pytest.raises(ConfigError, match=r"objective 'energy' returned -1\.0, expected a number above 0"):
        run(task, conf(tmp_path, objective=energy))


def test_a_seed_among_the_options_of_a_strategy_is_refused(task: ToyTask, tmp_path: Path) -> None:
    config = conf(tmp_path, tuning_criterion=TuningCriterion("random", {"seed": 1}))
    with pytest.raises(ConfigError, match="set random_seed instead"):
        run(task, config)


def test_resuming_with_another_metric_is_refused(task: ToyTask, tmp_path: Path) -> None:
    begun = run(task, conf(tmp_path, max_trials=1), eval_metric={"topk": 3})
    with pytest.raises(ConfigError, match="resume: the evaluation changed"):
        run(task, conf(tmp_path, max_trials=2), eval_metric={"topk": 2}, resume=begun.run_directory)


def test_resuming_with_an_eval_func_that_says_something_else_of_float_is_refused(task: ToyTask, tmp_path: Path) -> None:
    opaque = {"eval_dataloader": None, "eval_metric": None}
    begun = run(task, conf(tmp_path, max_trials=1), eval_func=task.accuracy, **opaque)
    with pytest.raises(ConfigError, match="earlier trials cannot be compared with later ones"):
        run(
            task,
            conf(tmp_path, max_trials=2),
            eval_func=lambda model: 100 * task.accuracy(model),
            resume=begun.run_directory,
            **opaque,
        )


def test_a_mended_eval_func_that_says_the_same_of_float_may_go_on(task: ToyTask, tmp_path: Path) -> None:
    opaque = {"eval_dataloader": None, "eval_metric": None}
    begun = run(task, conf(tmp_path, max_trials=1), eval_func=task.accuracy, **opaque)
    mended = run(
        task,
        conf(tmp_path, max_trials=2),
        eval_func=lambda model: 0.0 + task.accuracy(model),
        resume=begun.run_directory,
        **opaque,
    )
    assert mended.accepted


def test_resuming_on_another_runtime_is_refused(task: ToyTask, tmp_path: Path) -> None:
    class Elsewhere(ToyAdapter):
        def query(self, model: Any) -> Any:
            return replace(super().query(model), instruction_set="another processor")

    begun = run(task, conf(tmp_path, max_trials=1))
    with pytest.raises(ConfigError, match="resume: the runtime changed"):
        run(task, conf(tmp_path, max_trials=2), resume=begun.run_directory, framework=Elsewhere())


def test_the_size_objective_counts_every_file_that_was_saved(task: ToyTask, tmp_path: Path) -> None:
    result = run(task, conf(tmp_path, objective="size"))
    assert result.best is not None
    assert result.best.objectives["size"] == result.size


FULL_DISK = """
    import resource, signal, sys
    from neural_tune import AccuracyCriterion, PerformanceConfig, PostTrainingQuantConfig, TuningCriterion, fit
    from neural_tune.testing import ToyAdapter, toy_task

    task, calls = toy_task(), []

    def accuracy(model):
        calls.append(1)
        if len(calls) == 3:  # from here on every file is full
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
        return 0.9 if len(calls) == 1 else 0.1

    fit(task.model, PostTrainingQuantConfig(workspace=sys.argv[1], tuning_criterion=TuningCriterion("basic"), performance=PerformanceConfig(repeats=10, seconds=0.05),
        accuracy_criterion=AccuracyCriterion(True, "absolute", 0.005)), task.batches(), accuracy, framework=ToyAdapter(), reporter="quiet")
"""


def test_a_full_disk_costs_at_most_the_running_trial(task: ToyTask, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path / "w")], check=False, capture_output=True
    )
    assert done.returncode == 1
    assert b"File too large" in done.stderr
    (root,) = (tmp_path / "w").glob("*/*")
    records = [record for record in journal.read(root / "journal.jsonl") if record["kind"] == "trial"]
    assert len(records) == 1
    config = conf(tmp_path, max_trials=2, performance=PerformanceConfig(repeats=10, seconds=0.05))
    result = run(
        task,
        config,
        resume=root,
        eval_func=lambda model: 0.9 if is_float(model) else 0.1,
        eval_dataloader=None,
        eval_metric=None,
    )
    assert [trial.trial.number for trial in result.trials] == [1, 2]


def test_a_relative_criterion_with_a_baseline_of_zero_says_so(task: ToyTask, tmp_path: Path) -> None:
    config = conf(tmp_path, accuracy_criterion=AccuracyCriterion(tolerable_loss=0.01))
    result = run(task, config, eval_func=lambda model: 0.0, eval_dataloader=None, eval_metric=None)
    assert result.status is Status.FAILED
    assert "a relative loss has no meaning: use an absolute one" in result.reason


def test_a_result_prints_as_one_line(task: ToyTask, tmp_path: Path) -> None:
    shown = repr(run(task, conf(tmp_path)))
    assert shown.startswith("<TuneResult accepted: topk")
    assert "\n" not in shown
    assert len(shown) < 300


def test_the_recipe_names_what_the_user_excluded(task: ToyTask, tmp_path: Path) -> None:
    result = run(task, conf(tmp_path, exclude=["dense2"]))
    assert "{op: dense2, use: float}" in (result.run_directory / "recipe.yaml").read_text()


def test_a_time_budget_expects_no_more_than_its_trials_or_its_time(task: ToyTask, tmp_path: Path) -> None:
    recorder = Recorder()
    run(task, conf(tmp_path, strategy="random", timeout=3600, max_trials=2), reporter=recorder)
    (planned,) = recorder.of(events.SearchPlanned)
    assert planned.eta_seconds <= planned.worst_seconds < 3600
    assert recorder.of(events.TrialFinished)[-1].eta_seconds == 0.0
