"""Generated models, most of them broken or odd, and the judge of what the adapter makes of them.

    python fuzzing.py FIRST COUNT

runs the cases FIRST ... FIRST + COUNT - 1 and prints one JSON line before and one after each, so that a parent process sees which case
took the interpreter down. A case that computes or waits for too long ends the interpreter too, with its stack on standard error. A case is good when the adapter raises a typed error, or returns a model that plain onnxruntime loads and whose outputs
agree with those of the float model.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from neural_tune.errors import NeuralTuneError
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune_onnxruntime.adapter import OnnxRuntimeAdapter

FLOAT = onnx.TensorProto.FLOAT
# Relative L2 distance from float. Rounding gives up to 0.2 on such tiny nets with random ranges; the known silent errors give 0.5 and more.
TOLERANCE = 0.35
# A case takes 0.02 s. Processor time catches one that turns in circles even on a machine that hardly runs us; elapsed time, one that waits for ever.
CASE_CPU_SECONDS = 30
CASE_WALL_SECONDS = 400
Rng = np.random.Generator


@dataclass
class Trial:
    """What one case feeds to the adapter.

    Attributes:
        model: The model, to be written to a file.
        feeds: Calibration batches; the first is judged.
        content: Bytes to write instead of the model.
        unjudged: Why the outputs cannot be compared (the ranges do not cover them); "" where they can.
    """

    model: onnx.ModelProto
    feeds: list[dict[str, np.ndarray]]
    content: bytes | None = None
    unjudged: str = ""


@dataclass
class Net:
    """A random image network under construction."""

    rng: Rng
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    # Tensors of four axes -> channels, side.
    maps: dict[str, tuple[int, int]] = field(default_factory=dict)

    def name(self, stem: str) -> str:
        return f"{stem}{len(self.nodes)}"

    def constant(self, values: Any) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = np.asarray(values)
        return name

    def add(self, kind: str, inputs: list[str], count: int = 1, **attributes: Any) -> list[str]:
        outputs = [f"{kind.lower()}{len(self.nodes)}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(kind, inputs, outputs, self.name("node"), **attributes))
        return outputs

    def weight(self, *shape: int) -> str:
        scale = 1.0 / np.sqrt(max(1, np.prod(shape[1:])))
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def pick(self) -> str:
        return str(self.rng.choice(list(self.maps)))

    def grow(self) -> None:
        """Add one random operation."""
        source = self.pick()
        channels, side = self.maps[source]
        choice = self.rng.choice(
            ["conv", "conv", "relu", "add", "concat", "pool", "split", "mul", "resize", "shape", "depthwise", "act"]
        )
        if choice in ("conv", "depthwise"):
            depthwise = choice == "depthwise"
            made = channels if depthwise else int(self.rng.choice([4, 8]))
            kernel = int(self.rng.choice([1, 3]))
            inputs = [source, self.weight(made, 1 if depthwise else channels, kernel, kernel)]
            if self.rng.random() < 0.6:
                inputs.append(self.weight(made))
            more = {"group": channels} if depthwise else {}
            (target,) = self.add("Conv", inputs, pads=[kernel // 2] * 4, **more)
            self.maps[target] = (made, side)
        elif choice == "relu":
            kind = str(self.rng.choice(["Relu", "Clip"]))
            bounds = [self.constant(np.float32(-0.4)), self.constant(np.float32(0.8))] if kind == "Clip" else []
            (target,) = self.add(kind, [source, *bounds])
            self.maps[target] = (channels, side)
        elif choice in ("add", "mul", "concat"):
            others = [name for name, (c, s) in self.maps.items() if s == side and (choice == "concat" or c == channels)]
            other = str(self.rng.choice(others))
            (target,) = self.add(choice.capitalize(), [source, other], **({"axis": 1} if choice == "concat" else {}))
            self.maps[target] = (channels + self.maps[other][0] if choice == "concat" else channels, side)
        elif choice == "pool" and side > 3:
            kind = str(self.rng.choice(["MaxPool", "AveragePool"]))
            (target,) = self.add(kind, [source], kernel_shape=[2, 2], strides=[2, 2])
            self.maps[target] = (channels, (side - 2) // 2 + 1)
        elif choice == "split" and channels % 2 == 0:
            sizes = self.constant(np.array([channels // 2] * 2))
            for target in self.add("Split", [source, sizes], 2, axis=1):
                self.maps[target] = (channels // 2, side)
        elif choice == "resize" and side < 9:
            scales = self.constant(np.array([1, 1, 2, 2], np.float32))
            (target,) = self.add("Resize", [source, "", scales], mode=str(self.rng.choice(["nearest", "linear"])))
            self.maps[target] = (channels, side * 2)
        elif choice == "shape":
            (turned,) = self.add("Transpose", [source], perm=[0, 2, 3, 1])
            (target,) = self.add("Transpose", [turned], perm=[0, 3, 1, 2])
            self.maps[target] = (channels, side)
        else:
            kind = str(self.rng.choice(["Sigmoid", "LeakyRelu", "Tanh", "Identity", "Softmax"]))
            (target,) = self.add(kind, [source])
            self.maps[target] = (channels, side)

    def finish(self, opset: int = 17, *, free: bool = False) -> onnx.ModelProto:
        """End in a product, and hand out one more tensor now and then."""
        last = list(self.maps)[-1]
        channels, _ = self.maps[last]
        (pooled,) = self.add("GlobalAveragePool", [last])
        (flat,) = self.add("Flatten", [pooled])
        (result,) = self.add("Gemm", [flat, self.weight(5, channels), self.weight(5)], transB=1)
        results = [result, *([self.pick()] if self.rng.random() < 0.3 else [])]
        results = [name for name in dict.fromkeys(results) if name != "x"]
        shape = ["n", "c", "h", "w"] if free else ["n", 3, 8, 8]
        graph = helper.make_graph(
            self.nodes,
            "fuzz",
            [helper.make_tensor_value_info("x", FLOAT, shape)],
            [helper.make_tensor_value_info(name, FLOAT, None) for name in results],
            [numpy_helper.from_array(values, name) for name, values in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def random_net(rng: Rng, size: int = 7, *, free: bool = False, opset: int = 17) -> onnx.ModelProto:
    """Return a valid model with a convolution at its front."""
    net = Net(rng)
    net.maps["x"] = (3, 8)
    (first,) = net.add("Conv", ["x", net.weight(8, 3, 3, 3), net.weight(8)], pads=[1, 1, 1, 1])
    net.maps = {first: (8, 8)}
    for _ in range(int(rng.integers(1, size + 1))):
        net.grow()
    return net.finish(opset, free=free)


def pictures(rng: Rng, count: int = 2, batch: int = 3, scale: float = 1.0) -> list[dict[str, np.ndarray]]:
    """Return calibration batches for `random_net`."""
    return [{"x": (rng.standard_normal((batch, 3, 8, 8)) * scale).astype(np.float32)} for _ in range(count)]


def weights_of(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return the float initializers that have more than one axis or value."""
    return [item for item in model.graph.initializer if item.data_type == FLOAT and np.prod(item.dims) > 1]


def rewrite_weight(tensor: onnx.TensorProto, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor.CopyFrom(
        numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(tensor).copy()), np.float32), tensor.name)
    )


def healthy(rng: Rng) -> Trial:
    return Trial(random_net(rng, 12), pictures(rng))


def truncated(rng: Rng) -> Trial:
    model = random_net(rng)
    whole = model.SerializeToString()
    return Trial(model, pictures(rng), whole[: int(rng.integers(0, len(whole)))])


def flipped(rng: Rng) -> Trial:
    model = random_net(rng, 4)
    content = bytearray(model.SerializeToString())
    for _ in range(int(rng.integers(1, 4))):
        content[int(rng.integers(0, len(content)))] ^= 1 << int(rng.integers(0, 8))
    return Trial(model, pictures(rng), bytes(content))


def noise(rng: Rng) -> Trial:
    return Trial(random_net(rng, 1), pictures(rng), rng.bytes(int(rng.integers(0, 400))))


def opsets(rng: Rng) -> Trial:
    model = random_net(rng, 5, opset=13)
    model.opset_import[0].version = int(
        rng.choice([-1, 0, 1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 18, 21, 25, 27, 99, 2**40])
    )
    if rng.random() < 0.15:
        del model.opset_import[:]
    elif rng.random() < 0.15:
        model.opset_import.append(helper.make_opsetid("", int(rng.integers(7, 20))))
    if rng.random() < 0.2:
        model.ir_version = int(rng.choice([0, 1, 3, 99]))
    return Trial(model, pictures(rng))


def cyclic(rng: Rng) -> Trial:
    model = random_net(rng)
    nodes = model.graph.node
    early, late = sorted(rng.choice(len(nodes), 2, replace=False))
    nodes[int(early)].input[0] = nodes[int(late)].output[0]
    return Trial(model, pictures(rng))


def dangling(rng: Rng) -> Trial:
    model = random_net(rng)
    node = model.graph.node[int(rng.integers(len(model.graph.node)))]
    what = rng.integers(4)
    if what == 0:
        node.input[int(rng.integers(len(node.input)))] = "nowhere"
    elif what == 1:
        model.graph.output[0].name = "nowhere"
    elif what == 2:
        del model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]
    else:
        node.output[0] = ""
    return Trial(model, pictures(rng))


def shuffled(rng: Rng) -> Trial:
    model = random_net(rng)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes[index] for index in rng.permutation(len(nodes)))
    return Trial(model, pictures(rng))


def empty_weights(rng: Rng) -> Trial:
    model = random_net(rng, 4)
    tensor = weights_of(model)[int(rng.integers(len(weights_of(model))))]
    dims = list(tensor.dims)
    dims[int(rng.integers(len(dims)))] = 0
    tensor.CopyFrom(numpy_helper.from_array(np.zeros(dims, np.float32), tensor.name))
    return Trial(model, pictures(rng))


def broken_weights(rng: Rng) -> Trial:
    model = random_net(rng)
    tensor = weights_of(model)[int(rng.integers(len(weights_of(model))))]

    def change(values: np.ndarray) -> np.ndarray:
        values.flat[int(rng.integers(values.size))] = rng.choice([np.nan, np.inf, -np.inf])
        return values

    rewrite_weight(tensor, change)
    return Trial(model, pictures(rng))


def calibration(rng: Rng) -> Trial:
    model = random_net(rng, 4)
    what = rng.integers(6)
    feeds = pictures(rng)
    if what == 0:
        feeds = []
    elif what == 1:
        feeds = [{"x": np.zeros((0, 3, 8, 8), np.float32)}]
    elif what == 2:
        feeds[int(rng.integers(len(feeds)))]["x"].flat[5] = rng.choice([np.nan, np.inf])
    elif what == 3:
        feeds = [{"y": feeds[0]["x"]}]
    elif what == 4:
        feeds[0]["x"] = feeds[0]["x"][:, :2]
    else:
        feeds[0]["x"] = feeds[0]["x"].astype(rng.choice([np.float64, np.int64, np.float16]))
    return Trial(model, feeds)


def constant(rng: Rng) -> Trial:
    model = random_net(rng)
    for tensor in weights_of(model):
        if rng.random() < 0.4:
            value = float(rng.choice([0.0, 0.0, 1.0, -0.25]))
            rewrite_weight(tensor, lambda values, value=value: np.full(values.shape, value))
    feeds = pictures(rng)
    if rng.random() < 0.6:
        value = np.float32(rng.choice([0.0, 1.0, -3.0, 1e-30]))
        feeds = [{"x": np.full_like(feed["x"], value)} for feed in feeds]
    return Trial(model, feeds)


def dynamic(rng: Rng) -> Trial:
    model = random_net(rng, free=True)
    kind = model.graph.input[0].type.tensor_type
    if rng.random() < 0.3:
        kind.ClearField("shape")
    elif rng.random() < 0.3:
        for dim in kind.shape.dim:
            dim.ClearField("value")
    side = int(rng.choice([8, 8, 16, 24]))
    feeds = [{"x": rng.standard_normal((int(rng.integers(1, 5)), 3, side, side)).astype(np.float32)} for _ in range(2)]
    return Trial(model, feeds)


def duplicates(rng: Rng) -> Trial:
    model = random_net(rng)
    nodes = model.graph.node
    what = rng.integers(5)
    if what == 0:
        for node in nodes:
            node.name = "same"
    elif what == 1:
        nodes[-1].output[0] = nodes[0].output[0]
    elif what == 2:
        model.graph.initializer.append(model.graph.initializer[0])
    elif what == 3:
        item = model.graph.initializer[0]
        model.graph.input.append(helper.make_tensor_value_info(item.name, item.data_type, list(item.dims)))
    else:
        model.graph.output.append(model.graph.output[0])
    return Trial(model, pictures(rng))


def unnamed(rng: Rng) -> Trial:
    model = random_net(rng, 10)
    for node in model.graph.node:
        if rng.random() < 0.7:
            node.name = ""
    # And names that look like ours.
    renamed = {node.output[0]: f"{model.graph.node[0].output[0]}__q" for node in model.graph.node[1:2]}
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for value in model.graph.output:
        value.name = renamed.get(value.name, value.name)
    model.graph.name = ""
    return Trial(model, pictures(rng))


def huge(rng: Rng) -> Trial:
    model = random_net(rng, 4)
    factor = float(10.0 ** rng.integers(-40, 39))
    with np.errstate(all="ignore"):
        for tensor in weights_of(model)[: int(rng.integers(1, 3))]:
            rewrite_weight(tensor, lambda values: (values.astype(np.float64) * factor).astype(np.float32))
        feeds = pictures(rng, scale=float(10.0 ** rng.integers(-38, 38)))
    return Trial(model, feeds)


def odd(rng: Rng) -> Trial:
    """One convolution with whatever attributes."""
    channels, made, group = (int(rng.choice([1, 3, 6])), int(rng.choice([1, 5, 6])), int(rng.choice([1, 1, 1, 2, 3])))
    rank = int(rng.integers(1, 4))
    kernel = [int(rng.integers(1, 6)) for _ in range(rank)]
    more: dict[str, Any] = {"group": group}
    if rng.random() < 0.4:
        more["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID", "NONSENSE"]))
    else:
        more["pads"] = [int(rng.integers(0, 3)) for _ in range(2 * rank)]
    if rng.random() < 0.5:
        more["strides"] = [int(rng.integers(1, 4)) for _ in range(rank)]
    if rng.random() < 0.3:
        more["dilations"] = [int(rng.integers(1, 3)) for _ in range(rank)]
    weight = rng.standard_normal((made, max(1, channels // group), *kernel)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], **more), helper.make_node("Relu", ["c"], ["y"])]
    shape = [2, channels, *(int(rng.integers(1, 7)) for _ in range(rank))]
    graph = helper.make_graph(
        nodes,
        "odd",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Trial(model, [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(2)])


def products(rng: Rng) -> Trial:
    """A chain of Gemm and MatMul with odd factors, biases and orientations."""
    width = int(rng.choice([1, 4, 16]))
    nodes, constants, last = [], {}, "x"
    lead = [int(rng.integers(1, 4))] if rng.random() < 0.4 else []
    for i in range(int(rng.integers(1, 4))):
        made = int(rng.choice([1, 3, 16]))
        if lead or rng.random() < 0.4:
            shape = (*lead, width, made) if lead and rng.random() < 0.3 else (width, made)
            constants[f"w{i}"] = rng.standard_normal(shape).astype(np.float32)
            nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"h{i}"]))
        else:
            turned = int(rng.random() < 0.5)
            constants[f"w{i}"] = rng.standard_normal((made, width) if turned else (width, made)).astype(np.float32)
            inputs = [last, f"w{i}"]
            if rng.random() < 0.7:
                bias = rng.standard_normal(made) if rng.random() < 0.7 else rng.standard_normal(rng.choice([1, 7]))
                constants[f"b{i}"] = bias.astype(np.float32)
                inputs.append(f"b{i}")
            factors = {"alpha": float(rng.choice([1, 1, 0.5, -2]))} | {"beta": float(rng.choice([1, 1, 3, 0]))}
            nodes.append(helper.make_node("Gemm", inputs, [f"h{i}"], transB=turned, **factors))
        last, width = f"h{i}", made
        if rng.random() < 0.4:
            nodes.append(helper.make_node(str(rng.choice(["Relu", "Tanh", "Sigmoid"])), [last], [f"{last}a"]))
            last = f"{last}a"
    shape = [*lead, 7, constants["w0"].shape[-2] if nodes[0].op_type == "MatMul" else 0]
    if nodes[0].op_type == "Gemm":
        turned = next(item.i for item in nodes[0].attribute if item.name == "transB")
        shape[-1] = constants["w0"].shape[1 if turned else 0]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info(last, FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Trial(model, [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(2)])


def domains(rng: Rng) -> Trial:
    model = random_net(rng, 5)
    node = model.graph.node[int(rng.integers(len(model.graph.node)))]
    what = rng.integers(4)
    if what == 0:
        node.domain = str(rng.choice(["com.acme", "ai.onnx.ml", "com.microsoft"]))
    elif what == 1:
        node.op_type = str(rng.choice(["Nonsense", "QLinearConv", "Conv", "Loop", "If"]))
    elif what == 2:  # a float op of the runtime's own domain behind the first node
        first = model.graph.node[0]
        made = f"{first.output[0]}_gelu"
        for other in model.graph.node[1:]:
            other.input[:] = [made if name == first.output[0] else name for name in other.input]
        model.graph.node.insert(1, helper.make_node("Gelu", [first.output[0]], [made], domain="com.microsoft"))
    else:  # a function of the model's own
        inner = helper.make_node("Relu", ["a"], ["b"])
        model.functions.append(
            helper.make_function("local", "Rectify", ["a"], ["b"], [inner], [helper.make_opsetid("", 17)])
        )
        model.opset_import.append(helper.make_opsetid("local", 1))
        for other in model.graph.node:
            if other.op_type == "Relu":
                other.op_type, other.domain = "Rectify", "local"
    if rng.random() < 0.8:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return Trial(model, pictures(rng))


KINDS: dict[str, Callable[[Rng], Trial]] = {
    found.__name__: found
    for found in (
        *(
            healthy,
            truncated,
            flipped,
            noise,
            opsets,
            cyclic,
            dangling,
            shuffled,
            empty_weights,
            broken_weights,
            calibration,
        ),
        *(constant, dynamic, duplicates, unnamed, huge, odd, products, domains),
    )
}


def kind_of(case: int) -> str:
    """Return the kind of a case: they take turns."""
    return list(KINDS)[case % len(KINDS)]


def judge(case: int, folder: Path) -> str:
    """Run one case; return "ok", "refused: ...", or what is wrong with it, beginning with WRONG."""
    rng = np.random.default_rng([2026, case])
    trial = KINDS[kind_of(case)](rng)
    path = folder / f"case{case}.onnx"
    path.write_bytes(trial.model.SerializeToString() if trial.content is None else trial.content)
    expected = _float_outputs(path, trial.feeds[0]) if trial.feeds else None
    try:
        produced = _int8_outputs(path, trial.feeds, folder / f"case{case}", rng)
    except NeuralTuneError as error:
        if not str(error).strip():
            return f"WRONG: {type(error).__name__} without a message"
        # A healthy model must get through: the judge would else be content with an adapter that refuses everything.
        if kind_of(case) in ("healthy", "unnamed") and expected is not None:
            return f"WRONG: refused a healthy model: {error}"
        return f"refused: {type(error).__name__}: {str(error)[:200]}"
    return _compare(expected, produced)


def _float_outputs(path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return list(session.run(None, feed))
    except Exception:  # noqa: BLE001 - the runtime refuses it, in one of its many ways
        return None


def _int8_outputs(path: Path, feeds: list[dict[str, np.ndarray]], folder: Path, rng: Rng) -> list[np.ndarray]:
    adapter = OnnxRuntimeAdapter()
    approach = str(rng.choice(["static", "static", "dynamic", "weight_only", "auto"]))
    quant_format = str(rng.choice(["QDQ", "QOperator"])) if approach == "static" else "default"
    chosen = AdapterOptions(approach=approach, quant_format=quant_format)
    hold = adapter.load(str(path), chosen)
    space = TuningSpace.of(adapter.query(hold))
    statistics = adapter.calibrate(hold, feeds, folder / "statistics")
    candidate = space.preferred()
    if rng.random() < 0.3:  # a mixed one
        candidate = space.candidate(
            {group.name: group.choices[int(rng.integers(len(group.choices)))] for group in space.groups}
        )
    built = adapter.build(hold, candidate, statistics, 1)
    produced = list(adapter.run(built, feeds[0]))
    saved = adapter.save(built, folder)
    # Plain onnxruntime converts no types, as the adapter does.
    plain = _float_outputs(saved, {name: values.astype(np.float32) for name, values in feeds[0].items()})
    if plain is None:
        raise AssertionError("plain onnxruntime refuses the saved model")
    for one, two in zip(plain, produced, strict=True):
        if not np.array_equal(one, two, equal_nan=True):
            raise AssertionError("the saved model computes something else than the built one")
    return produced


def _compare(expected: list[np.ndarray] | None, produced: list[np.ndarray]) -> str:
    if (
        expected is None
    ):  # the runtime refuses what normalisation repairs (names that occur twice): there is nothing to compare with
        return "ok" if all(np.isfinite(item).all() for item in produced) else "WRONG: not finite"
    if [item.shape for item in expected] != [item.shape for item in produced]:
        return f"WRONG: shapes {[item.shape for item in produced]}, expected {[item.shape for item in expected]}"
    for one, two in zip(expected, produced, strict=True):
        sane = np.isfinite(one)
        if not np.isfinite(two[sane]).all():
            return "WRONG: not finite where float is"
        size = float(np.linalg.norm(one[sane].astype(np.float64)))
        distance = float(np.linalg.norm(two[sane].astype(np.float64) - one[sane].astype(np.float64)))
        if distance > TOLERANCE * size + 1e-30:
            return f"WRONG: relative distance {distance / max(size, 1e-300):.3g} of an output of size {size:.3g}"
    return "ok"


def guard(cpu_seconds: float = CASE_CPU_SECONDS, wall_seconds: float = CASE_WALL_SECONDS) -> None:
    """End the interpreter, with its stack on standard error, if it is not called again in time."""
    faulthandler.dump_traceback_later(wall_seconds, exit=True)
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # SIGPROF ends the process, in the middle of native code too


def main(first: int, count: int) -> None:
    """Judge cases one after the other."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    onnxruntime.set_default_logger_severity(4)
    with tempfile.TemporaryDirectory(prefix="nt-fuzz-") as folder:
        for case in range(first, first + count):
            print(json.dumps({"case": case}), flush=True)
            guard()
            try:
                verdict = judge(case, Path(folder))
            except Exception as error:  # noqa: BLE001 - any other exception is what the test looks for
                verdict = f"WRONG: {type(error).__name__}: {str(error)[:300]}"
            print(json.dumps({"case": case, "kind": kind_of(case), "verdict": verdict}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
