"""The litert backend: `.tflite` files, judged by the converter's float model, by ai-edge-quantizer's own pipeline, and by their bytes."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="needs tensorflow")
pytest.importorskip("ai_edge_quantizer", reason="needs ai-edge-quantizer")

import keras
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils
from ai_edge_quantizer import qtyping, quantizer

from neural_tune.config import parse_rules
from neural_tune.errors import AdapterError, CapabilityError, DataError
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT, FLOAT_CANDIDATE, Candidate, DType, Mode, Observer, Role, TensorRange
from neural_tune_tensorflow import source
from neural_tune_tensorflow.backends import litert_build
from neural_tune_tensorflow.backends.litert import LiteHold, LitertBackend
from neural_tune_tensorflow.backends.litert_runtime import LiteSession
from neural_tune_tensorflow.inputs import to_feed

BACKEND = LitertBackend()


def hold_of(model: Any, approach: str = "static") -> LiteHold:
    """Return the litert hold of a Keras model."""
    return BACKEND.load(source.read(model, AdapterOptions()), AdapterOptions(approach=approach))


def sqnr(reference: Any, found: Any) -> float:
    """Return the signal-to-noise ratio of centred outputs in dB: a constant part of the signal cannot hide an error."""
    signal = reference - reference.mean(axis=0)
    noise = (found - found.mean(axis=0)) - signal
    return float(10.0 * np.log10((signal**2).sum() / max((noise**2).sum(), 1e-30)))


def run(content: bytes, values: Any) -> Any:
    """Return the only output of a flatbuffer, through an interpreter of its own."""
    session = session_of(content)
    return session.run(to_feed(values, session.inputs))[0]


def session_of(content: bytes) -> Any:
    return LiteSession(content, 1)


def convolutional() -> Any:
    """Return a small residual net with random weights and batch norm that is not trivial."""
    keras.utils.set_random_seed(3)
    layers = keras.layers
    entry = keras.Input((12, 12, 3), name="image")
    first = layers.ReLU(name="r1")(
        layers.BatchNormalization(name="bn1")(layers.Conv2D(8, 3, padding="same", use_bias=False, name="c1")(entry))
    )
    second = layers.Conv2D(8, 3, padding="same", name="c2")(layers.DepthwiseConv2D(3, padding="same", name="dw")(first))
    joined = layers.ReLU(name="r2")(layers.Add(name="add")([first, second]))
    pooled = layers.GlobalAveragePooling2D(name="gap")(layers.MaxPooling2D(name="mp")(joined))
    model = keras.Model(entry, layers.Softmax(name="prob")(layers.Dense(5, name="fc")(pooled)), name="small")
    generator = np.random.default_rng(0)
    norm = model.get_layer("bn1")
    norm.set_weights(
        [
            generator.uniform(0.5, 2.0, 8),
            generator.normal(size=8),
            generator.normal(size=8),
            generator.uniform(0.5, 2, 8),
        ]
    )
    return model


def logits_of(model: Any) -> Any:
    """Return the same model without its softmax: centred logits say more than probabilities."""
    return keras.Model(model.input, model.get_layer("fc").output, name="small_logits")


@pytest.fixture(scope="module")
def images() -> Any:
    return np.random.default_rng(1).normal(size=(64, 12, 12, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def hold() -> LiteHold:
    return hold_of(logits_of(convolutional()))


@pytest.fixture(scope="module")
def statistics(hold: LiteHold, images: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return BACKEND.calibrate(hold, [images[:32], images[32:]], tmp_path_factory.mktemp("statistics"))


@pytest.fixture(scope="module")
def space(hold: LiteHold) -> TuningSpace:
    return TuningSpace.of(BACKEND.query(hold))


def named(space: TuningSpace, part: str) -> Any:
    """Return the group of the op whose name holds `part`."""
    return next(group for group in space.groups if part in group.name)


def operand_types(content: bytes) -> list[tuple[str, tuple[str, ...]]]:
    """Return (op type, dtypes of inputs and outputs) for every op in a flatbuffer, read with the flatbuffer library alone."""
    parsed = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    names = {code: name for name, code in vars(flatbuffer_utils.BuiltinOperator).items() if not name.startswith("_")}
    kinds = {code: name for name, code in vars(flatbuffer_utils.TensorType).items() if not name.startswith("_")}
    graph = parsed.subgraphs[0]
    return [
        (
            names[max(code.builtinCode, code.deprecatedBuiltinCode)],
            tuple(kinds[graph.tensors[index].type] for index in (*op.inputs, *op.outputs) if index >= 0),
        )
        for op in graph.operators
        for code in (parsed.operatorCodes[op.opcodeIndex],)
    ]


def test_every_op_has_a_name_of_its_own_that_holds_the_name_of_its_layer(hold: LiteHold) -> None:
    names = [op.name for op in hold.model.ops]
    assert len(set(names)) == len(names)
    weighted = [op.name for op in hold.model.ops if op.weight is not None]
    assert [name.split("/")[-2].removesuffix("_1") for name in weighted] == ["c1", "dw", "c2", "fc"]


def test_the_float_candidate_is_the_converters_float_model(hold: LiteHold, images: Any) -> None:
    built = BACKEND.build(hold, FLOAT_CANDIDATE, None, 1)
    expected = np.asarray(logits_of(convolutional())(images))
    np.testing.assert_allclose(built.run({"image": images})[0], expected, atol=1e-5 * np.abs(expected).max())
    assert all(outcome.is_float for outcome in built.report.ops)


def test_static_int8_is_what_ai_edge_quantizer_makes_of_one_batch(
    hold: LiteHold, space: TuningSpace, images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One batch: over several the tool averages the bounds, where minmax keeps the widest.
    monkeypatch.setattr(litert_build, "OUTPUT_HEADROOM", 0.0)
    found = BACKEND.calibrate(hold, [images], tmp_path)
    ours = BACKEND.build(hold, space.preferred(), found, 1).run({"image": images})[0]
    tool = quantizer.Quantizer(hold.model.content)
    tool.add_static_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, 8, 8)
    for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        tool.update_quantization_recipe(".*", end, None, quantizer.AlgorithmName.NO_QUANTIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranges = tool.calibrate({"serving_default": [{"image": images}]}, num_threads=1)
        made = tool.quantize(ranges, enable_progress_bar=False, enable_progress_report=False).quantized_model
    content = bytes(made)
    theirs = run(content, images)
    step = np.unique(np.abs(np.diff(np.unique(theirs)))).min()
    # Bounds that were taken by other float kernels may differ in the last bit, which may move a code by one.
    assert np.abs(ours - theirs).max() <= step * 1.01
    assert (np.rint(ours / step) == np.rint(theirs / step)).mean() > 0.9


@pytest.mark.parametrize("approach", ["static", "dynamic", "weight_only"])
def test_every_approach_keeps_the_signal_and_a_shuffled_weight_loses_it(
    hold: LiteHold, statistics: Any, images: Any, approach: str
) -> None:
    other = LiteHold(
        model=hold.model, approach=approach, inputs=hold.inputs, outputs=hold.outputs, structure=hold.structure
    )
    candidate = TuningSpace.of(BACKEND.query(other)).preferred()
    built = BACKEND.build(other, candidate, statistics if approach == "static" else None, 1)
    reference = run(hold.model.content, images)
    assert sqnr(reference, built.run({"image": images})[0]) > 25.0
    spoiled = bytes(_shuffled(_content_of(built)))
    assert sqnr(reference, run(spoiled, images)) < 15.0


def _content_of(built: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return bytes(built.write(Path(folder)).read_bytes())


def _shuffled(content: bytes) -> bytearray:
    """Return the file with the codes of its largest int8 weight in another order."""
    parsed = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    tensors = [
        tensor
        for tensor in parsed.subgraphs[0].tensors
        if tensor.type == flatbuffer_utils.TensorType.INT8 and parsed.buffers[tensor.buffer].data is not None
    ]
    largest = parsed.buffers[max(tensors, key=lambda item: int(np.prod(item.shape))).buffer]
    largest.data = np.random.default_rng(0).permutation(np.asarray(largest.data))
    return flatbuffer_utils.convert_object_to_bytearray(parsed)


def test_an_op_that_falls_back_is_float_in_the_file_and_nothing_else_is(
    hold: LiteHold, space: TuningSpace, statistics: Any
) -> None:
    full = space.preferred()
    for part, kind in (("c1", "CONV_2D"), ("dw", "DEPTHWISE_CONV_2D"), ("fc", "FULLY_CONNECTED")):
        group = named(space, f"/{part}")
        built = BACKEND.build(hold, space.with_choice(full, group, FLOAT), statistics, 1)
        rows = operand_types(_content_of(built))
        floats = [row for row in rows if row[0] == kind and set(row[1]) == {"FLOAT32"}]
        assert len(floats) == 1, part
        weighted = [row for row in rows if row[0] in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")]
        assert sum("INT8" in row[1] for row in weighted) == len(weighted) - 1
        outcome = next(item for item in built.report.ops if item.name == group.name)
        assert outcome.is_float


def test_falling_back_a_type_leaves_no_int8_op_of_it(hold: LiteHold, statistics: Any) -> None:
    rules = parse_rules(op_type={"CONV_2D": "float"})
    built = BACKEND.build(hold, TuningSpace.of(BACKEND.query(hold), rules).preferred(), statistics, 1)
    kinds = Counter((name, "INT8" in operands) for name, operands in operand_types(_content_of(built)))
    assert kinds["CONV_2D", True] == 0
    assert kinds["CONV_2D", False] == 2
    assert kinds["DEPTHWISE_CONV_2D", True] == 1


def test_a_companion_without_int8_neighbours_stays_float_and_says_so(
    hold: LiteHold, space: TuningSpace, statistics: Any
) -> None:
    group = next(item for item in space.groups if item.role is Role.COMPANION and item.type == "ADD")
    alone = space.candidate({group.name: group.choices[0]})
    built = BACKEND.build(hold, alone, statistics, 1)
    assert "INT8" not in {kind for _, operands in operand_types(_content_of(built)) for kind in operands}
    reasons = {outcome.name: outcome.reason for outcome in built.report.ops}
    assert "neighbours" in reasons[group.name]


def test_four_bits_come_only_where_a_rule_asks_for_them_and_take_half_the_bytes(images: Any) -> None:
    model = hold_of(logits_of(convolutional()), "weight_only")
    plain = TuningSpace.of(BACKEND.query(model))
    assert all(config.weight.dtype is DType.INT8 for group in plain.groups for config in group.choices[:-1])
    rules = parse_rules(
        op_type={"FULLY_CONNECTED": {"weight": {"dtype": ["int4"]}}, "CONV_2D": {"weight": {"dtype": ["int4"]}}}
    )
    four = TuningSpace.of(BACKEND.query(model), rules).preferred()
    built = BACKEND.build(model, four, None, 1)
    kinds = Counter(kind for _, operands in operand_types(_content_of(built)) for kind in operands)
    assert kinds["INT4"] == 3
    eight = BACKEND.build(model, plain.preferred(), None, 1)
    reference = run(model.model.content, images)
    noise = [sqnr(reference, item.run({"image": images})[0]) for item in (eight, built)]
    assert noise[0] > noise[1] > 5.0


def test_the_range_of_a_tensor_follows_the_observer_that_was_chosen_for_it(
    hold: LiteHold, space: TuningSpace, statistics: Any, images: Any
) -> None:
    tensor = hold.model.by_name[named(space, "/c2").name].activations[0].name
    narrow = Candidate.of(
        space.preferred().ops, [TensorRange(tensor=tensor, observer=Observer.PERCENTILE, percentile=60.0)]
    )
    reference = run(hold.model.content, images)
    wide = BACKEND.build(hold, space.preferred(), statistics, 1).run({"image": images})[0]
    cut = BACKEND.build(hold, narrow, statistics, 1).run({"image": images})[0]
    assert sqnr(reference, cut) < sqnr(reference, wide) - 6.0


def test_outputs_above_the_calibrated_range_are_not_cut(
    hold: LiteHold, space: TuningSpace, images: Any, tmp_path: Path
) -> None:
    found = BACKEND.calibrate(hold, [images], tmp_path)
    reference = run(hold.model.content, images)
    built = BACKEND.build(hold, space.preferred(), found, 1)
    louder = built.run({"image": images * 1.1})[0]
    assert louder.max() > reference.max() * 1.02
    assert {port.dtype for port in built.outputs} == {np.dtype(np.float32)}


@pytest.mark.parametrize("ending", ["softmax", "reshape"])
def test_logits_behind_a_softmax_or_a_move_are_not_cut_either(
    ending: str, hold: LiteHold, space: TuningSpace, images: Any, tmp_path: Path
) -> None:
    net = convolutional()
    ended = hold_of(
        net if ending == "softmax" else keras.Model(net.input, keras.layers.Reshape((5, 1))(logits_of(net).output))
    )
    built = [
        BACKEND.build(each, TuningSpace.of(BACKEND.query(each)).preferred(), found, 1)
        for each in (hold, ended)
        for found in (BACKEND.calibrate(each, [images], tmp_path),)
    ]
    logits, found = (each.run({"image": images * 1.1})[0].reshape(-1, 5) for each in built)
    expected = keras.ops.softmax(logits) if ending == "softmax" else logits
    np.testing.assert_allclose(found, np.asarray(expected), atol=1e-5)


def test_softmax_stays_float_unless_a_rule_asks_for_it() -> None:
    model = hold_of(convolutional())
    capability = BACKEND.query(model)
    softmax = next(op for op in capability.ops if op.type == "SOFTMAX")
    assert softmax.choices == (FLOAT,)
    assert "zero" in softmax.why
    rules = parse_rules(op_type={"SOFTMAX": {"activation": {"dtype": ["int8"]}}})
    assert any(group.type == "SOFTMAX" for group in TuningSpace.of(capability, rules).groups)


def test_any_batch_size_runs_in_one_session(hold: LiteHold, space: TuningSpace, statistics: Any, images: Any) -> None:
    built = BACKEND.build(hold, space.preferred(), statistics, 1)
    whole = built.run({"image": images})[0]
    for size in (1, 7, 3):
        np.testing.assert_array_equal(built.run({"image": images[:size]})[0], whole[:size])


def test_saved_file_runs_without_us_and_restores_to_the_same_outputs(
    hold: LiteHold, space: TuningSpace, statistics: Any, images: Any, tmp_path: Path
) -> None:
    built = BACKEND.build(hold, space.preferred(), statistics, 1)
    path = built.write(tmp_path / "model")
    expected = built.run({"image": images[:4]})[0]
    assert path.suffix == ".tflite"
    assert path.stat().st_size == built.size()
    runner = Interpreter(model_path=str(path)).get_signature_runner()
    np.testing.assert_array_equal(next(iter(runner(image=images[:4]).values())), expected)
    np.testing.assert_array_equal(BACKEND.restore(path, 1).run({"image": images[:4]})[0], expected)
    path.write_bytes(path.read_bytes()[: built.size() // 2])
    with pytest.raises(AdapterError):
        BACKEND.restore(path, 1)


def test_a_float_tflite_file_is_taken_and_a_quantized_one_is_refused(
    hold: LiteHold, space: TuningSpace, statistics: Any, tmp_path: Path
) -> None:
    path = tmp_path / "float.tflite"
    path.write_bytes(hold.model.content)
    taken = BACKEND.load(path, AdapterOptions(approach="dynamic"))
    assert [op.name for op in taken.model.ops] == [op.name for op in hold.model.ops]
    quantized = BACKEND.build(hold, space.preferred(), statistics, 1).write(tmp_path / "int8")
    with pytest.raises(AdapterError, match="quantized already"):
        BACKEND.load(quantized, AdapterOptions(approach="dynamic"))
    with pytest.raises(CapabilityError, match="qat"):
        BACKEND.load(path, AdapterOptions(approach="qat"))


def test_inputs_and_outputs_keep_the_order_of_the_model_and_after_restoring(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    zeta, alpha = keras.Input((4,), name="zeta"), keras.Input((6,), name="alpha")
    first = keras.layers.Dense(3, name="wide")(keras.layers.Concatenate(name="cat")([zeta, alpha]))
    second = keras.layers.Dense(2, name="narrow")(zeta)
    model = keras.Model([zeta, alpha], [first, second])
    held = hold_of(model, "dynamic")
    assert [port.name for port in held.inputs] == ["zeta", "alpha"]
    built = BACKEND.build(held, TuningSpace.of(BACKEND.query(held)).preferred(), None, 1)
    feed = {
        "zeta": np.ones((5, 4), np.float32),
        "alpha": np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32),
    }
    expected = [np.asarray(item) for item in model([feed["zeta"], feed["alpha"]])]
    restored = BACKEND.restore(built.write(tmp_path), 1)
    for item in (built, restored):
        found = item.run(feed)
        assert [port.name for port in item.outputs] == [port.name for port in held.outputs]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=0.05)


def test_toggles_off_are_the_float_model_and_all_on_are_the_candidate(
    hold: LiteHold, space: TuningSpace, statistics: Any, images: Any
) -> None:
    full = space.preferred()
    toggles = BACKEND.toggles(hold, full, statistics, 1)
    np.testing.assert_array_equal(toggles.run(frozenset(), images)[0], run(hold.model.content, images))
    whole = BACKEND.build(hold, full, statistics, 1).run({"image": images})[0]
    np.testing.assert_array_equal(toggles.run(frozenset(full.ops), images)[0], whole)
    one = toggles.run(frozenset({named(space, "/c2").name}), images)[0]
    assert not np.array_equal(one, whole)


def test_static_without_statistics_and_broken_data_are_refused(
    hold: LiteHold, space: TuningSpace, images: Any, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match="calibrate"):
        BACKEND.build(hold, space.preferred(), None, 1)
    with pytest.raises(DataError):
        BACKEND.calibrate(hold, [], tmp_path)
    with pytest.raises(DataError):
        BACKEND.calibrate(hold, [np.where(images > 2, np.nan, images)], tmp_path)
    assert BACKEND.load_statistics(hold, tmp_path) is None


@pytest.fixture(scope="module")
def trained(shared_data: Path) -> Any:
    path = shared_data / "load_models.py"
    if not path.is_file():
        pytest.skip("the shared models are not beside the project")
    spec = importlib.util.spec_from_file_location("load_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_resnet8_keeps_its_accuracy_in_static_and_dynamic_int8_and_is_a_third_of_the_size(
    trained: Any, tmp_path: Path
) -> None:
    data = trained.dataset("cifar10")
    images = trained.prepare("resnet8_cifar10", data["x_val"], "NHWC")
    samples = trained.prepare("resnet8_cifar10", data["x_calib"][:200], "NHWC")
    model = trained.keras_model("resnet8_cifar10")
    for approach in ("static", "dynamic"):
        held = hold_of(model, approach)
        candidate = TuningSpace.of(BACKEND.query(held)).preferred()
        found = BACKEND.calibrate(held, [samples[:100], samples[100:]], tmp_path / approach)
        built = BACKEND.build(held, candidate, found, 1)
        accuracy = trained.metric("resnet8_cifar10", built.run(to_feed(images, built.inputs))[0], data["y_val"])
        assert accuracy >= 0.881 * 0.99
        assert built.size() < BACKEND.build(held, FLOAT_CANDIDATE, None, 1).size() / 3.2
        assert {config.mode for config in candidate.ops.values()} == {Mode(approach)}
