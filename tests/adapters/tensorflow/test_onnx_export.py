"""TensorFlow models as ONNX files: the same numbers in ONNX Runtime, under the same names, the exact Gelu included."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from models import keras

from neural_tune.errors import CapabilityError, PluginError
from neural_tune_tensorflow import onnx_export
from neural_tune_tensorflow.session import FixedSession


def encoder() -> Any:
    """One block with attention and an exact Gelu, of two inputs."""
    keras.utils.set_random_seed(1)
    kit = keras.layers
    rows, mask = keras.Input((8, 8), name="rows"), keras.Input((8, 1), name="mask")
    x = kit.Dense(32)(kit.Multiply()([rows, mask]))
    x = kit.LayerNormalization()(kit.Add()([x, kit.MultiHeadAttention(4, 8)(x, x)]))
    x = kit.Add()([x, kit.Dense(32)(kit.Dense(64, activation="gelu")(x))])
    return keras.Model({"rows": rows, "mask": mask}, {"logits": kit.Dense(10)(kit.Flatten()(x)), "hidden": x})


def test_an_erfc_becomes_one_minus_an_erf() -> None:
    hold = models.hold_of(encoder())
    graph = hold.graph.copy()
    assert "Erfc" in models.ops_of(graph)
    onnx_export.spell_out_erfc(graph)
    assert "Erfc" not in models.ops_of(graph)
    generator = np.random.default_rng(0)
    feed = {port.tensor: generator.normal(size=(3, *port.shape[1:])).astype(np.float32) for port in hold.inputs}
    expected = FixedSession(hold.float_def, 1).fetch(feed, hold.graph.outputs)
    for one, other in zip(FixedSession(graph.graph_def(), 1).fetch(feed, graph.outputs), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("build", [models.small_cnn, encoder])
def test_onnx_runtime_computes_the_same_under_the_same_names(build: Any, tmp_path: Path) -> None:
    pytest.importorskip("tf2onnx", reason='needs pip install "neural-tune[tf2onnx]"')
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    model = build()
    hold = models.hold_of(model)
    session = runtime.InferenceSession(str(onnx_export.to_onnx(model, tmp_path / "model.onnx")))
    generator = np.random.default_rng(0)
    feed = {port.name: generator.normal(size=(3, *port.shape[1:])).astype(np.float32) for port in hold.inputs}
    assert [item.name for item in session.get_inputs()] == [port.name for port in hold.inputs]
    assert [item.name for item in session.get_outputs()] == [port.name for port in hold.outputs]
    expected = models.ADAPTER.run(models.ADAPTER.build(hold, models.Candidate(), None, 1), feed)
    for one, other in zip(session.run(None, feed), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_without_tf2onnx_it_is_asked_for_and_the_backend_says_where_to_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(PluginError, match=r"neural-tune\[tf2onnx\]"):
        onnx_export.to_onnx(models.small_cnn(), tmp_path / "model.onnx")
    with pytest.raises(CapabilityError, match="to_onnx"):
        models.hold_of(models.small_cnn(), backend="onnx")
