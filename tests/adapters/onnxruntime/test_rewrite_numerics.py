"""Q/DQ graphs against an emulation in numpy float64 that knows nothing of ONNX: scale, zero point, rounding, saturation."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import graphs
import numpy as np
from graphs import Tuned, graph_of, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import helper

from neural_tune.numerics import qparams
from neural_tune.values import Candidate, DType, Granularity, Mode, OpConfig, QuantSpec

U8 = QuantSpec(dtype=DType.UINT8, symmetric=False)
S8 = QuantSpec(dtype=DType.INT8, symmetric=False)
PER_CHANNEL = QuantSpec(dtype=DType.INT8, granularity=Granularity.PER_CHANNEL)
PER_TENSOR = QuantSpec(dtype=DType.INT8)


class Emulated:
    """A real array on a grid: codes from `first` to `last`, laid over [low, high]."""

    def __init__(self, x, low, high, first, last):
        low, high = min(low, 0.0), max(high, 0.0)
        self.step = (high - low) / (last - first)
        zero = np.rint(first - low / self.step)
        codes = np.clip(np.rint(x / self.step) + zero, first, last)
        self.real = (codes - zero) * self.step


def emulate_activation(x, observed, dtype):
    first, last = (0, 255) if dtype is DType.UINT8 else (-128, 127)
    return Emulated(x, float(observed.min()), float(observed.max()), first, last)


def emulate_weight(w, axis):
    """Symmetric int8 over 255 - 1 codes, one step per index of `axis` (None: one for all)."""
    moved = w.astype(np.float64)
    others = tuple(i for i in range(w.ndim) if i != axis) if axis is not None else None
    step = np.abs(moved).max(axis=others, keepdims=True) / 127
    return np.clip(np.rint(moved / step), -127, 127) * step


def convolve(x, w, b):
    """A valid convolution, in float64, by the definition."""
    n, _, height, width = x.shape
    out, _, kh, kw = w.shape
    y = np.zeros((n, out, height - kh + 1, width - kw + 1))
    for i in range(kh):
        for j in range(kw):
            patch = x[:, :, i : i + y.shape[2], j : j + y.shape[3]]
            y += np.einsum("nchw,oc->nohw", patch, w[:, :, i, j])
    return y + b[:, None, None]


@pytest.mark.parametrize("dtype", [DType.UINT8, DType.INT8])
@pytest.mark.parametrize("granularity", [Granularity.PER_CHANNEL, Granularity.PER_TENSOR])
def test_residual_block_is_within_a_step_of_float64_but_for_ties(dtype, granularity, tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1"),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2"),
        helper.make_node("Add", ["r1", "c2"], ["a"], "add"),
        helper.make_node("Relu", ["a"], ["y"], "relu2"),
    ]
    found = weights(w1=(6, 3, 3, 3), b1=(6,), w2=(6, 6, 1, 1), b2=(6,))
    source = graph_of(nodes, found, {"x": ["n", 3, 9, 9]})
    tuned = Tuned(source, graphs.batches(source), tmp_path)
    activation = U8 if dtype is DType.UINT8 else S8
    weight = PER_CHANNEL if granularity is Granularity.PER_CHANNEL else PER_TENSOR
    conv = OpConfig(mode=Mode.STATIC, activation=activation, weight=weight, output=activation)
    add = OpConfig(mode=Mode.STATIC, activation=activation, output=activation)
    (produced,) = tuned.run(Candidate.of({"conv1": conv, "conv2": conv, "add": add}))

    batches = [feed["x"].astype(np.float64) for feed in tuned.feeds]
    w1, b1, w2, b2 = (found[name].astype(np.float64) for name in ("w1", "b1", "w2", "b2"))
    seen = {"x": [], "r1": [], "c2": [], "y": []}
    for x in batches:
        r1 = np.maximum(convolve(x, w1, b1), 0)
        c2 = convolve(r1, w2, b2)
        for name, values in (("x", x), ("r1", r1), ("c2", c2), ("y", np.maximum(r1 + c2, 0))):
            seen[name].append(values)
    observed = {name: np.stack(values) for name, values in seen.items()}
    axis = 0 if granularity is Granularity.PER_CHANNEL else None
    x = emulate_activation(batches[0], observed["x"], dtype).real
    r1 = emulate_activation(np.maximum(convolve(x, emulate_weight(w1, axis), b1), 0), observed["r1"], dtype).real
    c2 = emulate_activation(convolve(r1, emulate_weight(w2, axis), b2), observed["c2"], dtype).real
    y = emulate_activation(np.maximum(r1 + c2, 0), observed["y"], dtype)

    steps = np.abs(produced - y.real) / y.step
    assert (steps > 0.01).mean() < 0.02, "a step off is for ties only"
    # A tie that falls the other way in r1 is one step there, times a weight above one here.
    assert (steps > 1.01).mean() < 0.001
    assert steps.max() < 2.01


@pytest.mark.parametrize("dtype", [DType.UINT8, DType.INT8])
def test_convolution_is_within_one_step_of_float64(dtype, tmp_path):
    found = weights(w=(6, 3, 3, 3), b=(6,))
    source = graph_of([helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv")], found, {"x": ["n", 3, 9, 9]})
    tuned = Tuned(source, graphs.batches(source), tmp_path)
    activation = U8 if dtype is DType.UINT8 else S8
    config = OpConfig(mode=Mode.STATIC, activation=activation, weight=PER_CHANNEL, output=activation)
    (produced,) = tuned.run(Candidate.of({"conv": config}))
    w, b = found["w"].astype(np.float64), found["b"].astype(np.float64)
    observed = np.stack([feed["x"] for feed in tuned.feeds])
    results = np.stack([convolve(feed["x"].astype(np.float64), w, b) for feed in tuned.feeds])
    x = emulate_activation(tuned.feeds[0]["x"].astype(np.float64), observed, dtype).real
    y = emulate_activation(convolve(x, emulate_weight(w, 0), b), results, dtype)
    steps = np.abs(produced - y.real) / y.step
    assert steps.max() < 1.01
    assert (steps > 0.01).mean() < 0.01


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_is_exact_up_to_float32(transposed, tmp_path):
    """Without an output quantization nothing is rounded after the integer product."""
    found = weights(w=(16, 12), b=(12,) if not transposed else (16,))
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "fc", transB=transposed)]
    source = graph_of(nodes, found, {"x": ["n", 12 if transposed else 16]})
    tuned = Tuned(source, graphs.batches(source), tmp_path)
    (produced,) = tuned.run()
    observed = np.stack([feed["x"] for feed in tuned.feeds])
    x = emulate_activation(tuned.feeds[0]["x"].astype(np.float64), observed, DType.UINT8).real
    w = emulate_weight(found["w"], 0 if transposed else 1)
    np.testing.assert_allclose(produced, x @ (w.T if transposed else w) + found["b"], rtol=1e-4, atol=1e-4)


FINITE = st.floats(-1e4, 1e4, width=32)


@given(low=FINITE, high=FINITE, symmetric=st.booleans(), dtype=st.sampled_from([DType.UINT8, DType.INT8]))
@settings(max_examples=300, deadline=None)
def test_zero_has_an_exact_code_and_the_range_is_covered_to_half_a_step(low, high, symmetric, dtype):
    low, high = min(low, high), max(low, high)
    found = qparams.activation_parameters(low, high, QuantSpec(dtype=dtype, symmetric=symmetric))
    assert found.first <= found.zero <= found.last
    assert found.scale > 0
    for value in (low, high, 0.0):
        code = min(max(found.code_of(value), found.first), found.last)
        real = (code - found.zero) * float(found.scale)
        # An asymmetric zero point is rounded, so that one end of the range may lie half a step outside.
        assert abs(real - value) <= 1.001 * float(found.scale) * (0.5 if value == 0.0 else 1.0)


@given(
    weight=arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=FINITE),
    per_channel=st.booleans(),
    reduced=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_quantized_weights_are_within_half_a_step_and_channels_do_not_touch_each_other(weight, per_channel, reduced):
    granularity = Granularity.PER_CHANNEL if per_channel else Granularity.PER_TENSOR
    spec = QuantSpec(dtype=DType.INT8, granularity=granularity, reduce_range=reduced)
    axis = weight.ndim - 1 if per_channel else None
    scale, zero = qparams.weight_parameters(weight, axis, spec)
    codes = qparams.quantize(weight, scale, zero, axis, DType.INT8)
    assert not zero.any()
    assert np.abs(codes.astype(int)).max() <= (64 if reduced else 127)
    assert (np.abs(codes * scale.astype(np.float64) - weight) <= 0.5001 * scale).all()
    if per_channel:
        alone = qparams.weight_parameters(weight[..., :1], axis, spec)[0]
        np.testing.assert_array_equal(scale[:1], alone)


def test_constant_zero_has_a_scale():
    found = qparams.activation_parameters(0.0, 0.0, U8)
    assert (found.scale, found.zero) == (1.0, 0)
    scale, _ = qparams.weight_parameters(np.zeros((3, 2), np.float32), 0, PER_CHANNEL)
    np.testing.assert_array_equal(scale, 1)


def test_symmetric_uint8_has_its_zero_in_the_middle():
    assert qparams.activation_parameters(-1.0, 2.0, QuantSpec(dtype=DType.UINT8)).zero == 128
    assert qparams.activation_parameters(-1.0, 2.0, QuantSpec(dtype=DType.INT8)).zero == 0
