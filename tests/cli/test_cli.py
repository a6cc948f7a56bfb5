"""The command line on the toy framework: commands, exit codes, streams."""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neural_tune import plugins
from neural_tune.cli import main
from neural_tune.testing import TOY_PLUGIN, ToyTask, toy_task

JOB = """\
model: {factory: {callable: "nt_toy_job:model"}, name: toy}
quantization:
  calibration: {sampling_size: 200, dataloader: {batch_size: 50, dataset: {npz: {path: data.npz, x: calibration}}}}
evaluation:
  accuracy: {metric: {topk: 1}, dataloader: {batch_size: 100, dataset: {npz: {path: data.npz, x: inputs, y: labels}}}}
  performance: {iteration: 10, warmup: 1}
tuning: {accuracy_criterion: {relative: 5%}, objective: size, workspace: runs}
"""
MODULE = """\
import os
import signal

from neural_tune.testing import sabotage, toy_task

TASK = toy_task()


def model():
    return TASK.model


def hard_model():
    return sabotage(TASK.model, TASK.model.dense_names[1])


def raises(model):
    raise ZeroDivisionError("the user's own fault")


calls = []


def interrupts(model):
    calls.append(model)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return TASK.accuracy(model)


def constant(model):
    return float("nan")
"""


@pytest.fixture(scope="session")
def task() -> ToyTask:
    """A trained toy model with data."""
    return toy_task()


@pytest.fixture
def job(task: ToyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job on the toy framework, which is the only one there."""
    monkeypatch.setattr(plugins, "adapters", lambda: {"toy": TOY_PLUGIN})
    monkeypatch.delitem(sys.modules, "nt_toy_job", raising=False)
    (tmp_path / "nt_toy_job.py").write_text(MODULE)
    np.savez(tmp_path / "data.npz", calibration=task.calibration, inputs=task.inputs, labels=task.labels)
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path / "job.yaml"


def change(job: Path, old: str, new: str) -> str:
    """Replace text in a job and return its path."""
    assert old in job.read_text()
    job.write_text(job.read_text().replace(old, new))
    return str(job)


def test_an_accepted_run_exits_with_0_and_prints_the_certificate(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(job)]) == 0
    out, err = capsys.readouterr()
    assert "ACCEPTED: topk" in out
    assert "95 % CI" in out
    assert err == ""
    (run,) = (job.parent / "runs" / "toy").iterdir()
    stored = json.loads((run / "result.json").read_text())
    assert stored["status"] == "accepted"
    assert str(run) in out


def test_a_criterion_that_cannot_be_met_exits_with_1_and_the_nearest_miss(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(job, "nt_toy_job:model", "nt_toy_job:hard_model")
    code = main(
        [
            "run",
            str(job),
            "--set",
            "tuning.accuracy_criterion={absolute: 0}",
            "--set",
            "tuning.exit_policy.max_trials=1",
        ]
    )
    assert code == 1
    assert "NOT MET, nearest miss kept" in capsys.readouterr().out


def test_quiet_prints_nothing_on_success(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(job), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_quiet_still_says_that_the_criterion_is_not_met(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(job, "nt_toy_job:model", "nt_toy_job:hard_model")
    args = [
        "run",
        str(job),
        "--quiet",
        "--set",
        "tuning.accuracy_criterion={absolute: 0}",
        "--set",
        "tuning.exit_policy.max_trials=1",
    ]
    assert main(args) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("neural-tune: best_effort: topk")


def test_json_prints_one_object_per_line(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(job), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (lines[0]["event"], lines[-1]["event"], lines[-1]["status"]) == ("run_started", "run_finished", "accepted")


def test_workspace_and_resume_go_on_with_the_same_run(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(job), "--workspace", str(tmp_path / "elsewhere"), "--quiet"]) == 0
    (run,) = (tmp_path / "elsewhere" / "toy").iterdir()
    before = (run / "journal.jsonl").read_text()
    assert main(["run", str(job), "--resume", str(run)]) == 0
    assert "resumed: 1 trial of the earlier run" in capsys.readouterr().out
    assert (run / "journal.jsonl").read_text().startswith(before)
    assert not (tmp_path / "runs").exists()


def test_every_fault_of_a_job_is_listed_on_stderr_with_exit_code_2(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(job, "topk: 1", "topc: 1")
    assert main(["run", str(job), "--set", "tuning.exit_policy.max_trials=0"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "neural-tune: 2 errors"
    assert "  job.yaml:5: evaluation.accuracy.metric: unknown metric 'topc'" in err
    assert "  --set tuning.exit_policy.max_trials=0: tuning.exit_policy.max_trials: found 0" in err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("objective: size", "objective: size, strategy: nowhere", "no strategy named 'nowhere'"),
        ("name: toy}", "name: toy, framework: caffe}", "no adapter named 'caffe'"),
        ("quantization:", "quantization:\n  exclude: [no_such_op]", "matches no op of the model"),
        ("x: inputs", "x: calibration", "disagree about the number of samples"),
    ],
)
def test_wrong_configuration_and_data_exit_with_2(
    job: Path, old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", change(job, old, new)]) == 2
    assert message in capsys.readouterr().err


def test_an_exception_of_user_code_prints_its_own_traceback_and_exits_with_3(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metric = "metric: {topk: 1}, dataloader: {batch_size: 100, dataset: {npz: {path: data.npz, x: inputs, y: labels}}}"
    assert main(["run", change(job, metric, "function: 'nt_toy_job:raises'")]) == 3
    err = capsys.readouterr().err
    assert "nt_toy_job.py" in err
    assert "ZeroDivisionError: the user's own fault" in err


def test_an_insane_baseline_exits_with_3(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metric = "metric: {topk: 1}, dataloader: {batch_size: 100, dataset: {npz: {path: data.npz, x: inputs, y: labels}}}"
    assert main(["run", change(job, metric, "function: 'nt_toy_job:constant'")]) == 3
    assert "FAILED" in capsys.readouterr().out


@pytest.fixture
def _listens_to_ctrl_c() -> Iterator[None]:
    """A shell starts background jobs with SIGINT ignored, and Python then leaves it ignored: a CI runner may do so."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.mark.usefixtures("_listens_to_ctrl_c")
def test_ctrl_c_saves_the_best_so_far_and_exits_with_130(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metric = "metric: {topk: 1}, dataloader: {batch_size: 100, dataset: {npz: {path: data.npz, x: inputs, y: labels}}}"
    change(job, metric, "function: 'nt_toy_job:interrupts'")
    change(job, "relative: 5%", "absolute: 0")
    change(job, "nt_toy_job:model", "nt_toy_job:hard_model")
    # `basic` tries more than two candidates whatever it measures; `auto` may be done after the first.
    settings = ["--set", "tuning.exit_policy.timeout=60", "--set", "tuning.strategy.name=basic"]
    assert main(["run", str(job), *settings]) == 130
    out = capsys.readouterr().out
    assert "the search ends here; the best so far is being finished" in out
    assert "(interrupted)" in out
    (run,) = (job.parent / "runs" / "toy").iterdir()
    assert json.loads((run / "result.json").read_text())["is_interrupted"] is True


def test_inspect_shows_the_space(job: Path, task: ToyTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = task.model.save(tmp_path / "net.toy.npz")
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "toy" in out
    assert "Dense" in out
    assert "set 1" in out
    assert "candidates" in out


def test_inspect_as_json_has_every_op_with_its_choices(
    job: Path, task: ToyTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = task.model.save(tmp_path / "net.toy.npz")
    assert main(["inspect", str(path), "--json", "--framework", "toy"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["framework"] == "toy"
    dense = [op for op in found["ops"] if op["type"] == "Dense"]
    assert [op["name"] for op in dense] == list(task.model.dense_names)
    assert all(op["choices"][-1] == {"mode": "float"} for op in dense)
    assert int(found["candidates"]) > 1


def test_inspect_of_nothing_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "no_such_model.onnx"]) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_list_names_what_is_missing_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    absent = replace(TOY_PLUGIN, name="absent", requires=("no_such_package",), install="neural-tune[absent]")
    monkeypatch.setattr(plugins, "adapters", lambda: {"absent": absent, "toy": TOY_PLUGIN})
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert 'absent   | no: pip install "neural-tune[absent]"' in out
    assert "toy      | yes" in out
    assert "basic" in out
    assert "topk" in out
    assert main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"adapters", "strategies", "metrics", "datasets", "transforms"}
    assert found["adapters"][0]["missing"] == ["no_such_package"]


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["run"], ["run", "a.yaml", "--quiet", "--json"], ["run", "none.yaml"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "neural-tune" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_exit_with_0(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    assert "neural-tune" in capsys.readouterr().out


HEAVY = ("rich", "yaml", "schema", "sklearn", "scipy", "onnx", "onnxruntime", "torch", "tensorflow", "keras")


def test_help_loads_no_framework_no_rich_and_no_yaml() -> None:
    code = (
        "import sys\nfrom neural_tune.cli import main\nmain(['--help'])\n"
        f"found = sorted(set({HEAVY!r}) & set(sys.modules))\nassert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_takes_less_than_the_budget() -> None:
    def cpu_seconds(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Processor time, the best of several, over a bare interpreter: other jobs on the machine must not decide.
    bare = min(cpu_seconds("-c", "pass") for _ in range(5))
    assert min(cpu_seconds("-m", "neural_tune", "--help") for _ in range(7)) - bare < 0.3


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m neural_tune list | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert done.stderr == ""
    assert done.returncode in (0, 141)
    assert done.stdout.count("\n") == 1


def test_code_that_lacks_a_framework_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needy = replace(TOY_PLUGIN, requires=("nt_absent_framework",), install="neural-tune[absent]")
    monkeypatch.setattr(plugins, "adapters", lambda: {"toy": needy})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nt_needy_factory.py").write_text("import nt_absent_framework.nn\n\n\ndef make():\n    pass\n")
    assert main(["init", "nt_needy_factory:make"]) == 2
    err = capsys.readouterr().err
    assert 'nt_needy_factory.py", line 1' in err
    assert err.endswith('neural-tune: nt_absent_framework is not installed: pip install "neural-tune[absent]"\n')
