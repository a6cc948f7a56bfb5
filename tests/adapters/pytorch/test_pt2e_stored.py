"""Weights in fewer bits without int8 kernels: int8 embedding tables, weight-only int8 and int4, bf16 - each against arithmetic by hand."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest

from neural_tune import AccuracyCriterion, PostTrainingQuantConfig, TuningCriterion, fit, load
from neural_tune.errors import CapabilityError
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE, Candidate, DType, FrozenMap, Granularity, Mode, OpConfig, QuantSpec

torch = pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')
pytest.importorskip("torchao", reason='needs pip install "neural-tune[pytorch]"')

from neural_tune_pytorch.adapter import PyTorchAdapter  # noqa: E402
from neural_tune_pytorch.backends.pt2e import lowering, stored  # noqa: E402
from neural_tune_pytorch.backends.pt2e.codes import packed_groups  # noqa: E402

UNCOMPILED = FrozenMap({"compile": False})
VOCABULARY = 8000


class Tagger(torch.nn.Module):
    """Two tables, a linear of 64 columns, a convolution over the tokens, a linear tied to the first table."""

    def __init__(self):
        super().__init__()
        self.words, self.places = torch.nn.Embedding(50, 64, padding_idx=0), torch.nn.Embedding(16, 64)
        self.hidden, self.conv = torch.nn.Linear(64, 64), torch.nn.Conv1d(64, 64, 3, padding=1)
        self.head = torch.nn.Linear(64, 50, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids):
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        x = torch.tanh(self.hidden(x)).transpose(1, 2)
        return self.head(torch.tanh(self.conv(x)).transpose(1, 2))


def tagger():
    torch.manual_seed(20)
    return Tagger().eval()


def ids(seed=0):
    return torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(seed))


def held(module, batch, approach, extra=UNCOMPILED):
    adapter = PyTorchAdapter()
    hold = adapter.load(module, AdapterOptions(approach=approach, example=batch, extra=extra))
    return adapter, hold, TuningSpace.of(adapter.query(hold))


def sqnr(expected, found):
    return 10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum())


@pytest.mark.parametrize("approach", ["static", "dynamic", "auto", "weight_only"])
def test_tables_are_int8_by_default_under_every_approach_of_post_training(approach):
    _, _, space = held(tagger(), ids(), approach)
    ops = {op.name: op for op in space.capability.ops}
    assert ops["words"].choices[0] == OpConfig(mode=Mode.WEIGHT_ONLY, weight=stored.ROWS)
    assert ops["words"].extra == (OpConfig(mode=Mode.WEIGHT_ONLY, weight=stored.WHOLE),)
    modes = {"static": Mode.STATIC, "dynamic": Mode.DYNAMIC, "auto": Mode.STATIC, "weight_only": Mode.WEIGHT_ONLY}
    assert ops["hidden"].choices[0].mode is modes[approach]


def _dequantized(weight, config):
    """The weight after each scheme, in numpy and float64 but for the scales."""
    if config.weight.dtype is DType.INT4:
        groups = weight.reshape(weight.shape[0], -1, 32)
        scale = np.abs(groups).max(-1, keepdims=True) / np.float32(7.5)
        return (np.clip(np.round(groups / scale), -8, 7) * scale).reshape(weight.shape)
    axes = tuple(range(1, weight.ndim)) if config.weight.granularity is Granularity.PER_CHANNEL else None
    scale = np.abs(weight).max(axis=axes, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1  # the row of the padding token is all zeros
    return np.round(weight / scale) * scale


FORMS = [(name, spec) for name in ("words", "places") for spec in (stored.ROWS, stored.WHOLE)]
FORMS += [("hidden", stored.ROWS), ("hidden", stored.GROUPS), ("conv", stored.ROWS), ("head", stored.ROWS)]


def test_every_form_equals_the_network_over_weights_rounded_by_hand():
    adapter, hold, _ = held(tagger(), ids(), "weight_only")
    for name, spec in FORMS:
        config = stored.weight_only(spec)
        module = tagger()
        module.head.weight = torch.nn.Parameter(module.head.weight.detach().clone())  # each op alone
        layer = getattr(module, name)
        rounded = _dequantized(layer.weight.detach().numpy(), config).astype(np.float32)
        assert not np.array_equal(rounded, layer.weight.detach().numpy())
        layer.weight = torch.nn.Parameter(torch.from_numpy(rounded))
        with torch.no_grad():
            expected = module(ids(1)).numpy()
        built = adapter.build(hold, Candidate.of({name: config}), None, 1)
        np.testing.assert_allclose(adapter.run(built, ids(1))[0], expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_no_value_is_further_than_half_a_step_from_its_four_bits():
    weight = torch.randn(16, 96, generator=torch.Generator().manual_seed(1))
    weight[3, :32] = 0.0
    packed, scale = packed_groups(weight, 32)
    low, high = (packed & 15).int() - 8, (packed >> 4).int() - 8
    real = torch.stack([low, high], -1).reshape(16, 3, 32) * scale
    assert packed.shape == (16, 48)
    assert bool(((real - weight.reshape(16, 3, 32)).abs() <= scale * 0.5001).all())
    assert bool((real[3, 0] == 0).all())


@pytest.mark.skipif(not stored.has_bf16(), reason="oneDNN has no bf16 kernels for this processor")
def test_a_cast_op_computes_in_bf16_and_its_neighbours_do_not():
    adapter, hold, space = held(tagger(), ids(), "static")
    ops = {op.name: op for op in space.capability.ops}
    assert stored.CAST in ops["hidden"].extra
    assert stored.CAST in ops["conv"].extra
    built = adapter.build(hold, Candidate.of({"hidden": stored.CAST}), None, 1)
    module = tagger()
    layer = module.hidden
    half = torch.nn.Linear(64, 64).to(torch.bfloat16)
    half.load_state_dict({name: value.to(torch.bfloat16) for name, value in layer.state_dict().items()})
    layer.forward = lambda x: half(x.to(torch.bfloat16)).float()
    with torch.no_grad():
        np.testing.assert_array_equal(adapter.run(built, ids())[0], module(ids()).numpy())


def test_toggles_equal_the_built_graph_for_every_subset():
    """Of a candidate with every mode there is: static, weight-only in 8 and 4 bits, tables, and a cast."""
    adapter, hold, space = held(tagger(), ids(), "static")
    found = {"hidden": stored.weight_only(stored.GROUPS), "conv": stored.CAST, "head": stored.weight_only(stored.ROWS)}
    full = Candidate.of({**space.preferred().ops, **found})
    toggles = adapter.toggles(hold, full, None, 1)
    for size in range(len(full.ops) + 1):
        for names in itertools.combinations(full.ops, size):
            candidate = Candidate.of({name: full.config_of(name) for name in names})
            expected = adapter.run(adapter.build(hold, candidate, None, 1), ids(2))[0]
            np.testing.assert_array_equal(toggles.run(frozenset(names), ids(2))[0], expected)


def test_a_table_and_a_linear_over_one_weight_share_their_codes(tmp_path):
    adapter, hold, _ = held(tagger(), ids(), "weight_only")
    both = Candidate.of(dict.fromkeys(("words", "head"), stored.weight_only(stored.ROWS)))
    graph = adapter.build(hold, both, None, 1).network.graph
    names = [name for name, tensor in graph.state_dict().items() if tuple(tensor.shape) == (50, 64)]
    assert len(names) == 1
    assert graph.state_dict()[names[0]].dtype == torch.int8


def test_forms_that_an_op_is_not_offered_are_refused():
    adapter, hold, space = held(tagger(), ids(), "static")
    wrong = {
        "words": (stored.weight_only(stored.GROUPS), space.preferred().config_of("hidden")),
        "conv": (stored.weight_only(stored.GROUPS), stored.weight_only(QuantSpec(dtype=DType.UINT8))),
        "tanh": (stored.weight_only(stored.ROWS),),
    }
    for name, configs in wrong.items():
        for config in configs:
            with pytest.raises(CapabilityError):
                adapter.build(hold, Candidate.of({name: config}), None, 1)


PLAIN = """
import sys, numpy, torch
network = torch.export.load(sys.argv[1]).module()
with torch.no_grad():
    numpy.save(sys.argv[3], network(torch.from_numpy(numpy.load(sys.argv[2])))[0].numpy())
assert not any(name.startswith(("torchao", "neural_tune")) for name in sys.modules)
"""


def test_a_weight_only_file_loads_with_torch_alone(tmp_path):
    adapter, hold, space = held(tagger(), ids(), "weight_only")
    changes = {"hidden": stored.weight_only(stored.GROUPS)} | ({"conv": stored.CAST} if stored.has_bf16() else {})
    candidate = space.preferred().with_ops(changes)
    artifact = adapter.save(adapter.build(hold, candidate, None, 1), tmp_path)
    batch, outputs = tmp_path / "batch.npy", tmp_path / "outputs.npy"
    np.save(batch, ids(3).numpy())
    subprocess.run([sys.executable, "-W", "ignore", "-c", PLAIN, artifact, batch, outputs], check=True, timeout=120)
    expected = adapter.run(adapter.restore(artifact, 1), ids(3))[0]
    np.testing.assert_allclose(np.load(outputs), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(bool(lowering.probe().problem), reason="torch.compile finds no C++ compiler here")
def test_compiled_networks_gather_codes_and_agree_with_the_graph():
    """The table stays int8 in memory; weight-only linears are folded into float kernels, casts call bf16 kernels."""
    adapter, hold, space = held(tagger(), ids(), "weight_only", FrozenMap())
    changes = {"hidden": stored.CAST} if stored.has_bf16() else {}
    built = adapter.build(hold, space.preferred().with_ops(changes), None, 1)
    network = built.network
    (found,) = adapter.run(built, ids())
    expected = lowering.Reference(network.graph)(ids())[0].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)
    counts = adapter.report(built).counts
    assert counts["int8_kernels"] == counts["int8_kernels_expected"] == 0
    assert adapter.report(built).notes == ()
    code = network.forms[0].code
    assert "const int8_t*" in code
    assert code.count("at::BFloat16*") >= 2 * len(changes)


def bert(vocabulary=VOCABULARY, **changes):
    transformers = pytest.importorskip("transformers", reason='needs pip install "neural-tune[transformers]"')
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 1024}
    config = transformers.BertConfig(vocab_size=vocabulary, num_labels=3, **(sizes | changes))
    return transformers.BertForSequenceClassification(config).eval()


def tokens(seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, VOCABULARY, (4, 16), generator=generator)
    return {"input_ids": found, "attention_mask": torch.ones_like(found)}


def test_a_bert_with_its_tables_is_3_6_times_smaller_and_as_accurate(tmp_path):
    """Half of this network is its tables. In float64 terms: int8 tables alone cost far less than int8 linears do."""
    adapter, hold, space = held(bert(), tokens(), "dynamic")
    tables = [op.name for op in space.capability.ops if op.type == "embedding"]
    assert len(tables) == 3
    full = space.preferred()
    assert {full.config_of(name).mode for name in tables} == {Mode.WEIGHT_ONLY}
    whole = adapter.save(adapter.build(hold, FLOAT_CANDIDATE, None, 1), tmp_path / "float").stat().st_size
    small = adapter.save(adapter.build(hold, full, None, 1), tmp_path / "int8").stat().st_size
    assert whole / small >= 3.6
    expected = adapter.run(adapter.build(hold, FLOAT_CANDIDATE, None, 1), tokens(1))[0]
    only_tables = Candidate.of({name: full.config_of(name) for name in tables})
    accuracy = {
        name: sqnr(expected, adapter.run(adapter.build(hold, candidate, None, 1), tokens(1))[0])
        for name, candidate in (("tables", only_tables), ("full", full))
    }
    assert accuracy["tables"] > 35
    assert accuracy["full"] > 20
    assert accuracy["tables"] > accuracy["full"]
    coarse = Candidate.of(dict.fromkeys(tables, stored.weight_only(stored.WHOLE)))
    assert sqnr(expected, adapter.run(adapter.build(hold, coarse, None, 1), tokens(1))[0]) > 25


def test_weight_only_sizes_are_a_quarter_and_a_sixth(tmp_path):
    adapter, hold, space = held(
        bert(vocabulary=500, hidden_size=512, num_attention_heads=8), tokens_of(500), "weight_only"
    )
    linears = [op.name for op in space.capability.ops if op.type == "linear" and len(op.choices) == 3]
    four = space.preferred().with_ops(dict.fromkeys(linears, stored.weight_only(stored.GROUPS)))
    sizes = [adapter.size(adapter.build(hold, c, None, 1)) for c in (FLOAT_CANDIDATE, space.preferred(), four)]
    assert sizes[0] / sizes[1] >= 3.6
    assert sizes[0] / sizes[2] >= 5.5


def tokens_of(count):
    return {name: tensor % count for name, tensor in tokens().items()}


BF16 = {"weight": {"dtype": ["bf16"]}, "activation": {"dtype": ["bf16"]}}
INT4 = {"weight": {"dtype": ["int4"]}}
WISHES = [
    ("weight_only", {}, "weight_only: weight int8 sym per_channel"),
    ("weight_only", INT4, "weight_only: weight int4 sym per_group(32)"),
    pytest.param(
        *("static", BF16, "cast"),
        marks=pytest.mark.skipif(not stored.has_bf16(), reason="oneDNN has no bf16 kernels for this processor"),
    ),
]


@pytest.mark.parametrize(("backend", "kind"), [("pt2e", "linear"), ("fx", "Linear"), ("eager", "Linear")])
@pytest.mark.parametrize(("approach", "wish", "precision"), WISHES)
def test_fit_meets_a_wish_for_a_form_and_reports_it(tmp_path, backend, kind, approach, wish, precision):
    """End to end: float inputs agree after saving and loading, and the report names the form of the op."""
    module, batches = tagger(), [ids(seed) for seed in range(3)]
    with torch.no_grad():
        labels = module(ids(9)).argmax(-1)

    def agreement(candidate):
        return float((torch.as_tensor(candidate(ids(9))).argmax(-1) == labels).float().mean())

    result = fit(
        module,
        PostTrainingQuantConfig(
            backend=backend,
            approach=approach,
            op_type_dict={kind: wish} if wish else {},
            workspace=str(tmp_path / "work"),
            options={"compile": False} if backend == "pt2e" else {},
            tuning_criterion=TuningCriterion(strategy="basic", max_trials=3),
            accuracy_criterion=AccuracyCriterion(tolerable_loss=0.5),
        ),
        calib_dataloader=batches,
        eval_func=agreement,
        reporter="quiet",
    )
    assert result.accepted, result.reason
    outcomes = {op.name: op.precision for op in result.ops}
    assert outcomes["hidden"].startswith(precision)
    if backend == "pt2e":  # the tables of FX and eager mode have a form of their own
        assert outcomes["words"].startswith("weight_only: weight int8 sym per_channel")
    result.save(tmp_path / "saved")
    with torch.no_grad():
        expected, found = module(ids(9)), torch.as_tensor(load(tmp_path / "saved")(ids(9)))
    error = float((found - expected).norm() / expected.norm())
    assert 0 < error < 0.15
