"""Bit-equal to the runtime's own tool for the settings both support: tiny graphs."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import random
from dataclasses import replace

import graphs
import numpy as np
from graphs import NETS, Tuned
from onnxruntime.quantization import QuantType

from neural_tune.values import Candidate, DType, Granularity, Mode, OpConfig, QuantSpec

CARRIED = ("Relu", "Clip", "MaxPool", "Flatten", "Reshape", "Slice", "Pad")
# With these the stock tool leaves what we leave: the bias vector of a MatMul, and outputs that nothing int8 reads.
FLOAT_OUTPUTS = {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]}


def op_types(tuned, candidate=None):
    """What the stock tool must list: everything that runs on codes in our build, and what it folds or carries."""
    return sorted({op.type for op in tuned.build(candidate).report.ops if not op.is_float} | set(CARRIED))


def per_tensor(candidate):
    """The same candidate with one weight scale per tensor."""
    changed = {
        name: config
        if config.weight is None
        else replace(config, weight=replace(config.weight, granularity=Granularity.PER_TENSOR))
        for name, config in candidate.ops.items()
    }
    return Candidate.of(changed)


def emitting(candidate):
    """The same candidate with the output of every op quantized, which is what the stock tool does by default."""
    return Candidate.of({name: replace(config, output=config.activation) for name, config in candidate.ops.items()})


@pytest.fixture(params=sorted(NETS))
def net(request, tmp_path):
    model = NETS[request.param]()
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    return tuned.float_model(tmp_path), tuned, tmp_path


@pytest.mark.parametrize("per_channel", [True, False])
def test_full_int8_equals_the_stock_tool_bit_for_bit(net, per_channel):
    model, tuned, folder = net
    candidate = emitting(tuned.space.preferred() if per_channel else per_tensor(tuned.space.preferred()))
    kept = tuned.floats(candidate)
    path = graphs.stock(
        model, tuned.feeds, folder, op_types=op_types(tuned, candidate), per_channel=per_channel, exclude=kept
    )
    expected = graphs.run(path, tuned.feeds[0])
    assert np.abs(expected[0] - graphs.run(model, tuned.feeds[0])[0]).max() > 0, "the oracle did not quantize"
    np.testing.assert_array_equal(tuned.run(candidate)[0], expected[0])


@pytest.mark.parametrize("name", ["residual", "matmul"])
def test_float_outputs_of_products_equal_the_stock_tool_without_output_quantization(name, tmp_path):
    model = NETS[name]()
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    model = tuned.float_model(tmp_path)
    # In the product net, "down" feeds "out" and so hands out codes; the stock tool writes the same pair as the input of "out".
    path = graphs.stock(model, tuned.feeds, tmp_path, op_types=op_types(tuned), exclude=tuned.floats(), **FLOAT_OUTPUTS)
    np.testing.assert_array_equal(tuned.run()[0], graphs.run(path, tuned.feeds[0])[0])


def mixes_readers(tuned, candidate):
    """Whether a tensor made in float is read by int8 and by float ops: there the stock tool rewires the float ones too."""
    floats = set(tuned.floats(candidate))
    graph = tuned.hold.graph
    for tensor, readers in graph.consumers.items():
        if tensor in graph.constants:
            continue
        kinds = {reader.name in floats for reader in readers}
        producer = graph.producers.get(tensor)
        if len(kinds) == 2 and (producer is None or producer.name in floats):
            return True
    return False


def quantizes_unasked(tuned, candidate):
    """Whether a float Conv or Gemm lies between codes: the runtime quantizes it in the stock tool's graph, not in ours."""
    return any("__channels" in tensor.name for tensor in tuned.build(candidate).proto.graph.initializer)


def test_random_halves_equal_the_stock_tool_bit_for_bit(net):
    model, tuned, folder = net
    full = emitting(tuned.space.preferred())
    rng = random.Random(5)
    compared = 0
    for _ in range(60):
        chosen = [name for name in full.ops if rng.random() < 0.5]
        candidate = Candidate.of({name: full.ops[name] for name in chosen})
        if not chosen or len(chosen) == len(full.ops):
            continue
        if mixes_readers(tuned, candidate) or quantizes_unasked(tuned, candidate):
            continue
        path = graphs.stock(model, tuned.feeds, folder, op_types=op_types(tuned, full), exclude=tuned.floats(candidate))
        np.testing.assert_array_equal(
            tuned.run(candidate)[0], graphs.run(path, tuned.feeds[0])[0], err_msg=f"int8: {chosen}"
        )
        compared += 1
        if compared == 4:
            break
    assert compared >= 3


SIGNED = QuantSpec(dtype=DType.INT8, symmetric=False)
PER_CHANNEL = QuantSpec(dtype=DType.INT8, granularity=Granularity.PER_CHANNEL)


@pytest.mark.parametrize(
    ("activation", "weight", "stock"),
    [
        pytest.param(SIGNED, PER_CHANNEL, {"activation": QuantType.QInt8}, id="s8s8"),
        pytest.param(
            QuantSpec(dtype=DType.UINT8), PER_CHANNEL, {"ActivationSymmetric": True}, id="symmetric activations"
        ),
        pytest.param(
            QuantSpec(dtype=DType.INT8),
            PER_CHANNEL,
            {"activation": QuantType.QInt8, "ActivationSymmetric": True},
            id="symmetric s8s8",
        ),
        pytest.param(
            QuantSpec(dtype=DType.UINT8, symmetric=False),
            QuantSpec(dtype=DType.UINT8, symmetric=False),
            {"weight": QuantType.QUInt8, "per_channel": False},
            id="u8u8 per tensor",
        ),
        pytest.param(
            QuantSpec(dtype=DType.UINT8, symmetric=False),
            replace(PER_CHANNEL, reduce_range=True),
            {"reduce_range": True},
            id="reduced range",
        ),
    ],
)
@pytest.mark.parametrize("name", ["conv", "residual", "perceptron"])
def test_other_number_formats_equal_the_stock_tool_bit_for_bit(name, activation, weight, stock, tmp_path):
    model = NETS[name]()
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    model = tuned.float_model(tmp_path)
    candidate = Candidate.of(
        {
            op: OpConfig(
                mode=Mode.STATIC, activation=activation, weight=weight if config.weight else None, output=activation
            )
            for op, config in tuned.space.preferred().ops.items()
        }
    )
    path = graphs.stock(
        model, tuned.feeds, tmp_path, op_types=op_types(tuned, candidate), exclude=tuned.floats(candidate), **stock
    )
    np.testing.assert_array_equal(tuned.run(candidate)[0], graphs.run(path, tuned.feeds[0])[0])
