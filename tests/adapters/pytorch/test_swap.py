"""Modules without calibration, dynamic, weight-only and bf16: each against its arithmetic written out in float64."""

from __future__ import annotations

import numpy as np
import pytest

from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import DType, Granularity, Mode, OpConfig, QuantSpec

torch = pytest.importorskip("torch", reason='needs pip install "neural-tune[pytorch]"')

from torch import nn  # noqa: E402

from neural_tune_pytorch.adapter import PyTorchAdapter  # noqa: E402
from neural_tune_pytorch.backends import swap  # noqa: E402


def config_of(module, mode, dtype=None):
    choices, extra = swap.choices(module, "auto")
    return next(
        item for item in (*choices, *extra) if item.mode is mode and (dtype is None or item.weight.dtype is dtype)
    )


@pytest.fixture
def linear():
    torch.manual_seed(1)
    return nn.Linear(64, 16).eval()


@pytest.mark.parametrize("reduce_range", [None, True])
def test_a_dynamic_linear_is_exact_integer_arithmetic_over_all_eight_bits_or_seven_where_asked(linear, reduce_range):
    """One bit more than torch's own dynamic Linear, which reduces the range on every processor."""
    values = torch.randn(5, 3, 64, generator=torch.Generator().manual_seed(2))
    (config, *_), _ = swap.choices(linear, "dynamic", reduce_range=reduce_range)
    found = swap.swapped(linear, config)(values)
    weight, array = linear.weight.detach().numpy().astype(np.float64), values.numpy().astype(np.float64)
    step = np.abs(weight).max(1, keepdims=True) / 127
    codes = np.round(weight / step)
    low, high = min(array.min(), 0.0), max(array.max(), 0.0)
    levels = 127 if reduce_range or not swap.has_vnni() else 255
    scale = (high - low) / levels
    zero = np.round(-low / scale)
    inputs = np.clip(np.round(array / scale) + zero, 0, levels) - zero
    expected = (inputs @ codes.T) * scale * step.T + linear.bias.detach().numpy()
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=2.5 * scale * step.max())
    error = np.abs(found.detach().numpy() - expected).mean()
    assert error < 0.05 * np.abs(expected - linear(values).detach().numpy()).mean()


@pytest.mark.parametrize(("dtype", "last", "group"), [(DType.INT8, 127, 64), (DType.INT4, 7, 32)])
def test_weight_only_linears_hold_the_rounded_weight(linear, dtype, last, group):
    values = torch.randn(4, 64, generator=torch.Generator().manual_seed(3))
    module = swap.swapped(linear, config_of(linear, Mode.WEIGHT_ONLY, dtype))
    weight = linear.weight.detach().numpy().astype(np.float64).reshape(16, -1, group)
    step = np.abs(weight).max(2, keepdims=True) / last
    rounded = (np.round(weight / step) * step).reshape(16, 64)
    expected = values.numpy() @ rounded.T + linear.bias.detach().numpy()
    np.testing.assert_allclose(module(values).detach().numpy(), expected, atol=1e-5)
    assert module.codes.numel() * module.codes.element_size() == 16 * 64 * (1 if last == 127 else 0.5)


def test_int4_is_not_offered_where_groups_do_not_divide_the_row():
    with pytest.raises(StopIteration):
        config_of(nn.Linear(30, 4), Mode.WEIGHT_ONLY, DType.INT4)


@pytest.mark.parametrize(("dtype", "levels"), [(DType.UINT8, 255), (DType.UINT4, 15)])
def test_embeddings_are_rounded_row_by_row(dtype, levels):
    torch.manual_seed(4)
    words = nn.Embedding(30, 16).eval()
    ids = torch.arange(30).reshape(5, 6)
    found = swap.swapped(words, config_of(words, Mode.WEIGHT_ONLY, dtype))(ids)
    rows = words.weight.detach().amax(1).clamp_min(0) - words.weight.detach().amin(1).clamp_max(0)
    assert bool(((found - words(ids)).abs() <= rows[ids][..., None] / levels * 0.51 + 1e-3 * rows.max()).all())
    assert not torch.equal(found, words(ids))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_come_near_float_with_the_same_shapes(kind):
    torch.manual_seed(5)
    layer = kind(12, 20, num_layers=2, batch_first=True, bidirectional=True).eval()
    values = torch.randn(3, 7, 12)
    with torch.no_grad():
        found, state = swap.swapped(layer, config_of(layer, Mode.DYNAMIC))(values)
        expected, float_state = layer(values)
    assert found.shape == expected.shape
    assert type(state) is type(float_state)
    assert 0.0 < float((found - expected).abs().max()) < 0.05


def test_bf16_is_computed_in_bf16_between_float32_borders(linear):
    values = torch.randn(4, 64)
    with torch.no_grad():
        found = swap.swapped(linear, swap.CAST)(values)
        expected = linear.to(torch.bfloat16)(values.to(torch.bfloat16))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected.float())


def test_what_has_no_form_is_a_capability_error(linear):
    spec = QuantSpec(dtype=DType.INT8, granularity=Granularity.PER_CHANNEL)
    with pytest.raises(CapabilityError, match="has no form"):
        swap.swapped(nn.Conv2d(3, 4, 1), OpConfig(mode=Mode.DYNAMIC, activation=swap.static_spec(), weight=spec))
    assert "pads with zeros" in swap.refusal(nn.Conv2d(3, 4, 3, padding_mode="reflect"))
    assert "takes numbers" in swap.refusal(nn.Conv2d(3, 4, 3, padding="same"))
    linear.weight.data[0, 0] = float("nan")
    with pytest.raises(AdapterError, match="not finite"):
        swap.static(
            linear, swap.weight_grid(linear.weight, swap.WEIGHT), swap.Grid(scale=1.0, zero=0), None, relu=False
        )


class Tagger(nn.Module):
    """Embedding, LSTM, Linear: what INC calls dynamic quantization for text."""

    def __init__(self):
        super().__init__()
        self.words, self.reader, self.out = nn.Embedding(50, 32), nn.LSTM(32, 64, batch_first=True), nn.Linear(64, 6)

    def forward(self, ids):
        return self.out(self.reader(self.words(ids))[0])


@pytest.mark.parametrize("backend", ["fx", "eager"])
def test_an_lstm_model_is_quantized_dynamically_saved_and_restored(backend, tmp_path):
    torch.manual_seed(6)
    adapter, module = PyTorchAdapter(), Tagger().eval()
    ids = torch.randint(0, 50, (4, 9), generator=torch.Generator().manual_seed(7)).numpy()
    hold = adapter.load(module, AdapterOptions(approach="dynamic", backend=backend, example=ids))
    built = adapter.build(hold, TuningSpace.of(adapter.query(hold)).preferred(), None, 1)
    assert [item.precision.split(":")[0] for item in adapter.report(built).ops] == ["weight_only", "dynamic", "dynamic"]
    artifact = adapter.save(built, tmp_path)
    float_size = adapter.size(adapter.build(hold, TuningSpace.of(adapter.query(hold)).candidate({}), None, 1))
    assert float_size > 2 * adapter.size(built)
    for inputs in (ids, ids[:1, :4]):  # batch and length are free
        found = adapter.run(adapter.restore(artifact, 1), inputs)[0]
        np.testing.assert_array_equal(found, adapter.run(built, inputs)[0])
        with torch.no_grad():
            np.testing.assert_allclose(found, module(torch.from_numpy(inputs)).numpy(), atol=0.03)
