"""Writes the graph of a plan: fused int8 ops in the place of the products, QuantizeV2 and Dequantize at the borders.

The signature of the fused ops (`tensorflow/core/ops/nn_ops.cc` and `mkl_ops.cc`): device inputs are the data, the weight, the bias; host inputs are
minimum and maximum of data, weight and, before a Requantize, of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neural_tune.values import Granularity, OpConfig
from neural_tune_tensorflow.graph import Graph, node_of
from neural_tune_tensorflow.rewrite.casts import cast
from neural_tune_tensorflow.rewrite.norms import fuse_norms
from neural_tune_tensorflow.rewrite.plan import Code, Plan, data_inputs
from neural_tune_tensorflow.rewrite.units import Unit, Units
from neural_tune_tensorflow.rewrite.weights import WeightStore
from neural_tune_tensorflow.runtime import NodeDef, tf

CONV = "_FusedQuantizedConv2D"
DEPTHWISE = "_FusedQuantizedDepthwiseConv2D"
PRODUCT = "_QuantizedMatMul"
# HALF_TO_EVEN is wrong for qint8 in TensorFlow 2.21: on long tensors 24.46 becomes 25 (one value in ten, measured).
ROUND_MODE = "HALF_AWAY_FROM_ZERO"


def emit(graph: Graph, units: Units, plan: Plan, store: WeightStore) -> Graph:
    """Return the graph of `plan`; `graph` is not changed. Its outputs are the same tensors, perhaps under other names."""
    writer = _Writer(graph, units, plan, store, graph.copy())
    fused = {name for unit in plan.configs for name in units.by_name[unit].nodes}
    fused |= {name for item in plan.sums.values() for name in (item.add, item.tail)}
    for name in fused:
        writer.result.nodes.pop(name)
    # A product that adds something is written where its sum was: only there is the other operand sure to exist.
    places = {units.by_name[name].tail if units.by_name[name].summand else name: name for name in plan.configs}
    for node in graph:
        if node.name in places:
            name = places[node.name]
            writer.fuse(units.by_name[name], plan.configs[name])
        elif node.name in plan.carried:
            writer.carry(node)
        elif node.name not in fused and node.name not in plan.configs and node.op != "Const":
            writer.keep(node)
    writer.result.outputs = [writer.as_float(name) for name in graph.outputs]
    writer.result.sort()
    fuse_norms(writer.result)
    writer.result.sort()
    return cast(writer.result, units, plan.casts) if plan.casts else writer.result


@dataclass(slots=True)
class _Writer:
    graph: Graph
    units: Units
    plan: Plan
    store: WeightStore
    result: Graph
    refs: dict[str, str] = field(default_factory=dict)  # tensor -> reference of its codes
    floats: dict[str, str] = field(default_factory=dict)  # tensor -> reference of its float form, where that moved

    def as_codes(self, tensor: str) -> str:
        """Return the reference of a tensor's codes; quantizes it first where float wrote it."""
        if tensor not in self.refs:
            code = self.plan.codes[tensor]
            low, high = self._range(tensor, code)
            self.refs[tensor] = self.result.add(
                "QuantizeV2",
                self.result.fresh(f"{_safe(tensor)}/quantize"),
                [self.as_float(tensor), low, high],
                T=_type(code),
                mode="SCALED",
                round_mode=ROUND_MODE,
                narrow_range=False,
                axis=-1,
                ensure_minimum_range=0.0,
            )
        return self.refs[tensor]

    def as_float(self, tensor: str) -> str:
        """Return the reference of a tensor's float form; dequantizes it first where int8 wrote it."""
        is_coded = tensor in self.plan.written or tensor in self.plan.carried
        if is_coded and tensor not in self.floats:
            code = self.plan.codes[tensor]
            low, high = self._range(tensor, code)
            name = tensor if tensor not in self.result.nodes else self.result.fresh(f"{_safe(tensor)}/dequantize")
            self.floats[tensor] = self.result.add(
                "Dequantize",
                name,
                [self.refs[tensor], low, high],
                T=_type(code),
                mode="SCALED",
                narrow_range=False,
                axis=-1,
                dtype=tf.float32,
            )
        return self.floats.get(tensor, tensor)

    def keep(self, node: Any) -> None:
        """Keep a float op, reading the float form of its inputs."""
        inputs = [self.as_float(name) for name in node.input]
        if inputs != list(node.input):
            copy = NodeDef()
            copy.CopyFrom(node)
            del copy.input[:]
            copy.input.extend(inputs)
            self.result.nodes[node.name] = copy

    def carry(self, node: Any) -> None:
        """Let a node work on codes."""
        code = self.plan.codes[node.name]
        name = node.name
        if node.op == "MaxPool":
            source = self.as_codes(node.input[0])
            low, high = self._range(node.name, code)
            self.result.add(
                "QuantizedMaxPool",
                name,
                [source, low, high],
                T=_type(code),
                ksize=list(node.attr["ksize"].list.i),
                strides=list(node.attr["strides"].list.i),
                padding=node.attr["padding"].s.decode(),
            )
        elif node.op == "Pad" and self._pad_words(node, code):
            pass
        else:
            copy = NodeDef()
            copy.CopyFrom(node)
            for position in range(len(data_inputs(node))):
                copy.input[position] = self.as_codes(node.input[position])
            kind = "Tparams" if node.op == "GatherV2" else "T"
            copy.attr[kind].type = _type(code).as_datatype_enum
            self.result.nodes[name] = copy
        self.refs[node.name] = name

    def _pad_words(self, node: Any, code: Code) -> bool:
        """Pad codes four at a time, as int32: byte by byte TensorFlow takes ten times as long as in float. Return False where channels do not fit."""
        shape, amounts = self.graph.shapes.get(node.input[0]), self.graph.value(node.input[1])
        padded = self.graph.shapes.get(node.name)
        if not shape or not padded or amounts is None or shape[-1] is None or shape[-1] % 4 or amounts[-1].any():
            return False
        if shape[:-1].count(None) > 1 or padded[:-1].count(None) > 1:
            return False
        words = [-1 if size is None else size for size in (*shape[:-1], shape[-1] // 4, 4)]
        codes = [-1 if size is None else size for size in padded]
        result, name, kind = self.result, node.name, _type(code)
        split = result.constant(result.fresh(f"{name}/word_shape"), np.array(words, np.int32))
        joined = result.constant(result.fresh(f"{name}/code_shape"), np.array(codes, np.int32))
        source = self.as_codes(node.input[0])
        grouped = result.add("Reshape", result.fresh(f"{name}/grouped"), [source, split], T=kind, Tshape=tf.int32)
        cast = result.add("Bitcast", result.fresh(f"{name}/words"), [grouped], T=kind, type=tf.int32)
        moved = result.add(
            "Pad", result.fresh(f"{name}/padded"), [cast, node.input[1]], T=tf.int32, Tpaddings=amounts.dtype.type
        )
        back = result.add("Bitcast", result.fresh(f"{name}/codes"), [moved], T=tf.int32, type=kind)
        result.add("Reshape", name, [back, joined], T=kind, Tshape=tf.int32)
        return True

    def fuse(self, unit: Unit, config: OpConfig) -> None:
        """Write the fused int8 op of a unit, under the name of its product."""
        granularity = Granularity.PER_CHANNEL if config.weight is None else config.weight.granularity
        codes = self.store.codes(unit, granularity)
        weight = self._place(self.store.node(unit, granularity, f"{unit.name}/int8_weight_{granularity.value}"))
        bias = unit.bias or self.result.constant(
            self.result.fresh(f"{unit.name}/no_bias"), np.zeros(unit.channels, np.float32)
        )
        entry = self.plan.codes[unit.source]
        data = [self.as_codes(unit.source), weight, bias]
        bound = codes.bound
        ranges = [
            *self._range(unit.source, entry),
            self.result.constant(self.result.fresh(f"{unit.name}/weight_low"), np.asarray(-bound)),
            self.result.constant(self.result.fresh(f"{unit.name}/weight_high"), bound),
        ]
        tail, summed = self.plan.tail_of(unit), self.plan.sums.get(unit.name)
        leaves = self.plan.codes[tail] if tail in self.plan.written else None
        if summed is not None:
            data.append(self.as_codes(summed.summand))
            ranges += self._range(summed.summand, self.plan.codes[summed.summand])
        if unit.summand:
            data.append(self.as_float(unit.summand))
        if leaves is not None:
            ranges += self._range(tail, leaves)
        node = self.graph.nodes[unit.name]
        if unit.is_product:
            _write_product(self.result, unit, data, ranges, entry, leaves)
        else:
            _write_conv(self.result, unit, node, data, ranges, entry, leaves)
        if leaves is not None:
            self.refs[tail] = unit.name
        elif unit.tail != unit.name:
            self.floats[unit.tail] = unit.name

    def _place(self, node: Any) -> str:
        self.result.nodes[node.name] = node
        return str(node.name)

    def _range(self, tensor: str, code: Code) -> list[str]:
        """Return the two constants that hold the range of a tensor."""
        found = []
        for end, value in (("low", code.low), ("high", code.high)):
            name = f"{_safe(tensor)}/range_{end}"
            if name not in self.result.nodes:
                self.result.constant(name, np.asarray(value, np.float32))
            found.append(name)
        return found


def _write_conv(
    result: Graph,
    unit: Unit,
    node: Any,
    data: Sequence[str],
    ranges: Sequence[str],
    entry: Code,
    leaves: Code | None,
) -> None:
    if leaves is None:
        message = f"{unit.name}: a convolution in int8 hands out codes, and none were planned"
        raise RuntimeError(message)
    padding = "EXPLICIT" if unit.paddings else node.attr["padding"].s.decode()
    explicit = list(unit.paddings) or list(node.attr["explicit_paddings"].list.i)
    optional = {"explicit_paddings": explicit} if explicit else {}
    # Four data inputs: the fourth is the summand, in codes of the unsigned kind.
    is_sum = len(data) == 4
    activation = ["Sum", "Relu"] if is_sum else ["Relu"] if unit.activation is not None else []
    result.add(
        DEPTHWISE if unit.kind == "DepthwiseConv2dNative" else CONV,
        unit.name,
        [*data, *ranges],
        Tinput=_type(entry),
        Tfilter=tf.qint8,
        Tbias=tf.float32,
        Tsummand=tf.quint8 if is_sum else _type(leaves),
        out_type=_type(leaves),
        Tdevice_inputs=[_type(entry), tf.qint8, tf.float32, *([tf.quint8] if is_sum else [])],
        Thost_inputs=[tf.float32] * len(ranges),
        Tdevice_outputs=[_type(leaves)],
        Thost_outputs=[tf.float32, tf.float32],
        data_format="NHWC",
        strides=list(node.attr["strides"].list.i),
        dilations=list(node.attr["dilations"].list.i) or [1, 1, 1, 1],
        padding=padding,
        fused_ops=["BiasAdd", *activation, "Requantize"],
        is_filter_const=True,
        is_bias_const=True,
        alpha=0.0,
        **optional,
    )


def _write_product(
    result: Graph, unit: Unit, data: Sequence[str], ranges: Sequence[str], entry: Code, leaves: Code | None
) -> None:
    follows = [unit.activation.kind] if unit.activation is not None else ["Add"] if unit.summand else []
    kind = tf.float32 if leaves is None else _type(leaves)
    result.add(
        PRODUCT,
        unit.name,
        [*data, *ranges],
        T1=_type(entry),
        T2=tf.qint8,
        Tbias=tf.float32,
        U=tf.float32,
        Tout=kind,
        Tdevice_inputs=[_type(entry), tf.qint8, *[tf.float32] * (len(data) - 2)],
        Thost_inputs=[tf.float32] * len(ranges),
        Tdevice_outputs=[kind],
        **({"Thost_outputs": [tf.float32, tf.float32]} if leaves is not None else {}),
        transpose_a=False,
        transpose_b=False,
        is_weight_const=True,
        is_bias_const=True,
        fused_ops=["BiasAdd", *follows, "Dequantize" if leaves is None else "Requantize"],
        input_quant_mode="SCALED",
        output_quant_mode="SCALED",
        leakyrelu_alpha=float(unit.activation.alpha) if unit.activation is not None else 0.2,
    )


def self_test_product(graph: Graph, kind: str, weight: Any) -> None:
    """Add to `graph`, which holds codes "x", a product whose result "y" (uint8) is relu(codes * weight / 256)."""
    graph.constant("w", weight, tf.qint8)
    channels = weight.shape[2] if kind == "DepthwiseConv2dNative" else weight.shape[-1]
    graph.constant("b", np.zeros(channels, np.float32))
    names = ("x_low", "x_high", "w_low", "w_high", "y_low", "y_high")
    for name, value in zip(names, (0.0, 255.0, -127.0, 127.0, 0.0, 255.0 * 256.0), strict=True):
        graph.constant(name, np.asarray(value, np.float32))
    from neural_tune.values import Observer  # noqa: PLC0415 - a label only
    from neural_tune_tensorflow.rewrite.activations import Activation  # noqa: PLC0415

    unit = Unit(
        name="product",
        kind=kind,
        source="x",
        weight="w",
        bias="b",
        activation=Activation("Relu", "product", "product", ()),
        tail="product",
        nodes=(),
        paddings=(),
        channels=channels,
    )
    code = Code(is_signed=False, high=255.0, observer=Observer.MINMAX)
    if kind == "MatMul":
        _write_product(graph, unit, ["x", "w", "b"], names, code, code)
    else:
        node = NodeDef()
        node.attr["strides"].list.i.extend([1, 1, 1, 1])
        node.attr["padding"].s = b"SAME"
        _write_conv(graph, unit, node, ["x", "w", "b"], names, code, code)
    graph.add("Bitcast", "y", ["product"], T=tf.quint8, type=tf.uint8)
    graph.sort()


def _type(code: Code) -> Any:
    return tf.qint8 if code.is_signed else tf.quint8


def _safe(tensor: str) -> str:
    """Return a tensor reference as part of a node name."""
    return tensor.replace(":", "_")


__all__ = ["CONV", "DEPTHWISE", "PRODUCT", "emit", "node_of", "self_test_product"]
