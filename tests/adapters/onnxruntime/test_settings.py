"""What a user may ask of the artifact: format, target processor, provider."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import emulation
import graphs
import numpy as np
import onnx
import onnxruntime
from graphs import ADAPTER

from neural_tune.errors import CapabilityError
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import DType, FrozenMap
from neural_tune_onnxruntime import settings
from neural_tune_onnxruntime.processor import Processor
from neural_tune_onnxruntime.settings import Settings


def asked(**extra):
    return AdapterOptions(extra=FrozenMap(extra))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (AdapterOptions(quant_format="QLinear"), "expected 'default', 'QDQ', 'QOperator'"),
        (asked(target="x86_vnn"), r"did you mean 'x86_vnni'"),
        (asked(target=3), "expected one of native"),
        (asked(provider="cudaa"), r"did you mean 'cuda'"),
        (asked(provider="cuda"), "has no CUDAExecutionProvider.*use 'cpu'"),
        (asked(provider="tensorrt"), "has no TensorrtExecutionProvider"),
        (asked(provider="openvino"), "has no OpenVINOExecutionProvider"),
        (asked(provider="dnnl"), "has no DnnlExecutionProvider"),
        (AdapterOptions(backend="onnxrt_cuda_ep"), "has no CUDAExecutionProvider"),
        (AdapterOptions(backend="ipex"), "options=.*provider"),
        (
            asked(acuracy_level=0, tarmet="arm"),
            r"found 'acuracy_level' \(did you mean 'accuracy_level'\?\), 'tarmet' \(did you mean 'target'\?\); .* knows",
        ),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(options, words, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(CapabilityError, match=words):
        Settings.of(options)


def test_integer_operators_go_with_the_cpu_only(monkeypatch):
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with pytest.raises(CapabilityError, match="goes with provider 'cpu' only"):
        Settings.of(AdapterOptions(quant_format="QOperator", extra=FrozenMap({"provider": "cuda"})))
    found = Settings.of(asked(provider="cuda"))
    assert found.provider == "CUDAExecutionProvider"
    assert any("validated on the CPU" in note and "not run there" in note for note in found.notes)
    assert not Settings.of(asked(provider="cpu")).notes


@pytest.mark.parametrize("spelling", ["QOperator", "qoperator"])
def test_format_is_known_in_any_case(spelling):
    assert Settings.of(AdapterOptions(quant_format=spelling)).quant_format == "QOperator"


TARGETS = {
    "x86_vnni": (DType.UINT8, False),
    "x86": (DType.UINT8, True),
    "arm": (DType.INT8, False),
}


@pytest.mark.parametrize("target", TARGETS)
def test_target_decides_the_number_formats_and_says_that_speed_was_not_measured(target, tmp_path, monkeypatch):
    monkeypatch.setattr(Processor, "detect", classmethod(lambda cls: graphs.VNNI))
    hold = ADAPTER.load(graphs.residual_net(), asked(target=target))
    capability = ADAPTER.query(hold)
    conv = next(op for op in capability.ops if op.name == "conv1").choices[0]
    assert (conv.activation.dtype, conv.weight.reduce_range) == TARGETS[target]
    assert conv.weight.dtype is DType.INT8
    assert any("speed" in note for note in capability.notes) == (target != "x86_vnni")

    # Computed and judged here all the same: within a step of the exact meaning of the graph, whatever of it the runtime fuses here.
    feeds = graphs.batches(graphs.residual_net())
    statistics = ADAPTER.calibrate(hold, feeds, tmp_path / "statistics")
    built = ADAPTER.build(hold, TuningSpace.of(capability).preferred(), statistics, 1)
    assert any("speed" in note for note in ADAPTER.report(built).notes) == (target != "x86_vnni")
    path = ADAPTER.save(built, tmp_path / "saved")
    (produced,) = graphs.run(path, feeds[0])
    (literal,) = graphs.run(path, feeds[0], optimize=False)
    (expected,) = graphs.run(graphs.residual_net(), feeds[0])
    steps = emulation.differences(onnx.load(str(path)), feeds[0], {"y": literal})
    assert steps["y"].max() < 0.02  # of its size: a tie inside may fall the other way
    for found in (produced, literal):
        assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def test_reduced_range_keeps_two_products_within_sixteen_bits(tmp_path, monkeypatch):
    """255 * 64 * 2 < 2^15: what processors without VNNI add up before they widen."""
    monkeypatch.setattr(Processor, "detect", classmethod(lambda cls: graphs.VNNI))
    model = graphs.conv_net()
    hold = ADAPTER.load(model, asked(target="x86"))
    statistics = ADAPTER.calibrate(hold, graphs.batches(model), tmp_path / "statistics")
    built = ADAPTER.build(hold, TuningSpace.of(ADAPTER.query(hold)).preferred(), statistics, 1)
    saved = onnx.load(str(ADAPTER.save(built, tmp_path / "saved")))
    codes = [onnx.numpy_helper.to_array(item) for item in saved.graph.initializer if item.name.endswith("weight_q")]
    assert len(codes) == 4
    assert max(np.abs(item.astype(int)).max() for item in codes) == 64


def test_users_reduce_range_wins_over_the_target():
    assert not Settings.of(AdapterOptions(reduce_range=False, extra=FrozenMap({"target": "x86"}))).processor.saturates


def test_provider_goes_into_the_file_and_cpu_does_not(tmp_path, monkeypatch):
    """Azure stands in for an accelerator: the one other provider that plain onnxruntime brings along; it hands everything on to the CPU."""
    other = "AzureExecutionProvider"
    if other not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has no {other}")
    monkeypatch.setattr(settings, "PROVIDERS", {**settings.PROVIDERS, "cuda": other})
    model = graphs.conv_net()
    feeds = graphs.batches(model)
    found = {}
    for name in ("cpu", "cuda"):
        hold = ADAPTER.load(model, asked(provider=name))
        statistics = ADAPTER.calibrate(hold, feeds, tmp_path / name)
        built = ADAPTER.build(hold, TuningSpace.of(ADAPTER.query(hold)).preferred(), statistics, 1)
        restored = ADAPTER.restore(ADAPTER.save(built, tmp_path / f"{name}-saved"), 1)
        assert (other in restored.session.get_providers()) == (name == "cuda")
        assert restored.session.get_providers() == built.session.get_providers()
        found[name] = ADAPTER.run(restored, feeds[0])[0]
    np.testing.assert_array_equal(found["cpu"], found["cuda"])
