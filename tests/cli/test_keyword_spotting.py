"""The first example on the real model and data, as a user runs it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neural_tune import load
from neural_tune.cli import main
from neural_tune.job import read_job

ort = pytest.importorskip("onnxruntime", reason="the example runs on ONNX Runtime, which is not installed")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "keyword_spotting"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Run the job once, as a process of its own; return the run directory and the process."""
    workspace = tmp_path_factory.mktemp("workspace")
    command = [sys.executable, "-m", "neural_tune", "run", str(EXAMPLE / "job.yaml"), "--workspace", str(workspace)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    (run,) = (workspace / "keyword_spotting").iterdir()
    return run, done


def labels_of(session: Any, x: np.ndarray) -> np.ndarray:
    """Return the classes that an ONNX Runtime session finds."""
    return session.run(None, {session.get_inputs()[0].name: x})[0].argmax(axis=1)


def test_the_inputs_of_the_job_are_those_the_model_was_measured_with(shared_data: Path) -> None:
    spec = importlib.util.spec_from_file_location("load_models", shared_data / "load_models.py")
    assert spec is not None
    assert spec.loader is not None
    load_models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load_models)
    job, data = read_job(EXAMPLE / "job.yaml"), load_models.dataset("kws_mfcc")
    for loader, part in ((job.calibration, "x_calib"), (job.evaluation, "x_val")):
        batches = list(loader)
        found = np.concatenate([batch[0] for batch in batches])
        expected = load_models.prepare("dscnn_kws", data[part])
        assert (found.dtype, found.shape) == (np.float32, expected.shape)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(np.concatenate([y for _, y in job.evaluation]), data["y_val"])


def test_model_and_data_are_the_shared_ones(shared_data: Path) -> None:
    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    assert digest(EXAMPLE / "model" / "dscnn_kws.onnx") == digest(shared_data / "dscnn_kws.onnx")
    assert digest(EXAMPLE / "data" / "kws_mfcc.npz") == digest(shared_data / "kws_mfcc.npz")


def test_the_job_is_accepted_and_prints_the_certificate(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run, done = finished
    assert "ACCEPTED: topk" in done.stdout
    assert "95 % CI" in done.stdout
    assert "of 892 samples" in done.stdout
    assert str(run) in done.stdout
    assert all(char.isprintable() or char == "\n" for char in done.stdout + done.stderr)


def test_the_result_file_says_what_was_printed(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run, done = finished
    result = json.loads((run / "result.json").read_text())
    assert (result["status"], result["framework"], result["artifact"]) == ("accepted", "onnxruntime", "model.onnx")
    (certificate,) = result["certificate"]["metrics"]
    assert certificate["samples"] == 892
    assert certificate["drop"] <= 0.01 * certificate["baseline"] + 1e-12
    assert certificate["low"] <= certificate["drop"] <= certificate["high"]
    assert result["size_ratio"] > 2
    assert math.isclose(result["size_ratio"], result["size_float"] / result["size"])
    assert 2.0 <= result["passes"] <= 3.0
    assert sum(op["precision"] != "float" for op in result["ops"]) >= 10
    assert all(op["reason"] for op in result["ops"] if op["precision"] == "float")
    assert f"{result['passes']:.2f} passes" in done.stdout


def test_the_certified_accuracy_is_that_of_the_saved_file(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run, _ = finished
    certificate = json.loads((run / "result.json").read_text())["certificate"]["metrics"][0]
    job = read_job(EXAMPLE / "job.yaml")
    batches = list(job.evaluation)
    x, y = (np.concatenate([batch[part] for batch in batches]) for part in (0, 1))
    float_session = ort.InferenceSession(str(EXAMPLE / "model" / "dscnn_kws.onnx"), providers=["CPUExecutionProvider"])
    before, after = labels_of(float_session, x) == y, labels_of(load(run), x) == y
    assert after.mean() == pytest.approx(certificate["value"])
    assert before.mean() == pytest.approx(certificate["baseline"])
    # FrozenMap-style JSON leaves out zeros.
    assert certificate.get("worse", 0) == int((before & ~after).sum())
    assert certificate.get("better", 0) == int((~before & after).sum())


def test_inspect_counts_the_ops_of_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(EXAMPLE / "model" / "dscnn_kws.onnx"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    kinds = [op["type"] for op in found["ops"]]
    assert (kinds.count("Conv"), kinds.count("Gemm")) == (9, 1)
    assert found["quantizable"] >= 10


def test_the_same_runs_from_python(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "run.py")], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "ACCEPTED" in done.stdout
    assert (tmp_path / "keyword_spotting_int8" / "recipe.yaml").is_file()
    assert load(tmp_path / "keyword_spotting_int8").get_inputs()[0].shape[1:] == [1, 49, 10]
