"""The whole way on real pretrained models and on a transformer trained here: `fit`, TensorFlow, real data."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from models import keras

import neural_tune
from neural_tune import AccuracyCriterion, PerformanceConfig, PostTrainingQuantConfig, Status, TuningCriterion, fit
from neural_tune_tensorflow import save
from neural_tune_tensorflow.runtime import tf

pytestmark = [pytest.mark.slow]
# auto would leave ops of such small models float where a busy machine shows no gain; basic quantizes all it may.
BASIC = TuningCriterion(strategy="basic")
QUICK = PerformanceConfig(batch_size=16, seconds=0.3, warmup=1)


class Task:
    """A pretrained Keras model with its data, as arrays the model takes."""

    def __init__(self, folder: Path, name: str) -> None:
        spec = importlib.util.spec_from_file_location("load_models", folder / "load_models.py")
        kit: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(kit)
        data = kit.dataset(kit.MODELS[name][0])
        self.model = kit.keras_model(name)
        self.calibration = kit.prepare(name, data["x_calib"][:100], layout="NHWC")
        self.inputs = kit.prepare(name, data["x_val"], layout="NHWC")
        self.labels = data["y_val"]

    def fit(self, model: Any, workspace: Path, **config: Any) -> Any:
        return fit(
            model,
            PostTrainingQuantConfig(
                workspace=str(workspace),
                accuracy_criterion=AccuracyCriterion(tolerable_loss=0.01),
                tuning_criterion=BASIC,
                performance=QUICK,
                threads=1,
                **config,
            ),
            calib_dataloader=self.calibration,
            eval_dataloader=(self.inputs, self.labels),
            eval_metric="topk",
            reporter="quiet",
        )


def form_of(model: Any, form: str, folder: Path) -> Any:
    """Return the model as a Keras object, as a file of Keras, as a SavedModel that Keras exported, or as a frozen graph."""
    if form == "keras":
        return model
    if form == "keras_file":
        models.save(model, folder / "model.keras")
        return folder / "model.keras"
    if form == "saved_model":
        models.export(model, folder / "exported")
        return folder / "exported"
    path = folder / "frozen.pb"
    path.write_bytes(models.hold_of(model).source.graph_def.SerializeToString())
    return path


@pytest.mark.shared_data
@pytest.mark.parametrize("form", ["keras", "keras_file", "saved_model", "pb"])
@pytest.mark.parametrize(
    ("name", "metric"), [("resnet20_cifar10", 0.915), ("resnet8_cifar10", 0.881), ("dscnn_kws", 0.9126)]
)
def test_pretrained_models_are_accepted_in_every_form(
    shared_data: Path, tmp_path: Path, name: str, form: str, metric: float
) -> None:
    task = Task(shared_data, name)
    result = task.fit(form_of(task.model, form, tmp_path), tmp_path / "w")
    assert result.status is Status.ACCEPTED, result.reason
    assert result.baseline.metrics["topk"] == pytest.approx(metric, abs=1e-4)
    assert result.size_ratio > 2.0
    int8 = [op for op in result.ops if not op.is_float]
    assert {op.type for op in int8} >= {"Conv2D", "MatMul"}
    assert all(op.reason for op in result.ops if op.is_float)
    artifact = Path(result.save(tmp_path / "saved"))
    loaded = neural_tune.load(tmp_path / "saved")
    outputs = loaded.predict(task.inputs)
    assert float((outputs.argmax(1) == task.labels).mean()) == pytest.approx(
        result.certificate["topk"].value, abs=1e-12
    )
    if artifact.is_dir():  # what plain TensorFlow loads gives the same numbers, under the original signature
        plain = tf.saved_model.load(str(artifact)).signatures["serving_default"]
        (key,) = plain.structured_input_signature[1]
        (found,) = plain(**{key: tf.constant(task.inputs[:8])}).values()
        np.testing.assert_allclose(found.numpy(), outputs[:8], atol=1e-5)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("rules", "float_ops"),
    [
        ({"op_name_dict": {".*s2_conv1.*": {"activation": {"dtype": ["fp32"]}, "weight": {"dtype": ["fp32"]}}}}, 1),
        ({"op_type_dict": {"MatMul": {"activation": {"dtype": ["fp32"]}, "weight": {"dtype": ["fp32"]}}}}, 1),
    ],
)
def test_an_op_falls_back_by_name_or_type_and_it_shows_in_the_saved_graph(
    shared_data: Path, tmp_path: Path, rules: dict[str, Any], float_ops: int
) -> None:
    task = Task(shared_data, "resnet8_cifar10")
    result = task.fit(task.model, tmp_path / "w", **rules)
    assert result.accepted, result.reason
    anchors = [op for op in result.ops if op.type in ("Conv2D", "MatMul")]
    assert sum(op.is_float for op in anchors) == float_ops
    graph_def = save.read_saved_model(Path(result.save(tmp_path / "saved")))[0]
    kinds = models.ops_of(graph_def)
    assert kinds.count("Conv2D") + kinds.count("MatMul") == float_ops
    assert kinds.count("_FusedQuantizedConv2D") + kinds.count("_QuantizedMatMul") == len(anchors) - float_ops


def test_a_transformer_trained_on_digits_goes_through(tmp_path: Path) -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn has the digits")
    digits = datasets.load_digits()
    x, y = digits.images.astype(np.float32) / 16.0, digits.target
    model = transformer()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x[:1297], y[:1297], epochs=12, batch_size=64, verbose=0)
    result = fit(
        model,
        PostTrainingQuantConfig(
            workspace=str(tmp_path),
            accuracy_criterion=AccuracyCriterion(tolerable_loss=0.01),
            tuning_criterion=BASIC,
            performance=QUICK,
            threads=1,
        ),
        calib_dataloader=x[:100],
        eval_dataloader=(x[1297:], y[1297:]),
        eval_metric="topk",
        reporter="quiet",
    )
    assert result.baseline.metrics["topk"] > 0.85
    assert result.accepted, result.reason
    products = [op for op in result.ops if op.type == "MatMul"]
    assert len(products) >= 12
    assert sum(not op.is_float for op in products) >= 10


def transformer() -> Any:
    """Two blocks over the eight rows of a digit, as a sequence of eight vectors."""
    keras.utils.set_random_seed(1)
    kit = keras.layers
    x = entry = keras.Input((8, 8), name="rows")
    x = kit.Dense(32)(x)
    for _ in range(2):
        x = kit.LayerNormalization()(kit.Add()([x, kit.MultiHeadAttention(4, 8)(x, x)]))
        x = kit.LayerNormalization()(kit.Add()([x, kit.Dense(32)(kit.Dense(64, activation="gelu")(x))]))
    x = kit.Dense(10, activation="softmax")(kit.Flatten()(x))
    return keras.Model(entry, x, name="transformer")
