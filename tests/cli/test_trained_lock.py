"""`lock` and `check` of a model that training made: the model itself is kept and checked, and nothing is trained a second time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from neural_tune import plugins
from neural_tune.cli import main
from neural_tune.testing import TOY_PLUGIN, toy_task

JOB = """\
model: {factory: {callable: "nt_trained_job:model"}, name: toy, framework: toy}
quantization:
  approach: qat
  train: {function: "nt_trained_job:train"}
  calibration: {sampling_size: 200, dataloader: {batch_size: 50, dataset: {npz: {path: data.npz, x: calibration}}}}
evaluation:
  accuracy: {metric: {topk: 1}, dataloader: {batch_size: 100, dataset: {npz: {path: data.npz, x: inputs, y: labels}}}}
  performance: {iteration: 10, warmup: 1}
tuning: {accuracy_criterion: {absolute: 0.01}, strategy: basic, exit_policy: {max_trials: 1}, objective: size, workspace: runs}
"""
MODULE = """\
from pathlib import Path

from neural_tune.testing import sabotage, toy_task

TASK = toy_task()


def model():
    return sabotage(TASK.model, "dense3", 64.0)


def train(model):
    with (Path(__file__).parent / "trainings").open("a") as file:
        file.write("once\\n")
    model.fit(TASK.inputs[::2], TASK.labels[::2], epochs=16, rate=3e-5)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a job that trains, its run and its lock."""
    folder = tmp_path_factory.mktemp("trained")
    task = toy_task()
    calibration = np.concatenate([np.asarray(batch) for batch in task.batches()])
    np.savez(folder / "data.npz", calibration=calibration, inputs=task.inputs, labels=task.labels)
    (folder / "job.yaml").write_text(JOB)
    (folder / "nt_trained_job.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "adapters", lambda: {"toy": TOY_PLUGIN})
        assert main(["run", str(folder / "job.yaml"), "--quiet"]) == 0
        (run,) = (folder / "runs" / "toy").iterdir()
        assert any("the trained model was kept" in notice for notice in result_of(run)["notices"])
        assert main(["lock", str(run), "--output", str(folder / "neural-tune.lock.json")]) == 0
    yield folder
    sys.modules.pop("nt_trained_job", None)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "adapters", lambda: {"toy": TOY_PLUGIN})


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def checked(project: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict]]:
    capsys.readouterr()
    code = main(["check", str(project / "neural-tune.lock.json"), "--json", "--no-latency", *arguments])
    return code, {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}


def test_the_lock_keeps_the_model_of_the_run_and_its_numbers(project: Path) -> None:
    (run,) = (project / "runs" / "toy").iterdir()
    lock = json.loads((project / "neural-tune.lock.json").read_text())
    assert lock["metrics"][0]["value"] == result_of(run)["best"]["metrics"]["topk"]
    kept, made = (files_of(folder / lock["artifact"]) for folder in (project / "neural-tune.lock.model", run / "model"))
    assert [path.read_bytes() for path in kept] == [path.read_bytes() for path in made]
    assert len(lock["ops"]) == len([op for op in result_of(run)["ops"] if op["precision"] != "float"])


def test_a_check_trains_nothing_and_gives_the_very_outputs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = checked(project, capsys)
    assert code == 0, found
    assert found["accuracy.topk"]["outcome"] == found["same outputs"]["outcome"] == "passed"
    assert "0 samples worse, 0 better" in found["accuracy.topk"]["detail"]
    assert (project / "trainings").read_text() == "once\n"  # by the run, never since


def test_data_on_which_the_trained_model_is_worse_fail(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(project / "data.npz") as stored:
        arrays = dict(stored)
    np.savez(project / "shuffled.npz", **(arrays | {"labels": np.roll(arrays["labels"], 1)}))
    key = "evaluation.accuracy.dataloader.dataset.npz.path=shuffled.npz"
    code, found = checked(project, capsys, "--set", key)
    assert code == 1
    assert found["evaluation data"]["outcome"] == "failed"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes() + b"x"), "found another model, expected the trained model"),
        (lambda file: file.unlink(), "found another model, expected the trained model"),
        (lambda file: (file.parents[1] / "report.json").unlink(), "found no model, expected the trained model"),
    ],
)
def test_a_model_that_is_not_the_locked_one_is_refused(
    spoil, message: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project / "neural-tune.lock.model"
    lock = json.loads((project / "neural-tune.lock.json").read_text())
    kept = {path: path.read_bytes() for path in files_of(folder)}
    spoil(files_of(folder / lock["artifact"])[0])
    try:
        assert main(["check", str(project / "neural-tune.lock.json"), "--no-latency"]) == 2
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    assert message in capsys.readouterr().err


def test_another_float_model_has_no_trained_model(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["check", str(project / "neural-tune.lock.json"), "--model", "nt_trained_job:model"]
    assert main(arguments) == 2
    assert "does not follow from another float model" in capsys.readouterr().err


def test_a_lock_without_its_model_never_trains(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = json.loads((project / "neural-tune.lock.json").read_text())
    bare = project / "bare.lock.json"
    bare.write_text(json.dumps({key: value for key, value in lock.items() if key not in ("trained", "artifact")}))
    (project / "bare.lock.npz").write_bytes((project / "neural-tune.lock.npz").read_bytes())
    assert main(["check", str(bare)]) == 2
    assert "found no trained model, but its job trains one: lock anew" in capsys.readouterr().err
    assert (project / "trainings").read_text() == "once\n"
