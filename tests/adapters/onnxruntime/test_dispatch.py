"""Convolutions written for the faster kernel: the same bits, fused as before, and only where the processor gains."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

from dataclasses import replace

import graphs
import numpy as np
import onnx
from graphs import ADAPTER, NETS, Tuned
from onnx import helper

from neural_tune.protocols import AdapterOptions
from neural_tune.values import Candidate, DType, Granularity, Mode, OpConfig
from neural_tune_onnxruntime import dispatch, guard, model
from neural_tune_onnxruntime.processor import Processor
from neural_tune_onnxruntime.settings import Settings
from neural_tune_onnxruntime.weights import read

AMX = replace(graphs.VNNI, dots=True, tiles=True)
CONV_NETS = ("conv", "depthwise", "residual")


def convolution(weight, *, size=9, opset=17, bias=True, **attributes):
    """A convolution of the graph input with a weight of this shape, and one behind it."""
    attributes = {"kernel_shape": list(weight[2:]), **attributes}
    nodes = [
        helper.make_node("Conv", ["x", "w", *(["b"] if bias else [])], ["c"], "first", **attributes),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "v"], ["y"], "second"),
    ]
    found = graphs.weights(8, w=weight, b=(weight[0],), v=(4, weight[0], *(1 for _ in weight[2:])))
    channels = weight[1] * attributes.get("group", 1)
    return graphs.graph_of(nodes, found, {"x": ["n", channels, *(size for _ in weight[2:])]}, opset=opset)


def is_tiled(source, processor=AMX):
    hold = model.load(source, processor=processor)
    return "w" in hold.store.shifted


def missing(source, processor=AMX):
    hold = model.load(source, processor=processor)
    first = next(op for op in hold.graph.ops if op.name == "first")
    return dispatch.missing_channels(first, hold.kernels["first"], hold.graph, hold.processor)


@pytest.fixture
def eager(monkeypatch):
    """Every convolution is large enough for tiles, and every small one wide enough for a fourth channel."""
    for name in ("_TILED_OUTPUTS", "_TILED_POINTWISE", "_TILED_PATCHES", "_QUAD_OUTPUTS"):
        monkeypatch.setattr(dispatch, name, 1)


@pytest.mark.parametrize(
    ("weight", "attributes", "expected"),
    [
        ((64, 256, 1, 1), {}, True),
        ((64, 252, 1, 1), {}, False),
        ((60, 256, 1, 1), {}, False),
        ((64, 256, 1, 1), {"strides": [2, 2]}, False),
        ((64, 256, 1, 1), {"pads": [1, 1, 1, 1]}, False),
        ((64, 512, 1, 1), {"strides": [2, 2]}, True),
        ((64, 57, 3, 3), {}, True),
        ((64, 56, 3, 3), {}, False),
        ((64, 64, 3, 3), {"group": 2}, False),
        ((64, 171, 3), {}, True),
    ],
)
def test_large_products_run_in_tiles(weight, attributes, expected):
    assert is_tiled(convolution(weight, **attributes)) == expected
    assert not is_tiled(convolution(weight, **attributes), replace(AMX, tiles=False))


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ((16, 3, 3, 3), 1),
        ((16, 1, 3, 3), 3),
        ((32, 2, 5, 5), 2),
        ((64, 3, 7, 7), 1),
        ((32, 3, 7, 7), 0),
        ((64, 1, 7, 7), 0),
        ((15, 3, 3, 3), 0),
        ((16, 3, 1, 1), 0),
        ((16, 4, 3, 3), 0),
        ((16, 3, 3), 0),
    ],
)
def test_few_channels_are_filled_up_to_four(weight, expected):
    assert missing(convolution(weight)) == expected
    assert missing(convolution(weight), replace(AMX, dots=False)) == 0


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("quant_format", ["QDQ", "QOperator"])
@pytest.mark.parametrize("name", CONV_NETS)
def test_bits_are_the_same_and_everything_stays_fused(name, quant_format, tmp_path):
    source = NETS[name]()
    feeds = graphs.batches(source)
    plain, fast = (Tuned(source, feeds, tmp_path / word, kind) for word, kind in (("a", graphs.VNNI), ("b", AMX)))
    for tuned in (plain, fast):
        tuned.hold = replace(tuned.hold, quant_format=quant_format)
    paths = [ADAPTER.save(tuned.build(), tmp_path / word) for word, tuned in (("plain", plain), ("fast", fast))]
    proto = onnx.load(str(paths[1]))
    onnx.checker.check_model(proto, full_check=True)
    assert sum(node.op_type == "Pad" for node in proto.graph.node) == 1, "no fourth channel was added to the stem"
    shifted = [t.name for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT8 and t.dims and t.name.endswith("zero") and (onnx.numpy_helper.to_array(t) == -1).all()]  # fmt: skip
    assert len(shifted) >= 3, "no weight was written for tiles"
    for optimize in (True, False):
        expected, found = (graphs.run(path, feeds[1], optimize=optimize)[0] for path in paths)
        np.testing.assert_array_equal(found, expected)
    before, after = map(guard.count_fusions, paths)
    assert (after.lost, after.unfused) == (0, before.unfused)
    assert after.integer_kernels == before.integer_kernels


@pytest.mark.usefixtures("eager")
def test_switches_compute_what_is_built(tmp_path):
    source = graphs.residual_net()
    tuned = Tuned(source, graphs.batches(source), tmp_path, AMX)
    full = tuned.space.preferred()
    toggles = ADAPTER.toggles(tuned.hold, full, tuned.statistics, 1)
    for names in (frozenset(full.ops), frozenset({"stem", "conv1"}), frozenset({"conv3"})):
        part = Candidate.of({name: config for name, config in full.ops.items() if name in names})
        np.testing.assert_allclose(toggles.run(names, tuned.feeds[0])[0], tuned.run(part)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("granularity", [Granularity.PER_CHANNEL, Granularity.PER_TENSOR])
@pytest.mark.parametrize("bias", [0.5, 4e7])
def test_bias_too_large_for_int32_widens_the_scale_of_shifted_weights_too(bias, granularity, tmp_path):
    source = convolution((16, 3, 3, 3))
    for tensor in source.graph.initializer:
        if tensor.name == "b":
            values = np.zeros(16, np.float32)
            values[3] = bias
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "b"))
        if tensor.name == "w":
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1e-2), "w"))
    feeds = graphs.batches(source)
    results = []
    for word, processor in (("a", graphs.VNNI), ("b", AMX)):
        tuned = Tuned(source, feeds, tmp_path / word, processor)
        full = tuned.space.preferred()
        changed = {n: replace(c, weight=replace(c.weight, granularity=granularity)) for n, c in full.ops.items()}
        results.append(tuned.run(Candidate.of(changed))[0])
    assert np.isfinite(results[0]).all()
    np.testing.assert_array_equal(results[1], results[0])


@pytest.mark.usefixtures("eager")
def test_real_values_of_shifted_codes_are_those_of_the_others(tmp_path):
    source = graphs.conv_net()
    plain, fast = (model.load(source, processor=kind) for kind in (graphs.VNNI, AMX))
    spec = next(iter(Tuned(source, graphs.batches(source), tmp_path).space.preferred().ops.values())).weight
    for name in ("w1", "w2", "w3"):
        one, two = plain.store.quantized((name, 0), spec), fast.store.quantized((name, 0), spec)
        codes = read(two.tensor, fast.store.folder).astype(int)
        np.testing.assert_array_equal(codes, read(one.tensor, plain.store.folder).astype(int) - 1)
        assert codes.min() >= -128
        np.testing.assert_array_equal(plain.store.dequantized((name, 0), spec), fast.store.dequantized((name, 0), spec))
    unsigned = replace(spec, dtype=DType.UINT8, symmetric=False, granularity=Granularity.PER_TENSOR)
    one, two = plain.store.quantized(("w1", 0), unsigned), fast.store.quantized(("w1", 0), unsigned)
    np.testing.assert_array_equal(one.zero, two.zero)


@pytest.mark.usefixtures("eager")
def test_recipes_and_dynamic_convolutions_keep_their_bits(tmp_path):
    source = graphs.residual_net()
    feeds = graphs.batches(source)
    results = []
    for word, kind in (("a", graphs.VNNI), ("b", AMX)):
        tuned = Tuned(source, feeds, tmp_path / word, kind)
        candidate = replace(tuned.space.preferred(), recipes=tuple(tuned.capability.recipes))
        assert "bias_correction" in candidate.recipes
        dynamic = OpConfig(
            mode=Mode.DYNAMIC,
            activation=candidate.ops["stem"].activation,
            weight=replace(candidate.ops["stem"].weight, granularity=Granularity.PER_TENSOR),
        )
        results.append((tuned.run(candidate)[0], tuned.run(Candidate.of({"stem": dynamic}))[0]))
    for expected, found in zip(*results, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_other_providers_and_processors_get_plain_weights(monkeypatch):
    monkeypatch.setattr(Processor, "detect", classmethod(lambda _: AMX))
    assert Settings.of(AdapterOptions()).processor.tiles
    assert Settings.of(AdapterOptions(extra={"target": "x86_vnni"})).processor.tiles  # the same processor, seen closer
    assert not Settings.of(AdapterOptions(extra={"target": "arm"})).processor.dots
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    other = Settings.of(AdapterOptions(extra={"provider": "cuda"})).processor
    assert (other.dots, other.tiles) == (False, False)
