"""What is really executed: int8 kernels are counted in generated code, and each trap of PyTorch that ends in silent float is a test."""

from __future__ import annotations

import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from neural_tune import PerformanceConfig, PostTrainingQuantConfig, TuningCriterion, fit
from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import Candidate, DType, Granularity, Mode, OpConfig, QuantSpec

torch = pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')
pytest.importorskip("torchao", reason='needs pip install "neural-tune[pytorch]"')

from neural_tune_pytorch.adapter import PyTorchAdapter  # noqa: E402
from neural_tune_pytorch.backends.pt2e import inductor, lowering  # noqa: E402
from neural_tune_pytorch.backends.pt2e.recent import Recent  # noqa: E402
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
    before = len(network.forms)
    reference = lowering.Reference(built.network.graph)(torch.from_numpy(batches[0][:3]))[0].numpy()
    np.testing.assert_allclose(adapter.run(restored, batches[0][:3])[0], reference, atol=5e-3)
    assert len(network.forms) == before
    np.testing.assert_allclose(adapter.run(restored, batches[0][:3])[0], reference, atol=5e-3)
    assert len(network.forms) == before + 1
    assert {form.kernels for form in network.forms} == {inductor.Kernels(3, 1)}


def test_autocast_and_inference_mode_around_a_compiled_model_change_nothing(compiled):
    """Under torch.compile it would be compiled again, outside of freezing and (autocast) in bfloat16: no int8 kernel, other numbers, and not a word."""
    adapter, _, restored, outputs, batches, _ = compiled
    native, before = adapter.native(restored), restored.network.forms
    x = torch.from_numpy(batches[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answers = [native(x).numpy(), adapter.run(restored, batches[0])[0]]
        assert torch.is_autocast_enabled("cpu")
    with torch.inference_mode():
        answers.append(native(x.clone()).numpy())
    with torch.enable_grad():
        answers.append(native(x.clone().requires_grad_()).numpy())
        assert torch.is_grad_enabled()
    assert restored.network.forms == before
    for answer in answers:
        np.testing.assert_array_equal(answer, outputs[0])


def test_an_artifact_is_compiled_once_wherever_it_lies_and_however_often_it_is_loaded(compiled, tmp_path):
    adapter, _, restored, outputs, batches, artifact = compiled
    other = tmp_path / "model.pt2"
    other.write_bytes(artifact.read_bytes())
    before = restored.network.forms
    again = adapter.restore(other, None)  # torch has one thread in these tests: the same code
    np.testing.assert_array_equal(adapter.run(again, batches[0])[0], outputs[0])
    assert again.network.forms == before
    native, beside = adapter.native(restored), adapter.native(again)
    native.register_forward_hook(
        lambda module, inputs, output: output * 0
    )  # what a user does to one model is not done to the other
    assert not native(torch.from_numpy(batches[0])).any()
    np.testing.assert_array_equal(beside(torch.from_numpy(batches[0])).numpy(), outputs[0])


def test_of_several_forms_the_one_with_the_fewest_kernels_is_reported(monkeypatch):
    """Each shape of batch is compiled for itself, so each can turn out differently: all are looked at, not the first only."""
    graph, feed = sample()
    network = lowering.Compiled(graph, pads=False)
    kernels = iter([inductor.Kernels(1, 2), inductor.Kernels(0, 2), inductor.Kernels(1, 2)])
    monkeypatch.setattr(inductor, "compiled", lambda graph, feed: inductor.Form(graph, next(kernels), ""))
    assert network.kernels is None
    for rows in (1, 2, 3):
        network(*(tensor[:1].repeat(rows, 1, 1, 1) for tensor in feed))
    assert network.kernels == inductor.Kernels(0, 2)


def test_outputs_that_are_inputs_and_inputs_that_nobody_reads_come_out_right():
    """Compiled code is called without the wrappers of AOTAutograd only where these do nothing; here they have something to do."""

    class Odd(torch.nn.Module):
        def forward(self, x, unused, y):
            return x, x + y, y.view(-1)

    graph = torch.fx.symbolic_trace(Odd())
    network = lowering.Compiled(graph, pads=False)
    for seed in (0, 1):
        torch.manual_seed(seed)
        feed = tuple(torch.rand(2, 3) for _ in range(3))
        for found, expected in zip(network(*feed), Odd()(*feed), strict=True):
            assert torch.equal(found, expected)
    assert len(network.forms) == 1


def test_threads_that_need_the_same_code_wait_for_one_compile(monkeypatch):
    graph, feed = sample()
    network, calls = lowering.Compiled(graph, pads=False), []

    def slow(graph, feed):
        calls.append(feed)
        time.sleep(0.2)
        return inductor.Form(graph, inductor.Kernels(1, 2), "")

    monkeypatch.setattr(inductor, "compiled", slow)
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda _: network(*feed)[0], range(4)))
    assert len(calls) == 1
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_what_was_asked_for_longest_ago_is_made_again():
    made, recent = [], Recent(2)

    def make(name):
        return recent.get(name, lambda: made.append(name) or name)

    assert [make(name) for name in ("a", "b", "a", "c", "a", "b")] == ["a", "b", "a", "c", "a", "b"]
    assert made == ["a", "b", "c", "b"]


@pytest.mark.slow
def test_one_fit_compiles_the_float_and_the_accepted_model_once_each(networks, tmp_path, monkeypatch):
    """The trial, the finalist, the comparison of speed, the guard and the count of kernels share one compile."""
    compile_one, graphs = inductor.compiled, []
    monkeypatch.setattr(inductor, "compiled", lambda graph, feed: graphs.append(graph) or compile_one(graph, feed))
    batches = networks.images(batches=4, seed=99)  # another artifact than that of the other tests
    result = fit(
        networks.small(),
        PostTrainingQuantConfig(
            tuning_criterion=TuningCriterion(strategy="basic", max_trials=1),
            workspace=str(tmp_path),
            performance=PerformanceConfig(threads=1, warmup=1, repeats=10, seconds=0.1),
        ),
        calib_dataloader=batches,
        eval_func=lambda model: float(np.isfinite(model(batches[0]).numpy()).mean()),
        reporter="quiet",
    )
    assert result.accepted
    assert result.counts["int8_kernels"] == 4
    assert len(graphs) == 2


def test_the_settings_of_inductor_are_restored_after_a_compile(compiled):
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
    assert inductor.count(code).total == 0


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
    monkeypatch.setattr(inductor, "compiled", _raise)
    with pytest.raises(AdapterError, match="no compiler"):
        network(*feed)


def _raise(*_):
    raise RuntimeError("no compiler")


def _uncompiled(adapter, networks, tmp_path):
    from neural_tune.values import FrozenMap

    batches = networks.images(batches=2)
    hold = adapter.load(networks.small(), AdapterOptions(example=batches[0], extra=FrozenMap({"compile": False})))
    return hold, adapter.calibrate(hold, batches, tmp_path / "statistics")
