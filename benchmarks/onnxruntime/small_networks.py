"""MobileNetV2-like and BERT-like ONNX graphs of a few megabytes, built from code with seeded random weights: enough to measure speed on."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Sandler et al. 2018, table 2, thinned out: expansion, channels, blocks, stride.
INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2), (6, 64, 2, 2), (6, 96, 1, 1))


class _Graph:
    """Collects nodes and weights."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, values: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def weight(self, name: str, *shape: int, fan_in: int, gain: float = 2.0) -> str:
        return self.constant(name, self.rng.standard_normal(shape, np.float32) * np.float32((gain / fan_in) ** 0.5))

    def add(self, kind: str, name: str, *inputs: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def finish(self, name: str, inputs: dict[str, list[int | str]], output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in inputs.items()],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        return onnx.shape_inference.infer_shapes(model, check_type=True)


def mobilenet(seed: int = 0, size: int = 96) -> onnx.ModelProto:
    """Return inverted bottlenecks with Relu6 and linear ends for inputs "x" (batch, 3, size, size)."""
    net = _Graph(seed)
    low, high = net.constant("zero", np.float32(0)), net.constant("six", np.float32(6))

    def conv(name: str, x: str, channels: tuple[int, int], kernel: int, stride: int = 1, group: int = 1) -> str:
        shape = (channels[1], channels[0] // group, kernel, kernel)
        fan_in = int(np.prod(shape[1:]))
        weight = net.weight(f"{name}.w", *shape, fan_in=fan_in)
        bias = net.weight(f"{name}.b", channels[1], fan_in=100)
        pads, steps = [kernel // 2] * 4, [stride, stride]
        return net.add("Conv", name, x, weight, bias, kernel_shape=[kernel] * 2, pads=pads, strides=steps, group=group)

    def relu6(name: str, x: str) -> str:
        return net.add("Clip", name, x, low, high)

    x, before = relu6("stem.clip", conv("stem", "x", (3, 16), 3, 2)), 16
    for stage, (expansion, after, blocks, first) in enumerate(INVERTED):
        for block in range(blocks):
            name, stride, inner = f"s{stage}.{block}", first if block == 0 else 1, before * expansion
            y = x if expansion == 1 else relu6(f"{name}.clip1", conv(f"{name}.expand", x, (before, inner), 1))
            y = relu6(f"{name}.clip2", conv(f"{name}.depthwise", y, (inner, inner), 3, stride, inner))
            y = conv(f"{name}.project", y, (inner, after), 1)
            x = net.add("Add", f"{name}.add", x, y) if stride == 1 and before == after else y
            before = after
    x = relu6("head.clip", conv("head", x, (before, 320), 1))
    x = net.add("Flatten", "flatten", net.add("GlobalAveragePool", "pool", x))
    weight, bias = net.weight("fc.w", 100, 320, fan_in=320), net.weight("fc.b", 100, fan_in=100)
    return net.finish("mobilenet", {"x": ["batch", 3, size, size]}, net.add("Gemm", "fc", x, weight, bias, transB=1))


def transformer(seed: int = 0, layers: int = 3, width: int = 128, length: int = 64) -> onnx.ModelProto:
    """Return encoder layers (4 heads, Gelu, norm after the sum) on embeddings "x" (batch, length, width), with a pooled head."""
    net, heads = _Graph(seed), 4
    split = net.constant("split", np.array([0, length, heads, width // heads], np.int64))
    joined = net.constant("joined", np.array([0, length, width], np.int64))
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

    x = "x"
    for layer in range(layers):
        n = f"layer{layer}"
        query, key, value = (linear(f"{n}.{part}", x, width, width) for part in ("query", "key", "value"))
        scores = net.add(
            "MatMul", f"{n}.scores", head(f"{n}.q", query, [0, 2, 1, 3]), head(f"{n}.k", key, [0, 2, 3, 1])
        )
        weights = net.add("Softmax", f"{n}.softmax", net.add("Mul", f"{n}.temper", scores, temper), axis=-1)
        context = net.add("MatMul", f"{n}.context", weights, head(f"{n}.v", value, [0, 2, 1, 3]))
        merged = net.add("Reshape", f"{n}.merge", net.add("Transpose", f"{n}.back", context, perm=[0, 2, 1, 3]), joined)
        x = norm(f"{n}.norm1", net.add("Add", f"{n}.sum1", linear(f"{n}.out", merged, width, width), x))
        inner = net.add("Gelu", f"{n}.gelu", linear(f"{n}.up", x, width, 4 * width))
        x = norm(f"{n}.norm2", net.add("Add", f"{n}.sum2", linear(f"{n}.down", inner, 4 * width, width), x))
    pooled = net.add("ReduceMean", "pooled", x, net.constant("axes", np.array([1], np.int64)), keepdims=0)
    weight, bias = net.weight("fc.w", 10, width, fan_in=width), net.weight("fc.b", 10, fan_in=100)
    output = net.add("Gemm", "fc", pooled, weight, bias, transB=1)
    return net.finish("transformer", {"x": ["batch", length, width]}, output)


def batches(model: onnx.ModelProto, count: int, batch: int, seed: int = 1) -> list[np.ndarray]:
    """Return batches of normal noise for the one input of `model`."""
    rng = np.random.default_rng(seed)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    return [rng.standard_normal((batch, *shape), np.float32) for _ in range(count)]
