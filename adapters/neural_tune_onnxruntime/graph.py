"""A read-only index over a normalised ONNX graph: who produces, who consumes, what is constant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import onnx
from onnx import helper

FLOAT32 = onnx.TensorProto.FLOAT


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One node.

    Attributes:
        name: Unique name.
        type: Op type; with its domain in front when that is not the standard one.
        inputs: Tensor names by position; "" where an optional input is absent.
        outputs: Tensor names by position.
        node: The node itself; never to be changed.
    """

    name: str
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    node: onnx.NodeProto

    @classmethod
    def of(cls, node: onnx.NodeProto) -> Op:
        """Return the op of `node`."""
        kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        return cls(node.name, kind, tuple(node.input), tuple(node.output), node)

    def attribute(self, name: str, default: Any) -> Any:
        """Return the value of an attribute, `default` when it is absent."""
        for item in self.node.attribute:
            if item.name == name:
                return helper.get_attribute_value(item)
        return default

    def input(self, position: int) -> str:
        """Return the input at `position`, "" when it is absent."""
        return self.inputs[position] if position < len(self.inputs) else ""


@dataclass(frozen=True, slots=True)
class Constant:
    """What is known of an initializer without reading it.

    Attributes:
        elem_type: A value of `onnx.TensorProto.DataType`.
        shape: Dimensions.
    """

    elem_type: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """The ops of a graph in execution order, with producers and consumers.

    Attributes:
        ops: Every node of the main graph.
        constants: Initializer name -> what is known of it.
        producers: Tensor -> op that writes it; graph inputs and constants have none.
        consumers: Tensor -> ops that read it, in order, once each.
        fixed: Tensors whose name must survive: graph outputs, and what a subgraph (If, Loop) reads from outside.
        elem_types: Tensor -> element type, where it is known.
        ranks: Tensor -> number of dimensions, where it is known.
        zeros: Small constant -> whether all of it is zero.
    """

    ops: tuple[Op, ...]
    constants: Mapping[str, Constant]
    producers: Mapping[str, Op]
    consumers: Mapping[str, tuple[Op, ...]]
    fixed: frozenset[str]
    elem_types: Mapping[str, int]
    ranks: Mapping[str, int]
    zeros: Mapping[str, bool]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Graph:
        """Return the index of the main graph of `model`."""
        graph = model.graph
        ops = tuple(Op.of(node) for node in graph.node)
        consumers: dict[str, list[Op]] = {}
        for op in ops:
            for tensor in dict.fromkeys(op.inputs):
                if tensor:
                    consumers.setdefault(tensor, []).append(op)
        captured = {name for node in graph.node for name in captured_names(node)}
        values = [*graph.input, *graph.value_info, *graph.output]
        typed = {value.name: value.type.tensor_type for value in values if value.type.HasField("tensor_type")}
        return cls(
            ops=ops,
            constants={item.name: Constant(item.data_type, tuple(item.dims)) for item in graph.initializer},
            producers={tensor: op for op in ops for tensor in op.outputs if tensor},
            consumers={tensor: tuple(readers) for tensor, readers in consumers.items()},
            fixed=frozenset(captured | {value.name for value in graph.output}),
            elem_types={name: kind.elem_type for name, kind in typed.items() if kind.elem_type},
            ranks={name: len(kind.shape.dim) for name, kind in typed.items() if kind.HasField("shape")},
            zeros={item.name: not any(item.raw_data) for item in graph.initializer if item.raw_data},
        )

    def activations(self, op: Op) -> tuple[str, ...]:
        """Return the tensors that `op` reads and that are no constants, once each."""
        return tuple(dict.fromkeys(name for name in op.inputs if name and name not in self.constants))

    def sole_consumer(self, tensor: str) -> Op | None:
        """Return the one op that reads `tensor`; None when there are more or none, or when the name must survive."""
        readers = self.consumers.get(tensor, ())
        return readers[0] if len(readers) == 1 and tensor not in self.fixed else None


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the bodies of a control-flow node."""
    for item in node.attribute:
        if item.type == onnx.AttributeProto.GRAPH:
            yield item.g
        elif item.type == onnx.AttributeProto.GRAPHS:
            yield from item.graphs


def captured_names(node: onnx.NodeProto) -> frozenset[str]:
    """Return the outer tensors that the bodies of `node` read by name."""
    return frozenset().union(*(_free_names(body) for body in subgraphs(node)))


def _free_names(body: onnx.GraphProto) -> frozenset[str]:
    known = {value.name for value in body.input} | {item.name for item in body.initializer}
    free: set[str] = set()
    for node in body.node:
        free.update(_unknown(node.input, known))
        free.update(_unknown(captured_names(node), known))
        known.update(node.output)
    return frozenset(free | set(_unknown((value.name for value in body.output), known)))


def _unknown(names: Iterable[str], known: set[str]) -> list[str]:
    return [name for name in names if name and name not in known]
