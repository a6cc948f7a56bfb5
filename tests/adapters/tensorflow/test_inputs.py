"""What comes in: models with several inputs and outputs in every form, signatures, dynamic batches, and batches in every form a user may hand over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from models import ADAPTER, hold_of, keras

from neural_tune.errors import CapabilityError, DataError
from neural_tune.protocols import DescribesInputs, InputSpec
from neural_tune.values import Candidate, FrozenMap
from neural_tune_tensorflow.runtime import tf

GENERATOR = np.random.default_rng(12)
LEFT, RIGHT = (GENERATOR.normal(size=(5, width)).astype(np.float32) for width in (6, 4))
BATCHES = {
    "a dictionary": {"right": RIGHT, "left": LEFT},
    "a list": [LEFT, RIGHT],
    "a tuple of tensors": (tf.constant(LEFT), tf.constant(RIGHT)),
}


def network() -> Any:
    """Two inputs and two outputs, handed over and out by name."""
    keras.utils.set_random_seed(0)
    left, right = keras.Input((6,), name="left"), keras.Input((4,), name="right")
    joined = keras.layers.Concatenate()([left, right])
    outputs = {"small": keras.layers.Dense(2)(joined), "big": keras.layers.Dense(9)(joined)}
    return keras.Model({"left": left, "right": right}, outputs)


class Module(tf.Module):
    """Two signatures that compute different things."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable(GENERATOR.normal(size=(6, 3)).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec((None, 6), tf.float32, name="rows")])
    def scores(self, rows: Any) -> Any:
        return {"scores": rows @ self.weight}

    @tf.function(input_signature=[tf.TensorSpec((None, 6), tf.float32, name="rows")])
    def ranks(self, rows: Any) -> Any:
        return {"ranks": tf.nn.softmax(rows @ self.weight)}

    @tf.function(
        input_signature=[tf.TensorSpec((None, 6), tf.float32, name="b"), tf.TensorSpec((None, 6), tf.float32, name="a")]
    )
    def pair(self, b: Any, a: Any) -> Any:
        return b @ self.weight, (a - b) @ self.weight


def float_run(hold: Any, inputs: Any) -> tuple[Any, ...]:
    return ADAPTER.run(ADAPTER.build(hold, Candidate(), None, 1), inputs)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module, folder = Module(), tmp_path_factory.mktemp("module")
    tf.saved_model.save(module, str(folder), signatures={"scores": module.scores, "ranks": module.ranks})
    return folder


@pytest.mark.parametrize("form", ["keras", "keras_file", "saved_model"])
@pytest.mark.parametrize("batch", BATCHES)
def test_several_inputs_and_outputs_in_every_form(form: str, batch: str, tmp_path: Path) -> None:
    model: Any = network()
    wanted = model({"left": LEFT, "right": RIGHT})
    path = tmp_path / "model.keras" if form == "keras_file" else tmp_path / "saved"
    if form != "keras":
        (models.save if form == "keras_file" else models.export)(model, path)
    hold = hold_of(model if form == "keras" else path)
    inputs = BATCHES[batch]
    assert [port.name for port in hold.inputs] == ["left", "right"]
    found = dict(zip([port.name for port in hold.outputs], float_run(hold, inputs), strict=True))
    for name in ("small", "big"):
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5)


def test_inputs_are_described_before_any_data_is_seen() -> None:
    assert isinstance(ADAPTER, DescribesInputs)
    assert ADAPTER.describe_inputs(hold_of(network())) == (
        InputSpec(name="left", dtype="float32", shape=(None, 6)),
        InputSpec(name="right", dtype="float32", shape=(None, 4)),
    )
    free = models.graph_of(tf.nn.relu, {"x": None})  # type: ignore[dict-item]
    assert ADAPTER.describe_inputs(hold_of(free)) == (InputSpec(name="x", dtype="float32", shape=()),)


def test_integers_are_inputs_too() -> None:
    entry = keras.Input((7,), dtype="int32", name="tokens")
    model = keras.Model(entry, keras.layers.Dense(2)(keras.layers.Flatten()(keras.layers.Embedding(11, 4)(entry))))
    hold = hold_of(model)
    (described,) = ADAPTER.describe_inputs(hold)
    assert described == InputSpec(name="tokens", dtype="int32", shape=(None, 7))
    tokens = GENERATOR.integers(0, 11, (3, 7))
    np.testing.assert_allclose(float_run(hold, tokens)[0], model(tokens), atol=1e-5)
    with pytest.raises(DataError, match="float32, expected int32"):
        float_run(hold, tokens.astype(np.float32))


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_any_number_of_rows_runs_in_int8_as_well(rows: int, tmp_path: Path) -> None:
    model = models.small_cnn()
    hold = hold_of(model)
    images = GENERATOR.normal(size=(8, 8, 8, 4)).astype(np.float32)
    statistics = ADAPTER.calibrate(hold, [images[:3], images[3:]], tmp_path)
    built = ADAPTER.build(hold, models.full(hold), statistics, 1)
    (whole,), (part,) = ADAPTER.run(built, images), ADAPTER.run(built, images[:rows])
    np.testing.assert_array_equal(part, whole[:rows])


@pytest.mark.parametrize("name", ["scores", "ranks"])
def test_the_signature_is_chosen_by_name_and_kept(name: str, saved: Path, tmp_path: Path) -> None:
    hold = hold_of(saved, extra=FrozenMap({"signature": name}))
    (found,) = float_run(hold, LEFT)
    wanted = tf.saved_model.load(str(saved)).signatures[name](rows=tf.constant(LEFT))[name]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    artifact = ADAPTER.save(ADAPTER.build(hold, Candidate(), None, 1), tmp_path)
    again = tf.saved_model.load(str(artifact))
    assert list(again.signatures) == [name]
    np.testing.assert_allclose(again.signatures[name](rows=tf.constant(LEFT))[name], wanted, atol=1e-5)


def test_a_signature_that_must_be_chosen_is_asked_for(saved: Path) -> None:
    with pytest.raises(CapabilityError, match=r"signature 'serving_default': the SavedModel has ranks, scores"):
        hold_of(saved)
    with pytest.raises(CapabilityError, match="signature 'nothing'"):
        hold_of(saved, extra=FrozenMap({"signature": "nothing"}))


@pytest.mark.parametrize("form", ["function", "concrete"])
def test_functions_of_several_arguments_keep_their_order_and_give_a_list(form: str) -> None:
    module = Module()
    hold = hold_of(module.pair if form == "function" else module.pair.get_concrete_function())
    assert [port.name for port in hold.inputs] == ["b", "a"]
    native = ADAPTER.native(ADAPTER.build(hold, Candidate(), None, 1))
    first, second = native(LEFT, LEFT * 0.5)
    wanted = module.pair(LEFT, LEFT * 0.5)
    np.testing.assert_allclose(first, wanted[0], atol=1e-5)
    np.testing.assert_allclose(second, wanted[1], atol=1e-5)
    np.testing.assert_allclose(native(a=LEFT * 0.5, b=LEFT)[1], wanted[1], atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"left": LEFT}, r"found the names \['left'\], expected \['left', 'right'\]"),
        ([LEFT], "found 1 arrays, expected 2"),
        ([RIGHT, LEFT], r"input 'left': found shape \[5, 4\], expected \['\?', 6\]"),
        ([LEFT, np.full((5, 4), "a")], "input 'right': found type <U1, expected float32"),
    ],
)
def test_batches_that_do_not_fit_say_what_was_found_and_expected(batch: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        float_run(hold_of(network()), batch)
