"""Candidates from cached statistics are the models that torchao's own prepare, calibrate and convert make: bit for bit where the settings coincide."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT, Candidate, FrozenMap, Mode, Observer

torch = pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')
pytest.importorskip("torchao", reason='needs pip install "neural-tune[pytorch]"')

from neural_tune_pytorch.adapter import PyTorchAdapter  # noqa: E402
from neural_tune_pytorch.backends.pt2e.codes import Codes  # noqa: E402
from neural_tune_pytorch.libraries import quiet_import, x86_inductor  # noqa: E402

TINY = float(torch.finfo(torch.float32).tiny)
BATCHES = 5


def torchao_model(module, batches, *, symmetric=False, float_modules=()):
    """Return what torchao makes of `module` with MinMax observers, its x86 recipe, and the weights restricted to -127 ... 127 as ours are."""
    with quiet_import():
        from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    x86 = x86_inductor()
    config = x86.get_default_x86_inductor_quantization_config()
    scheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
    activation = replace(
        config.input_activation, observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=TINY), qscheme=scheme
    )
    weight = replace(
        config.weight, observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=TINY), quant_min=-127
    )
    quantizer = x86.X86InductorQuantizer().set_global(
        replace(config, input_activation=activation, output_activation=activation, weight=weight)
    )
    for name in float_modules:
        quantizer.set_module_name_qconfig(name, None)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        shapes = tuple({0: torch.export.Dim.AUTO} for _ in batches[0])
        program = torch.export.export(module, batches[0], dynamic_shapes=shapes, strict=False)
        prepared = prepare_pt2e(program.module(), quantizer)
        for batch in batches:
            prepared(*batch)
        return convert_pt2e(prepared)


def held(module, batches, tmp_path, approach="static"):
    adapter = PyTorchAdapter()
    options = AdapterOptions(approach=approach, example=batches[0], extra=FrozenMap({"compile": False}))
    hold = adapter.load(module, options)
    space = TuningSpace.of(adapter.query(hold))
    return adapter, hold, space, adapter.calibrate(hold, batches, tmp_path / "statistics")


def batches_of(networks):
    return [(torch.from_numpy(batch),) for batch in networks.images(batches=BATCHES, size=10)]


@pytest.mark.parametrize("float_modules", [(), ("conv2",), ("conv1",), ("fc",), ("conv3", "fc")])
def test_candidates_equal_torchao_with_minmax_observers(networks, tmp_path, float_modules):
    """Also where fusion breaks: with conv2 in float, its sum with the residual is float too, and new tensors appear."""
    batches = batches_of(networks)
    adapter, hold, space, statistics = held(networks.small(), batches, tmp_path)
    dropped = {*float_modules, *(("add",) if "conv2" in float_modules else ())}
    candidate = space.preferred().with_ops(dict.fromkeys(dropped, FLOAT))
    built = adapter.build(hold, candidate, statistics, None)
    oracle = torchao_model(networks.small(), batches, float_modules=float_modules)
    for batch in batches:
        with torch.no_grad():
            expected = oracle(*batch).numpy()
        np.testing.assert_array_equal(adapter.run(built, batch)[0], expected)


def test_the_oracle_is_a_quantized_model(networks):
    """Otherwise the equality above would prove nothing."""
    batches = batches_of(networks)
    with torch.no_grad():
        difference = (torchao_model(networks.small(), batches)(*batches[0]) - networks.small()(*batches[0])).abs().max()
    assert 1e-4 < float(difference) < 0.1


def test_symmetric_activations_equal_torchao(networks, tmp_path):
    batches = batches_of(networks)
    adapter, hold, space, statistics = held(networks.small(), batches, tmp_path)
    symmetric = {
        op.name: next(c for c in op.extra if c.activation.symmetric and c.activation.observer is Observer.MINMAX)
        for op in space.capability.ops
        if op.is_quantizable
    }
    built = adapter.build(hold, Candidate.of(symmetric), statistics, None)
    oracle = torchao_model(networks.small(), batches, symmetric=True)
    with torch.no_grad():
        expected = oracle(*batches[1]).numpy()
    np.testing.assert_array_equal(adapter.run(built, batches[1])[0], expected)


def test_dynamic_linears_equal_integer_arithmetic_by_hand(networks, tmp_path):
    """One dynamic linear against an emulation in exact integers: u8 codes of the batch, s8 codes of the weight, int32 sums."""
    generator = np.random.default_rng(0)
    module = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Linear(8, 4)).eval()
    batches = [(generator.normal(size=(6, 16)).astype(np.float32),) for _ in range(2)]
    adapter, hold, space, _ = held(module, batches, tmp_path, approach="dynamic")
    assert all(config.mode is Mode.DYNAMIC for config in space.preferred().ops.values())
    x = batches[1][0]
    weight, bias = (tensor.detach().numpy() for tensor in (module[0].weight, module[0].bias))
    candidate = Candidate.of({"0": space.preferred().config_of("0")})
    hidden = _dynamic_linear(x, weight, bias)
    with torch.no_grad():
        expected = module[1](torch.from_numpy(hidden)).numpy()
    np.testing.assert_allclose(
        adapter.run(adapter.build(hold, candidate, None, 1), x)[0], expected, rtol=1e-5, atol=1e-5
    )


def _dynamic_linear(x, weight, bias):
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255)
    zero = int(np.round(-low / scale))
    codes = np.clip(np.round(x / scale) + zero, 0, 255).astype(np.int64)
    weight_scale = np.abs(weight).max(1) / np.float32(127)
    weight_codes = np.clip(np.round(weight / weight_scale[:, None]), -127, 127).astype(np.int64)
    sums = (codes - zero) @ weight_codes.T
    return (sums * (scale * weight_scale) + bias).astype(np.float32)


def test_max_pool_carries_codes_without_changing_a_number(networks, tmp_path):
    """The code of the largest value is the largest code, so a pool between int8 convolutions may move bytes instead of floats."""
    batches = batches_of(networks)
    adapter, hold, space, statistics = held(networks.small(), batches, tmp_path)
    graph = adapter.build(hold, space.preferred(), statistics, None).network.graph
    pool = next(node for node in graph.graph.nodes if "max_pool2d" in str(node.target))
    assert "dequantize_per_tensor" in str(pool.args[0].target)
    assert all("quantize_per_tensor" in str(user.target) for user in pool.users)


def test_a_tensor_that_was_not_observed_is_an_error_and_never_a_default(networks, tmp_path):
    from neural_tune.errors import AdapterError

    batches = batches_of(networks)
    adapter, hold, space, statistics = held(networks.small(), batches, tmp_path)
    torn = replace(statistics, tensors={k: v for k, v in statistics.tensors.items() if k != "relu"})
    with pytest.raises(AdapterError, match=r"'relu' was never observed"):
        adapter.build(hold, space.preferred(), torn, 1)


def test_every_subset_of_ops_finds_all_its_tensors_in_the_statistics(networks, tmp_path):
    import itertools

    adapter, hold, space, statistics = held(networks.small(), batches_of(networks), tmp_path)
    full = space.preferred()
    for size in range(len(full.ops) + 1):
        for names in itertools.combinations(full.ops, size):
            adapter.build(hold, Candidate.of({name: full.config_of(name) for name in names}), statistics, None)


def test_toggles_equal_the_built_graph_for_every_subset(networks, tmp_path):
    """Partial candidates too, where fusion breaks: the switches follow the plan of the very subset."""
    import itertools

    batches = batches_of(networks)
    adapter, hold, space, statistics = held(networks.small(), batches, tmp_path)
    full = space.preferred()
    toggles = adapter.toggles(hold, full, statistics, None)
    for size in range(len(full.ops) + 1):
        for names in itertools.combinations(full.ops, size):
            candidate = Candidate.of({name: full.config_of(name) for name in names})
            expected = adapter.run(adapter.build(hold, candidate, statistics, None), batches[0])[0]
            np.testing.assert_array_equal(toggles.run(frozenset(names), batches[0])[0], expected)


def test_fake_quantization_is_the_arithmetic_of_the_qdq_ops():
    values = torch.linspace(-3, 3, 1001)
    codes = Codes(0.0173, 97)
    grid = (codes.scale, codes.zero, 0, 255, torch.uint8)
    ops = torch.ops.quantized_decomposed
    expected = ops.dequantize_per_tensor(ops.quantize_per_tensor(values, *grid), *grid)
    assert torch.equal(codes.fake_quantized(values), expected)
