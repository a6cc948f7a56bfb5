"""A job file: what it says reaches `fit`, and what is wrong is reported at once with line, path, found and expected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neural_tune.config import PerformanceConfig
from neural_tune.datasets import BatchLoader, Factory
from neural_tune.errors import ConfigError
from neural_tune.job import Job, read_job
from neural_tune.values import AccuracyCriterion, Objective, Objectives, StopRule

SMALLEST = """\
model: {path: net.onnx}
quantization:
  calibration: {dataloader: {dataset: {npz: {path: data.npz, x: x}}}}
evaluation:
  accuracy: {metric: {topk: 1}, dataloader: {dataset: {npz: {path: data.npz, x: x, y: y}}}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what the jobs here name."""
    (tmp_path / "net.onnx").write_bytes(b"")
    np.savez(tmp_path / "data.npz", x=np.zeros((10, 4), np.float32), y=np.zeros(10, np.int64))
    return tmp_path


def read(folder: Path, text: str, *overrides: str) -> Job:
    """Return the job that `text` describes."""
    (folder / "job.yaml").write_text(text)
    return read_job(folder / "job.yaml", overrides)


def errors(folder: Path, text: str, *overrides: str) -> list[str]:
    """Return the faults of `text`, one per line."""
    with pytest.raises(ConfigError) as caught:
        read(folder, text, *overrides)
    return str(caught.value).splitlines()


def test_the_smallest_job_has_the_defaults_of_fit(folder: Path) -> None:
    job = read(folder, SMALLEST)
    config = job.config
    assert job.model == folder / "net.onnx"
    assert (config.approach, config.sampling_size, config.seed, config.workspace) == ("static", 100, 0, "nt_workspace")
    assert (config.criterion, config.stop, config.objectives) == (AccuracyCriterion(), StopRule(), Objectives())
    assert (config.executor, config.workers, config.performance) == ("local", 1, PerformanceConfig())
    assert isinstance(job.calibration, BatchLoader)
    assert [metric.name for metric in job.metric] == ["topk"]


def test_every_section_reaches_the_configuration(folder: Path) -> None:
    job = read(
        folder,
        """\
version: 1.0
device: cpu
model: {name: net, path: net.onnx, framework: onnxrt_qdqops, inputs: "a, b", outputs: [c]}
quantization:
  approach: post_training_static_quant
  calibration: {sampling_size: [64], dataloader: {batch_size: 5, last_batch: discard, dataset: {npz: {path: data.npz, x: x}}}}
  recipes: {bias_correction: true}
  options: {threads: [1, 2]}
  backend: default
  quant_format: QDQ
  reduce_range: true
  model_wise: {activation: {algorithm: minmax}}
  optype_wise: {MatMul: {weight: {scheme: sym}}}
  op_wise: {"^layer1\\\\..*": {weight: {granularity: per_tensor}}}
  exclude: [fc]
evaluation:
  accuracy: {metric: {topk: 1}, threads: 2, dataloader: {batch_size: 5, dataset: {npz: {path: data.npz, x: x, y: y}}}}
  performance: {warmup: 1, iteration: 20, seconds: 0.5, batch_size: 2, configs: {cores_per_instance: 2}}
tuning:
  strategy: {name: random, trials: 7}
  accuracy_criterion: {absolute: 0.5%, higher_is_better: false, metrics: {topk: {relative: 1e-2}}}
  multi_objectives: {objective: [performance, modelsize], weight: [0.7, 0.3]}
  exit_policy: {timeout: 60, max_trials: 20, max_passes: 4.5, performance_only: false}
  random_seed: 9
  workspace: {path: runs, resume: runs/net/1}
  executor: {name: process, workers: 2}
""",
    )
    config = job.config
    assert (job.name, job.framework, job.resume) == ("net", "onnxruntime", folder / "runs/net/1")
    assert (config.approach, config.sampling_size, config.inputs, config.outputs) == ("static", 64, ("a", "b"), ("c",))
    assert (config.backend, config.quant_format, config.reduce_range) == ("default", "QDQ", True)
    assert dict(config.recipes) == {"bias_correction": True}
    assert dict(config.options) == {"threads": (1, 2)}
    assert [rule.source for rule in config.rules] == [
        "quantization.model_wise",
        "quantization.optype_wise['MatMul']",
        "quantization.op_wise['^layer1\\\\..*']",
        "quantization.exclude['fc']",
    ]
    assert config.performance == PerformanceConfig(threads=2, batch_size=2, warmup=1, repeats=20, seconds=0.5)
    assert (config.strategy, dict(config.strategy_options)) == ("random", {"trials": 7})
    assert config.criterion.tolerable_loss == pytest.approx(0.005)
    assert (config.criterion.criterion, config.criterion.higher_is_better) == ("absolute", False)
    assert config.criterion.metrics["topk"] == AccuracyCriterion(True, "relative", 0.01)
    assert config.objectives.items == (Objective("latency", 0.7), Objective("size", 0.3))
    assert config.stop == StopRule(max_trials=20, timeout=60, max_passes=4.5)
    assert (config.seed, config.workspace, config.executor, config.workers, config.threads) == (
        9,
        str(folder / "runs"),
        "process",
        2,
        2,
    )
    assert hash(config) == hash(read(folder, (folder / "job.yaml").read_text()).config)


def test_what_has_no_effect_becomes_a_notice(folder: Path) -> None:
    job = read(
        folder,
        SMALLEST.replace(
            "dataset: {npz: {path: data.npz, x: x}}", "shuffle: true, dataset: {npz: {path: data.npz, x: x}}"
        )
        + "tuning: {tensorboard: true}\n",
    )
    assert job.config.notices == (
        "quantization.calibration.dataloader.shuffle has no effect: batches come in the order of the file",
        "tuning.tensorboard has no effect: the run directory holds every number",
    )


def test_factories_make_the_model_and_the_data_only_when_asked(folder: Path) -> None:
    (folder / "nt_made.py").write_text(
        "calls = []\n"
        "def model(width=1):\n    calls.append('model')\n    return ('model', width)\n"
        "def loader():\n    calls.append('loader')\n    return [1, 2]\n"
        "def accuracy(model):\n    return 0.5\n"
    )
    job = read(
        folder,
        "model: {factory: {callable: 'nt_made:model', args: {width: 3}}}\n"
        "quantization: {calibration: {dataloader: {dataset: {factory: {callable: 'nt_made:loader'}}}}}\n"
        "evaluation: {accuracy: {function: 'nt_made:accuracy'}}\n",
    )
    import nt_made

    assert nt_made.calls == []
    arguments = job.arguments()
    assert isinstance(job.model, Factory)
    assert (arguments["model"], arguments["calib_dataloader"]) == (("model", 3), [1, 2])
    assert arguments["eval_func"](None) == 0.5
    assert nt_made.calls == ["model", "loader"]


def test_a_metric_and_an_objective_of_the_users_own_are_found_beside_the_job(folder: Path) -> None:
    (folder / "nt_own.py").write_text(
        "def closeness(outputs, labels):\n    return 1.0\n\n\ndef energy(model):\n    return 2.0\n"
    )
    job = read(
        folder,
        SMALLEST.replace("{topk: 1}", "[topk, 'nt_own:closeness', {mse: {}}]")
        + "tuning: {objective: 'nt_own:energy'}\n",
    )
    assert [metric.name for metric in job.metric] == ["topk", "closeness", "mse"]
    assert job.config.objectives.items == (Objective("energy", higher_is_better=False),)
    assert job.objective_functions["energy"](None) == 2.0


def test_multi_metrics_of_inc_are_several_metrics(folder: Path) -> None:
    job = read(
        folder,
        SMALLEST.replace("metric: {topk: 1}", "multi_metrics: {topk: 1, mse: {}, higher_is_better: [true, false]}"),
    )
    assert [metric.name for metric in job.metric] == ["topk", "mse"]


def test_a_value_can_be_set_on_top(folder: Path) -> None:
    job = read(
        folder,
        SMALLEST,
        "tuning.exit_policy.max_trials=7",
        "tuning.strategy={name: random}",
        "tuning.accuracy_criterion.relative=2%",
    )
    assert (job.config.stop.max_trials, job.config.strategy, job.config.criterion.tolerable_loss) == (7, "random", 0.02)


def test_dynamic_needs_no_calibration_data(folder: Path) -> None:
    text = SMALLEST.replace(
        "  calibration: {dataloader: {dataset: {npz: {path: data.npz, x: x}}}}",
        "  approach: post_training_dynamic_quant",
    )
    job = read(folder, text)
    assert (job.config.approach, job.calibration) == ("dynamic", None)


def test_aliases_and_merges_of_yaml_work(folder: Path) -> None:
    job = read(folder, "tuning: &t {random_seed: 4}\n" + SMALLEST.replace("evaluation:", "evaluation: #\n"))
    assert job.config.seed == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tuning: {accuracy_criterion: {relative: abc}}", "job.yaml:6: tuning.accuracy_criterion.relative: found 'abc', expected a number, 0 or more, or a percentage such as \"1%\""),
        ("tuning: {accuracy_criterion: {relative: -1}}", "tuning.accuracy_criterion.relative: found -1, expected a number, 0 or more"),
        ("tuning: {accuracy_criterion: {relative: 1, absolute: 1}}", "tuning.accuracy_criterion: found both relative and absolute, expected one of them"),
        ("tuning: {accuracy_criterion: {relativ: 1}}", "tuning.accuracy_criterion.relativ: unknown key (did you mean 'relative'?); expected one of relative, absolute, higher_is_better, metrics"),
        ("tuning: {exit_policy: {max_trials: 0}}", "tuning.exit_policy.max_trials: found 0, expected an integer, 1 or more"),
        ("tuning: {exit_policy: {max_trials: true}}", "tuning.exit_policy.max_trials: found True, expected an integer, 1 or more"),
        ("tuning: {exit_policy: {performance_only: true}}", "tuning.exit_policy.performance_only: not supported: a model is only accepted on its accuracy"),
        ("tuning: {exit_policy: {max_passes: 0}}", "tuning.exit_policy.max_passes: found 0, expected a number above 0"),
        ("tuning: 3", "job.yaml:6: tuning: found 3, expected a mapping with strategy, accuracy_criterion"),
        ("tuning: {strategy: {sigopt_api_token: x}}", "tuning.strategy: found {'sigopt_api_token': 'x'}, expected a name, or a mapping with name"),
        ("tuning: {objective: speed}", "tuning.objective: objective 'speed' is none of ['latency', 'memory', 'size', 'throughput']"),
        ("tuning: {objective: size, multi_objectives: {objective: size}}", "tuning: found both objective and multi_objectives"),
        ("tuning: {multi_objectives: {weight: [1]}}", "tuning.multi_objectives.objective: missing"),
        ("tuning: {executor: {name: threads}}", "tuning.executor.name: found 'threads', expected one of local, process"),
        ("tuning: {executor: {name: local, workers: 2}}", "tuning.executor.workers: found 2 with executor 'local', expected 1"),
        ("tuning: {random_seed: 1.5}", "tuning.random_seed: found 1.5, expected an integer, 0 or more"),
        ("tunning: {random_seed: 1}", "job.yaml:6: tunning: unknown key (did you mean 'tuning'?); expected one of version, device, model"),
        ("pruning: {approach: {}}", "pruning: not supported: this section of INC is not part of this version"),
        ("device: {cpu: 1}", "device: found {'cpu': 1}, expected a text"),
        ("model: {path: net.onnx}", "job.yaml:6: model: found twice, first in line 1; keep one"),
        ("tuning: {random_seed: 1, random_seed: 2}", "job.yaml:6: tuning.random_seed: found twice, first in line 6; keep one"),
        ("tuning: [", "no valid YAML"),
        ("tuning: {strategy: !!python/name:os.system {}}", "no valid YAML: could not determine a constructor for the tag"),
    ],
)  # fmt: skip
def test_a_fault_below_the_smallest_job_is_named(text: str, expected: str, folder: Path) -> None:
    found = errors(folder, SMALLEST + text + "\n")
    assert len(found) == 1
    assert expected in found[0]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("path: net.onnx", "path: nett.onnx", "job.yaml:1: model.path: found 'nett.onnx', but there is no file"),
        ("path: net.onnx", "path: net.onnx, pfad: x", "model.pfad: unknown key; expected one of path, factory"),
        ("path: net.onnx", "path: net.onnx, factory: 'json:loads'", "model: found both path and factory, expected one of them"),
        ("model: {path: net.onnx}", "model: {factory: 'nt_nowhere:f'}", "model.factory.callable: found 'nt_nowhere:f', but there is no module 'nt_nowhere'"),
        ("metric: {topk: 1}", "metric: {topk: 0}", "evaluation.accuracy.metric: "),
        ("metric: {topk: 1}", "metric: {topc: 1}", "evaluation.accuracy.metric: unknown metric 'topc'"),
        ("metric: {topk: 1}, ", "", "job.yaml:5: evaluation.accuracy: found none of them, expected one of metric, multi_metrics and function"),
        ("metric: {topk: 1}", "multi_metrics: {topk: 1, weight: [1]}", "evaluation.accuracy.multi_metrics.weight: not supported: every metric is held to its own criterion"),
        ("metric: {topk: 1}", "metric: {topk: 1}, postprocess: {transform: {SquadV1: {}}}", "evaluation.accuracy.postprocess.transform.SquadV1: not supported: postprocess in a metric of your own"),
        ("calibration: {dataloader", "calibration: {sampling_size: [100, 0], dataloader", "quantization.calibration.sampling_size: found [100, 0], expected one integer"),
        ("path: data.npz, x: x}", "path: dada.npz, x: x}", "quantization.calibration.dataloader.dataset.npz.path: found 'dada.npz', but there is no file"),
        ("x: x, y: y", "x: x, y: label", "evaluation.accuracy.dataloader.dataset.npz.y: found 'label', expected an array of data.npz: x, y"),
        ("dataset: {npz: {path: data.npz, x: x}}", "transform: {Cast: {dtype: float}, Rezise: {}}, dataset: {npz: {path: data.npz, x: x}}", "quantization.calibration.dataloader.transform.Rezise: there is no such transform"),
        ("dataset: {npz: {path: data.npz, x: x}}", "transform: {Cast: {dtype: int8, inputs: [z]}}, dataset: {npz: {path: data.npz, x: x}}", "quantization.calibration.dataloader.transform: found the inputs ['z'], expected some of ['x']"),
        ("dataset: {npz: {path: data.npz, x: x}}", "batch_size: 2, dataset: {factory: {callable: 'json:loads'}}", "quantization.calibration.dataloader.batch_size: has no effect on a factory"),
        ("dataset: {npz: {path: data.npz, x: x}}", "dataset: {COCO: {root: .}}", "quantization.calibration.dataloader.dataset.COCO: there is no such dataset; there are npz, numpy, image_folder, csv, cifar10"),
        ("dataset: {npz: {path: data.npz, x: x}}", "dataset: {CIFAR10: {root: .}}", "quantization.calibration.dataloader.dataset.CIFAR10.path: found no test batches (*.bin) of CIFAR-10 in"),
        ("  calibration: {dataloader: {dataset: {npz: {path: data.npz, x: x}}}}", "  approach: static", "quantization.calibration.dataloader: missing: approach static needs calibration data"),
        ("  calibration:", "  approach: statik\n  calibration:", "job.yaml:3: quantization.approach: found 'statik', expected one of static, dynamic, weight_only, auto, qat"),
        ("  calibration:", "  op_wise: {conv1: {weight: {dtype: int9}}}\n  calibration:", "job.yaml:3: quantization.op_wise['conv1'].weight.dtype: found 'int9', expected one of int4"),
        ("  calibration:", "  op_wise: {'(': {weight: {dtype: int8}}}\n  calibration:", "quantization.op_wise['(']: '(' is no regular expression"),
        ("  calibration:", "  exclude: [3]\n  calibration:", "quantization.exclude: found [3], expected a list of texts"),
    ],
)  # fmt: skip
def test_a_fault_inside_the_smallest_job_is_named(old: str, new: str, expected: str, folder: Path) -> None:
    assert old in SMALLEST
    found = errors(folder, SMALLEST.replace(old, new, 1))
    assert len(found) == 1, found
    assert expected in found[0]


def test_an_empty_file_names_all_that_is_missing(folder: Path) -> None:
    assert errors(folder, "") == [
        "job.yaml: model: missing",
        "job.yaml: evaluation: missing",
        "job.yaml: quantization.calibration.dataloader: missing: approach static needs calibration data",
    ]


def test_a_list_is_no_job(folder: Path) -> None:
    assert errors(folder, "- model\n- tuning\n")[0] == (
        "job.yaml:1: found ['model', 'tuning'], expected a mapping with version, device, model, quantization, evaluation, tuning, "
        "graph_optimization, mixed_precision, model_conversion, pruning, distillation, auto_distillation, nas, train"
    )


def test_many_faults_are_reported_at_once_in_the_order_of_the_file(folder: Path) -> None:
    found = errors(
        folder,
        """\
model: {path: nowhere.onnx, frame_work: onnxruntime}
quantization:
  approach: statisch
  calibration:
    sampling_size: 0
    dataloader: {batch_size: none, dataset: {npz: {path: data.npz, x: z}}}
evaluation:
  accuracy: {metric: {tok: 1}, dataloader: {dataset: {npz: {path: data.npz, x: x, y: q}}}}
tuning:
  accuracy_criterion: {relative: x}
  exit_policy: {timeout: -1}
""",
    )
    assert sorted(line.split(": ")[0] + " " + line.split(": ")[1] for line in found) == sorted([
        "job.yaml:1 model.frame_work",
        "job.yaml:1 model.path",
        "job.yaml:3 quantization.approach",
        "job.yaml:5 quantization.calibration.sampling_size",
        "job.yaml:6 quantization.calibration.dataloader.batch_size",
        "job.yaml:6 quantization.calibration.dataloader.dataset.npz.x",
        "job.yaml:8 evaluation.accuracy.metric",
        "job.yaml:8 evaluation.accuracy.dataloader.dataset.npz.y",
        "job.yaml:10 tuning.accuracy_criterion.relative",
        "job.yaml:11 tuning.exit_policy.timeout",
    ])  # fmt: skip
    lines = [int(line.split(":")[1]) for line in found]
    assert lines == sorted(lines)


def test_faults_of_rules_objectives_and_transforms_come_together(folder: Path) -> None:
    text = SMALLEST.replace(
        "quantization:",
        "quantization:\n  op_wise: {a: {weigth: {}}, b: 7}\n  model_wise: {activation: {algorithm: max}}",
    )
    text += "tuning: {objective: quickness}\n"
    found = errors(folder, text)
    assert [line.split(": ")[1] for line in found] == [
        "quantization.op_wise['a']",
        "quantization.op_wise['b']",
        "quantization.model_wise.activation.algorithm",
        "tuning.objective",
    ]


def test_a_fault_of_an_override_names_the_override(folder: Path) -> None:
    found = errors(folder, SMALLEST, "tuning.exit_policy.max_trials=many")
    assert found == [
        "--set tuning.exit_policy.max_trials=many: tuning.exit_policy.max_trials: found 'many', expected an integer, 1 or more"
    ]


@pytest.mark.parametrize("override", ["tuning", "=3", "tuning..x=3", "model.path.deep=3"])
def test_an_override_without_key_or_place_is_refused(override: str, folder: Path) -> None:
    assert override in errors(folder, SMALLEST, override)[0]


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_job(tmp_path / "none.yaml")


def test_what_a_users_module_raises_propagates(folder: Path) -> None:
    (folder / "nt_raises.py").write_text("raise ZeroDivisionError('mine')\n")
    with pytest.raises(ZeroDivisionError, match="mine"):
        read(folder, SMALLEST.replace("path: net.onnx", "factory: 'nt_raises:f'"))
