"""Job files as they were written for Intel Neural Compressor 1.x, written anew: all of them are read, and what they ask for arrives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neural_tune.job import Job, read_job
from neural_tune.values import AccuracyCriterion

IMAGE_CLASSIFIER = """\
version: 1.0
model:                                  # the path is given when the job is run, as INC's scripts do
  name: resnet50
  framework: onnxrt_qlinearops
quantization:
  approach: post_training_static_quant
  calibration:
    sampling_size: 50, 100
    dataloader:
      batch_size: 10
      dataset:
        ImageFolder: {root: photos}
      transform:
        Resize: {size: 24}
        CenterCrop: {size: 20}
        Rescale: {}
        Normalize: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}
        Transpose: {perm: [2, 0, 1]}
        Cast: {dtype: float32}
  model_wise:
    activation: {algorithm: minmax, bit: 7.0, scheme: asym}
    weight: {granularity: per_channel, bit: 7.0}
evaluation:
  accuracy:
    metric:
      topk: 1
    dataloader:
      batch_size: 10
      last_batch: discard
      dataset:
        ImageFolder: {root: photos}
      transform:
        Resize: {size: 24}
        CenterCrop: {size: 20}
        Rescale: {}
        Transpose: {perm: [2, 0, 1]}
    postprocess:
      transform:
        LabelShift: 1
  performance:
    warmup: 10
    iteration: 1000
    configs:
      cores_per_instance: 4
      num_of_instance: 7
    dataloader:
      batch_size: 1
      dataset:
        ImageFolder: {root: photos}
tuning:
  accuracy_criterion:
    relative: 0.01
  exit_policy:
    timeout: 0
  random_seed: 9527
"""

LANGUAGE_MODEL = """\
version: 1.0
model:
  name: bert
  framework: onnxrt_integerops
quantization:
  approach: post_training_dynamic_quant
  op_wise: {
    'MatMul_10': {activation: {dtype: ['fp32']}, weight: {dtype: ['fp32']}}
  }
evaluation:
  accuracy:
    metric: {F1: {}}
    dataloader: {batch_size: 4, dataset: {dummy_v2: {input_shape: [8, 16], dtype: int64, low: 0, high: 9, label: true}}}
tuning:
  strategy:
    name: bayesian
  accuracy_criterion: {absolute: 0.02, higher_is_better: True}
  multi_objectives:
    objective: [performance, modelsize]
    weight: [0.8, 0.2]
  exit_policy: {timeout: 3600, max_trials: 200, performance_only: False}
  random_seed: 1978
  tensorboard: True
  workspace: {path: ./nc_workspace/bert/}
"""

SEVERAL_METRICS = """\
version: 1.0
device: cpu
model: {name: net, framework: tensorflow, inputs: input, outputs: "predictions, boxes"}
quantization:
  calibration:
    sampling_size: 20
    dataloader:
      dataset: {dummy: {shape: [20, 4], label: true}}
  recipes: {scale_propagation_max_pooling: true, first_conv_or_matmul_quantization: true}
  optype_wise: {'Conv2D': {activation: {dtype: [uint8, fp32], algorithm: [minmax, kl]}}}
evaluation:
  accuracy:
    multi_metrics:
      topk: 1
      MSE: {compare_label: false}
      higher_is_better: [True, False]
    dataloader:
      dataset: {dummy: {shape: [20, 4], label: true}}
tuning:
  strategy: {name: mse}
  accuracy_criterion: {relative: 1%}
  objective: performance
  exit_policy: {timeout: 0, max_trials: 50}
  diagnosis: {diagnosis_after_tuning: false}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model and photos."""
    pillow = pytest.importorskip("PIL.Image", reason="image files need: pip install pillow")
    (tmp_path / "net.onnx").write_bytes(b"")
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            pillow.fromarray(np.full((30, 40, 3), 10 * number, np.uint8)).save(
                tmp_path / "photos" / name / f"{number}.jpg"
            )
    return tmp_path


def read(folder: Path, text: str) -> Job:
    (folder / "conf.yaml").write_text(text)
    return read_job(folder / "conf.yaml", model=str(folder / "net.onnx"), environment={})


def test_an_image_classifier_of_inc_is_read_down_to_its_pixels(folder: Path) -> None:
    job = read(folder, IMAGE_CLASSIFIER)
    assert (job.framework, job.name, job.model) == ("onnxruntime", "resnet50", folder / "net.onnx")
    config = job.config
    assert (config.approach, config.sampling_size, config.seed) == ("static", 100, 9527)
    assert (config.performance.repeats, config.performance.warmup, config.performance.threads) == (1000, 10, 4)
    assert config.criterion == AccuracyCriterion(tolerable_loss=0.01)
    inputs, _ = next(iter(job.calibration))
    assert (inputs.shape, inputs.dtype) == ((10, 3, 20, 20), np.float32)
    (only,) = list(job.evaluation)
    assert only[1].tolist() == [-1] * 6 + [0] * 4
    assert only[0].max() <= 1.0
    words = " ".join(config.notices)
    assert "model_wise.activation.bit has no effect" in words
    assert "num_of_instance has no effect" in words
    assert "calibration runs once, with 100 samples, the most of [50, 100]" in words


def test_a_language_model_of_inc_keeps_its_rules_and_objectives(folder: Path) -> None:
    job = read(folder, LANGUAGE_MODEL)
    assert (job.config.approach, job.config.strategy, job.config.seed) == ("dynamic", "bayesian", 1978)
    assert [(item.name, item.weight) for item in job.config.objectives.items] == [("latency", 0.8), ("size", 0.2)]
    assert job.config.criterion == AccuracyCriterion(criterion="absolute", tolerable_loss=0.02)
    assert [metric.name for metric in job.metric] == ["f1"]
    (rule,) = job.config.rules
    assert (rule.pattern, rule.restriction.keep_float) == ("MatMul_10", True)


def test_several_metrics_of_inc_keep_their_directions(folder: Path) -> None:
    job = read(folder, SEVERAL_METRICS.replace("{compare_label: false}", "{}"))
    assert [(metric.name, metric.higher_is_better) for metric in job.metric] == [("topk", True), ("mse", False)]
    assert (job.framework, job.config.inputs, job.config.outputs) == (
        "tensorflow",
        ("input",),
        ("predictions", "boxes"),
    )
    assert dict(job.config.recipes) == {
        "scale_propagation_max_pooling": True,
        "first_conv_or_matmul_quantization": True,
    }
    assert job.config.strategy == "mse"
