"""Weights in blocks of 4 and 8 bits: the runtime's own tool, exact arithmetic and the definitions as oracles."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import graphs
import numpy as np
import onnx
from graphs import ADAPTER, graph_of, options, weights
from onnx import helper
from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_matmul_8bits
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.neural_compressor.weight_only import gptq as vendored_gptq
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor

from neural_tune.config import parse_rules
from neural_tune.errors import AdapterError, CapabilityError, ConfigError
from neural_tune.space import TuningSpace
from neural_tune.values import Candidate, DType, Granularity, Observer, QuantSpec
from neural_tune_onnxruntime import build, forms, gptq, hessian, nbits

DTYPES = {(4, True): DType.INT4, (4, False): DType.UINT4, (8, True): DType.INT8, (8, False): DType.UINT8}


def spec_of(bits=4, symmetric=True, size=32, observer=Observer.MINMAX):
    return QuantSpec(
        dtype=DTYPES[bits, symmetric],
        symmetric=symmetric,
        granularity=Granularity.PER_GROUP,
        group_size=size,
        observer=observer,
    )


def correlated(rows, samples=400, seed=0):
    """Inputs with strong correlations and a few large channels, as activations have them."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((samples, rows // 4)) @ rng.standard_normal((rows // 4, rows))
    sizes = np.exp(rng.normal(0, 1, rows))
    return ((mixed + 0.3 * rng.standard_normal((samples, rows))) * sizes).astype(np.float32)


def error(x, weight, blocks):
    """The relative squared error of the product, in float64."""
    exact = x.astype(np.float64) @ weight
    return float(np.sum((x.astype(np.float64) @ blocks.values() - exact) ** 2) / np.sum(exact**2))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "columns", "size"), [(256, 40, 32), (100, 17, 32), (384, 24, 128), (70, 9, 64)])
def test_rounding_to_nearest_equals_the_stock_tool_bit_for_bit(rows, columns, size, bits, symmetric):
    weight = weights(rows, w=(rows, columns))["w"]
    weight[:, 0] = 0.0  # a dead column
    weight[: min(size, rows), 1] = np.abs(weight[: min(size, rows), 1])  # a block without negative values
    blocks, per_byte = -(-rows // size), 8 // bits
    padded = np.zeros((blocks * size, columns), np.float32)
    padded[:rows] = weight
    codes = np.zeros((columns, blocks, size // per_byte), np.uint8)
    scale, zero = np.zeros((columns, blocks), np.float32), np.zeros((columns, -(-blocks // per_byte)), np.uint8)
    tool = quantize_matmul_4bits if bits == 4 else quantize_matmul_8bits
    tool(codes, padded, scale, zero, size, columns, rows, symmetric)
    found = nbits.round_to_nearest(weight, spec_of(bits, symmetric, size))
    np.testing.assert_array_equal(found.scale, scale)
    np.testing.assert_array_equal(found.packed(), codes)
    if not symmetric:
        np.testing.assert_array_equal(found.packed_zero(), zero)


@pytest.mark.parametrize("bits", [4, 8])
def test_asymmetric_rounding_equals_the_other_stock_algorithm_where_every_block_spans_zero(bits):
    weight = weights(3, w=(128, 32))["w"]
    rows = np.ascontiguousarray(weight.T)
    codes, scale, zero = quant_tensor(rows, bits, 32, "asym", "uint")
    found = nbits.round_to_nearest(weight, spec_of(bits, False, 32))
    np.testing.assert_allclose(found.scale.ravel(), scale.ravel(), rtol=1e-6)
    np.testing.assert_array_equal(found.zero.ravel(), zero.ravel())
    # It divides in float64 and rounds halves to even; a handful of values lie on the edge of two codes.
    assert np.mean(found.codes.ravel() != codes.ravel()) < 1e-3


def test_packing_and_unpacking_are_inverse():
    weight = weights(1, w=(100, 7))["w"]
    for bits in (4, 8):
        found = nbits.round_to_nearest(weight, spec_of(bits, True, 32))
        assert found.packed().shape == (7, 4, 32 * bits // 8)
        assert found.packed_zero().shape == (7, -(-4 * bits // 8))
        assert np.abs(found.values() - weight).max() <= np.abs(found.scale).max() * 1.0001


def test_gptq_without_correlations_is_rounding_to_nearest():
    weight = weights(2, w=(96, 20))["w"]
    for symmetric in (True, False):
        spec = spec_of(4, symmetric, 32)
        found, expected = gptq.quantize(weight, spec, np.eye(96)), nbits.round_to_nearest(weight, spec)
        np.testing.assert_array_equal(found.packed(), expected.packed())
        np.testing.assert_array_equal(found.scale, expected.scale)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [32, 128])
def test_gptq_beats_rounding_and_is_no_worse_than_the_stock_gptq(size, symmetric):
    weight, x = weights(4, w=(256, 48))["w"], correlated(256)
    curvature = (x.T.astype(np.float64) @ x) / len(x)
    spec = spec_of(4, symmetric, size)
    ours = error(x, weight, gptq.quantize(weight, spec, curvature))
    nearest = error(x, weight, nbits.round_to_nearest(weight, spec))
    assert ours < 0.5 * nearest
    theirs = vendored_gptq(
        weight.copy(), 2.0 * curvature, 4, size, "sym" if symmetric else "asym", blocksize=128, percdamp=0.01
    )
    exact = x.astype(np.float64) @ weight
    stock = np.sum((x.astype(np.float64) @ theirs - exact) ** 2) / np.sum(exact**2)
    assert ours <= 1.05 * stock


def test_gptq_survives_dead_inputs_and_singular_curvature():
    weight, x = weights(5, w=(128, 16))["w"], correlated(128, samples=20)  # fewer samples than inputs: singular
    x[:, 7] = 0.0
    found = gptq.quantize(weight, spec_of(4, True, 32), x.T @ x)
    assert np.isfinite(found.values()).all()
    assert error(x, weight, found) < error(x, weight, nbits.round_to_nearest(weight, spec_of(4, True, 32)))
    with pytest.raises(AdapterError, match="not finite"):
        gptq.quantize(weight, spec_of(), np.full((128, 128), np.nan))


@pytest.mark.parametrize("bits", [4, 8])
def test_clipping_never_raises_the_error_of_a_block(bits):
    weight, x = weights(6, w=(128, 300))["w"], correlated(128)
    weight[::17] *= 4.0  # outliers, so that clipping has something to do
    curvature = (x.T @ x) / len(x)
    spec = spec_of(bits, True, 32)
    clipped, plain = nbits.clipped(weight, spec, curvature), nbits.round_to_nearest(weight, spec)

    def block_errors(blocks):
        off = (blocks.values() - weight).reshape(4, 32, 300).astype(np.float64)
        parts = np.stack([curvature[i : i + 32, i : i + 32] for i in range(0, 128, 32)])
        return np.einsum("bin,bij,bjn->bn", off, parts, off)

    assert (block_errors(clipped) <= block_errors(plain) * (1 + 1e-3) + 1e-12).all()
    if bits == 4:
        assert block_errors(clipped).sum() < 0.95 * block_errors(plain).sum()
    blind = nbits.clipped(weight, spec)
    assert np.sum((blind.values() - weight) ** 2) <= np.sum((plain.values() - weight) ** 2) * (1 + 1e-6)


def product_net(kind="MatMul", rows=96, columns=24, turned=False, bias=False):
    """One product behind a float op."""
    shape = (columns, rows) if turned else (rows, columns)
    names = ["t", "w"] + (["b"] if bias else [])
    attributes = {"transB": 1} if turned else {}
    nodes = [helper.make_node("Tanh", ["x"], ["t"], "tanh"), helper.make_node(kind, names, ["y"], "mm", **attributes)]
    shapes = {"w": shape} | ({"b": (columns,)} if bias else {})
    return graph_of(nodes, weights(7, **shapes), {"x": ["n", rows]})


def held(model, **changes):
    return ADAPTER.load(model, options(approach="weight_only", **changes))


@pytest.fixture
def kept(tmp_path):
    """Return a function that gives a model, its statistics and its space."""

    def make(model, **changes):
        hold = held(model, **changes)
        statistics = ADAPTER.calibrate(hold, graphs.batches(model, 4, 20), tmp_path / "statistics")
        return hold, statistics, TuningSpace.of(ADAPTER.query(hold))

    return make


def float64_of(hold, config, model, x):
    """What the product computes with the weights of `config`, in float64."""
    op = hold.graph.ops[-1]
    weight = np.asarray(hold.store.array(op.inputs[1]), np.float32)
    matrix = weight.T if forms.is_transposed(op) else weight
    real = nbits.round_to_nearest(matrix, config.weight).values()
    bias = np.asarray(hold.store.array(op.input(2))) if op.input(2) else 0.0
    return np.tanh(x.astype(np.float64)) @ real.astype(np.float64) + bias


@pytest.mark.parametrize("dtype", list(nbits.BITS))
@pytest.mark.parametrize(
    ("kind", "turned", "bias"),
    [("MatMul", False, False), ("Gemm", True, True), ("Gemm", False, True), ("Gemm", True, False)],
)
def test_products_compute_with_the_rounded_weights(kind, turned, bias, dtype):
    model = product_net(kind, 96, 24, turned, bias)
    hold = held(model)
    (feed,) = graphs.batches(model, 1)
    for level, tolerance in ((0, 1e-5), (4, 0.02)):  # level 4 rounds activations to int8 per block
        config = forms.block_config(dtype, 32, Observer.MINMAX, level)
        found = ADAPTER.run(ADAPTER.build(hold, Candidate.of({"mm": config}), None, 1), feed)[0]
        expected = float64_of(hold, config, model, feed["x"])
        assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


def test_8_bits_come_first_and_all_choices_build(kept):
    hold, statistics, space = kept(product_net(rows=256, columns=64))
    choices = space.groups[0].choices[:-1]
    assert (choices[0].weight.dtype, choices[0].weight.group_size) == (DType.INT8, 128)
    assert {(c.weight.dtype, c.weight.group_size, c.weight.observer) for c in choices[1:]} == {
        (DType.INT4, size, observer)
        for size in (128, 32)
        for observer in (Observer.GPTQ, Observer.MSE, Observer.MINMAX)
    }
    (feed,) = graphs.batches(product_net(rows=256, columns=64), 1)
    exact = graphs.run(product_net(rows=256, columns=64), feed)[0]
    off = {}
    for config in choices:
        built = ADAPTER.build(hold, Candidate.of({"mm": config}), statistics, 1)
        off[config] = float(np.linalg.norm(ADAPTER.run(built, feed)[0] - exact) / np.linalg.norm(exact))
    assert off[choices[0]] < 0.02
    assert max(off.values()) < 0.25


def test_saved_model_is_a_file_of_its_own_and_four_bits_are_an_eighth(kept, tmp_path):
    model = product_net(rows=512, columns=256)
    hold, _, space = kept(model)
    four = next(
        c for c in space.groups[0].choices if c.weight.dtype is DType.INT4 and c.weight.observer is Observer.MINMAX
    )
    built = ADAPTER.build(hold, Candidate.of({"mm": four}), None, 1)
    path = ADAPTER.save(built, tmp_path / "saved")
    assert abs(ADAPTER.size(built) - path.stat().st_size) <= 8
    assert path.stat().st_size < len(model.SerializeToString()) / 7
    (feed,) = graphs.batches(model, 1)
    np.testing.assert_array_equal(graphs.run(path, feed)[0], ADAPTER.run(built, feed)[0])


def test_curvature_is_that_of_the_calibration_inputs(kept):
    model = product_net(rows=32)
    hold, statistics, _ = kept(model)
    found = hessian.hessian(build.looking_at(hold, statistics), "t")
    x = np.tanh(np.concatenate([feed["x"] for feed in graphs.batches(model, 4, 20)]).astype(np.float64))
    np.testing.assert_allclose(found, x.T @ x / len(x), rtol=1e-4, atol=1e-6)


def test_curvatures_that_do_not_fit_together_are_taken_in_several_passes(kept, monkeypatch):
    model = graphs.matmul_net()
    hold, statistics, space = kept(model)
    chosen = space.candidate(
        {g.name: next(c for c in g.choices if c.weight.observer is Observer.GPTQ) for g in space.groups}
    )
    whole = ADAPTER.run(ADAPTER.build(hold, chosen, statistics, 1), graphs.batches(model, 1)[0])[0]
    hold, statistics, _ = kept(model)
    passes = []
    collect = hessian._collect
    monkeypatch.setattr(hessian, "BUDGET", 8 * 16**2)
    monkeypatch.setattr(hessian, "_collect", lambda *a: passes.append(a[2]) or collect(*a))
    parts = ADAPTER.run(ADAPTER.build(hold, chosen, statistics, 1), graphs.batches(model, 1)[0])[0]
    assert [len(names) for names in passes] == [1, 1, 1]
    np.testing.assert_array_equal(parts, whole)


def test_gptq_is_not_offered_without_data_and_says_so():
    hold = held(product_net(), has_data=False)
    (op,) = [op for op in ADAPTER.query(hold).ops if op.name == "mm"]
    assert not any(config.weight.observer is Observer.GPTQ for config in (*op.choices[:-1], *op.extra))
    assert "GPTQ needs calibration data" in op.why
    config = forms.block_config(DType.INT4, 32, Observer.GPTQ, 4)
    with pytest.raises(AdapterError, match="pass calibration data"):
        ADAPTER.build(hold, Candidate.of({"mm": config}), None, 1)


def test_clipping_without_data_looks_at_the_weights_alone():
    model = product_net()
    hold = held(model, has_data=False)
    config = forms.block_config(DType.INT4, 32, Observer.MSE, 0)
    (feed,) = graphs.batches(model, 1)
    found = ADAPTER.run(ADAPTER.build(hold, Candidate.of({"mm": config}), None, 1), feed)[0]
    real = nbits.clipped(np.asarray(hold.store.array("w")), config.weight).values()
    np.testing.assert_allclose(found, np.tanh(feed["x"].astype(np.float64)) @ real, rtol=1e-4, atol=1e-5)


def test_rules_name_bits_blocks_and_algorithm():
    capability = ADAPTER.query(held(product_net(rows=256)))
    wish = {"weight": {"dtype": "uint4", "granularity": "per_group", "group_size": 64, "algorithm": "rtn"}}
    space = TuningSpace.of(capability, parse_rules(op_type={"MatMul": wish}))
    first = space.groups[0].choices[0].weight
    assert (first.dtype, first.group_size, first.observer) == (DType.UINT4, 64, Observer.MINMAX)
    space = TuningSpace.of(capability, parse_rules(op_name={"mm": {"weight": {"dtype": "int4", "algorithm": "gptq"}}}))
    assert {c.weight.observer for c in space.groups[0].choices[:-1]} == {Observer.GPTQ}
    with pytest.raises(ConfigError, match=r"group_size.*33"):
        parse_rules(op_type={"MatMul": {"weight": {"group_size": 33}}})


def test_accuracy_level_is_an_option_of_the_model():
    for level, activation in ((4, DType.INT8), (0, None)):
        (op,) = [
            op for op in ADAPTER.query(held(product_net(), extra={"accuracy_level": level})).ops if op.name == "mm"
        ]
        found = op.choices[0].activation
        assert (found.dtype if found else None) == activation


def test_switches_run_weight_only_ops(kept):
    model = graphs.matmul_net()
    hold, statistics, space = kept(model)
    full = space.candidate(
        {g.name: next(c for c in g.choices if c.weight.observer is Observer.GPTQ) for g in space.groups}
    )
    toggles = ADAPTER.toggles(hold, full, statistics, 1)
    (feed,) = graphs.batches(model, 1)
    for names in ((), ("up",), tuple(full.ops)):
        part = Candidate.of({name: full.ops[name] for name in names})
        expected = ADAPTER.run(ADAPTER.build(hold, part, statistics, 1), feed)[0]
        np.testing.assert_allclose(toggles.run(frozenset(names), feed)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_units_that_decayed_to_nothing_become_zero_without_an_overflow(bits, symmetric):
    x, weight = correlated(64), np.random.default_rng(1).standard_normal((64, 12)).astype(np.float32)
    weight[:, :3] *= np.float32(1e-41)
    spec = spec_of(bits, symmetric)
    curvature = x.T @ x / len(x)
    made = (nbits.round_to_nearest(weight, spec), nbits.clipped(weight, spec), gptq.quantize(weight, spec, curvature))
    for blocks in made:
        assert not blocks.values()[:, :3].any()
        assert error(x, weight, blocks) < (0.25 if bits == 4 else 0.02)


@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("dtype", ["int4", "uint4"])
def test_table_in_blocks_of_four_bits_equals_the_stock_tool(dtype, size, tmp_path):
    model = graphs.embedding_net(width=128)
    hold = ADAPTER.load(model, options(approach="weight_only"))
    rule = {"Gather": {"weight": {"dtype": dtype, "group_size": size, "algorithm": "rtn"}}}
    space = TuningSpace.of(ADAPTER.query(hold), parse_rules(op_type=rule))
    group = next(group for group in space.groups if group.type == "Gather")
    saved = ADAPTER.save(ADAPTER.build(hold, space.candidate({group.name: group.choices[0]}), None, 1), tmp_path)
    assert saved.stat().st_size < 0.3 * len(model.SerializeToString())
    tool = MatMulNBitsQuantizer(
        onnx.load_from_string(model.SerializeToString()),
        block_size=size,
        is_symmetric=dtype == "int4",
        op_types_to_quantize=("Gather",),
    )
    tool.process()
    feed = {"ids": np.random.default_rng(0).integers(0, 300, (4, 5))}
    (found,), (expected,) = graphs.run(saved, feed), graphs.run(tool.model.model, feed)
    np.testing.assert_array_equal(found, expected)
    (floats,) = graphs.run(model, feed)
    assert 0.0 < np.linalg.norm(found - floats) < 0.2 * np.linalg.norm(floats)


def test_table_that_does_not_split_into_blocks_is_refused_with_the_reason():
    hold = ADAPTER.load(graphs.embedding_net(width=40), options(approach="weight_only"))
    config = forms.block_config(DType.INT4, 16, Observer.MINMAX, 0)
    with pytest.raises(CapabilityError, match="rows of 40 values are no whole number of blocks of 16"):
        ADAPTER.build(hold, Candidate.of({"embed": config}), None, 1)
