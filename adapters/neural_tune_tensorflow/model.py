"""The onednn backend's hold on a float model: the canonical graph, what can be fused in it, and its weights in int8."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from neural_tune_tensorflow.backend import Port
from neural_tune_tensorflow.canonical import canonical
from neural_tune_tensorflow.graph import Graph
from neural_tune_tensorflow.rewrite.activations import Readers
from neural_tune_tensorflow.rewrite.units import Units, find_units
from neural_tune_tensorflow.rewrite.weights import WeightStore
from neural_tune_tensorflow.source import FloatGraph


@dataclass(frozen=True, eq=False)
class OnednnModel:
    """A float model in canonical form; never changed.

    Attributes:
        source: What the caller gave.
        graph: The canonical graph.
        outputs: The outputs, by their names in the canonical graph.
        units: Products with what is fused into them.
        readers: Tensor -> nodes that read it.
        store: Quantized weights.
        approach: "static", "auto" or "qat".
        sum_fusion: Whether the recipe of that name is offered.
        backend: Name of the backend.
    """

    source: FloatGraph
    graph: Graph
    outputs: tuple[Port, ...]
    units: Units
    readers: Readers = field(repr=False)
    store: WeightStore = field(repr=False)
    approach: str = "static"
    sum_fusion: bool = False
    backend: str = "onednn"

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What the model takes."""
        return self.source.inputs

    @cached_property
    def digest(self) -> str:
        """A hash of graph, weights and names of inputs and outputs."""
        names = " ".join(port.name for port in (*self.inputs, *self.outputs))
        return f"{self.graph.digest()}:{names}"

    @cached_property
    def float_def(self) -> Any:
        """The canonical graph as a GraphDef."""
        return self.graph.graph_def()

    def observed(self) -> tuple[str, ...]:
        """Return every tensor that a candidate may quantize, in execution order."""
        found: dict[str, None] = {}
        for unit in self.units.by_name.values():
            found.update(dict.fromkeys((unit.source, unit.tail)))
        if self.sum_fusion:  # a convolution that takes over a residual sum writes what is behind the sum's Relu
            found.update(dict.fromkeys(node.name for node in self.graph if node.op == "Relu"))
        return tuple(found)


def hold(source: FloatGraph, approach: str = "static", *, sum_fusion: bool = False) -> OnednnModel:
    """Return the hold on a frozen graph.

    Raises:
        AdapterError: TensorFlow refuses the graph.
    """
    graph = canonical(source.graph_def, source.inputs, source.outputs)
    return OnednnModel(
        source=source,
        graph=graph,
        outputs=renamed(source.outputs, graph.outputs),
        units=find_units(graph),
        readers=graph.readers(),
        store=WeightStore(graph),
        approach=approach,
        sum_fusion=sum_fusion,
    )


def renamed(ports: tuple[Port, ...], references: list[str]) -> tuple[Port, ...]:
    """Return `ports` reading other tensors."""
    return tuple(replace(port, tensor=reference) for port, reference in zip(ports, references, strict=True))
