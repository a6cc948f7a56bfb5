"""Tiny ONNX graphs with random weights, and the ways to run them that the tests compare."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import Candidate
from neural_tune_onnxruntime import model as models
from neural_tune_onnxruntime.adapter import OnnxRuntimeAdapter
from neural_tune_onnxruntime.build import Built
from neural_tune_onnxruntime.processor import Processor

FLOAT = onnx.TensorProto.FLOAT
ADAPTER = OnnxRuntimeAdapter()
# The choices of a model must not depend on the processor that runs the tests.
VNNI = Processor(name="x86 avx512_vnni")


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, np.ndarray],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Iterable[str] = ("y",),
    *,
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """Return a model; outputs are float of unknown shape."""
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def weights(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return normal float32 arrays whose channels differ in size, as real weights do; names that start with b are biases."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))
        if len(shape) > 1:
            values *= np.exp(rng.normal(0, 0.5, (shape[0], *(1,) * (len(shape) - 1))))
        found[name] = values.astype(np.float32)
    return found


def conv_net() -> onnx.ModelProto:
    """Convolutions with and without bias, Relu and Clip, pooling, a fully connected end."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", strides=[2, 2]),
        helper.make_node("Clip", ["c2", "zero", "six"], ["r2"], "clip2"),
        helper.make_node("MaxPool", ["r2"], ["p2"], "pool2", kernel_shape=[2, 2]),
        helper.make_node("Conv", ["p2", "w3", "b3"], ["c3"], "conv3", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c3"], ["r3"], "relu3"),
        helper.make_node("GlobalAveragePool", ["r3"], ["g"], "mean"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["y"], "fc", transB=1),
    ]
    found = weights(w1=(8, 3, 3, 3), b1=(8,), w2=(12, 8, 3, 3), w3=(16, 12, 3, 3), b3=(16,), w4=(5, 16), b4=(5,))
    found |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    return graph_of(nodes, found, {"x": ["n", 3, 16, 16]})


def residual_net() -> onnx.ModelProto:
    """Two residual blocks, one with a convolution in the shortcut, and a float op (ReduceMean) before the end."""
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], "stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"], "relu0"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["r0", "c2"], ["a2"], "add2"),
        helper.make_node("Relu", ["a2"], ["r2"], "relu2"),
        helper.make_node("Conv", ["r2", "w3", "b3"], ["c3"], "conv3", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["r2", "w4", "b4"], ["c4"], "shortcut"),
        helper.make_node("Add", ["c3", "c4"], ["a4"], "add4"),
        helper.make_node("Relu", ["a4"], ["r4"], "relu4"),
        helper.make_node("ReduceMean", ["r4"], ["m"], "mean", axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["m", "w5", "b5"], ["y"], "fc", transB=1),
    ]
    shapes = {"w0": (8, 3, 3, 3), "w1": (8, 8, 3, 3), "w2": (8, 8, 3, 3), "w3": (16, 8, 3, 3), "w4": (16, 8, 1, 1)}
    biases = {"b0": (8,), "b1": (8,), "b2": (8,), "b3": (16,), "b4": (16,), "b5": (5,)}
    return graph_of(nodes, weights(1, **shapes, w5=(5, 16), **biases), {"x": ["n", 3, 12, 12]})


def depthwise_net() -> onnx.ModelProto:
    """MobileNet-like: a convolution, then depthwise and pointwise ones with Relu6."""
    nodes = [helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], "stem", pads=[1, 1, 1, 1])]
    nodes += [helper.make_node("Clip", ["c0", "zero", "six"], ["r0"], "clip0")]
    shapes: dict[str, tuple[int, ...]] = {"w0": (8, 3, 3, 3), "b0": (8,)}
    last = "r0"
    for i in (1, 2):
        group = {"group": 8, "pads": [1, 1, 1, 1]}
        nodes += [helper.make_node("Conv", [last, f"dw{i}", f"bd{i}"], [f"d{i}"], f"depthwise{i}", **group)]
        nodes += [helper.make_node("Clip", [f"d{i}", "zero", "six"], [f"e{i}"], f"clipd{i}")]
        nodes += [helper.make_node("Conv", [f"e{i}", f"pw{i}", f"bp{i}"], [f"p{i}"], f"pointwise{i}")]
        nodes += [helper.make_node("Clip", [f"p{i}", "zero", "six"], [f"q{i}"], f"clipp{i}")]
        shapes |= {f"dw{i}": (8, 1, 3, 3), f"bd{i}": (8,), f"pw{i}": (8, 8, 1, 1), f"bp{i}": (8,)}
        last = f"q{i}"
    nodes += [helper.make_node("Conv", [last, "w3"], ["y"], "head")]
    found = weights(2, **shapes, w3=(4, 8, 1, 1))
    found |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    return graph_of(nodes, found, {"x": ["n", 3, 10, 10]})


def perceptron() -> onnx.ModelProto:
    """Gemm in both orientations with Relu between, and a product without bias at the end."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h1"], "fc1"),
        helper.make_node("Relu", ["h1"], ["r1"], "relu1"),
        helper.make_node("Gemm", ["r1", "w2", "b2"], ["h2"], "fc2", transB=1),
        helper.make_node("Relu", ["h2"], ["r2"], "relu2"),
        helper.make_node("MatMul", ["r2", "w3"], ["y"], "fc3"),
    ]
    return graph_of(nodes, weights(3, w1=(20, 32), b1=(32,), w2=(24, 32), b2=(24,), w3=(24, 6)), {"x": ["n", 20]})


def matmul_net() -> onnx.ModelProto:
    """Products over three axes with float ops between them, as in a transformer block."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h1"], "up"),
        helper.make_node("Add", ["h1", "b1"], ["a1"], "bias1"),
        helper.make_node("Tanh", ["a1"], ["t1"], "tanh"),
        helper.make_node("MatMul", ["t1", "w2"], ["h2"], "down"),
        helper.make_node("MatMul", ["h2", "w3"], ["y"], "out"),
    ]
    return graph_of(nodes, weights(4, w1=(16, 32), b1=(32,), w2=(32, 16), w3=(16, 8)), {"x": ["n", 7, 16]})


def lstm_net(direction: str = "forward", layers: int = 2, hidden: int = 24, inputs: int = 20) -> onnx.ModelProto:
    """Two LSTM layers with biases and initial states left out, and a projection of the last state."""
    turns = 2 if direction == "bidirectional" else 1
    nodes, shapes, last, width = [], {}, "x", inputs
    for layer in range(layers):
        names = [f"w{layer}", f"r{layer}", f"b{layer}"]
        nodes.append(
            helper.make_node(
                "LSTM",
                [last, *names],
                [f"y{layer}", f"h{layer}", ""],
                f"lstm{layer}",
                hidden_size=hidden,
                direction=direction,
            )
        )
        shapes |= {
            names[0]: (turns, 4 * hidden, width),
            names[1]: (turns, 4 * hidden, hidden),
            names[2]: (turns, 8 * hidden),
        }
        # (time, directions, batch, hidden) -> (time, batch, directions * hidden)
        nodes.append(helper.make_node("Transpose", [f"y{layer}"], [f"t{layer}"], f"turn{layer}", perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [f"t{layer}", "joined"], [f"z{layer}"], f"join{layer}"))
        last, width = f"z{layer}", turns * hidden
    nodes.append(helper.make_node("MatMul", [last, "p"], ["y"], "project"))
    found = weights(5, **shapes, p=(width, 6)) | {"joined": np.array([0, 0, -1], np.int64)}
    return graph_of(nodes, found, {"x": [7, "n", inputs]})


def embedding_net(vocabulary: int = 300, width: int = 32) -> onnx.ModelProto:
    """A table, a sum and a product."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "embed"),
        helper.make_node("MatMul", ["e", "w"], ["m"], "up"),
        helper.make_node("Tanh", ["m"], ["y"], "tanh"),
    ]
    model = graph_of(nodes, weights(6, table=(vocabulary, width), w=(width, 16)), {})
    model.graph.input.append(helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n", 5]))
    return model


NETS = {
    "conv": conv_net,
    "residual": residual_net,
    "depthwise": depthwise_net,
    "perceptron": perceptron,
    "matmul": matmul_net,
}


def batches(model: onnx.ModelProto, count: int = 4, size: int = 5, seed: int = 9) -> list[dict[str, np.ndarray]]:
    """Return normal inputs for every (float) input of `model`; a free batch axis gets `size`."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        feed = {}
        for value in model.graph.input:
            shape = [dim.dim_value or size for dim in value.type.tensor_type.shape.dim]
            feed[value.name] = rng.standard_normal(shape).astype(np.float32)
        found.append(feed)
    return found


class Reader(CalibrationDataReader):
    """Feeds batches to the stock tool."""

    def __init__(self, feeds: Iterable[dict[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch, None at the end."""
        return next(self._feeds, None)


def session_of(model: onnx.ModelProto | Path, *, optimize: bool = True) -> onnxruntime.InferenceSession:
    """Return a session on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto | Path, feed: dict[str, np.ndarray], *, optimize: bool = True) -> list[np.ndarray]:
    """Return the outputs of a plain session."""
    return list(session_of(model, optimize=optimize).run(None, feed))


def stock(
    model: onnx.ModelProto,
    feeds: Sequence[dict[str, np.ndarray]],
    folder: Path,
    *,
    op_types: Sequence[str],
    per_channel: bool = True,
    exclude: Sequence[str] = (),
    activation: QuantType = QuantType.QUInt8,
    weight: QuantType = QuantType.QInt8,
    reduce_range: bool = False,
    quant_format: QuantFormat = QuantFormat.QDQ,
    **extra: object,
) -> Path:
    """Quantize with the runtime's own tool and return the path of its model."""
    source, target = folder / "float.onnx", folder / "stock.onnx"
    onnx.save(model, str(source))
    with _silence():
        quantize_static(
            str(source),
            str(target),
            Reader(feeds),
            quant_format=quant_format,
            per_channel=per_channel,
            reduce_range=reduce_range,
            activation_type=activation,
            weight_type=weight,
            op_types_to_quantize=list(op_types),
            nodes_to_exclude=list(exclude),
            extra_options=extra,
        )
    return target


@contextlib.contextmanager
def _silence() -> Iterable[None]:  # type: ignore[misc]
    """The stock tool advises through the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


class Tuned:
    """One float model, held and calibrated by our adapter."""

    def __init__(
        self,
        model: onnx.ModelProto | Path,
        feeds: Sequence[dict[str, np.ndarray]],
        folder: Path,
        processor: Processor = VNNI,
    ) -> None:
        self.feeds = feeds
        self.hold = models.load(model, processor=processor)
        self.capability = ADAPTER.query(self.hold)
        self.space = TuningSpace.of(self.capability)
        self.statistics = ADAPTER.calibrate(self.hold, feeds, folder / "statistics")

    def build(self, candidate: Candidate | None = None) -> Built:
        """Return a candidate built for one thread; full int8 if none is given."""
        return ADAPTER.build(self.hold, self.space.preferred() if candidate is None else candidate, self.statistics, 1)

    def run(self, candidate: Candidate | None = None, feed: dict[str, np.ndarray] | None = None) -> list[np.ndarray]:
        """Return the outputs of a candidate on the first batch, or on `feed`."""
        return list(ADAPTER.run(self.build(candidate), self.feeds[0] if feed is None else feed))

    def float_model(self, folder: Path) -> onnx.ModelProto:
        """Return the normalised float model, whole: what the stock tool gets, so that both start from the same graph."""
        return onnx.load(str(ADAPTER.save(self.build(Candidate()), folder / "normalised")))

    def floats(self, candidate: Candidate | None = None) -> list[str]:
        """Return the ops that stayed float."""
        return [op.name for op in self.build(candidate).report.ops if op.is_float]


def options(**changes: object) -> AdapterOptions:
    """Return adapter options."""
    return AdapterOptions(**changes)  # type: ignore[arg-type]
