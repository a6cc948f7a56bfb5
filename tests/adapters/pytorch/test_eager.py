"""Eager mode: what it finds by itself (fusions, stubs, what must stay), its kernels against FX mode, and models that nothing else takes."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from neural_tune.errors import CapabilityError
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT, Candidate, Mode

torch = pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from neural_tune_pytorch import model as models  # noqa: E402
from neural_tune_pytorch.adapter import PyTorchAdapter  # noqa: E402
from neural_tune_pytorch.backends import eager, eager_plan, swap  # noqa: E402
from neural_tune_pytorch.backends.eager import EagerBackend  # noqa: E402
from neural_tune_pytorch.backends.fx import FxBackend  # noqa: E402
from neural_tune_pytorch.backends.swap import Grid  # noqa: E402


def captured(module, example, approach="static", backend=None):
    chosen = backend or EagerBackend()
    options = AdapterOptions(approach=approach, backend=chosen.name, example=example)
    return chosen.capture(models.take(module, options), options)


def preferred(taken):
    return TuningSpace.of(EagerBackend().query(taken)).preferred()


class Chain(nn.Module):
    """No sum: eager mode can do all of it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.norm(self.conv(x))), 2)
        return self.fc(self.deep(x).mean((2, 3)))


@pytest.fixture
def chain():
    torch.manual_seed(5)
    network = Chain()
    with torch.no_grad():
        network(torch.randn(64, 3, 12, 12))  # batch statistics that are not trivial
    return network.eval()


@pytest.fixture
def pictures():
    return torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(6))


def test_norms_and_relus_are_found_and_tensors_stay_codes_between_modules(chain, pictures):
    taken = captured(chain, pictures.numpy())
    assert [op.name for op in taken.ops] == ["conv", "deep.0", "deep.3", "fc"]
    assert [op.relu for op in taken.ops] == [True, True, False, False]
    assert isinstance(taken.module.norm, nn.Identity)
    statistics = EagerBackend().observe(taken, [(pictures,)])
    built = EagerBackend().build(taken, preferred(taken), statistics, 1)
    assert built.report().counts["borders"] == 4.0  # into conv, out of deep.3, into and out of fc
    assert built.report().counts["int8_kernels"] == 4.0


def test_eager_and_fx_run_the_same_kernels_on_a_chain(chain, pictures):
    outputs = []
    for backend in (EagerBackend(), FxBackend()):
        taken = captured(chain, pictures.numpy(), backend=backend)
        statistics = backend.observe(taken, [(pictures,)])
        candidate = TuningSpace.of(backend.query(taken)).preferred()
        with torch.no_grad():
            outputs.append(backend.build(taken, candidate, statistics, 1).network(pictures)[0])
    assert torch.equal(*outputs)


def test_a_norm_whose_input_is_read_twice_is_not_folded():
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, x):
            y = self.conv(x)
            return self.fc((self.norm(y) + y).mean((2, 3)))

    module = Forked().eval()
    module.norm.running_mean.fill_(0.7)
    example = torch.randn(2, 3, 4, 4)
    taken = captured(module, example.numpy())
    assert isinstance(taken.module.norm, nn.BatchNorm2d)
    built = EagerBackend().build(taken, Candidate(), None, 1)
    with torch.no_grad():
        assert torch.equal(built.network(example)[0], module(example))


@pytest.mark.parametrize("backend", [FxBackend(), EagerBackend()], ids=["fx", "eager"])
@pytest.mark.parametrize("features", [8, 6])
def test_a_norm_over_another_axis_than_the_features_of_a_linear_is_not_folded(backend, features):
    """BatchNorm1d goes along axis 1; on rows of tokens that is the position, even where there are as many positions as features."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, features), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(features, 4))
    with torch.no_grad():
        module(3.0 * torch.randn(64, 8, 8) + torch.arange(8.0)[:, None])
    example = torch.randn(5, 8, 8)
    built = backend.build(captured(module.eval(), example.numpy(), backend=backend), Candidate(), None, 1)
    with torch.no_grad():
        torch.testing.assert_close(built.network(example)[0], module(example))


def test_an_island_that_was_never_given_a_range_makes_none_up(chain, pictures):
    taken = captured(chain, pictures.numpy())
    statistics = EagerBackend().observe(taken, [(pictures,)])
    planned = eager_plan.plan(taken, preferred(taken), statistics)
    (name, *_) = planned.fed
    weights = swap.weight_grid(taken.module.get_submodule(name).weight, swap.WEIGHT)
    island = eager.island(taken, planned, name, None, Grid(scale=1.0, zero=0), weights)
    with pytest.raises(RuntimeError, match="float input"):
        island(torch.randn(1, 8, 6, 6))


def test_sums_stay_float_and_the_capability_says_so(networks):
    pictures = networks.images(4)[0]
    taken = captured(networks.small(), pictures)
    statistics = EagerBackend().observe(taken, [(torch.from_numpy(pictures),)])
    report = EagerBackend().build(taken, preferred(taken), statistics, 1).report()
    assert any("islands" in note for note in EagerBackend().query(taken).notes)
    assert {item.type for item in report.ops} == {"Conv2d", "Linear"}


def test_a_module_whose_weight_is_read_from_outside_stays_what_it_is():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.middle = nn.Embedding(20, 8), nn.Linear(8, 8)

        def forward(self, ids):
            return functional.linear(self.middle(self.words(ids)), self.words.weight)

    taken = captured(Tied().eval(), torch.zeros(2, 3, dtype=torch.int64), approach="dynamic")
    whys = {op.name: op.why for op in taken.ops}
    assert "reads its weight" in whys["words"]
    assert not whys["middle"]
    built = EagerBackend().build(taken, preferred(taken), None, 1)
    assert built.network(torch.ones(2, 3, dtype=torch.int64))[0].shape == (2, 3, 20)


class Branching(nn.Module):
    """Control flow on data: neither torch.export nor FX takes it; TorchScript does."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(32, 3)

    def forward(self, x):
        if bool(x.mean() > 0):  # noqa: SIM108 - as people write it
            hidden = self.first(x)
        else:
            hidden = self.second(x).abs()
        return self.out(torch.relu(hidden))


def test_control_flow_survives_saving(tmp_path):
    torch.manual_seed(2)
    adapter, module = PyTorchAdapter(), Branching().eval()
    above, below = np.full((4, 8), 0.5, np.float32), np.full((4, 8), -0.5, np.float32)
    hold = adapter.load(module, AdapterOptions(approach="dynamic", backend="eager", example=above))
    names = [op.name for op in adapter.query(hold).ops]
    assert "second" not in names  # the example does not go there: it stays float
    built = adapter.build(hold, TuningSpace.of(adapter.query(hold)).preferred(), None, 1)
    restored = adapter.restore(adapter.save(built, tmp_path), 1)
    for inputs in (above, below):
        expected = adapter.run(built, inputs)[0]
        np.testing.assert_array_equal(adapter.run(restored, inputs)[0], expected)
        with torch.no_grad():
            np.testing.assert_allclose(expected, module(torch.from_numpy(inputs)).numpy(), atol=0.05)


def test_auto_falls_through_to_eager_for_a_model_that_nothing_traces():
    hold = PyTorchAdapter().load(
        Branching().eval(), AdapterOptions(approach="dynamic", example=np.ones((4, 8), np.float32))
    )
    assert hold.backend.name == "eager"
    notes = PyTorchAdapter().query(hold).notes
    assert any(note.startswith("backend 'eager' is used, because pt2e") for note in notes)
    assert any("speed-up is against float in eager mode" in note for note in notes)


def test_a_model_without_a_known_module_is_refused():
    class Bare(nn.Module):
        def forward(self, x):
            return x * 2

    with pytest.raises(CapabilityError, match="eager mode found no"):
        captured(Bare(), np.ones((2, 3), np.float32))


def test_partial_candidates_keep_float_modules_bit_equal(chain, pictures):
    """A module that a candidate leaves in float is the very float module."""
    taken = captured(chain, pictures.numpy())
    statistics = EagerBackend().observe(taken, [(pictures,)])
    only = Candidate.of({"fc": preferred(taken).config_of("fc")})
    seen = []
    built = EagerBackend().build(taken, only, statistics, 1)
    built.network.model.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    expected = []
    taken.module.fc.register_forward_pre_hook(lambda _, inputs: expected.append(inputs[0]))
    with torch.no_grad():
        built.network(pictures)
        taken.module(pictures)
    assert torch.equal(seen[0], expected[0])
    assert [item.is_float for item in built.report().ops] == [True, True, True, False]
    assert all(config.mode is Mode.STATIC for config in only.ops.values())
    assert preferred(taken).config_of("conv") != FLOAT


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("approach", ["static", "dynamic"])
def test_minilm_keeps_its_accuracy(approach, shared_data, tmp_path):
    """Eager mode exchanges its 36 linears. Spearman within 1 % of float."""
    spec = importlib.util.spec_from_file_location("neural_tune_tests_minilm_builders", shared_data / "load_models.py")
    builders = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builders)
    data = builders.dataset("stsb")

    def batches(part, size, most):
        ids, mask = (
            torch.from_numpy(data[f"{name}_{part}"].astype(np.int64)) for name in ("input_ids", "attention_mask")
        )
        return [(ids[at : at + size], mask[at : at + size]) for at in range(0, min(len(ids), most), size)]

    module = builders.torch_model("minilm_stsb")
    example = dict(zip(("input_ids", "attention_mask"), batches("calib", 4, 4)[0], strict=True))
    taken = captured(module, example, approach=approach)
    statistics = EagerBackend().observe(taken, batches("calib", 20, 100)) if approach == "static" else None
    built = EagerBackend().build(taken, preferred(taken), statistics, 1)
    # The first 120 pairs: row i and row i + 1379 belong together.
    pairs = len(data["y_val"])
    half = np.r_[0:120, pairs : pairs + 120]
    ids, mask = (
        torch.from_numpy(data[f"{name}_val"].astype(np.int64)[half]) for name in ("input_ids", "attention_mask")
    )
    with torch.no_grad():
        scores = [
            builders.metric(
                "minilm_stsb",
                torch.cat([run(ids[at : at + 80], mask[at : at + 80]) for at in range(0, 240, 80)]),
                data["y_val"][:120],
            )
            for run in (module, lambda *feed: built.network(*feed)[0])
        ]
    assert scores[1] >= 0.99 * scores[0], scores
    assert built.report().counts["int8_kernels"] == 36.0
