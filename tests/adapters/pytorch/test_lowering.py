"""What is really executed: int8 kernels are counted in generated code, and each trap of PyTorch that ends in silent float is a test."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import Candidate, DType, Granularity, Mode, OpConfig, QuantSpec

torch = pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')
pytest.importorskip("torchao", reason='needs pip install "neural-tune[pytorch]"')

from neural_tune_pytorch.adapter import PyTorchAdapter  # noqa: E402
from neural_tune_pytorch.backends.pt2e import lowering  # noqa: E402
from neural_tune_pytorch.backends.pt2e.sample import sample  # noqa: E402

PER_TENSOR = QuantSpec(dtype=DType.INT8, granularity=Granularity.PER_TENSOR)
PER_CHANNEL = QuantSpec(dtype=DType.INT8, granularity=Granularity.PER_CHANNEL)
pytestmark = pytest.mark.skipif(bool(lowering.probe().problem), reason="torch.compile finds no C++ compiler here")


@pytest.fixture(scope="module")
def compiled(networks, tmp_path_factory):
    """The small network in full int8, saved, restored and run once, with what is needed to look at it."""
    adapter = PyTorchAdapter()
    batches = networks.images(batches=4)
    hold = adapter.load(networks.small(), AdapterOptions(example=batches[0]))
    space = TuningSpace.of(adapter.query(hold))
    statistics = adapter.calibrate(hold, batches, tmp_path_factory.mktemp("statistics"))
    built = adapter.build(hold, space.preferred(), statistics, 1)
    artifact = adapter.save(built, tmp_path_factory.mktemp("model"))
    restored = adapter.restore(artifact, 1)
    return adapter, built, restored, adapter.run(restored, batches[0]), batches, artifact


def test_the_probe_finds_the_three_kernels_on_x86_with_vnni():
    probe = lowering.probe()
    if not torch.cpu._is_vnni_supported():
        pytest.skip("no VNNI on this processor")
    assert (probe.convolution, probe.linear, probe.dynamic, probe.problem) == (True, True, True, "")


def test_every_int8_op_of_a_saved_model_became_an_onednn_kernel(compiled):
    adapter, _, restored, _, _, artifact = compiled
    counts = adapter.report(restored).counts
    assert (counts["onednn_qconv"], counts["onednn_qlinear"]) == (3, 1)
    assert counts["int8_kernels"] == counts["int8_kernels_expected"]
    assert adapter.report(restored).notes == ()
    assert adapter.kernel_counts(artifact, 1)["int8_kernels"] == 4
    assert adapter.guard(artifact, compiled[4][0]) == ()


def test_compiled_outputs_agree_with_the_qdq_graph(compiled):
    """Not bit for bit: kernels accumulate in integers and round once more. They differ by less than int8 differs from float."""
    _, built, _, outputs, batches, _ = compiled
    (expected,) = lowering.Reference(built.network.graph)(torch.from_numpy(batches[0]))
    np.testing.assert_allclose(outputs[0], expected.numpy(), atol=5e-3)


def test_a_batch_that_comes_once_is_padded_and_one_that_comes_back_is_compiled(compiled):
    adapter, built, restored, _, batches, _ = compiled
    network = restored.network
    before = len(network._compiled)
    reference = lowering.Reference(built.network.graph)(torch.from_numpy(batches[0][:3]))[0].numpy()
    np.testing.assert_allclose(adapter.run(restored, batches[0][:3])[0], reference, atol=5e-3)
    assert len(network._compiled) == before
    np.testing.assert_allclose(adapter.run(restored, batches[0][:3])[0], reference, atol=5e-3)
    assert len(network._compiled) == before + 1


def test_autocast_around_a_compiled_model_changes_nothing(compiled):
    """Without care it would be compiled again, unfrozen and in bfloat16: no int8 kernel, other numbers, and not a word."""
    adapter, _, restored, outputs, batches, _ = compiled
    native = adapter.native(restored)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answers = (native(torch.from_numpy(batches[0])).numpy(), adapter.run(restored, batches[0])[0])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
    for answer in answers:
        np.testing.assert_array_equal(answer, outputs[0])


def test_freezing_is_restored_after_a_compile(compiled):
    from torch._inductor.graph import GraphLowering

    assert compiled
    assert torch._inductor.config.freezing is False
    assert GraphLowering.save_output_code is None


def test_without_freezing_int8_silently_becomes_float():
    """Trap: freezing must be the global setting. This is what a user of torch.compile gets without it, and what the count is for."""
    from torch._inductor.graph import GraphLowering

    graph, feed = sample()
    code: list[str] = []
    GraphLowering.save_output_code = staticmethod(code.append)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(graph, dynamic=False)(*feed)
    finally:
        GraphLowering.save_output_code = None
    assert code
    assert lowering.count(code).total == 0


def test_per_tensor_weights_are_refused_because_they_would_silently_run_in_float(networks, tmp_path):
    adapter = PyTorchAdapter()
    hold, statistics = _uncompiled(adapter, networks, tmp_path)
    activation = QuantSpec(dtype=DType.UINT8, symmetric=False)
    candidate = Candidate.of({"conv1": OpConfig(mode=Mode.STATIC, activation=activation, weight=PER_TENSOR)})
    with pytest.raises(CapabilityError, match="silently run in float"):
        adapter.build(hold, candidate, statistics, 1)


def test_int8_activations_are_refused_because_convolutions_would_fail_when_they_run(networks, tmp_path):
    adapter = PyTorchAdapter()
    hold, statistics = _uncompiled(adapter, networks, tmp_path)
    candidate = Candidate.of(
        {"conv1": OpConfig(mode=Mode.STATIC, activation=QuantSpec(dtype=DType.INT8), weight=PER_CHANNEL)}
    )
    with pytest.raises(CapabilityError, match="uint8 per_tensor only"):
        adapter.build(hold, candidate, statistics, 1)


def test_dynamic_convolutions_are_not_on_offer_and_say_why(networks):
    adapter = PyTorchAdapter()
    hold = adapter.load(networks.small(), AdapterOptions(approach="dynamic", example=networks.images()[0]))
    ops = {op.name: op for op in adapter.query(hold).ops}
    assert "no dynamic int8 kernel" in ops["conv1"].why
    assert [config.mode for config in ops["fc"].choices] == [Mode.DYNAMIC, Mode.FLOAT]


def test_without_a_compiler_the_message_says_what_to_do(monkeypatch, networks):
    problem = lowering.Probe(convolution=False, linear=False, dynamic=False, problem="InvalidCxxCompiler: none")
    monkeypatch.setattr(lowering, "probe", lambda: problem)
    adapter = PyTorchAdapter()
    options = AdapterOptions(example=networks.images()[0], backend="pt2e")
    capability = adapter.query(adapter.load(networks.small(), options))
    assert any("Install a C++ compiler" in note for note in capability.notes)
    assert not any(op.is_quantizable for op in capability.ops)


def test_a_network_that_cannot_be_compiled_is_an_adapter_error(monkeypatch):
    graph, feed = sample()
    network = lowering.Compiled(graph, pads=False)
    monkeypatch.setattr(network, "_call", _raise)
    with pytest.raises(AdapterError, match="no compiler"):
        network(*feed)


def _raise(*_):
    raise RuntimeError("no compiler")


def _uncompiled(adapter, networks, tmp_path):
    from neural_tune.values import FrozenMap

    batches = networks.images(batches=2)
    hold = adapter.load(networks.small(), AdapterOptions(example=batches[0], extra=FrozenMap({"compile": False})))
    return hold, adapter.calibrate(hold, batches, tmp_path / "statistics")
