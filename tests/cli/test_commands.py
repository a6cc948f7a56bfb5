"""`init`, `apply`, `bench`, `resume`, `schema`, `report` and `completion`, as a new user runs them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neural_tune.cli import main
from neural_tune.job import read_job
from neural_tune.made_inputs import parse_shapes, random_inputs

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "keyword_spotting" / "model" / "dscnn_kws.onnx"
DATA = ROOT / "examples" / "keyword_spotting" / "data" / "kws_mfcc.npz"
FAST = ["--set", "evaluation.performance.seconds=0.2", "--set", "tuning.exit_policy.max_trials=3"]
onnxruntime = pytest.importorskip("onnxruntime", reason='needs: pip install "neural-tune[onnxruntime]"')


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a model in it, as the current one."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(MODEL, tmp_path / "model.onnx")
    return tmp_path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a job of three trials at most, with its job beside it."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(ROOT / "examples" / "keyword_spotting", folder, dirs_exist_ok=True)
    assert main(["run", str(folder / "job.yaml"), "--workspace", str(folder / "runs"), "--quiet", *FAST]) == 0
    (found,) = (folder / "runs" / "keyword_spotting").iterdir()
    return found


def test_init_and_run_work_with_nothing_but_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "model.onnx"]) == 0
    assert "random numbers" in capsys.readouterr().out
    text = (folder / "job.yaml").read_text()
    assert text.count("#") > 8
    # Speed is measured at a batch that the reader sees.
    assert read_job(folder / "job.yaml", environment={}).config.performance.batch_size == 16
    assert main(["run", "job.yaml", "--quiet", *FAST]) == 0
    # Against itself, float is always right: accuracy is agreement.
    (result,) = (folder / "nt_workspace").glob("*/*/result.json")
    assert json.loads(result.read_text())["baseline"]["metrics"]["topk"] == 1.0


def test_init_does_not_overwrite_without_force(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "job.yaml").write_text("mine")
    assert main(["init", "model.onnx"]) == 2
    assert "job.yaml exists; --force overwrites it" in capsys.readouterr().err
    assert (folder / "job.yaml").read_text() == "mine"
    assert main(["init", "model.onnx", "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == "job_data.npz"


def test_init_finds_arrays_and_shapes_them_for_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(DATA, folder / "kws.npz")
    assert main(["init", "model.onnx", "--data", "kws.npz"]) == 0
    assert "inputs are int8 and become float32" in capsys.readouterr().out
    job = read_job(folder / "job.yaml", environment={})
    inputs, labels = next(iter(job.evaluation))
    assert (inputs.shape[1:], inputs.dtype, labels.shape) == ((1, 49, 10), np.float32, (32,))
    assert "x: x_calib" in (folder / "job.yaml").read_text()


@pytest.mark.parametrize(
    ("factor", "step", "told"), [(1.0, "Cast", "stay from 0 to 255"), (255.0, "Rescale", "are divided by 255")]
)
def test_init_tries_whether_pixels_are_divided(
    factor: float, step: str, told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network of one threshold on the brightness, trained on pixels from 0 to 255, or from 0 to 1."""
    onnx = pytest.importorskip("onnx", reason='needs: pip install "neural-tune[onnxruntime]"')
    weights = np.stack([-np.ones((3, 1, 1)), np.ones((3, 1, 1))]).astype(np.float32) * factor / 3
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
        onnx.helper.make_node("Conv", ["mean", "w", "b"], ["scores"]),
        onnx.helper.make_node("Flatten", ["scores"], ["y"]),
    ]
    constants = [
        onnx.numpy_helper.from_array(weights, "w"),
        onnx.numpy_helper.from_array(np.array([100.5, -100.5], np.float32), "b"),
    ]
    inputs = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 4, 4])]
    outputs = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 2])]
    graph = onnx.helper.make_graph(nodes, "threshold", inputs, outputs, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "threshold.onnx")
    photos = np.random.default_rng(0).integers(0, 256, (64, 1, 1, 1)).repeat(4, 1).repeat(4, 2).repeat(3, 3)
    np.savez(folder / "photos.npz", x=photos.astype(np.uint8), y=(photos[:, 0, 0, 0] > 100).astype(np.int64))
    assert main(["init", "threshold.onnx", "--data", "photos.npz"]) == 0
    assert f"inputs {told}: 100% of 64 samples are right so" in capsys.readouterr().out
    job = (folder / "job.yaml").read_text()
    assert f"        {step}: " in job
    assert "Transpose: {perm: [2, 0, 1]}" in job


def test_init_asks_which_array_is_meant_where_nobody_can_tell(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(folder / "d.npz", first=np.zeros((4, 1, 49, 10), np.float32), second=np.zeros(4, np.int64))
    assert main(["init", "model.onnx", "--data", "d.npz"]) == 2
    assert "Which array holds the inputs? Found first, second; name one with --x" in capsys.readouterr().err
    assert main(["init", "model.onnx", "--data", "d.npz", "--x", "first"]) == 0
    assert "y: second" in (folder / "job.yaml").read_text()


def test_init_of_a_folder_of_images_resizes_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="image files need: pip install pillow")
    for name in ("yes", "no"):
        (folder / "photos" / name).mkdir(parents=True)
        pillow.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(folder / "photos" / name / "1.png")
    assert main(["init", "model.onnx", "--data", "photos"]) == 0
    job = read_job(folder / "job.yaml", environment={})
    inputs, labels = next(iter(job.evaluation))
    assert (inputs.shape, labels.tolist()) == ((2, 1, 49, 10), [0, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.onnx"], "init: found 'none.onnx', but there is no such file"),
        (["model.onnx", "--data", "none.npz"], "--data: none.npz cannot be read"),
        (["model.onnx", "--shape", "input"], "--shape: found 'input', expected input=lengths"),
        (["model.onnx", "--shape", "inputs=1,2"], "--shape: found 'inputs', expected an input of the model: input"),
    ],
)
def test_init_says_what_is_wrong(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_made_up_inputs_have_the_shapes_and_types_that_were_said() -> None:
    specs = tuple(parse_shapes(["ids=1,7:int64", "x=1,3"]).values())
    made = random_inputs(specs, 5)
    assert {name: (array.shape, array.dtype.name) for name, array in made.items()} == {
        "ids": ((5, 7), "int64"),
        "x": ((5, 3), "float32"),
    }
    assert set(made["ids"].ravel().tolist()) == {0, 1}


def test_apply_gives_the_same_model_without_a_search(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["apply", str(run), "--output", "saved"]) == 0
    out = capsys.readouterr().out
    assert "ACCEPTED" in out
    assert "trial 1: accepted" in out
    before = json.loads((run / "result.json").read_text())
    after = json.loads((tmp_path / "saved" / "result.json").read_text())
    assert (after["best"]["metrics"], after["size"], after["trials"]) == (before["best"]["metrics"], before["size"], 1)
    x = np.random.default_rng(0).normal(size=(8, 1, 49, 10)).astype(np.float32)
    sessions = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for path in (run / "model" / "model.onnx", tmp_path / "saved" / "model.onnx")
    ]
    first, second = (session.run(None, {"input": x})[0] for session in sessions)
    np.testing.assert_array_equal(first, second)


def test_apply_takes_another_model_and_another_job(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = run.parents[2] / "job.yaml"
    recipe = folder / "mine.yaml"
    shutil.copy(run / "recipe.yaml", recipe)
    assert main(["apply", str(recipe), "model.onnx"]) == 2
    assert "name the job: --job JOB.yaml" in capsys.readouterr().err
    assert main(["apply", str(recipe), "model.onnx", "--job", str(job), "--quiet", *FAST]) == 0
    recipe.write_text(recipe.read_text().replace("rules:", "rules:\n  - {op: no_such_op, use: float}", 1))
    assert main(["apply", str(recipe), "model.onnx", "--job", str(job), "--quiet"]) == 2
    assert "'no_such_op' matches no op of the model" in capsys.readouterr().err


def test_a_best_effort_does_not_replace_an_accepted_model(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["apply", str(run), "--quiet", "--output", "saved", *FAST]) == 0
    impossible = ["--set", "tuning.accuracy_criterion={absolute: 0}"]
    assert main(["apply", str(run), "--quiet", "--output", "other", *FAST, *impossible]) == 1
    assert "not saved" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert main(["apply", str(run), "--quiet", "--output", "saved", "--best-effort", *FAST, *impossible]) == 2
    assert "holds an accepted model, which a best effort must not replace" in capsys.readouterr().err


def test_bench_compares_models_with_intervals(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(MODEL), str(run), "--seconds", "0.2", "--batch-size", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    first, second = found["models"]
    assert (found["batch_size"], first["ratio"]) == (4, 1.0)
    for row in (first, second):
        low, high = row["latency_interval_ms"]
        assert low <= row["latency_ms"] <= high
        assert row["throughput"] == pytest.approx(4 / row["latency_ms"] * 1e3)
        assert row["peak_memory"] > 10_000_000
    assert second["size"] < first["size"] == MODEL.stat().st_size
    assert main(["bench", str(MODEL), "--seconds", "0.1", "--no-memory"]) == 0
    out = capsys.readouterr().out
    assert "batch 1, 1 thread" in out
    assert "was taken at that run's own batch" in out
    assert main(["bench", "none.onnx"]) == 2


def test_resume_needs_nothing_but_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = run.parent / "copy"
    shutil.copytree(run, copy)
    assert main(["resume", str(copy)]) == 0
    out = capsys.readouterr().out
    assert "of the earlier run are taken over" in out or "of the earlier run is taken over" in out or "resumed: " in out
    (copy / "command.json").unlink()
    assert main(["resume", str(copy)]) == 2
    assert "name the job: --job JOB.yaml" in capsys.readouterr().err
    assert main(["resume", str(tmp_path)]) == 2


def test_a_run_that_user_code_ends_says_how_to_go_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "nt_fails.py").write_text(
        "calls = []\n\n\ndef f(model):\n    calls.append(1)\n    return 1.0 if len(calls) < 2 else 1 / 0\n"
    )
    assert main(["init", "model.onnx"]) == 0
    text = (folder / "job.yaml").read_text()
    start, end = text.index("    metric:"), text.index("  performance:")
    (folder / "job.yaml").write_text(f"{text[:start]}    function: 'nt_fails:f'\n{text[end:]}")
    assert main(["run", "job.yaml", "--quiet", *FAST]) == 3
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err
    assert "what was measured so far is kept: neural-tune resume nt_workspace/" in err


def test_schema_prints_what_an_editor_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["tuning"]


def test_report_writes_the_page_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("plotly", reason='needs: pip install "neural-tune[report]"')
    assert main(["report", str(run), "--json"]) == 0
    page = Path(json.loads(capsys.readouterr().out)["report"])
    assert page.read_text().lstrip().lower().startswith("<!doctype html")
    assert main(["report", str(run.parent)]) == 2


def test_report_takes_all_runs_that_a_glob_names(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("plotly", reason='needs: pip install "neural-tune[report]"')
    runs = [shutil.copytree(run, tmp_path / name) for name in ("first", "second")]
    assert main(["report", *map(str, runs)]) == 0
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()] == [str(folder) for folder in runs]
    assert main(["report", *map(str, runs), "--json"]) == 0
    pages = [Path(page) for page in json.loads(capsys.readouterr().out)["reports"]]
    assert [page.parent for page in pages] == runs
    assert all(page.is_file() for page in pages)
    assert main(["report", *map(str, runs), "--serve"]) == 2
    assert "--serve: found 2 runs, expected one" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_resume_finishes(folder: Path) -> None:
    assert main(["init", "model.onnx"]) == 0
    slow = ["--set", "tuning.strategy=random", "--set", "tuning.exit_policy={timeout: 120, max_trials: 500}"]
    command = [sys.executable, "-m", "neural_tune", "run", "job.yaml", *slow]
    listens = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    job = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}, **listens
    )
    assert job.stdout is not None
    for line in job.stdout:
        if line.startswith("trial 2"):
            break
    job.send_signal(signal.SIGINT)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 130, (out, err)
    (run,) = (folder / "nt_workspace" / "model").iterdir()
    assert f"to go on with the search: neural-tune resume nt_workspace/model/{run.name}" in err
    tried = len((run / "journal.jsonl").read_text().split('"kind": "trial"')) - 1
    assert main(["resume", str(run), "--quiet", "--set", f"tuning.exit_policy.max_trials={tried + 1}"]) in (0, 1)
