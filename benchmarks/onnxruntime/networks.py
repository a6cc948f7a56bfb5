"""ResNet-50 and MobileNetV2 as ONNX graphs, built from code with seeded random weights: speed and size need no trained ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

# He et al. 2016, table 1, "50-layer": blocks, and channels of the 3x3 convolution, per stage. A block ends in 4 x channels.
STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
IMAGE = (3, 224, 224)


@dataclass
class _Builder:
    """Collects nodes and weights of a graph whose batch-norms are already folded into the convolutions."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def weight(self, name: str, *shape: int, gain: float = 2.0) -> str:
        fan_in = int(np.prod(shape[1:]))
        values = self.rng.standard_normal(shape, np.float32) * np.float32((gain / fan_in) ** 0.5)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def bias(self, name: str, size: int) -> str:
        self.weights.append(numpy_helper.from_array(self.rng.standard_normal(size, np.float32) * np.float32(0.1), name))
        return name

    def add(self, kind: str, name: str, *inputs: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def conv(
        self, name: str, x: str, channels: tuple[int, int], kernel: int, stride: int = 1, gain: float = 2.0
    ) -> str:
        weight = self.weight(f"{name}.weight", channels[1], channels[0], kernel, kernel, gain=gain)
        bias = self.bias(f"{name}.bias", channels[1])
        pads = [kernel // 2] * 4
        shape = [kernel, kernel]
        return self.add("Conv", name, x, weight, bias, kernel_shape=shape, pads=pads, strides=[stride, stride])

    def model(self, name: str, x: str) -> onnx.ModelProto:
        """Return the model that maps "image" to 1000 classes `x`."""
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *IMAGE])],
            [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", 1000])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        return model

    def bottleneck(self, name: str, x: str, channels: tuple[int, int], stride: int) -> str:
        """1x1, 3x3 (with the stride), 1x1, and a projection where the shape changes; small gains keep the sums from growing."""
        inner, outer = channels[1], 4 * channels[1]
        y = self.add("Relu", f"{name}.relu1", self.conv(f"{name}.conv1", x, (channels[0], inner), 1))
        y = self.add("Relu", f"{name}.relu2", self.conv(f"{name}.conv2", y, (inner, inner), 3, stride))
        y = self.conv(f"{name}.conv3", y, (inner, outer), 1, gain=0.5)
        if channels[0] != outer or stride != 1:
            x = self.conv(f"{name}.downsample", x, (channels[0], outer), 1, stride, gain=1.0)
        return self.add("Relu", f"{name}.relu3", self.add("Add", f"{name}.add", y, x))


# Sandler et al. 2018, table 2: expansion, channels, blocks, stride of the first block.
INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(seed: int = 0) -> onnx.ModelProto:
    """Return MobileNetV2 for inputs (batch, 3, 224, 224): 52 convolutions, 17 of them depthwise, one Gemm, 14 MB."""
    net = _Builder(np.random.default_rng(seed))
    net.weights += [numpy_helper.from_array(np.float32(value), name) for name, value in (("zero", 0), ("six", 6))]

    def relu6(name: str, x: str) -> str:
        return net.add("Clip", name, x, "zero", "six")

    x, before = relu6("stem.relu", net.conv("stem.conv", "image", (3, 32), 3, 2)), 32
    for stage, (expansion, channels, blocks, first) in enumerate(INVERTED):
        for block in range(blocks):
            name, stride, inner = f"block{stage}.{block}", first if block == 0 else 1, before * expansion
            y = x
            if expansion > 1:
                y = relu6(f"{name}.relu1", net.conv(f"{name}.expand", y, (before, inner), 1))
            weight, bias = (
                net.weight(f"{name}.depthwise.weight", inner, 1, 3, 3),
                net.bias(f"{name}.depthwise.bias", inner),
            )
            shape = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [stride, stride], "group": inner}
            y = relu6(f"{name}.relu2", net.add("Conv", f"{name}.depthwise", y, weight, bias, **shape))
            y = net.conv(f"{name}.project", y, (inner, channels), 1, gain=1.0)
            x = net.add("Add", f"{name}.add", x, y) if stride == 1 and before == channels else y
            before = channels
    x = relu6("last.relu", net.conv("last.conv", x, (before, 1280), 1))
    x = net.add("Flatten", "flatten", net.add("GlobalAveragePool", "pool", x))
    x = net.add("Gemm", "fc", x, net.weight("fc.weight", 1000, 1280, gain=1.0), net.bias("fc.bias", 1000), transB=1)
    return net.model("mobilenet_v2", x)


def resnet50(seed: int = 0) -> onnx.ModelProto:
    """Return ResNet-50 (v1.5: the stride is in the 3x3) for inputs (batch, 3, 224, 224): 53 convolutions, one Gemm, 102 MB."""
    net = _Builder(np.random.default_rng(seed))
    x = net.add("Relu", "stem.relu", net.conv("stem.conv", "image", (3, 64), 7, 2))
    x = net.add("MaxPool", "stem.pool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])
    before = 64
    for stage, (blocks, channels) in enumerate(STAGES, start=1):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 1 else 1
            x = net.bottleneck(f"layer{stage}.{block}", x, (before, channels), stride)
            before = 4 * channels
    x = net.add("Flatten", "flatten", net.add("GlobalAveragePool", "pool", x))
    x = net.add("Gemm", "fc", x, net.weight("fc.weight", 1000, before, gain=1.0), net.bias("fc.bias", 1000), transB=1)
    return net.model("resnet50", x)


def write_resnet50(folder: Path, seed: int = 0) -> Path:
    """Write the model below `folder`, with shapes inferred (as an exporter would), and return its path."""
    path = folder / "resnet50.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(resnet50(seed)), path)
    return path


def write_mobilenet_v2(folder: Path, seed: int = 0) -> Path:
    """Write the model below `folder`, with shapes inferred (as an exporter would), and return its path."""
    path = folder / "mobilenet_v2.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(mobilenet_v2(seed)), path)
    return path


def images(count: int, batch: int = 1, seed: int = 1) -> Iterator[NDArray[np.float32]]:
    """Yield `count` batches of normal noise, which is what normalised images look like in range."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield rng.standard_normal((batch, *IMAGE), np.float32)
