"""Thirty job files with one mistake each, and three with many: each error names the path, what was found and what is expected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neural_tune.errors import ConfigError
from neural_tune.job import read_job

GOOD = """\
model:
  path: net.onnx
quantization:
  approach: static
  calibration:
    sampling_size: 8
    dataloader:
      batch_size: 4
      dataset: {npz: {path: data.npz, x: x}}
      transform: {Cast: {dtype: float32}}
evaluation:
  accuracy:
    metric: {topk: 1}
    dataloader: {batch_size: 4, dataset: {npz: {path: data.npz, x: x, y: y}}}
  performance: {warmup: 1, iterations: 10, threads: 1}
tuning:
  strategy: {name: basic}
  accuracy_criterion: {relative: 1%}
  objective: latency
  exit_policy: {timeout: 0, max_trials: 10}
  workspace: {path: runs}
"""

# Old text, new text, the whole error without the file's name.
MISTAKES = [
    ("path: net.onnx", "path: nett.onnx", "2: model.path: found 'nett.onnx', but there is no file {folder}/nett.onnx"),
    ("path: net.onnx", "pfad: net.onnx", "2: model.pfad: unknown key; expected one of path, factory, framework, name, inputs, outputs"),
    ("  path: net.onnx", "  path: net.onnx\n  framework: onnxruntim", "3: model.framework: found 'onnxruntim': no adapter named 'onnxruntim' (did you mean 'onnxruntime'?); installed: onnxruntime, pytorch, tensorflow"),
    ("  path: net.onnx", "  factory: net:make", "2: model.factory.callable: found 'net:make', but there is no module 'net' beside the job file or among the installed ones"),
    ("  path: net.onnx", "  path: net.onnx\n  inputs: [1]", "3: model.inputs: found [1], expected a list of texts"),
    ("approach: static", "approach: statik", "4: quantization.approach: found 'statik', expected one of static, dynamic, weight_only, auto, qat"),
    ("approach: static", "approach: qat", "3: quantization.train: missing: approach qat needs function: module:callable, which trains a model in place"),
    ("approach: static", "approach: static\n  exclude: {conv1: true}", "5: quantization.exclude: found {'conv1': True}, expected a list of texts"),
    ("approach: static", "approach: static\n  reduce_range: 7", "5: quantization.reduce_range: found 7, expected true or false"),
    ("approach: static", "approach: static\n  op_wise: {conv1: {weight: {dtype: int9}}}", "5: quantization.op_wise['conv1'].weight.dtype: found 'int9', expected one of "),
    ("approach: static", "approach: static\n  advance: {bias_correction: weight_empirical}", "5: quantization.advance: not supported: name bias_correction under quantization.recipes"),
    ("sampling_size: 8", "sampling_size: many", "6: quantization.calibration.sampling_size: found 'many', expected one integer, 1 or more (calibration runs once)"),
    ("batch_size: 4\n", "batch_size: 0\n", "8: quantization.calibration.dataloader.batch_size: found 0, expected an integer, 1 or more"),
    ("npz: {path: data.npz, x: x}}\n", "npz: {path: dada.npz, x: x}}\n", "9: quantization.calibration.dataloader.dataset.npz.path: found 'dada.npz', but there is no file {folder}/dada.npz"),
    ("npz: {path: data.npz, x: x}}\n", "npz: {path: data.npz, x: images}}\n", "9: quantization.calibration.dataloader.dataset.npz.x: found 'images', expected an array of data.npz: x, y"),
    ("dataset: {npz: {path: data.npz, x: x}}\n", "dataset: {nzp: {path: data.npz, x: x}}\n", "9: quantization.calibration.dataloader.dataset.nzp: there is no such dataset (did you mean 'npz'?); there are npz, numpy, image_folder, csv, cifar10, mnist, tfrecord, hf_disk, dummy, factory"),
    ("dataset: {npz: {path: data.npz, x: x}}\n", "dataset: {image_folder: {path: photos}}\n", "9: quantization.calibration.dataloader.dataset.image_folder.path: found 'photos', but there is no folder {folder}/photos"),
    ("Cast: {dtype: float32}", "Csat: {dtype: float32}", "10: quantization.calibration.dataloader.transform.Csat: there is no such transform (did you mean 'Cast'?); there are Cast, Normalize, Rescale"),
    ("Cast: {dtype: float32}", "Cast: {dtype: float33}", "10: quantization.calibration.dataloader.transform.Cast.dtype: found 'float33', expected a number format such as float32, int64 or uint8"),
    ("Cast: {dtype: float32}", "Normalize: {mean: 0}", "10: quantization.calibration.dataloader.transform.Normalize.std: missing"),
    ("metric: {topk: 1}", "metric: {topc: 1}", "13: evaluation.accuracy.metric: unknown metric 'topc'. Did you mean topk?"),
    ("    metric: {topk: 1}\n", "", "12: evaluation.accuracy: found none of them, expected one of metric, multi_metrics and function"),
    ("metric: {topk: 1}", "multi_metrics: {topk: 1, mse: {}, higher_is_better: [true, true]}", "13: evaluation.accuracy.multi_metrics.higher_is_better: found true for mse, of which lower is better"),
    ("iterations: 10", "iterations: some", "15: evaluation.performance.iterations: found 'some', expected an integer, 1 or more, or -1"),
    ("threads: 1", "threads: 0", "15: evaluation.performance.threads: found 0, expected an integer, 1 or more"),
    ("name: basic", "name: baysian", "17: tuning.strategy.name: found 'baysian': no strategy named 'baysian' (did you mean 'bayesian'?); installed: auto, basic, bayesian"),
    ("relative: 1%", "relative: 1 percent", "18: tuning.accuracy_criterion.relative: found '1 percent', expected a number, 0 or more, or a percentage such as \"1%\""),
    ("relative: 1%", "relative: 1%, absolute: 0.1", "18: tuning.accuracy_criterion: found both relative and absolute, expected one of them"),
    ("objective: latency", "objective: latenzy", "19: tuning.objective: objective 'latenzy' is none of ['latency', 'memory', 'size', 'throughput']"),
    ("max_trials: 10", "max_trial: 10", "20: tuning.exit_policy.max_trial: unknown key (did you mean 'max_trials'?); expected one of timeout, max_trials, max_passes, performance_only"),
    ("timeout: 0", "timeout: -3", '20: tuning.exit_policy.timeout: found -3, expected a number, 0 or more, or a percentage such as "1%"'),
    ("workspace: {path: runs}", "workspace: {path: ''}", "21: tuning.workspace.path: found '', expected a text"),
    ("tuning:\n", "tuning: &a\n  random_seed: x\n", "17: tuning.random_seed: found 'x', expected an integer, 0 or more"),
    ("evaluation:\n", "evaluation:\n  accurracy: {}\n", "12: evaluation.accurracy: unknown key (did you mean 'accuracy'?); expected one of accuracy, performance"),
    ("path: net.onnx", "path: ${NT_NO_SUCH}/net.onnx", "2: model.path: found ${NT_NO_SUCH}, but that environment variable is not set; set it, or write ${NT_NO_SUCH:-otherwise}"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what the good job names."""
    (tmp_path / "net.onnx").write_bytes(b"")
    np.savez(tmp_path / "data.npz", x=np.zeros((8, 4), np.float32), y=np.zeros(8, np.int64))
    return tmp_path


def errors(folder: Path, text: str, *overrides: str, environment: dict[str, str] | None = None) -> list[str]:
    """Return the faults of a job."""
    (folder / "job.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_job(folder / "job.yaml", overrides, environment=environment or {})
    return str(caught.value).splitlines()


def test_the_good_job_is_good(folder: Path) -> None:
    (folder / "job.yaml").write_text(GOOD)
    job = read_job(folder / "job.yaml", environment={})
    assert (job.config.strategy, job.config.performance.repeats) == ("basic", 10)
    assert len(MISTAKES) >= 30


@pytest.mark.parametrize(
    ("old", "new", "expected"), MISTAKES, ids=[text.split(":")[1].strip() for *_, text in MISTAKES]
)
def test_one_mistake_is_told_with_line_path_found_and_expected(old: str, new: str, expected: str, folder: Path) -> None:
    assert old in GOOD
    (found,) = errors(folder, GOOD.replace(old, new, 1))
    assert found.startswith(f"job.yaml:{expected.replace('{folder}', str(folder))}"), found


def test_many_mistakes_of_one_section_come_together_in_the_order_of_the_file(folder: Path) -> None:
    text = GOOD.replace("sampling_size: 8", "sampling_size: 0").replace("batch_size: 4\n", "batch_size: x\n", 1)
    text = text.replace("approach: static", "approach: dinamic").replace("dtype: float32", "dtype: flaot")
    assert [line.split(": found")[0] for line in errors(folder, text)] == [
        "job.yaml:4: quantization.approach",
        "job.yaml:6: quantization.calibration.sampling_size",
        "job.yaml:8: quantization.calibration.dataloader.batch_size",
        "job.yaml:10: quantization.calibration.dataloader.transform.Cast.dtype",
    ]


def test_mistakes_all_over_a_file_come_together(folder: Path) -> None:
    text = GOOD.replace("net.onnx", "gone.onnx").replace("topk: 1", "f2: 1").replace("y: y", "y: z")
    text = text.replace("name: basic", "name: best").replace("relative: 1%", "relativ: 1%").replace("latency", "speed")
    text += "diagnosiss: 1\n"
    assert [line.split(": ")[1] for line in errors(folder, text)] == [
        "model.path",
        "evaluation.accuracy.metric",
        "evaluation.accuracy.dataloader.dataset.npz.y",
        "tuning.strategy.name",
        "tuning.accuracy_criterion.relativ",
        "tuning.objective",
        "diagnosiss",
    ]


def test_mistakes_of_the_file_the_environment_and_the_command_line_come_together(folder: Path) -> None:
    text = GOOD.replace("approach: static", "approach: statik")
    found = errors(
        folder,
        text,
        "tuning.accuracy_criterion.absolute=0.1",
        "quantization.calibration.sampling_size=[",
        "tuning.executor={name: local, workers: 3}",
        "nonsense",
        environment={"NEURAL_TUNE__TUNING__RANDOM_SEED": "x", "NEURAL_TUNE__TUNING__OBJECTIVE": "quick"},
    )
    assert sorted(found) == sorted(
        [
            "--set quantization.calibration.sampling_size=[: no valid YAML: expected the node content, but found '<stream end>'",
            "--set nonsense: expected section.key=value, such as tuning.exit_policy.max_trials=20",
            "NEURAL_TUNE__TUNING__OBJECTIVE=quick: tuning.objective: objective 'quick' is none of ['latency', 'memory', 'size', 'throughput']: a user's objective must say higher_is_better",
            "NEURAL_TUNE__TUNING__RANDOM_SEED=x: tuning.random_seed: found 'x', expected an integer, 0 or more",
            "job.yaml:4: quantization.approach: found 'statik', expected one of static, dynamic, weight_only, auto, qat",
            "job.yaml:18 with --set tuning.accuracy_criterion.absolute=0.1: tuning.accuracy_criterion: found both relative and absolute, expected one of them",
            "--set tuning.executor={name: local, workers: 3}: tuning.executor.workers: found 3 with executor 'local', expected 1; use executor 'process'",
        ]
    )


def test_the_environment_sets_values_and_the_command_line_wins(folder: Path) -> None:
    (folder / "job.yaml").write_text(GOOD.replace("net.onnx", "${NT_NAME:-net}.onnx"))
    environment = {"NEURAL_TUNE__TUNING__RANDOM_SEED": "3", "NEURAL_TUNE__TUNING__EXIT_POLICY__MAX_TRIALS": "4"}
    job = read_job(folder / "job.yaml", ["tuning.random_seed=5"], environment=environment)
    assert (job.config.seed, job.config.stop.max_trials, job.model) == (5, 4, folder / "net.onnx")


def test_an_empty_exclude_list_takes_back_that_of_the_file(folder: Path) -> None:
    (folder / "job.yaml").write_text(GOOD.replace("approach: static", "exclude: [conv1]"))
    assert len(read_job(folder / "job.yaml", environment={}).config.rules) == 1
    assert read_job(folder / "job.yaml", ["quantization.exclude=[]"], environment={}).config.rules == ()


def test_a_model_in_place_of_a_job_names_init(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"found a model \(onnxruntime\), expected a job file: `neural-tune init .*net.onnx`"
    ):
        read_job(folder / "net.onnx")


def test_a_callable_that_states_its_direction_has_it_in_its_own_criterion(folder: Path) -> None:
    (folder / "nt_direct.py").write_text("def error(outputs, labels):\n    return 0.0\n")
    metric = "multi_metrics: {topk: 1, 'nt_direct:error': {}, higher_is_better: [true, false]}"
    text = GOOD.replace("metric: {topk: 1}", metric).replace(
        "{relative: 1%}", "{metrics: {error: {relative: 2%}, topk: {absolute: 0.1}}}"
    )
    (folder / "job.yaml").write_text(text)
    job = read_job(folder / "job.yaml", environment={})
    assert [(metric.name, metric.higher_is_better) for metric in job.metric] == [("topk", True), ("error", False)]
    assert job.config.criterion.metrics["error"].higher_is_better is False
    assert job.config.criterion.metrics["topk"].higher_is_better is True
    assert job.config.notices == ()
