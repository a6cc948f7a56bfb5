"""FX mode: the int8 kernels against torch.ao's own conversion and against exact integer emulation; what it refuses; the real models."""

from __future__ import annotations

import importlib.util
import sys
import warnings

import numpy as np
import pytest

from neural_tune import AccuracyCriterion, PerformanceConfig, PostTrainingQuantConfig, TuningCriterion, fit, load
from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT, Candidate, Mode

torch = pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from neural_tune_pytorch import model as models  # noqa: E402
from neural_tune_pytorch.adapter import PyTorchAdapter  # noqa: E402
from neural_tune_pytorch.backends import swap  # noqa: E402
from neural_tune_pytorch.backends.fx import FxBackend  # noqa: E402
from neural_tune_pytorch.backends.fx_graph import passes  # noqa: E402
from neural_tune_pytorch.qat_fx import FxTrainee  # noqa: E402

QUICK = PerformanceConfig(warmup=1, repeats=10, seconds=0.2, batch_size=16)


def captured(module, example, approach="static", **extra):
    options = AdapterOptions(approach=approach, backend="fx", example=example, extra=extra)
    return FxBackend().capture(models.take(module, options), options)


def preferred(taken):
    return TuningSpace.of(FxBackend().query(taken)).preferred()


class Chain(nn.Module):
    """conv-bn-relu, grouped conv, pool, two linears: what torch.ao converts without breaking."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, groups=4)
        self.first, self.last = nn.Linear(8 * 9, 24), nn.Linear(24, 5)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.norm(self.conv(x))), 2)
        x = torch.flatten(functional.relu(self.grouped(x)), 1)
        return self.last(functional.relu(self.first(x)))


@pytest.fixture
def chain():
    torch.manual_seed(3)
    return Chain().eval()


@pytest.fixture
def pictures():
    return torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(4))


def converted_by_torch(module, pictures):
    """torch.ao's own prepare, calibrate, convert with MinMax observers, 8 bits for activations."""
    from torch.ao.quantization import MinMaxObserver, PerChannelMinMaxObserver, QConfig, QConfigMapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    activation = MinMaxObserver.with_args(dtype=torch.quint8, qscheme=torch.per_tensor_affine, reduce_range=False)
    weight = PerChannelMinMaxObserver.with_args(
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=-127, quant_max=127
    )
    with swap.engine(), torch.no_grad():
        prepared = prepare_fx(
            module, QConfigMapping().set_global(QConfig(activation=activation, weight=weight)), (pictures,)
        )
        prepared(pictures)
        return convert_fx(prepared)


def test_all_int8_equals_torchs_own_conversion(chain, pictures):
    taken = captured(chain, pictures.numpy())
    statistics = FxBackend().observe(taken, [(pictures,)])
    built = FxBackend().build(taken, preferred(taken), statistics, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = converted_by_torch(chain, pictures)
    with torch.no_grad():
        ours, theirs, real = built.network(pictures)[0], oracle(pictures), chain(pictures)
    step = float(oracle.last.scale)
    # Ours leaves the last output in float; theirs rounds it to codes, half a step. A rounding tie may fall the other way once.
    assert float((ours - theirs).abs().max()) <= 1.51 * step
    assert float((ours - real).abs().mean()) <= 1.05 * float((theirs - real).abs().mean())


def test_every_candidate_equals_its_simulation_in_float(networks):
    """The kernels against fake_quant at the same places: all int8, every op alone, all but one."""
    pictures = torch.from_numpy(networks.images(8)[0])
    taken = captured(networks.small(), pictures.numpy())
    statistics = FxBackend().observe(taken, [(pictures,)])
    space = TuningSpace.of(FxBackend().query(taken))
    full = space.preferred()
    alone = [space.candidate({group.name: group.choices[0]}) for group in space.groups]
    but_one = [space.with_choice(full, group, FLOAT) for group in space.groups]
    for candidate in (full, *alone, *but_one):
        network = FxBackend().build(taken, candidate, statistics, 1).network
        simulated = FxTrainee(taken, candidate, statistics, learned=False).network.eval()
        with torch.no_grad():
            (found,), (expected,), (real,) = network(pictures), simulated(pictures), taken.graph(pictures)
        noise = float((expected - real).abs().max())
        # One code may round the other way (float32 sums in another order): a fraction of the rounding noise itself.
        assert float((found - expected).abs().max()) <= max(0.35 * noise, 1e-5), candidate


def test_a_tensor_read_by_int8_and_by_float_is_exact_for_the_float_reader(networks):
    pictures = torch.from_numpy(networks.images(4)[0])
    taken = captured(networks.small(), pictures.numpy())
    statistics = FxBackend().observe(taken, [(pictures,)])
    full = preferred(taken)
    only = Candidate.of({"conv2": full.config_of("conv2")})
    nodes = FxBackend().build(taken, only, statistics, 1).network.graph.nodes
    assert sum(node.target is torch.quantize_per_tensor for node in nodes) == 1
    assert sum(node.target == "dequantize" for node in nodes) == 1  # the sum reads the float input, not its codes


def test_a_sum_without_int8_neighbours_stays_float_with_a_reason(networks):
    pictures = torch.from_numpy(networks.images(4)[0])
    taken = captured(networks.small(), pictures.numpy())
    statistics = FxBackend().observe(taken, [(pictures,)])
    name = next(op.name for op in taken.ops if op.type == "add")
    built = FxBackend().build(taken, Candidate.of({name: preferred(taken).config_of(name)}), statistics, 1)
    outcome = next(item for item in built.report().ops if item.name == name)
    assert outcome.is_float
    assert "int8 neighbours" in outcome.reason


def test_what_passes_codes_on_computes_the_same_on_codes_as_on_values():
    """The table of pass-through ops, on this torch."""

    class All(nn.Module):
        def __init__(self):
            super().__init__()
            self.modules_ = nn.ModuleList([nn.ReLU(), nn.ReLU6(), nn.Identity(), nn.Dropout(), nn.MaxPool2d(2)])

        def forward(self, x):
            found = [module(x) for module in self.modules_]
            found += [functional.pad(x, (1, 2, 0, 1)), x.flatten(1), x.reshape(2, -1), x.permute(0, 2, 3, 1)]
            found += [x[:, ::2], x.transpose(1, 2), x.unsqueeze(1), x.contiguous(), functional.max_pool2d(x, 2)]
            found += [torch.relu(x), functional.relu6(x), functional.dropout(x, 0.5, training=False)]
            return tuple(found)

    graph = torch.fx.symbolic_trace(All().eval())
    middle = [node for node in graph.graph.nodes if node.op not in ("placeholder", "output")]
    assert len(middle) == 17
    assert all(passes(graph, node) for node in middle)
    values = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    codes = torch.quantize_per_tensor(values, 0.03, 101, torch.quint8)
    for on_codes, on_values in zip(graph(codes), graph(codes.dequantize()), strict=True):
        assert torch.equal(on_codes.dequantize(), on_values)


def test_what_may_change_values_does_not_pass_codes_on():
    class Others(nn.Module):
        def forward(self, x):
            return (
                functional.pad(x, (1, 1), value=1.0),
                x[:, 0],
                functional.adaptive_avg_pool2d(x, 1),
                torch.sigmoid(x),
                functional.pad(x, (1, 1), mode="reflect"),
            )

    graph = torch.fx.symbolic_trace(Others())
    middle = [node for node in graph.graph.nodes if node.op not in ("placeholder", "output")]
    assert not any(passes(graph, node) for node in middle)


def test_static_and_dynamic_ops_mix_in_one_model(networks):
    taken = captured(networks.small(), networks.images(4)[0], approach="auto")
    statistics = FxBackend().observe(taken, [(torch.from_numpy(networks.images(4)[0]),)])
    full = preferred(taken)
    dynamic = next(
        config
        for op in FxBackend().query(taken).ops
        if op.name == "fc"
        for config in op.choices
        if config.mode is Mode.DYNAMIC
    )
    built = FxBackend().build(taken, full.with_ops({"fc": dynamic}), statistics, 1)
    modes = {item.name: item.precision.split(":")[0] for item in built.report().ops}
    assert modes["conv1"] == "static"
    assert modes["fc"] == "dynamic"
    assert built.report().counts["int8_kernels"] == len(taken.ops)


def test_the_artifact_names_its_engine_and_refuses_another_one(networks, tmp_path, monkeypatch):
    """Another engine computes other numbers without a word: the artifact must not run on it."""
    adapter, pictures = PyTorchAdapter(), networks.images(4)[0]
    hold = adapter.load(networks.small(), AdapterOptions(backend="fx", example=pictures))
    statistics = adapter.calibrate(hold, [pictures], tmp_path / "s")
    built = adapter.build(hold, TuningSpace.of(adapter.query(hold)).preferred(), statistics, 1)
    artifact = adapter.save(built, tmp_path / "m")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "qnnpack"
    try:
        restored = adapter.run(adapter.restore(artifact, 1), pictures)
        assert torch.backends.quantized.engine == "qnnpack"
    finally:
        torch.backends.quantized.engine = before
    np.testing.assert_array_equal(restored[0], adapter.run(built, pictures)[0])
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["qnnpack"], raising=False)
    with pytest.raises(AdapterError, match="engine"):
        adapter.restore(artifact, 1)


def test_a_saved_model_loads_without_us(networks, tmp_path):
    adapter, pictures = PyTorchAdapter(), networks.images(4)[0]
    hold = adapter.load(networks.small(), AdapterOptions(backend="fx", example=pictures))
    statistics = adapter.calibrate(hold, [pictures], tmp_path / "s")
    built = adapter.build(hold, TuningSpace.of(adapter.query(hold)).preferred(), statistics, 1)
    artifact = adapter.save(built, tmp_path / "m")
    with swap.engine("x86"):
        plain = torch.jit.load(str(artifact))
    for count in (1, 3):  # the batch size is free
        with torch.no_grad():
            found = plain(torch.from_numpy(pictures[:count]))[0].numpy()
        np.testing.assert_array_equal(found, adapter.run(built, pictures[:count])[0])


def test_control_flow_is_refused_with_a_reason():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) if x.sum() > 0 else x

    with pytest.raises(CapabilityError, match="cannot trace"):
        captured(Branch(), np.ones((2, 4), np.float32))


def test_a_missing_statistic_is_an_error_and_never_a_default_range(networks):
    pictures = torch.from_numpy(networks.images(4)[0])
    taken = captured(networks.small(), pictures.numpy())
    statistics = FxBackend().observe(taken, [(pictures,)])
    del statistics.tensors[taken.ops[1].output]
    with pytest.raises(AdapterError, match="never observed"):
        FxBackend().build(taken, preferred(taken), statistics, 1)


def builders(shared_data):
    name = "neural_tune_tests_load_models"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, shared_data / "load_models.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, backend) for name in ("resnet20_cifar10", "dscnn_kws", "resnet8_cifar10") for backend in ("fx", "eager")],
)
def test_fit_accepts_the_real_models(name, backend, shared_data, tmp_path):
    load_models = builders(shared_data)
    data = load_models.dataset(load_models.MODELS[name][0])
    inputs, labels = load_models.prepare(name, data["x_val"]), data["y_val"]
    calibration = load_models.prepare(name, data["x_calib"][:100])
    result = fit(
        load_models.torch_model(name),
        PostTrainingQuantConfig(
            backend=backend,
            approach="static",
            workspace=str(tmp_path / "w"),
            performance=QUICK,
            accuracy_criterion=AccuracyCriterion(True, "relative", 0.01),
            tuning_criterion=TuningCriterion(max_trials=20),
        ),
        calib_dataloader=[calibration[start : start + 20] for start in range(0, 100, 20)],
        eval_dataloader=[
            (inputs[start : start + 100], labels[start : start + 100]) for start in range(0, len(labels), 100)
        ],
        eval_metric="topk",
        framework="pytorch",
        reporter="quiet",
    )
    assert result.accepted, result.reason
    assert result.counts["int8_kernels"] >= 10
    result.save(tmp_path / "saved")
    restored = load(tmp_path / "saved")
    with torch.no_grad():
        scores = np.asarray(restored(torch.from_numpy(inputs)))
    assert (scores.argmax(1) == labels).mean() == pytest.approx(result.best.metrics["topk"], abs=0.002)
