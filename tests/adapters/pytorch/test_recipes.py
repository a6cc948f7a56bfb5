"""Recipes on exported graphs: the float function stays, planted outliers vanish, and what is built is what is switched and saved."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.insights import divergence
from neural_tune.numerics import preservation
from neural_tune.numerics.rescaling import Change, Edge
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE, Candidate, FrozenMap

torch = pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')
pytest.importorskip("torchao", reason='needs pip install "neural-tune[pytorch]"')

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from neural_tune_pytorch.adapter import PyTorchAdapter  # noqa: E402
from neural_tune_pytorch.recipes import bias_correction, edges, variants  # noqa: E402

ADAPTER = PyTorchAdapter()
ALL = ("bias_correction", "equalization", "smoothquant")


class Stack(nn.Module):
    """conv-relu-pool-conv-relu-flatten-linear; with `spread`, channels differ by factors that cancel from layer to layer."""

    def __init__(self, spread=0.0):
        super().__init__()
        torch.manual_seed(1)
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, groups=2)
        self.fc = nn.Linear(6 * 2 * 2, 5)
        with torch.no_grad():
            one, two = torch.exp(spread * torch.randn(8)), torch.exp(spread * torch.randn(6))
            self.conv1.weight *= one[:, None, None, None]
            self.conv1.bias *= one
            self.conv2.weight /= one.reshape(2, 1, 4, 1, 1).expand(2, 3, 4, 1, 1).reshape(6, 4, 1, 1)
            self.conv2.weight *= two[:, None, None, None]
            self.conv2.bias *= two
            self.fc.weight /= two.repeat_interleave(4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.fc(F.relu(self.conv2(x)).flatten(1))


class Block(nn.Module):
    """A post-norm block: two linears and a residual sum read the norm, whose outlier channels the linears take back."""

    def __init__(self, spread=0.0, width=16):
        super().__init__()
        torch.manual_seed(2)
        self.norm, self.query, self.key = nn.LayerNorm(width), nn.Linear(width, 24), nn.Linear(width, 24)
        self.out = nn.Linear(24, width)
        with torch.no_grad():
            scale = torch.exp(spread * torch.randn(width))
            self.norm.weight *= scale
            self.norm.bias.copy_(0.1 * torch.randn(width) * scale)
            self.query.weight /= scale
            self.key.weight /= scale

    def forward(self, x):
        x = self.norm(x)
        return x + self.out(torch.tanh(self.query(x)) * torch.sigmoid(self.key(x)))


class Tuned:
    """A model held, calibrated and queried."""

    def __init__(self, module, shape, folder, approach="static", **extra):
        generator = torch.Generator().manual_seed(5)
        self.batches = [torch.randn(8, *shape, generator=generator).numpy() for _ in range(3)]
        options = AdapterOptions(
            approach=approach, example=self.batches[0], has_data=True, extra=FrozenMap({"compile": False, **extra})
        )
        self.hold = ADAPTER.load(module.eval(), options)
        self.capability = ADAPTER.query(self.hold)
        self.full = TuningSpace.of(self.capability).preferred()
        self.folder = folder
        self.statistics = ADAPTER.calibrate(self.hold, self.batches, folder)

    def build(self, recipes=(), ops=None):
        return ADAPTER.build(
            self.hold, Candidate.of(self.full.ops if ops is None else ops, (), recipes), self.statistics, 1
        )

    def outputs(self, built):
        return [ADAPTER.run(built, batch) for batch in self.batches]

    def error(self, recipes=()):
        return divergence(
            self.outputs(ADAPTER.build(self.hold, FLOAT_CANDIDATE, None, 1)), self.outputs(self.build(recipes))
        )

    def variant(self, *names):
        return variants.prepare(self.hold.captured, names, self.statistics)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return Tuned(Stack(2.0), (3, 8, 8), tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return Tuned(Block(2.0), (6, 16), tmp_path_factory.mktemp("rows"))


def test_equalization_removes_planted_outlier_channels_and_the_function_stays(images, tmp_path):
    clean = Tuned(Stack(0.0), (3, 8, 8), tmp_path)
    assert images.capability.recipes == ("equalization", "bias_correction")
    assert images.error() > 10 * clean.error()
    assert images.error(("equalization",)) < 3 * clean.error()
    after = images.variant("equalization").captured
    assert variants.difference(images.hold.captured, after, images.statistics.inputs) <= preservation.TOLERANCE
    assert torch.is_grad_enabled()  # the graphs run in turns, and a user's training goes on afterwards
    assert after.changes == ("equalization: rescaled the channels behind 2 ops",)


def test_smoothquant_moves_outliers_into_the_linears_though_a_residual_reads_the_norm_too(rows, tmp_path):
    clean = Tuned(Block(0.0), (6, 16), tmp_path)
    assert rows.capability.recipes == ("smoothquant", "bias_correction")
    assert rows.error() > 10 * clean.error()
    assert rows.error(("smoothquant",)) < 2 * clean.error()
    after = rows.variant("smoothquant").captured
    assert variants.difference(rows.hold.captured, after, rows.statistics.inputs) <= preservation.TOLERANCE
    (norm,) = (item for item in edges.norm_edges(rows.hold.captured) if isinstance(item, Edge))
    assert len(norm.readers) == 2
    nodes = {node.name: node for node in after.graph.graph.nodes}
    assert {user.name for user in nodes[norm.producer].users} == {reader.op for reader in norm.readers}
    assert [user.target for user in nodes[f"{norm.producer}_kept"].users] == [torch.ops.aten.add.Tensor]


def test_alpha_is_chosen_for_every_norm_by_itself(tmp_path):
    """Two norms, one with outliers: the other one's factors stay near 1."""
    tuned = Tuned(nn.Sequential(Block(3.0), Block(0.0)), (6, 16), tmp_path)
    after = tuned.variant("smoothquant").captured
    spreads = []
    for one, two in zip(*(_norm_scales(item) for item in (tuned.hold.captured, after)), strict=True):
        spreads.append(float(np.std(np.log(np.abs(one / two)))))
    assert spreads[0] > 3 * spreads[1]


def test_bias_correction_follows_the_statistics_that_are_given(images, tmp_path):
    """A second calibration of one hold gives what a hold of its own would give, and not the means of the first."""
    nodes = [op.node for op in images.hold.captured.ops if op.weight]
    first = bias_correction.biases(images.hold.captured, nodes, images.statistics.inputs)
    others = [3 - batch for batch in images.batches]
    again = ADAPTER.calibrate(images.hold, others, tmp_path)
    found = bias_correction.biases(images.hold.captured, nodes, again.inputs)
    fresh = bias_correction.biases(replace(images.hold.captured, cache={}), nodes, again.inputs)
    assert all(torch.equal(found[name], fresh[name]) for name in nodes)
    assert not any(torch.equal(found[name], first[name]) for name in nodes)


def test_smoothquant_leaves_a_norm_that_is_also_an_output_of_the_model(tmp_path):
    class Encoder(Block):
        def forward(self, x):
            x = self.norm(x)
            return x, self.out(torch.tanh(self.query(x)) * torch.sigmoid(self.key(x)))

    tuned = Tuned(Encoder(2.0), (6, 16), tmp_path)
    notes = tuned.build(("smoothquant",)).report().notes
    assert any("rescaled the channels behind 1 ops" in note for note in notes)
    assert not any("not applied" in note for note in notes)
    norm = tuned.outputs(ADAPTER.build(tuned.hold, FLOAT_CANDIDATE, None, 1))[0][0]
    np.testing.assert_allclose(tuned.outputs(tuned.build(("smoothquant",)))[0][0], norm, rtol=1e-5, atol=1e-6)


def _norm_scales(captured):
    for node in captured.graph.graph.nodes:
        if node.target is torch.ops.aten.layer_norm.default and not node.name.endswith("_kept"):
            yield edges.constant(captured.graph, node.args[2]).detach().numpy()


def test_bias_correction_takes_the_mean_error_of_every_channel_away(images):
    """Against the definition, in float64: with float activations and rounded weights the mean output per channel is the float one."""
    captured = images.hold.captured
    nodes = [op.node for op in captured.ops if op.weight]
    found = bias_correction.biases(captured, nodes, images.statistics.inputs)
    x = torch.from_numpy(np.concatenate(images.batches)).double()
    module = Stack(2.0).double()
    inputs = (x, F.max_pool2d(F.relu(module.conv1(x)), 2))
    for layer, values, name in zip((module.conv1, module.conv2), inputs, nodes[:2], strict=True):
        weight = layer.weight.detach()
        scale = weight.abs().amax((1, 2, 3), keepdim=True) / 127
        rounded = torch.clamp(torch.round(weight / scale), -127, 127) * scale
        exact = layer(values).mean((0, 2, 3))
        plain = F.conv2d(values, rounded, layer.bias, padding=layer.padding, groups=layer.groups).mean((0, 2, 3))
        corrected = F.conv2d(values, rounded, found[name].double(), padding=layer.padding, groups=layer.groups)
        assert (corrected.mean((0, 2, 3)) - exact).abs().max() < 0.02 * (plain - exact).abs().max()


@pytest.mark.parametrize(("model", "recipes"), [("images", ALL[:2]), ("rows", (ALL[0], ALL[2])), ("images", ALL[:1])])
def test_every_subset_of_ops_is_switched_as_it_would_be_built(model, recipes, request):
    tuned = request.getfixturevalue(model)
    candidate = Candidate.of(tuned.full.ops, (), recipes)
    toggles = ADAPTER.toggles(tuned.hold, candidate, tuned.statistics, 1)
    names = sorted(candidate.ops)
    for count in range(1, len(names) + 1):
        for subset in itertools.combinations(names, count):
            built = tuned.build(recipes, {name: candidate.ops[name] for name in subset})
            np.testing.assert_array_equal(
                toggles.run(frozenset(subset), tuned.batches[0])[0], ADAPTER.run(built, tuned.batches[0])[0]
            )


def test_a_saved_model_with_recipes_is_the_one_that_was_built(rows, tmp_path):
    built = rows.build(ALL[::2])
    assert any("smoothquant" in note for note in built.report().notes)
    assert [op.precision for op in built.report().ops] == [op.precision for op in rows.build().report().ops]
    again = ADAPTER.restore(ADAPTER.save(built, tmp_path))
    np.testing.assert_array_equal(ADAPTER.run(again, rows.batches[0])[0], ADAPTER.run(built, rows.batches[0])[0])
    assert ADAPTER.size(built) == pytest.approx(ADAPTER.size(rows.build()), rel=0.1)


def test_the_int8_kernels_are_the_same_in_number_when_compiled(tmp_path):
    from neural_tune_pytorch.backends.pt2e import lowering

    if lowering.probe().problem:
        pytest.skip("torch.compile finds no C++ compiler here")
    tuned = Tuned(Block(2.0), (6, 16), tmp_path, compile=True)
    candidate = Candidate.of(tuned.full.ops, (), ("bias_correction", "smoothquant"))
    # Simulated first, as a search does: the graph that the probe made must not decide how the candidate runs.
    simulated = tuned.outputs(ADAPTER.simulate(tuned.hold, candidate, tuned.statistics, 1))
    built = tuned.build(candidate.recipes)
    compiled = tuned.outputs(built)
    assert built.report().counts["int8_kernels"] == built.report().counts["int8_kernels_expected"] == 3
    assert divergence(simulated, compiled) < tuned.error()


def test_statistics_are_taken_anew_for_exactly_the_tensors_that_changed(rows):
    variant = rows.variant("smoothquant")
    changed = {
        name for name, seen in variant.statistics.tensors.items() if seen is not rows.statistics.tensors.get(name)
    }
    (norm,) = (item for item in edges.norm_edges(rows.hold.captured) if isinstance(item, Edge))
    assert changed == {norm.producer}


def test_recipes_are_made_once_and_survive_on_disk(rows):
    assert rows.variant("smoothquant") is rows.variant("smoothquant")
    again = ADAPTER.load_statistics(rows.hold, rows.folder)
    fresh = replace(rows.hold.captured, cache={})
    found, expected = variants.prepare(fresh, ("smoothquant",), again), rows.variant("smoothquant")
    assert found.refused == expected.refused
    assert all(
        torch.equal(one, two)
        for one, two in zip(
            found.captured.graph.state_dict().values(), expected.captured.graph.state_dict().values(), strict=True
        )
    )


def test_the_float_model_and_plain_candidates_never_see_a_recipe(rows, tmp_path):
    fresh = Tuned(Block(2.0), (6, 16), tmp_path)
    rows.build(("smoothquant",))
    np.testing.assert_array_equal(rows.outputs(rows.build())[0][0], fresh.outputs(fresh.build())[0][0])
    floats = [ADAPTER.build(rows.hold, Candidate.of({}, (), recipes), rows.statistics, 1) for recipes in ((), ALL[2:])]
    np.testing.assert_array_equal(*(rows.outputs(built)[0][0] for built in floats))


def test_what_is_not_there_is_refused_with_what_is(rows):
    with pytest.raises(CapabilityError, match=r"\['magic'\].*'smoothquant', 'bias_correction'"):
        rows.build(("magic",))
    candidate = Candidate.of(rows.full.ops, (), ("smoothquant",))
    with pytest.raises(AdapterError, match="calibrate first"):
        ADAPTER.build(rows.hold, candidate, replace(rows.statistics, inputs=None), 1)


def test_a_change_of_the_function_is_not_applied_and_says_so(rows, monkeypatch):
    def wrong(captured, spool):
        (norm,) = (item for item in edges.norm_edges(captured) if isinstance(item, Edge))
        values = next(_norm_scales(captured)) * np.float32(1.5)
        return Change(edits={(norm.producer, 2): values}, tensors=(norm.producer,), refused={}, note="wrong")

    monkeypatch.setattr(variants, "_PROPOSALS", {"smoothquant": wrong})
    fresh = replace(rows.hold.captured, cache={})
    variant = variants.prepare(fresh, ("smoothquant",), rows.statistics)
    assert variant.statistics is rows.statistics
    assert any("was not applied" in note for note in variant.captured.changes)


class Obstacles(nn.Module):
    """What must not be rescaled: relu6, a residual, a shared weight, a softplus, an output."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        x = F.relu6(self.a(x))
        y = self.b(x)
        x = F.softplus(self.c(x + y))
        z = self.d(x)
        return z, self.d(F.relu(z))


def test_refusals_name_what_stands_in_the_way(tmp_path):
    tuned = Tuned(Obstacles(), (8,), tmp_path)
    found = {item.producer: getattr(item, "reason", "edge") for item in edges.weight_edges(tuned.hold.captured)}
    reasons = list(found.values())
    assert "cuts off" in reasons[0] or "hardtanh" in reasons[0] or "relu6" in reasons[0]
    assert "residual sum" in reasons[1]
    assert "softplus" in reasons[2]
    assert "shares a weight" in reasons[3]
    assert tuned.capability.recipes == ("bias_correction",)


def test_weight_only_and_training_offer_no_recipes(tmp_path):
    for approach in ("weight_only", "qat"):
        options = AdapterOptions(
            approach=approach, example=np.ones((2, 6, 16), np.float32), extra=FrozenMap({"compile": False})
        )
        assert ADAPTER.query(ADAPTER.load(Block(), options)).recipes == ()
