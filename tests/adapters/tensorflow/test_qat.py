"""Quantization-aware training of Keras 3 models: the grids, the places, the training, and that the int8 graph is what was trained."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="needs tensorflow")
pytest.importorskip("sklearn", reason="needs scikit-learn for the digits")

from neural_tune_tensorflow.runtime import tf  # isort: skip - tensorflow has to come up before keras
import keras
from sklearn.datasets import load_digits

import neural_tune
from neural_tune import AccuracyCriterion, QuantizationAwareTrainingConfig, TuningCriterion, fit
from neural_tune.config import parse_rules
from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.training import prepare_compression
from neural_tune.values import FLOAT_CANDIDATE
from neural_tune_tensorflow import qat
from neural_tune_tensorflow.adapter import TensorFlowAdapter
from neural_tune_tensorflow.qat_layers import FakeQuant, TensorRange, WeightGrid, on_weight_grid

ADAPTER = TensorFlowAdapter()
ONE_TRIAL = TuningCriterion(strategy="basic", max_trials=1)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def digits() -> tuple[Any, Any]:
    """Return 1,797 pictures of digits, shape (n, 8, 8, 1) in 0..1, and their labels.

    A little noise, because multiples of 1/16 lie halfway between two codes, where kernels may round either way.
    """
    data = load_digits()
    noise = np.random.default_rng(0).uniform(0.0, 0.02, data.images.shape)
    return (data.images / 16.0 + noise)[..., None].astype(np.float32), data.target.astype(np.int64)


def small_net() -> Any:
    """Return a residual net with batch norm, a depthwise convolution, pooling and two Dense layers."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    entry = keras.Input((8, 8, 1), name="image")
    first = layers.Conv2D(16, 3, padding="same", use_bias=False, name="c1")(entry)
    first = layers.ReLU(name="r1")(layers.BatchNormalization(momentum=0.8, name="bn1")(first))
    second = layers.ReLU(name="r2")(
        layers.BatchNormalization(momentum=0.8, name="bn2")(layers.DepthwiseConv2D(3, padding="same", name="dw")(first))
    )
    second = layers.BatchNormalization(momentum=0.8, name="bn3")(layers.Conv2D(16, 1, name="pw")(second))
    joined = layers.ReLU(name="r3")(layers.Add(name="add")([first, second]))
    pooled = layers.Flatten(name="flat")(layers.MaxPooling2D(name="pool")(joined))
    hidden = layers.Dense(32, activation="relu", name="hidden")(layers.Dropout(0.1, name="drop")(pooled))
    return keras.Model(entry, layers.Dense(10, name="logits")(hidden), name="digits")


def train(model: Any, epochs: int = 1, rate: float = 1e-3) -> None:
    """Train `model` on the first 1,200 digits."""
    images, labels = digits()
    model.compile(keras.optimizers.Adam(rate), LOSS)
    model.fit(images[:1200], labels[:1200], epochs=epochs, batch_size=50, verbose=0)


def accuracy(outputs: Any) -> float:
    """Return the accuracy of logits of the last 597 digits."""
    return float((np.asarray(outputs).argmax(1) == digits()[1][1200:]).mean())


def held_out() -> Any:
    return digits()[0][1200:]


def sqnr(reference: Any, found: Any) -> float:
    signal = reference - reference.mean(axis=0)
    noise = (found - found.mean(axis=0)) - signal
    return float(10.0 * np.log10((signal**2).sum() / max((noise**2).sum(), 1e-30)))


@pytest.fixture(scope="module")
def net() -> Any:
    model = small_net()
    train(model, epochs=4, rate=3e-3)
    return model


@pytest.fixture(scope="module")
def hold(net: Any) -> Any:
    return ADAPTER.load(net, AdapterOptions(approach="qat"))


@pytest.fixture(scope="module")
def statistics(hold: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return ADAPTER.calibrate(hold, [digits()[0][:200]], tmp_path_factory.mktemp("statistics"))


def space_of(hold: Any, **wishes: Any) -> TuningSpace:
    return TuningSpace.of(ADAPTER.query(hold), parse_rules(**wishes))


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("sign", ["signed", "unsigned"])
def test_the_grid_of_a_tensor_is_that_of_integer_codes(bits: int, sign: Any) -> None:
    values = np.random.default_rng(bits).normal(size=2000).astype(np.float32)
    item = TensorRange(bits=bits, sign=sign)
    item.set_range(-1.7, 2.0)
    steps = (1 << (bits - 1)) - 1 if sign == "signed" else (1 << bits) - 1
    scale = np.float64(2.0) / steps
    codes = np.clip(np.rint(values / scale), -steps if sign == "signed" else 0, steps)
    found = np.asarray(item(values))
    # A value halfway between two codes may go either way.
    is_tie = np.abs(np.abs(values / scale % 1.0) - 0.5) < 1e-4
    np.testing.assert_allclose(found[~is_tie], (codes * scale)[~is_tie], atol=1e-6)
    assert len(np.unique(np.rint(found / scale))) <= 1 << bits


def test_an_auto_grid_is_unsigned_until_a_negative_value_is_seen() -> None:
    item = TensorRange(sign="auto", momentum=0.5)
    item(np.array([0.0, 2.0], np.float32), training=True)
    assert item.bounds() == (0.0, 2.0)
    item(np.array([-1.0, 2.0], np.float32), training=True)
    assert item.bounds() == (-2.0, 2.0)


def test_an_unseen_range_passes_values_and_the_moving_average_follows_batches_only_while_training() -> None:
    item = TensorRange(momentum=0.9)
    values = np.linspace(0.0, 1.0, 7, dtype=np.float32)
    np.testing.assert_array_equal(np.asarray(item(values)), values)
    assert item.bounds() is None
    item(values, training=True)
    item(values * 3, training=True)
    assert item.bounds() == pytest.approx((0.0, 0.9 * 1.0 + 0.1 * 3.0))
    item(values * 100, training=False)
    assert item.bounds() == pytest.approx((0.0, 1.2))


def test_gradients_pass_inside_the_range_and_reach_the_bounds_of_a_learned_one() -> None:
    item = TensorRange(kind="learned", sign="unsigned")
    item.set_range(0.0, 1.0)
    values = tf.constant([-1.0, 0.3, 0.7, 2.0, 3.0])
    with tf.GradientTape() as tape:
        tape.watch(values)
        total = tf.reduce_sum(item(values, training=True))
    inside, high = tape.gradient(total, [values, item.high.value])
    np.testing.assert_array_equal(np.asarray(inside), [0.0, 1.0, 1.0, 0.0, 0.0])
    assert float(high) == 2.0


@pytest.mark.parametrize("axes", [(-1,), (-2, -1), (0,)])
def test_the_grid_of_a_weight_has_one_scale_per_output_channel(axes: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).normal(size=(3, 3, 4, 2)).astype(np.float32) * np.array([1.0, 9.0], np.float32)
    found = np.asarray(on_weight_grid(tf.constant(weight), WeightGrid(variable="kernel", channel_axes=axes, bits=4)))
    others = tuple(axis for axis in range(4) if axis not in [item % 4 for item in axes])
    scale = np.abs(weight).max(axis=others, keepdims=True) / 7.0
    np.testing.assert_allclose(found, np.rint(weight / scale) * scale, rtol=1e-5, atol=1e-6)


def test_every_weighted_layer_is_wrapped_and_the_callers_model_stays_as_it_is(
    net: Any, hold: Any, statistics: Any
) -> None:
    before = [np.array(item) for item in net.get_weights()]
    training = ADAPTER.training(hold, space_of(hold).preferred(), statistics)
    wrapped = {layer.name for layer in training.model.layers if isinstance(layer, FakeQuant) and layer.grids}
    assert wrapped == {"c1", "dw", "pw", "hidden", "logits"}
    assert [item.name for item in training.model.inputs] == [item.name for item in net.inputs]
    training.model(held_out()[:20], training=True)
    for one, other in zip(before, net.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not any(isinstance(layer, FakeQuant) for layer in net.layers)


def test_the_deployed_graph_is_the_fake_quant_graph(hold: Any, statistics: Any) -> None:
    training = ADAPTER.training(hold, space_of(hold).preferred(), statistics)
    train(training.model)
    built = training.finish(1)
    images = held_out()
    simulated, deployed = np.asarray(training.model(images)), ADAPTER.run(built, images)[0]
    reference = np.asarray(qat.qat_plan.plain(hold.source.keras, training.model)(images))
    # What is left are values halfway between two codes; the noise of quantization itself is far above that.
    assert sqnr(simulated, deployed) > sqnr(reference, deployed) + 12.0
    assert abs(accuracy(simulated) - accuracy(deployed)) <= 0.0034
    assert sum(not outcome.is_float for outcome in built.report.ops) >= 5


def test_a_range_that_differs_from_the_trained_one_is_seen(
    hold: Any, statistics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = ADAPTER.training(hold, space_of(hold).preferred(), statistics)
    images = held_out()
    simulated = np.asarray(training.model(images))
    right = training.ranges()
    monkeypatch.setattr(
        training, "ranges", lambda: {name: (low * 1.5, high * 1.5) for name, (low, high) in right.items()}
    )
    spoiled = ADAPTER.run(training.finish(1), images)[0]
    monkeypatch.undo()
    sound = ADAPTER.run(training.finish(1), images)[0]
    assert sqnr(simulated, sound) > sqnr(simulated, spoiled) + 8.0


def test_per_tensor_weights_are_trained_on_the_grid_of_the_folded_weight(hold: Any, statistics: Any) -> None:
    wishes = {"model_wise": {"weight": {"granularity": ["per_tensor"]}}}
    training = ADAPTER.training(hold, space_of(hold, **wishes).preferred(), statistics)
    images = held_out()
    simulated, deployed = np.asarray(training.model(images)), ADAPTER.run(training.finish(1), images)[0]
    assert sqnr(simulated, deployed) > 38.0


def test_an_op_that_stays_float_is_trained_in_float(hold: Any, statistics: Any) -> None:
    space = space_of(hold, op_name={".*/pw.*": "float"})
    training = ADAPTER.training(hold, space.preferred(), statistics)
    layer = training.model.get_layer("pw")
    assert not (isinstance(layer, FakeQuant) and layer.grids)
    images = held_out()
    assert sqnr(np.asarray(training.model(images)), ADAPTER.run(training.finish(1), images)[0]) > 38.0


def test_learned_ranges_move_with_the_optimizer(hold: Any, statistics: Any) -> None:
    training = qat.training(hold, space_of(hold).preferred(), statistics, kind="learned")
    model, ranges = training.model, training._ranges
    for item in ranges.values():
        item.set_range(-1.0, 1.0)
    images, labels = digits()
    with tf.GradientTape() as tape:
        loss = LOSS(labels[:100], model(images[:100], training=True))
    keras.optimizers.SGD(0.1).apply(
        tape.gradient(loss, [item.value for item in model.trainable_variables]), model.trainable_variables
    )
    moved = [item.bounds()[1] != 1.0 for item in ranges.values()]
    # The range of a tensor that nothing is cut from has no gradient.
    assert sum(moved) >= len(moved) // 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trained_copy_can_be_saved_and_loaded_by_keras(hold: Any, statistics: Any, tmp_path: Path) -> None:
    training = ADAPTER.training(hold, space_of(hold).preferred(), statistics)
    path = tmp_path / "trainee.keras"
    training.model.save(path)
    images = held_out()[:20]
    np.testing.assert_array_equal(np.asarray(keras.models.load_model(path)(images)), np.asarray(training.model(images)))


def test_a_sequential_model_trains_and_deploys(tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu", name="conv"),
            layers.GlobalAveragePooling2D(name="gap"),
            layers.Dense(10, name="fc"),
        ]
    )
    held = ADAPTER.load(model, AdapterOptions(approach="qat"))
    training = ADAPTER.training(held, space_of(held).preferred(), None)
    with pytest.raises(AdapterError, match="no range"):
        training.finish(1)
    train(training.model)
    images = held_out()
    assert sqnr(np.asarray(training.model(images)), ADAPTER.run(training.finish(1), images)[0]) > 35.0


def test_what_cannot_be_rebuilt_layer_by_layer_is_refused_with_the_way_out(tmp_path: Path, net: Any) -> None:
    class Subclassed(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, inputs: Any) -> Any:
            return self.dense(inputs)

    model = Subclassed()
    model(np.zeros((1, 4), np.float32))
    held = ADAPTER.load(model, AdapterOptions(approach="qat"))
    with pytest.raises(CapabilityError, match=r"subclass Subclassed.*keras\.Input"):
        ADAPTER.training(held, space_of(held).preferred(), None)
    net.export(tmp_path / "saved", verbose=False)
    held = ADAPTER.load(tmp_path / "saved", AdapterOptions(approach="qat"))
    with pytest.raises(CapabilityError, match="SavedModel"):
        ADAPTER.training(held, space_of(held).preferred(), None)


def test_layers_of_one_name_in_nested_models_are_refused_because_their_weights_would_be_mixed_up() -> None:
    keras.utils.set_random_seed(0)
    inner_entry, entry = keras.Input((8,)), keras.Input((8,), name="x")
    inner = keras.Model(inner_entry, keras.layers.Dense(8, name="fc")(inner_entry), name="inner")
    model = keras.Model(entry, inner(keras.layers.Dense(8, name="fc")(entry)))
    held = ADAPTER.load(model, AdapterOptions(approach="qat"))
    with pytest.raises(CapabilityError, match="'fc'"):
        ADAPTER.training(held, space_of(held).preferred(), None)


def test_a_layer_that_is_called_twice_stays_float_with_its_reason() -> None:
    keras.utils.set_random_seed(0)
    entry = keras.Input((8,), name="x")
    shared = keras.layers.Dense(8, name="shared")
    model = keras.Model(entry, keras.layers.Dense(3, name="last")(shared(shared(entry))))
    held = ADAPTER.load(model, AdapterOptions(approach="qat"))
    training = ADAPTER.training(held, space_of(held).preferred(), None)
    assert len(training.left) == 2
    assert all("called 2 times" in reason for reason in training.left.values())
    training.model(np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32), training=True)
    report = training.finish(1).report
    assert {outcome.reason for outcome in report.ops if outcome.name in training.left} == set(training.left.values())


def test_codes_that_no_wrapper_reaches_leave_their_op_in_float() -> None:
    keras.utils.set_random_seed(0)
    entry = keras.Input((8, 8, 2), name="x")
    inner = keras.layers.Conv2D(4, 3, activation="swish", name="inner")(entry)
    outer = keras.ops.relu(keras.layers.Conv2D(4, 3, name="outer")(inner))
    model = keras.Model(entry, keras.layers.Dense(3, name="last")(keras.layers.GlobalAveragePooling2D()(outer)))
    held = ADAPTER.load(model, AdapterOptions(approach="qat"))
    training = ADAPTER.training(held, space_of(held).preferred(), None)
    assert {reason.split(":")[1].split()[2] for reason in training.left.values()} == {"lie", "are"}
    values = np.random.default_rng(0).normal(size=(50, 8, 8, 2)).astype(np.float32)
    training.model(values, training=True)
    assert sqnr(np.asarray(training.model(values)), ADAPTER.run(training.finish(1), values)[0]) > 35.0


def test_a_layer_that_reads_infinite_values_is_not_trained_and_says_so(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    entry = keras.Input((6,), name="x")
    masked = keras.layers.Dense(4, kernel_initializer="ones", name="masked")(keras.ops.log(entry))
    model = keras.Model(entry, keras.layers.Dense(3, name="last")(keras.ops.exp(masked)))
    held = ADAPTER.load(model, AdapterOptions(approach="qat"))
    values = np.random.default_rng(0).uniform(0.5, 1.0, (20, 6)).astype(np.float32)
    values[::2, 0] = 0.0  # its logarithm is minus infinity, as in an attention mask
    statistics = ADAPTER.calibrate(held, [values], tmp_path)
    training = ADAPTER.training(held, space_of(held).preferred(), statistics)
    (reason,) = training.left.values()
    assert "takes infinite values" in reason
    outcomes = {op.name: op for op in training.finish(1).report.ops if op.type == "MatMul"}
    assert sorted(op.is_float for op in outcomes.values()) == [False, True]


def test_weights_that_are_not_finite_are_an_adapter_error(hold: Any, statistics: Any) -> None:
    training = ADAPTER.training(hold, space_of(hold).preferred(), statistics)
    layer = training.model.get_layer("hidden").layer
    layer.set_weights([np.full_like(item, np.nan) for item in layer.get_weights()])
    with pytest.raises(AdapterError, match="not finite"):
        training.finish(1)


def test_fit_trains_through_train_func_and_the_result_is_the_int8_graph(net: Any, tmp_path: Path) -> None:
    images, labels = digits()
    calls = []

    def train_func(model: Any) -> None:
        calls.append(model)
        train(model)

    config = QuantizationAwareTrainingConfig(
        workspace=str(tmp_path / "runs"),
        accuracy_criterion=AccuracyCriterion(criterion="relative", tolerable_loss=0.01),
    )
    result = fit(
        net,
        config,
        train_func=train_func,
        eval_func=lambda model: accuracy(model(images[1200:])),
        eval_dataloader=[(images[1200:1300], labels[1200:1300])],
    )
    assert result.accepted, result.reason
    assert len(calls) == 1
    result.save(tmp_path / "saved")
    again = neural_tune.load(tmp_path / "saved")
    assert accuracy(again(images[1200:])) == pytest.approx(accuracy(result.model(images[1200:])))


def test_training_that_makes_it_worse_leaves_the_post_training_model(net: Any, tmp_path: Path) -> None:
    images, labels = digits()
    held, expected = held_out(), np.asarray(net(held_out()))

    def judged(model: Any) -> float:
        """Return the accuracy; every model but the float one is said to miss the criterion, so that training is asked for."""
        outputs = np.asarray(model(held))
        return accuracy(outputs) - (0.0 if np.allclose(outputs, expected, atol=1e-4) else 0.05)

    def ruin(model: Any) -> None:
        for layer in model.layers:
            layer.set_weights([np.zeros_like(item) if item.ndim > 1 else item for item in layer.get_weights()])

    result = fit(
        net,
        QuantizationAwareTrainingConfig(
            workspace=str(tmp_path),
            accuracy_criterion=AccuracyCriterion(tolerable_loss=0.01),
            tuning_criterion=ONE_TRIAL,
        ),
        calib_dataloader=[(images[:100], labels[:100])],
        eval_func=judged,
        train_func=ruin,
        reporter="quiet",
    )
    assert not result.accepted
    assert result.best is not None
    assert "the post-training model was kept" in result.best.note
    assert accuracy(result.model(held)) > accuracy(expected) - 0.02


def test_prepare_compression_gives_a_model_to_train_and_finishes_in_int8(net: Any, tmp_path: Path) -> None:
    images, labels = digits()
    manager = prepare_compression(
        net, QuantizationAwareTrainingConfig(), calib_dataloader=[(images[:100], labels[:100])]
    )
    train(manager.model)
    simulated = accuracy(manager.model(images[1200:]))
    manager.save(tmp_path / "saved")
    loaded = neural_tune.load(tmp_path / "saved")
    assert abs(accuracy(loaded(images[1200:])) - simulated) <= 0.0034
    float_size = ADAPTER.size(ADAPTER.build(ADAPTER.load(net, AdapterOptions()), FLOAT_CANDIDATE, None, 1))
    saved = sum(path.stat().st_size for path in (tmp_path / "saved").rglob("*.pb"))
    assert saved < float_size / 1.5


@pytest.mark.slow
def test_trained_resnet8_has_the_same_accuracy_deployed_as_in_fake_quant(shared_data: Path) -> None:
    spec = importlib.util.spec_from_file_location("load_models", shared_data / "load_models.py")
    assert spec is not None
    assert spec.loader is not None
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    small, large = models.dataset("cifar10"), models.dataset("cifar10_jpeg")
    name = "resnet8_cifar10"
    images, labels = models.prepare(name, small["x_calib"], "NHWC"), small["y_calib"].astype(np.int64)
    held = ADAPTER.load(models.keras_model(name), AdapterOptions(approach="qat"))
    training = ADAPTER.training(held, space_of(held).preferred(), None)
    training.model.compile(keras.optimizers.SGD(1e-5), LOSS)
    training.model.fit(images, labels, epochs=1, batch_size=50, verbose=0)
    built = training.finish(1)
    hits = np.zeros(2)
    for at in range(0, 5000, 500):
        part = models.prepare(name, large["x_val"][at : at + 500], "NHWC")
        truth = large["y_val"][at : at + 500]
        for place, outputs in enumerate((np.asarray(training.model(part)), ADAPTER.run(built, part)[0])):
            hits[place] += (outputs.argmax(1) == truth).sum()
    simulated, deployed = hits / 5000
    # The pretrained float model has 0.762 on these pictures: what is compared is not noise.
    assert deployed > 0.74
    assert abs(deployed - simulated) <= 0.002
