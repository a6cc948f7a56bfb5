"""`lock` and `check` on a real model: an unchanged one passes on a loaded machine, and every way to become worse fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from neural_tune.cli import main
from neural_tune.command_record import CommandRecord

onnx = pytest.importorskip("onnx", reason='needs: pip install "neural-tune[onnxruntime]"')
pytest.importorskip("onnxruntime", reason='needs: pip install "neural-tune[onnxruntime]"')

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "keyword_spotting"
SPEED = ["--set", "evaluation.performance.seconds=0.2", "--set", "evaluation.performance.warmup=2"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a job, its data, a run and its lock."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("nt_workspace", "__pycache__"))
    with np.load(folder / "data" / "kws_mfcc.npz") as stored:
        arrays = {name: stored[name][:300] for name in stored.files}
    # Silence alone: the ranges it shows are far too small for speech.
    quiet = np.clip(arrays["x_calib"].astype(np.int16) // 12 + 76, -128, 127).astype(np.int8)
    np.savez(folder / "data" / "kws_mfcc.npz", **arrays, x_quiet=quiet)
    assert main(["run", str(folder / "job.yaml"), "--workspace", str(folder / "runs"), "--quiet", *SPEED]) == 0
    (run,) = (folder / "runs" / "keyword_spotting").iterdir()
    assert main(["lock", str(run), "--output", str(folder / "neural-tune.lock.json")]) == 0
    return folder


@pytest.fixture
def burning() -> Iterator[None]:
    """Two processes that take all the processor they can get, as other jobs on a build machine do."""
    jobs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    yield
    for job in jobs:
        job.kill()
        job.wait()


def checks(capsys: pytest.CaptureFixture[str], project: Path, *arguments: str) -> tuple[int, dict[str, dict]]:
    """Return the exit code of a check and its outcomes by name."""
    capsys.readouterr()
    code = main(["check", str(project / "neural-tune.lock.json"), "--json", *arguments])
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] == (code == 0)
    return code, {check["name"]: check for check in found["checks"]}


def failed(found: dict[str, dict]) -> set[str]:
    return {name for name, check in found.items() if check["outcome"] == "failed"}


def spoil(monkeypatch: pytest.MonkeyPatch, change: object) -> None:
    """Change every model that the adapter saves."""
    from neural_tune_onnxruntime.adapter import OnnxRuntimeAdapter

    original = OnnxRuntimeAdapter.save

    def save(self: object, built: object, directory: Path) -> Path:
        path = original(self, built, directory)
        model = onnx.load(path)
        change(model)
        onnx.save(model, path)
        return path

    monkeypatch.setattr(OnnxRuntimeAdapter, "save", save)


def test_a_lock_holds_recipe_hashes_versions_counts_speed_size_and_ops(project: Path) -> None:
    lock = json.loads((project / "neural-tune.lock.json").read_text())
    assert lock["job"] == "job.yaml"
    assert len(lock["recipe"]["ops"]) >= 10
    assert len(lock["model"]) >= 16
    assert len(lock["evaluation"]) == 64
    assert {"neural_tune", "onnxruntime", "numpy", "instruction_set"} == set(lock["versions"])
    (metric,) = lock["metrics"]
    assert (metric["name"], metric["samples"]) == ("topk", 300)
    assert metric["value"] == pytest.approx(
        metric["baseline"] - (metric.get("worse", 0) - metric.get("better", 0)) / 300
    )
    assert lock["speed"]["low"] <= lock["speed"]["ratio"] <= lock["speed"]["high"]
    assert lock["size"] < lock["size_float"]
    assert len(lock["ops"]) >= 10
    # Right or wrong is one bit per sample, so the file can be committed.
    assert (project / "neural-tune.lock.npz").stat().st_size < 8000


@pytest.mark.slow
@pytest.mark.usefixtures("burning")
def test_an_unchanged_model_passes_ten_times_in_a_row_on_a_loaded_machine(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(10):
        code, found = checks(capsys, project)
        assert code == 0, found
        assert found["latency ratio to float"]["outcome"] == "passed"


def test_an_op_that_is_forced_back_to_float_fails(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = json.loads((project / "neural-tune.lock.json").read_text())
    op = next(iter(lock["recipe"]["ops"]))
    code, found = checks(capsys, project, "--no-latency", "--set", f"quantization.exclude=[{op}]")
    assert code == 1
    assert "ops in low precision" in failed(found)
    assert op in found["ops in low precision"]["detail"]


def weight_scales(model: object) -> list[str]:
    """Return the names of the scales of weights in the graph, in order."""
    constants = {item.name: item for item in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    return [node.input[1] for node in nodes if len(constants[node.input[0]].dims) > 1]


@pytest.mark.parametrize(("place", "factor"), [(0, 1.1), (4, 0.9), (-1, 1.1)])
def test_a_scale_that_is_off_by_ten_percent_fails(
    place: int, factor: float, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(model: object) -> None:
        name = weight_scales(model)[place]
        (scale,) = [item for item in model.graph.initializer if item.name == name]
        array = onnx.numpy_helper.to_array(scale)
        scale.CopyFrom(onnx.numpy_helper.from_array((array * np.float32(factor)).astype(array.dtype), name))

    spoil(monkeypatch, change)
    code, found = checks(capsys, project, "--no-latency")
    assert code == 1
    assert "distance from float" in failed(found)


@pytest.mark.parametrize(("place", "factor"), [(1, 1.1), (3, 0.9), (-2, 1.1)])
def test_an_activation_scale_that_is_off_by_ten_percent_fails(
    place: int, factor: float, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Q and DQ share the scale, so the model is hardly worse; but it is not the one that was locked."""

    def change(model: object) -> None:
        names = [node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"]
        name = list(dict.fromkeys(names))[place]
        (scale,) = [item for item in model.graph.initializer if item.name == name]
        array = onnx.numpy_helper.to_array(scale)
        scale.CopyFrom(onnx.numpy_helper.from_array((array * np.float32(factor)).astype(array.dtype), name))

    spoil(monkeypatch, change)
    code, found = checks(capsys, project, "--no-latency")
    assert code == 1
    assert "same outputs" in failed(found)


def test_other_calibration_data_that_lower_accuracy_fail(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = "quantization.calibration.dataloader.dataset.npz.x=x_quiet"
    code, found = checks(capsys, project, "--no-latency", "--set", key)
    assert code == 1
    assert {"accuracy.topk", "criterion", "distance from float"} <= failed(found)
    assert "McNemar" in found["accuracy.topk"]["detail"]


def test_a_slower_graph_fails_after_repeated_measurements(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(model: object) -> None:
        # A detour of float nodes around the input that changes nothing, as a rewrite that no longer folds would leave.
        graph = model.graph
        source = graph.input[0].name
        for node in graph.node:
            node.input[:] = ["detour_60" if name == source else name for name in node.input]
        steps = [(source if step == 0 else f"detour_{step}", f"detour_{step + 1}") for step in range(60)]
        nodes = []
        for step, (before, after) in enumerate(steps):
            nodes.append(onnx.helper.make_node("Erf", [before], [f"side_{step}"]))
            nodes.append(onnx.helper.make_node("Sub", [before, f"side_{step}"], [f"less_{step}"]))
            nodes.append(onnx.helper.make_node("Add", [f"less_{step}", f"side_{step}"], [after]))
        for node in reversed(nodes):
            graph.node.insert(0, node)

    spoil(monkeypatch, change)
    code, found = checks(capsys, project, "--size-tolerance", "1", *SPEED)
    assert code == 1
    assert failed(found) == {"latency ratio to float"}
    assert "below it in each of 4 measurements" in found["latency ratio to float"]["detail"]


def test_an_artifact_that_grew_fails(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(model: object) -> None:
        model.metadata_props.add(key="ballast", value="x" * 2000)

    spoil(monkeypatch, change)
    code, found = checks(capsys, project, "--no-latency")
    assert (code, failed(found)) == (1, {"size"})


def test_other_evaluation_data_ask_for_a_new_lock(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [f"evaluation.accuracy.dataloader.dataset.npz.{key}_calib" for key in ("x=x", "y=y")]
    code, found = checks(capsys, project, "--no-latency", "--set", keys[0], "--set", keys[1])
    assert (code, "lock anew" in found["evaluation data"]["detail"]) == (1, True)
    assert found["accuracy.topk"]["outcome"] == found["distance from float"]["outcome"] == "skipped"


def test_another_model_is_held_to_accuracy_and_criterion(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    retrained = onnx.load(project / "model" / "dscnn_kws.onnx")
    for item in retrained.graph.initializer:
        array = onnx.numpy_helper.to_array(item)
        if array.ndim == 4:
            noise = np.random.default_rng(0).normal(size=array.shape).astype(array.dtype)
            item.CopyFrom(onnx.numpy_helper.from_array(array + 0.3 * array.std() * noise, item.name))
    onnx.save(retrained, project / "retrained.onnx")
    code, found = checks(capsys, project, "--no-latency", "--model", str(project / "retrained.onnx"))
    assert code == 1
    assert "accuracy.topk" in failed(found)
    assert found["distance from float"]["outcome"] == "skipped"


def test_junit_markdown_and_the_summary_of_a_pull_request_are_written(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    xmlschema = pytest.importorskip("xmlschema", reason="needs: pip install --group test")
    lock = json.loads((project / "neural-tune.lock.json").read_text())
    op = next(iter(lock["recipe"]["ops"]))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    arguments = [
        "check",
        str(project / "neural-tune.lock.json"),
        "--no-latency",
        "--junit",
        str(tmp_path / "junit.xml"),
    ]
    assert main([*arguments, "--set", f"quantization.exclude=[{op}]"]) == 1
    out = capsys.readouterr().out
    assert "REGRESSED: " in out
    assert "ops in low precision" in out
    xmlschema.XMLSchema(Path(__file__).with_name("junit.xsd")).validate(tmp_path / "junit.xml")
    suite = ET.parse(tmp_path / "junit.xml").getroot()[0]
    assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure")) >= 1
    assert suite.attrib["skipped"] == "1"
    summary = (tmp_path / "summary.md").read_text()
    assert "REGRESSED" in summary
    assert summary.count("|---|---|---|---|---|") == 1
    assert "| ❌ | ops in low precision |" in summary


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ("neural-tune.lock.npz", "found another file, expected the values per sample"),
        ("neural-tune.lock.json", "cannot be read"),
    ],
)
def test_a_damaged_lock_exits_with_2(
    spoilt: str, message: str, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("neural-tune.lock.json", "neural-tune.lock.npz", "job.yaml"):
        shutil.copy(project / name, tmp_path)
    with (tmp_path / spoilt).open("ab") as file:
        file.write(b"}")
    assert main(["check", str(tmp_path / "neural-tune.lock.json")]) == 2
    assert message in capsys.readouterr().err


def test_a_run_knows_how_it_was_started(project: Path) -> None:
    (run,) = (project / "runs" / "keyword_spotting").iterdir()
    record = CommandRecord.of_run(run)
    assert record.job.resolve() == (project / "job.yaml").resolve()
    assert record.overrides == tuple(item for item in SPEED if item != "--set")
    assert record.line.startswith("neural-tune run ")
