"""The vision transformer as ONNX, node by node: no exporter, so the graph is the same whatever torch is installed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from vit import Shape

OPSET, IR_VERSION = 17, 8
Weights = Mapping[str, NDArray[np.float32]]


class _Graph:
    """Nodes and constants under construction; every method returns the name of the tensor it made."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, kind: str, name: str, inputs: list[str], **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}:0"], name=name, **attributes))
        return f"{name}:0"

    def linear(self, weights: Weights, name: str, x: str) -> str:
        weight = self.constant(f"{name}.weight", weights[f"{name}.weight"].T)
        bias = self.constant(f"{name}.bias", weights[f"{name}.bias"])
        return self.add("Add", f"{name}/bias", [self.add("MatMul", name, [x, weight]), bias])

    def norm(self, weights: Weights, name: str, x: str, epsilon: float) -> str:
        parts = [self.constant(f"{name}.{part}", weights[f"{name}.{part}"]) for part in ("weight", "bias")]
        return self.add("LayerNormalization", name, [x, *parts], axis=-1, epsilon=epsilon)

    def gelu(self, name: str, x: str) -> str:
        """The exact form, x (1 + erf(x / sqrt 2)) / 2, in the pattern that runtimes fuse."""
        scaled = self.add("Div", f"{name}/scaled", [x, "sqrt2"])
        grown = self.add("Add", f"{name}/grown", [self.add("Erf", f"{name}/erf", [scaled]), "one"])
        return self.add("Mul", f"{name}/halved", [self.add("Mul", f"{name}/product", [x, grown]), "half"])


def build(weights: Weights, shape: Shape) -> onnx.ModelProto:
    """Return the checked model: `x` float32 (n, 1, 32, 32) in 0..1 -> `logits` (n, 10)."""
    graph = _Graph()
    for name, value in {"sqrt2": math.sqrt(2), "one": 1.0, "half": 0.5}.items():
        graph.constant(name, np.array(value, np.float32))
    head = shape.width // shape.heads
    graph.constant("scale", np.array(head**-0.5, np.float32))
    graph.constant("to_heads", np.array([0, shape.tokens, shape.heads, head], np.int64))
    graph.constant("to_tokens", np.array([0, shape.tokens, shape.width], np.int64))
    x = _patches(graph, weights, shape)
    for number in range(shape.blocks):
        x = _block(graph, weights, f"blocks.{number}", x, shape)
    x = graph.norm(weights, "norm", x, shape.epsilon)
    x = graph.add("ReduceMean", "pool", [x], axes=[1], keepdims=0)
    parts = [graph.constant(f"head.{part}", weights[f"head.{part}"]) for part in ("weight", "bias")]
    graph.nodes.append(helper.make_node("Gemm", [x, *parts], ["logits"], name="head", transB=1))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "vit",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 32, 32])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", shape.classes])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _patches(graph: _Graph, weights: Weights, shape: Shape) -> str:
    parts = [graph.constant(f"patches.{part}", weights[f"patches.{part}"]) for part in ("weight", "bias")]
    step = [shape.patch, shape.patch]
    x = graph.add("Conv", "patches", ["x", *parts], kernel_shape=step, strides=step)
    flat = graph.constant("flat", np.array([0, shape.width, shape.tokens], np.int64))
    x = graph.add("Transpose", "tokens", [graph.add("Reshape", "patches/flat", [x, flat])], perm=[0, 2, 1])
    return graph.add("Add", "positions/add", [x, graph.constant("positions", weights["positions"])])


def _block(graph: _Graph, weights: Weights, name: str, x: str, shape: Shape) -> str:
    y = graph.norm(weights, f"{name}.norm1", x, shape.epsilon)

    def heads(part: str, order: list[int]) -> str:
        wide = graph.linear(weights, f"{name}.{part}", y)
        split = graph.add("Reshape", f"{name}.{part}/split", [wide, "to_heads"])
        return graph.add("Transpose", f"{name}.{part}/heads", [split], perm=order)

    q, k, v = heads("q", [0, 2, 1, 3]), heads("k", [0, 2, 3, 1]), heads("v", [0, 2, 1, 3])
    scores = graph.add("Mul", f"{name}.scores/scale", [graph.add("MatMul", f"{name}.scores", [q, k]), "scale"])
    mixed = graph.add("MatMul", f"{name}.mix", [graph.add("Softmax", f"{name}.attention", [scores], axis=-1), v])
    joined = graph.add("Transpose", f"{name}.mix/tokens", [mixed], perm=[0, 2, 1, 3])
    joined = graph.add("Reshape", f"{name}.mix/join", [joined, "to_tokens"])
    x = graph.add("Add", f"{name}.residual1", [x, graph.linear(weights, f"{name}.out", joined)])
    y = graph.linear(weights, f"{name}.up", graph.norm(weights, f"{name}.norm2", x, shape.epsilon))
    y = graph.linear(weights, f"{name}.down", graph.gelu(f"{name}.gelu", y))
    return graph.add("Add", f"{name}.residual2", [x, y])
