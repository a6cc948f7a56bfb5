"""BERT-base, an LSTM and a perceptron as ONNX graphs, built from code with seeded random weights: speed and size need no trained ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper
from small_networks import _Graph

Feed = Mapping[str, np.ndarray]


def bert_base(
    seed: int = 0, layers: int = 12, width: int = 768, heads: int = 12, vocabulary: int = 30522
) -> onnx.ModelProto:
    """Return the encoder of Devlin et al. 2019 (post-norm, Gelu) with embeddings and two logits, for "ids" and "mask" (batch, length)."""
    net = _Graph(seed)
    split = net.constant("split", np.array([0, 0, heads, width // heads], np.int64))
    joined = net.constant("joined", np.array([0, 0, width], np.int64))
    temper = net.constant("temper", np.float32((width // heads) ** -0.5))

    def linear(name: str, x: str, fan_in: int, fan_out: int) -> str:
        weight = net.weight(f"{name}.w", fan_in, fan_out, fan_in=fan_in, gain=1.0)
        bias = net.weight(f"{name}.b", fan_out, fan_in=100)
        return net.add("Add", f"{name}.bias", net.add("MatMul", name, x, weight), bias)

    def norm(name: str, x: str) -> str:
        scale = net.constant(f"{name}.g", np.ones(width, np.float32))
        shift = net.constant(f"{name}.s", np.zeros(width, np.float32))
        return net.add("LayerNormalization", name, x, scale, shift, axis=-1)

    def head(name: str, x: str, perm: list[int]) -> str:
        return net.add("Transpose", f"{name}.t", net.add("Reshape", f"{name}.r", x, split), perm=perm)

    words = net.weight("words", vocabulary, width, fan_in=1)
    places = net.weight("places", 1, 128, width, fan_in=1)
    x = norm("embeddings", net.add("Add", "placed", net.add("Gather", "embed", words, "ids"), places))
    hidden = net.add("Sub", "hidden", net.constant("one", np.float32(1)), "mask")
    masked = net.add("Mul", "masked", hidden, net.constant("far", np.float32(-10000)))
    mask = net.add("Unsqueeze", "spread", masked, net.constant("axes", np.array([1, 2], np.int64)))
    for layer in range(layers):
        n = f"layer{layer}"
        query, key, value = (linear(f"{n}.{part}", x, width, width) for part in ("query", "key", "value"))
        scores = net.add(
            "MatMul", f"{n}.scores", head(f"{n}.q", query, [0, 2, 1, 3]), head(f"{n}.k", key, [0, 2, 3, 1])
        )
        hidden = net.add("Add", f"{n}.mask", net.add("Mul", f"{n}.temper", scores, temper), mask)
        context = net.add(
            "MatMul", f"{n}.context", net.add("Softmax", f"{n}.softmax", hidden), head(f"{n}.v", value, [0, 2, 1, 3])
        )
        merged = net.add("Reshape", f"{n}.merge", net.add("Transpose", f"{n}.back", context, perm=[0, 2, 1, 3]), joined)
        x = norm(f"{n}.norm1", net.add("Add", f"{n}.sum1", linear(f"{n}.out", merged, width, width), x))
        inner = net.add("Gelu", f"{n}.gelu", linear(f"{n}.up", x, width, 4 * width))
        x = norm(f"{n}.norm2", net.add("Add", f"{n}.sum2", linear(f"{n}.down", inner, 4 * width, width), x))
    first = net.add("Gather", "first", x, net.constant("zero", np.array(0, np.int64)), axis=1)
    weight, bias = net.weight("fc.w", 2, width, fan_in=width), net.weight("fc.b", 2, fan_in=100)
    output = net.add("Gemm", "fc", first, weight, bias, transB=1)
    graph = helper.make_graph(
        net.nodes,
        "bert",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 128]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 128]),
        ],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        net.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model, check_type=True)


def lstm(seed: int = 0, width: int = 256, hidden: int = 512, layers: int = 2) -> onnx.ModelProto:
    """Return stacked LSTM layers and a projection of the last state, for "x" (time 64, batch, width)."""
    net, x = _Graph(seed), "x"
    steps = net.constant("steps", np.array([1], np.int64))
    for layer in range(layers):
        wide = width if layer == 0 else hidden
        weight = net.weight(f"w{layer}", 1, 4 * hidden, wide, fan_in=wide, gain=1.0)
        recurrent = net.weight(f"r{layer}", 1, 4 * hidden, hidden, fan_in=hidden, gain=1.0)
        bias = net.weight(f"b{layer}", 1, 8 * hidden, fan_in=100)
        sequence = net.add("LSTM", f"lstm{layer}", x, weight, recurrent, bias, hidden_size=hidden)
        x = net.add("Squeeze", f"squeeze{layer}", sequence, steps)
    last = net.add("Gather", "last", x, net.constant("end", np.array(-1, np.int64)), axis=0)
    weight, bias = net.weight("fc.w", 100, hidden, fan_in=hidden), net.weight("fc.b", 100, fan_in=100)
    return net.finish("lstm", {"x": [64, "batch", width]}, net.add("Gemm", "fc", last, weight, bias, transB=1))


def perceptron(seed: int = 0, widths: tuple[int, ...] = (1024, 2048, 2048, 1024, 100)) -> onnx.ModelProto:
    """Return fully connected layers with Relu between, for "x" (batch, 1024)."""
    net, x = _Graph(seed), "x"
    for layer, (before, after) in enumerate(itertools.pairwise(widths)):
        weight = net.weight(f"w{layer}", after, before, fan_in=before)
        x = net.add("Gemm", f"fc{layer}", x, weight, net.weight(f"b{layer}", after, fan_in=100), transB=1)
        x = net.add("Relu", f"relu{layer}", x) if layer < len(widths) - 2 else x
    return net.finish("perceptron", {"x": ["batch", widths[0]]}, x)


def feed_of(model: onnx.ModelProto, batch: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Return one batch of inputs: token ids, masks of ones, normal noise."""
    rng = np.random.default_rng(seed)
    found = {}
    for value in model.graph.input:
        shape = [dim.dim_value or batch for dim in value.type.tensor_type.shape.dim]
        if value.name == "ids":
            found[value.name] = rng.integers(0, 30000, shape)
        elif value.name == "mask":
            found[value.name] = np.ones(shape, np.float32)
        else:
            found[value.name] = rng.standard_normal(shape, np.float32)
    return found


# Name -> builder, least speed-up at batch 1 and one thread on a processor with VNNI, least ratio of sizes.
NETWORKS: Mapping[str, tuple[Callable[[], onnx.ModelProto], float, float]] = {
    "bert-base": (bert_base, 2.8, 3.6),
    "lstm": (lstm, 3.0, 3.6),
    "perceptron": (perceptron, 2.5, 3.6),
}
