"""Products in bfloat16: the weight is stored in it, and what lies between two such products stays in it.

TensorFlow's own rewriter for this (`auto_mixed_precision_onednn_bfloat16`) is an option of the session and not of the graph: what it does is lost when the
model is saved, and no op can be left out. Here the casts are nodes of the graph, per op, and half the bytes of the weights are gone from the file.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neural_tune.values import DType, Mode, OpConfig, QuantSpec
from neural_tune_tensorflow.graph import Graph, node_of
from neural_tune_tensorflow.rewrite.activations import SIMPLE
from neural_tune_tensorflow.rewrite.units import Units
from neural_tune_tensorflow.runtime import NodeDef, tf

_SPEC = QuantSpec(dtype=DType.BF16)
CAST = OpConfig(mode=Mode.CAST, activation=_SPEC, weight=_SPEC)
# Ops that lose nothing (moves, maxima) or one rounding (sums) in bfloat16, with the number of inputs that are data; None for all but the last.
_FLOWS: dict[str, int | None] = {
    **dict.fromkeys(("Reshape", "Squeeze", "ExpandDims", "Transpose", "Pad", "MaxPool", "Relu", "Relu6"), 1),
    **dict.fromkeys(("Add", "AddV2"), 2),
    "ConcatV2": None,
}


def cast(graph: Graph, units: Units, names: Collection[str]) -> Graph:
    """Return `graph` with the products `names`, their biases and their simple activations in bfloat16; its outputs stay float32.

    A Gelu, which is half a dozen ops in TensorFlow, stays in float32.
    """
    members = {name for product in names for name in _members(graph, units, product)}
    writer = _Writer(graph.copy(), members, _flowing(graph, members))
    for node in graph:
        writer.write(node)
    writer.result.outputs = [writer.as_float(name) for name in graph.outputs]
    writer.result.sort()
    return writer.result


def _members(graph: Graph, units: Units, product: str) -> list[str]:
    unit = units.by_name[product]
    simple = () if unit.activation is None or unit.activation.kind not in SIMPLE else unit.activation.nodes
    return [product, *(name for name in unit.nodes if graph.nodes[name].op == "BiasAdd" or name in simple)]


def _flowing(graph: Graph, members: Collection[str]) -> set[str]:
    """Return the ops between members that are in bfloat16 too: all they read is, and somebody wants it so."""
    halves = set(members)
    for node in graph:
        if node.op in _FLOWS and _is_float(node) and all(name in halves for name in _data(node)):
            halves.add(node.name)
    wanted = {node_of(node.input[0]) for node in graph if node.name in members}
    found: set[str] = set()
    for node in reversed(list(graph)):
        if node.name in halves and node.name not in members and node.name in wanted:
            found.add(node.name)
            wanted.update(_data(node))
    return found


def _is_float(node: Any) -> bool:
    return bool(node.attr["T"].type == tf.float32.as_datatype_enum)


def _data(node: Any) -> list[str]:
    count = _FLOWS.get(node.op, 1)
    return list(node.input[:-1]) if count is None else list(node.input[:count])


@dataclass(slots=True)
class _Writer:
    result: Graph
    members: Collection[str]
    flowing: Collection[str]
    _halves: dict[str, str] = field(default_factory=dict)
    _floats: dict[str, str] = field(default_factory=dict)

    def write(self, node: Any) -> None:
        """Write one node in its type, reading its inputs in theirs."""
        is_half = node.name in self.members or node.name in self.flowing
        if is_half:
            data = len(node.input) if node.name in self.members else len(_data(node))
            inputs = [self._half(name) for name in node.input[:data]] + list(node.input[data:])
        else:
            inputs = [self.as_float(name) for name in node.input]
        if not is_half and inputs == list(node.input):
            return
        copy = NodeDef()
        copy.CopyFrom(node)
        copy.input[:] = inputs
        if is_half:
            copy.attr["T"].type = tf.bfloat16.as_datatype_enum
        self.result.nodes[node.name] = copy

    def as_float(self, tensor: str) -> str:
        """Return the reference of a tensor in float32."""
        if tensor not in self.members and tensor not in self.flowing:
            return tensor
        return self._cast(tensor, "float", tf.bfloat16, tf.float32, self._floats)

    def _half(self, tensor: str) -> str:
        if tensor in self.members or tensor in self.flowing:
            return tensor
        value = self.result.value(tensor)
        if value is None:
            return self._cast(tensor, "bf16", tf.float32, tf.bfloat16, self._halves)
        if tensor not in self._halves:
            half = np.asarray(value).astype(tf.bfloat16.as_numpy_dtype)
            self._halves[tensor] = self.result.constant(self.result.fresh(f"{tensor}/bf16"), half, tf.bfloat16)
        return self._halves[tensor]

    def _cast(self, tensor: str, label: str, source: Any, target: Any, done: dict[str, str]) -> str:
        if tensor not in done:
            name = self.result.fresh(f"{tensor.replace(':', '_')}/{label}")
            done[tensor] = self.result.add("Cast", name, [tensor], SrcT=source, DstT=target)
        return done[tensor]
