"""bfloat16 per op: the graph changes, the numbers are those of bfloat16, the bytes of the weights are halved, and who asks for it gets it or a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import ADAPTER, full, hold_of, keras, ops_of, small_cnn

from neural_tune import PostTrainingQuantConfig, TuningCriterion, fit
from neural_tune.errors import CapabilityError
from neural_tune.values import Candidate
from neural_tune_tensorflow import capability, kernels, save
from neural_tune_tensorflow.backends import onednn
from neural_tune_tensorflow.graph import Graph
from neural_tune_tensorflow.rewrite.casts import CAST
from neural_tune_tensorflow.runtime import tf
from neural_tune_tensorflow.session import FixedSession

HALF = tf.bfloat16.as_datatype_enum
needs_bf16 = pytest.mark.skipif(bool(kernels.why_no_bf16()), reason=kernels.why_no_bf16() or "bf16 works")
SIZE = TuningCriterion(objective="size")
EVERYWHERE = {".*": {"activation": {"dtype": ["bf16"]}, "weight": {"dtype": ["bf16"]}}}


def pictures(count: int = 4) -> Any:
    return np.random.default_rng(8).normal(size=(count, 8, 8, 4)).astype(np.float32)


def rounded(values: Any) -> Any:
    """Return values rounded to bfloat16 and back."""
    return np.asarray(values, np.float32).astype(tf.bfloat16.as_numpy_dtype).astype(np.float32)


@needs_bf16
def test_the_whole_model_in_bf16_computes_in_onednn_kernels_between_two_casts() -> None:
    hold = hold_of(small_cnn())
    candidate = Candidate.of(dict.fromkeys(full(hold).ops, CAST))
    built = ADAPTER.build(hold, candidate, None, 1)
    graph_def = onednn.rewrite(hold, candidate, None).graph_def()
    products = [node for node in graph_def.node if node.op in ("Conv2D", "DepthwiseConv2dNative", "MatMul")]
    assert len(products) == 5
    assert all(node.attr["T"].type == HALF for node in products)
    # All that lies between the products stays in bf16: the picture is cast once, the logits are cast back.
    assert ops_of(graph_def).count("Cast") == 2
    metadata = FixedSession(graph_def, 1).trace({hold.inputs[0].tensor: pictures()}, [built.outputs[0].tensor])
    labels = [item.timeline_label for device in metadata.step_stats.dev_stats for item in device.node_stats]
    assert sum(" = _Mkl" in label for label in labels) >= 5
    floats = ADAPTER.build(hold, Candidate(), None, 1)
    (expected,), (found,) = ADAPTER.run(floats, pictures()), ADAPTER.run(built, pictures())
    scale = np.abs(expected).max()
    assert 1e-5 * scale < np.abs(found - expected).max() < 0.03 * scale
    assert ADAPTER.size(built) < 0.65 * ADAPTER.size(floats)
    outcomes = {op.name: op for op in ADAPTER.report(built).ops}
    assert {outcomes[node.name].precision for node in products} == {CAST.describe()}


@needs_bf16
def test_one_product_in_bf16_is_the_product_of_rounded_operands() -> None:
    keras.utils.set_random_seed(0)
    entry = keras.Input((64,), name="x")
    model = keras.Model(entry, keras.layers.Dense(16, activation="relu", name="fc")(entry))
    hold = hold_of(model)
    rows = np.random.default_rng(1).normal(size=(32, 64)).astype(np.float32)
    (found,) = ADAPTER.run(ADAPTER.build(hold, Candidate.of(dict.fromkeys(full(hold).ops, CAST)), None, 1), rows)
    exact = np.maximum(rounded(rows).astype(np.float64) @ rounded(model.get_weights()[0]), 0.0)
    np.testing.assert_allclose(found, exact, rtol=2.0**-8, atol=1e-3)
    np.testing.assert_array_equal(found, rounded(found))


@needs_bf16
def test_int8_and_bf16_live_side_by_side(tmp_path: Path) -> None:
    hold = hold_of(small_cnn())
    statistics = ADAPTER.calibrate(hold, [pictures(16)], tmp_path)
    ops = {name: CAST if "conv2" in name or "head" in name else config for name, config in full(hold).ops.items()}
    candidate = Candidate.of(ops)
    graph = onednn.rewrite(hold, candidate, statistics)
    kinds = ops_of(graph)
    assert kinds.count("_FusedQuantizedConv2D") == 2
    assert kinds.count("Conv2D") == kinds.count("MatMul") == 1
    (expected,) = ADAPTER.run(ADAPTER.build(hold, Candidate(), None, 1), pictures())
    (found,) = ADAPTER.run(ADAPTER.build(hold, candidate, statistics, 1), pictures())
    assert np.sum((found - expected) ** 2) < 0.01 * np.sum((expected - expected.mean()) ** 2)
    # The probe switches int8 only; a cast op counts as float in it.
    toggles = ADAPTER.toggles(hold, candidate, statistics, 1)
    np.testing.assert_allclose(toggles.run(frozenset(), pictures())[0], expected, atol=1e-5)


@needs_bf16
def test_fit_takes_bf16_as_a_choice_for_the_whole_model_and_saves_it(tmp_path: Path) -> None:
    model, images = small_cnn(), pictures(200)
    labels = np.asarray(model(images)).argmax(1)
    result = fit(
        model,
        PostTrainingQuantConfig(workspace=str(tmp_path / "w"), op_type_dict=EVERYWHERE, tuning_criterion=SIZE),
        calib_dataloader=[images[:50]],
        eval_dataloader=(images, labels),
        eval_metric="topk",
        reporter="quiet",
    )
    assert result.accepted, result.reason
    graph_def = save.read_saved_model(Path(result.save(tmp_path / "saved")))[0]
    products = [node for node in graph_def.node if node.op in ("Conv2D", "DepthwiseConv2dNative", "MatMul")]
    assert [node.attr["T"].type for node in products] == [HALF] * 5
    assert not [node for node in graph_def.node if "Quantized" in node.op]


def test_where_the_processor_has_no_bf16_it_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_flags", lambda: frozenset({"avx2", "avx512_vnni"}))
    why = kernels.why_no_bf16.__wrapped__
    monkeypatch.setattr(kernels, "why_no_bf16", why)
    assert "has no instructions for it" in why()
    hold = hold_of(small_cnn())
    assert all(CAST not in op.extra for op in capability.query(hold).ops)
    name = next(iter(full(hold).ops))
    with pytest.raises(CapabilityError, match=f"{name}.*no instructions"):
        ADAPTER.build(hold, Candidate.of({name: CAST}), None, 1)


def test_gelus_and_what_no_product_wants_stay_in_float() -> None:
    entry = keras.Input((16,), name="x")
    y = keras.layers.Dense(16, name="a")(entry)
    model = keras.Model(entry, keras.activations.gelu(keras.layers.Dense(16, name="b")(keras.activations.gelu(y))))
    hold = hold_of(model)
    planned = (
        onednn.planned_of(hold, Candidate.of(dict.fromkeys(hold.units.by_name, CAST)), None)
        if not kernels.why_no_bf16()
        else None
    )
    if planned is None:
        pytest.skip(kernels.why_no_bf16())
    graph: Graph = onednn.emit(hold.graph, hold.units, planned, hold.store)
    types = {node.op: node.attr["T"].type == HALF for node in graph if node.op in ("MatMul", "Mul", "Erfc", "BiasAdd")}
    assert types == {"MatMul": True, "BiasAdd": True, "Mul": False, "Erfc": False}
