"""Graph patterns of the runtime's own quantization tests, written anew: which ops become integer kernels, and that the result stays near float.

The names say which file of onnxruntime/test/python/quantization the pattern stands for.
"""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

from collections import Counter
from dataclasses import dataclass, replace

import graphs
import numpy as np
import onnx
import onnxruntime
from graphs import ADAPTER, FLOAT, Tuned, graph_of, weights
from onnx import helper

from neural_tune.values import Candidate, DType, QuantSpec


def node(kind, inputs, outputs, name="", **attributes):
    return helper.make_node(kind, inputs, outputs, name or outputs[0], **attributes)


def conv(source, target, weight, bias="", **attributes):
    return node("Conv", [source, weight, *([bias] if bias else [])], [target], **attributes)


def ints(*values):
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Pattern:
    """A model and what the runtime must make of it in full int8.

    Attributes:
        model: The float model.
        kernels: Counts in the graph that the runtime optimizes to; types that are not named are not looked at.
        floats: Ops that stay float, besides those of no float32 data.
    """

    model: onnx.ModelProto
    kernels: dict[str, int]
    floats: tuple[str, ...] = ()


IMAGE = {"x": [2, 3, 8, 8]}
W = weights(w=(8, 3, 3, 3), b=(8,), v=(8, 8, 3, 3), c=(8,), u=(4, 8, 1, 1), f=(8, 5))
PADS = [1, 1, 1, 1]
TAIL = conv("t", "y", "u")


def chain(*nodes, constants=None, inputs=None, outputs=("y",), opset=17):
    model = graph_of(nodes, {}, inputs or IMAGE, outputs, opset=opset)
    used = {name for item in model.graph.node for name in item.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(values), name)
        for name, values in {**W, **(constants or {})}.items()
        if name in used
    )
    return model


FIRST = conv("x", "a", "w", "b", pads=PADS)
PATTERNS = {
    "conv_transpose": Pattern(
        chain(FIRST, node("ConvTranspose", ["a", "k"], ["t"]), TAIL, constants=weights(k=(8, 8, 2, 2))),
        {"QLinearConv": 2, "ConvTranspose": 1},
        ("t",),
    ),
    "relu: one reader of the raw tensor keeps it": Pattern(
        chain(FIRST, node("Relu", ["a"], ["t"]), TAIL, node("Tanh", ["a"], ["z"]), outputs=("y", "z")),
        {"QLinearConv": 2, "Tanh": 1},
        ("t", "z"),
    ),
    "relu: every activation is folded": Pattern(
        chain(FIRST, node("Relu", ["a"], ["r"]), conv("r", "s", "v", "c"), node("Clip", ["s", "lo", "hi"], ["t"]), TAIL,
              constants={"lo": np.float32(0), "hi": np.float32(6)}),
        {"QLinearConv": 3, "Relu": 0, "Clip": 0, "DequantizeLinear": 1},
    ),
    "maxpool": Pattern(
        chain(FIRST, node("MaxPool", ["a"], ["t"], kernel_shape=[3, 3], strides=[2, 2]), TAIL),
        {"QLinearConv": 2, "NhwcMaxPool": 1, "DequantizeLinear": 1},
    ),
    "maxpool with indices": Pattern(
        chain(FIRST, node("MaxPool", ["a"], ["t", "i"], kernel_shape=[2, 2]), TAIL, node("Cast", ["i"], ["z"], to=FLOAT), outputs=("y", "z")),
        {"QLinearConv": 2},
        ("t",),
    ),
    "gavgpool": Pattern(
        chain(FIRST, node("GlobalAveragePool", ["a"], ["g"]), node("Flatten", ["g"], ["h"]), node("MatMul", ["h", "f"], ["y"])),
        {"QLinearConv": 1, "QLinearGlobalAveragePool": 1, "MatMulIntegerToFloat": 1},
    ),
    "concat of branches": Pattern(
        chain(FIRST, conv("x", "d", "w", pads=PADS), node("Concat", ["a", "d"], ["t"], axis=1), conv("t", "y", "k"),
              constants=weights(k=(4, 16, 1, 1))),
        {"QLinearConv": 3, "QLinearConcat": 1},
    ),
    "concat with a constant": Pattern(
        chain(FIRST, node("Concat", ["a", "k"], ["t"], axis=1), conv("t", "y", "l"),
              constants={"k": np.ones((2, 2, 8, 8), np.float32), **weights(l=(4, 10, 1, 1))}),
        {"QLinearConv": 2, "QLinearConcat": 0},
        ("t",),
    ),
    "concat of something float": Pattern(
        chain(FIRST, node("Tanh", ["x"], ["d"]), node("Concat", ["a", "d"], ["t"], axis=1), conv("t", "y", "l"), constants=weights(l=(4, 11, 1, 1))),
        {"QLinearConv": 2, "Tanh": 1},
        ("d", "t"),
    ),
    "pad with zeros": Pattern(
        chain(FIRST, node("Pad", ["a", "p"], ["t"]), TAIL, constants={"p": ints(0, 0, 1, 1, 0, 0, 1, 1)}),
        {"QLinearConv": 2, "Pad": 1, "DequantizeLinear": 1},
    ),
    "pad by reflection": Pattern(
        chain(FIRST, node("Pad", ["a", "p"], ["t"], mode="reflect"), TAIL, constants={"p": ints(0, 0, 1, 1, 0, 0, 1, 1)}),
        {"QLinearConv": 2, "Pad": 1, "DequantizeLinear": 1},
    ),
    "pad at the edge": Pattern(
        chain(FIRST, node("Pad", ["a", "p"], ["t"], mode="edge"), TAIL, constants={"p": ints(0, 0, 1, 1, 0, 0, 1, 1)}),
        {"QLinearConv": 2, "Pad": 1, "DequantizeLinear": 1},
    ),
    "pad with a number": Pattern(
        chain(FIRST, node("Pad", ["a", "p", "n"], ["t"]), TAIL, constants={"p": ints(0, 0, 1, 1, 0, 0, 1, 1), "n": np.float32(0.7)}),
        {"QLinearConv": 2, "Pad": 1},
        ("t",),
    ),
    "resize": Pattern(
        chain(FIRST, node("Resize", ["a", "", "s"], ["t"]), TAIL, constants={"s": np.array([1, 1, 2, 2], np.float32)}),
        {"QLinearConv": 2, "Resize": 1, "DequantizeLinear": 1},
    ),
    "resize, linear": Pattern(
        chain(FIRST, node("Resize", ["a", "", "s"], ["t"], mode="linear"), TAIL, constants={"s": np.array([1, 1, 2, 2], np.float32)}),
        {"QLinearConv": 2, "Resize": 1},
        ("t",),
    ),
    "reshape, transpose, squeeze, unsqueeze": Pattern(
        chain(FIRST, node("Reshape", ["a", "s"], ["p"]), node("Transpose", ["p"], ["q"], perm=[0, 2, 1]),
              node("Unsqueeze", ["q", "e"], ["r"]), node("Squeeze", ["r", "e"], ["o"]), node("MatMul", ["o", "f"], ["y"]),
              constants={"s": ints(2, 8, 64), "e": ints(1)}),
        {"QLinearConv": 1, "MatMulIntegerToFloat": 1, "DequantizeLinear": 0},
    ),
    "split into unequal parts": Pattern(
        chain(FIRST, node("Split", ["a", "s"], ["p", "q"], "parts", axis=1), conv("p", "y", "k"), conv("q", "z", "l"),
              constants={"s": ints(2, 6), **weights(k=(4, 2, 1, 1), l=(4, 6, 1, 1))}, outputs=("y", "z")),
        {"QLinearConv": 3, "Split": 1, "DequantizeLinear": 2},
    ),
    "split, read by float ops too": Pattern(
        chain(FIRST, node("Split", ["a"], ["p", "q"], "parts", axis=1), conv("p", "y", "k"), node("Tanh", ["q"], ["z"]),
              constants=weights(k=(4, 4, 1, 1)), outputs=("y", "z")),
        {"QLinearConv": 2, "Split": 1, "Tanh": 1},
        ("z",),
    ),
    "where": Pattern(
        chain(FIRST, conv("x", "d", "w", pads=PADS), node("Where", ["m", "a", "d"], ["t"]), TAIL, constants={"m": np.arange(8) % 2 == 0}),
        {"QLinearConv": 3},
        ("t",),
    ),
    "softmax at the end": Pattern(
        chain(FIRST, node("GlobalAveragePool", ["a"], ["g"]), node("Flatten", ["g"], ["h"]), node("MatMul", ["h", "f"], ["s"]), node("Softmax", ["s"], ["y"])),
        {"QLinearConv": 1, "QLinearSoftmax": 0, "Softmax": 1},
        ("y",),
    ),
    "gather_elems": Pattern(
        chain(FIRST, node("GatherElements", ["a", "i"], ["t"], axis=1), TAIL, constants={"i": np.broadcast_to(np.arange(8)[::-1].reshape(1, 8, 1, 1), (2, 8, 8, 8)).copy()}),
        {"QLinearConv": 2, "GatherElements": 1, "DequantizeLinear": 1},
    ),
    "slice": Pattern(
        chain(FIRST, node("Slice", ["a", "lo", "hi", "ax"], ["t"]), TAIL, constants={"lo": ints(1, 1), "hi": ints(7, 7), "ax": ints(2, 3)}),
        {"QLinearConv": 2, "Slice": 1, "DequantizeLinear": 1},
    ),
    "instance_normalization": Pattern(
        chain(FIRST, node("InstanceNormalization", ["a", "b", "c"], ["t"]), TAIL),
        {"QLinearConv": 2, "InstanceNormalization": 1},
        ("t",),
    ),
    "argmax reads codes": Pattern(
        chain(FIRST, conv("a", "s", "u"), node("ArgMax", ["s"], ["i"], axis=1), node("Cast", ["i"], ["y"], to=FLOAT)),
        {"QLinearConv": 2, "ArgMax": 1, "DequantizeLinear": 0},
    ),
    "topk": Pattern(
        chain(FIRST, node("TopK", ["a", "k"], ["t", "i"], axis=2), TAIL, constants={"k": ints(4)}),
        {"QLinearConv": 2, "TopK": 1},
        ("t",),
    ),
    "quantize_static_resnet: a bottleneck": Pattern(
        chain(FIRST, node("Relu", ["a"], ["r"]), conv("r", "d", "v", "c", pads=PADS), node("Relu", ["d"], ["e"]),
              conv("e", "g", "v", pads=PADS), node("Add", ["g", "r"], ["h"]), node("Relu", ["h"], ["t"]), TAIL),
        {"QLinearConv": 4, "QLinearAdd": 1, "Relu": 0, "DequantizeLinear": 1},
    ),
    "quant_issues: squeeze and excite": Pattern(
        chain(FIRST, node("GlobalAveragePool", ["a"], ["g"]), conv("g", "s", "k"), node("Sigmoid", ["s"], ["h"]), node("Mul", ["a", "h"], ["t"]), TAIL,
              constants=weights(k=(8, 8, 1, 1))),
        {"QLinearConv": 3, "QLinearGlobalAveragePool": 1, "QLinearSigmoid": 1, "QLinearMul": 1, "DequantizeLinear": 1},
    ),
    "quant_issues: swish": Pattern(
        chain(FIRST, node("Sigmoid", ["a"], ["s"]), node("Mul", ["a", "s"], ["t"]), TAIL),
        {"QLinearConv": 2, "QLinearSigmoid": 1, "QLinearMul": 1},
    ),
    "gemm after matmul with one weight": Pattern(
        chain(node("MatMul", ["x", "k"], ["h"]), node("Gemm", ["h", "k"], ["y"], transB=1), constants=weights(k=(16, 16)), inputs={"x": [5, 16]}),
        {"QGemm": 1, "QLinearMatMul": 1},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=sorted(PATTERNS))
def pattern(request, tmp_path_factory):
    found = PATTERNS[request.param]
    folder = tmp_path_factory.mktemp("pattern")
    return found, Tuned(found.model, graphs.batches(found.model), folder), folder


def fused(path, folder):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(item.op_type for item in onnx.load(options.optimized_model_filepath).graph.node)


def distance(found, expected):
    return float(np.linalg.norm(found - expected) / max(1e-30, np.linalg.norm(expected)))


@pytest.mark.parametrize("quant_format", ["QDQ", "QOperator"])
def test_pattern_runs_in_the_kernels_it_should_and_stays_near_float(pattern, quant_format):
    found, tuned, folder = pattern
    hold = replace(tuned.hold, quant_format=quant_format)
    built = ADAPTER.build(hold, tuned.space.preferred(), tuned.statistics, 1)
    path = ADAPTER.save(built, folder / quant_format)
    counts = fused(path, folder)
    assert {kind: counts[kind] for kind in found.kernels} == found.kernels, dict(counts)
    floats = {op.name for op in built.report.ops if op.is_float and op.type not in ("Cast", "ArgMax")}
    assert floats == set(found.floats)
    for one, two in zip(graphs.run(path, tuned.feeds[0]), graphs.run(found.model, tuned.feeds[0]), strict=True):
        if "ArgMax" in counts:
            assert (one != two).mean() < 0.1
        elif "MaxPool" not in counts:  # indices of equal codes may differ
            assert distance(one, two) < 0.06


@pytest.mark.parametrize("symmetric", [True, False])
def test_symmetric_flag_puts_zero_in_the_middle_and_keeps_the_relu(symmetric, tmp_path):
    model = graphs.conv_net()
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    spec = QuantSpec(dtype=DType.INT8, symmetric=symmetric)
    candidate = Candidate.of(
        {
            name: replace(config, activation=spec, output=spec if config.output else None)
            for name, config in tuned.space.preferred().ops.items()
        }
    )
    proto = tuned.build(candidate).proto
    zeros = [
        onnx.numpy_helper.to_array(item)
        for item in proto.graph.initializer
        if item.name.endswith("__zero") and item.data_type == onnx.TensorProto.INT8
    ]
    kept = [item.op_type for item in proto.graph.node].count("Relu")
    if symmetric:
        assert not any(zero.any() for zero in zeros)
        assert kept == 2
    else:
        assert any(zero.any() for zero in zeros)
        assert kept == 0


def test_softmax_between_codes_cannot_wrap_around(tmp_path):
    """The runtime fuses it unasked, and its kernel turns the code 256 into 0: a range that ends at the largest probability seen loses that one."""
    model = chain(conv("x", "a", "w", pads=PADS), node("Softmax", ["a"], ["t"], axis=1), TAIL)
    even = [{"x": np.zeros_like(feed["x"])} for feed in graphs.batches(model)]  # every probability is 1/8
    tuned = Tuned(model, even, tmp_path)
    assert "t" in tuned.floats()
    (expected,) = graphs.run(model, even[0])
    assert distance(tuned.run()[0], expected) < 0.05
    tuned.hold = replace(
        tuned.hold, kernels={name: replace(kernel, bounds=None) for name, kernel in tuned.hold.kernels.items()}
    )
    assert distance(tuned.run()[0], expected) > 0.9, "the runtime has been repaired: the bounds may go"


def test_convolution_with_an_infinite_bias_stays_float_and_says_why(tmp_path):
    constants = weights(w=(8, 3, 3, 3), b=(8,))
    constants["b"][2] = -np.inf  # shuts a channel off
    model = graph_of(
        [conv("x", "a", "w", "b"), node("Relu", ["a"], ["r"]), conv("r", "y", "k")],
        constants | weights(k=(4, 8, 1, 1)),
        IMAGE,
    )
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    outcome = next(op for op in tuned.build().report.ops if op.name == "a")
    assert outcome.is_float
    assert "infinity" in outcome.reason
    assert distance(tuned.run()[0], graphs.run(model, tuned.feeds[0])[0]) < 0.03
