"""A plan written as a graph: of int8 kernels, or of float ops with fake_quant at exactly the same places."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import fx, nn

from neural_tune.values import Mode, QuantSpec
from neural_tune_pytorch.backends import swap
from neural_tune_pytorch.backends.fx_graph import Captured, Op
from neural_tune_pytorch.backends.fx_plan import Place, Plan
from neural_tune_pytorch.backends.swap import Grid, WeightGrid


class Grids(Protocol):
    """Knows the grid of every tensor."""

    def grid(self, tensor: str, spec: QuantSpec) -> Grid:
        """Return the grid of `tensor`."""


class Emitter(Protocol):
    """Writes the parts in which int8 and its simulation differ."""

    def quantize(self, graph: fx.Graph, value: fx.Node, tensor: str, spec: QuantSpec) -> fx.Node:
        """Return `value` as codes on the grid of `tensor`."""

    def dequantize(self, graph: fx.Graph, value: fx.Node) -> fx.Node:
        """Return codes as float."""

    def anchor(self, graph: fx.Graph, op: Op, value: fx.Node, source: Place, target: Place | None) -> fx.Node:
        """Return the output of a Linear or convolution, Relu included: codes, or float where `target` is None (the input is float, too)."""

    def add(self, graph: fx.Graph, op: Op, values: tuple[fx.Node, ...], target: Place) -> fx.Node:
        """Return the sum as codes."""


def rewrite(captured: Captured, planned: Plan, emitter: Emitter, modules: dict[str, nn.Module]) -> fx.GraphModule:
    """Return the graph of a plan. Float modules are shared with `captured`, others come from `modules`, which the emitter fills.

    Modules of modes without calibration (dynamic, weight_only, cast) are put in here.
    """
    for op in captured.ops:
        config = planned.configs.get(op.name)
        if config is not None and config.mode is not Mode.STATIC:
            node = captured.nodes()[op.node]
            modules[f"low_{op.node}"] = _swapped(captured, node, config)
    graph = _Writer(captured, planned, emitter, modules).write()
    root: dict[str, Any] = dict(modules)
    for node in graph.nodes:
        if node.op == "call_module" and str(node.target) not in root:
            root[str(node.target)] = captured.graph.get_submodule(str(node.target))
        elif node.op == "get_attr":
            root[str(node.target)] = _attribute(captured.graph, str(node.target))
    made = fx.GraphModule(root, graph)
    made.training = False
    return made


class Kernels:
    """Emits int8 kernels."""

    def __init__(self, captured: Captured, planned: Plan, ranges: Grids, modules: dict[str, nn.Module]) -> None:
        self._captured = captured
        self._planned = planned
        self._ranges = ranges
        self._modules = modules
        self._nodes = captured.nodes()

    def quantize(self, graph: fx.Graph, value: fx.Node, tensor: str, spec: QuantSpec) -> fx.Node:
        """Return `value` as a quantized tensor."""
        grid = self._ranges.grid(tensor, spec)
        return graph.call_function(torch.quantize_per_tensor, (value, grid.scale, grid.zero, torch.quint8))

    def dequantize(self, graph: fx.Graph, value: fx.Node) -> fx.Node:
        """Return the float tensor."""
        return graph.call_method("dequantize", (value,))

    def anchor(self, graph: fx.Graph, op: Op, value: fx.Node, source: Place, target: Place | None) -> fx.Node:
        """Return the output of the kernel."""
        name = f"int8_{op.node}"
        node = self._nodes[op.node]
        self._modules[name] = swap.static(
            self._captured.module(node),
            self._weights(node, op),
            self._ranges.grid(*source),
            None if target is None else self._ranges.grid(*target),
            relu=op.relu,
        )
        return graph.call_module(name, (value,))

    def add(self, graph: fx.Graph, op: Op, values: tuple[fx.Node, ...], target: Place) -> fx.Node:
        """Return the sum as a quantized tensor."""
        grid: Grid = self._ranges.grid(*target)
        kernel = torch.ops.quantized.add_relu if op.relu else torch.ops.quantized.add
        return graph.call_function(kernel, (*values, grid.scale, grid.zero))

    def _weights(self, node: fx.Node, op: Op) -> WeightGrid:
        spec = self._planned.configs[op.name].weight or swap.WEIGHT
        key = ("weight", str(node.target), spec)
        if key not in self._captured.cache:
            self._captured.cache[key] = swap.weight_grid(self._captured.module(node).weight, spec)
        return self._captured.cache[key]  # type: ignore[no-any-return]


class _Writer:
    """Walks the float graph and writes each value in the form in which it is first made; the other form follows on demand."""

    def __init__(self, captured: Captured, planned: Plan, emitter: Emitter, modules: dict[str, nn.Module]) -> None:
        self._captured = captured
        self._planned = planned
        self._emitter = emitter
        self._modules = modules
        self._graph = fx.Graph()
        self._real: dict[fx.Node, fx.Node] = {}
        self._codes: dict[tuple[fx.Node, QuantSpec | None], fx.Node] = {}
        self._specs = {op.output: planned.spec_of(op) for op in planned.static.values()}
        self._relus = {op.output for op in planned.static.values() if op.relu}

    def write(self) -> fx.Graph:
        for node in self._captured.graph.graph.nodes:
            if node.name in self._planned.static:
                self._static(node, self._planned.static[node.name])
            elif node.name in self._relus:
                continue  # done by the op before it
            elif node.name in self._planned.coded:
                source = node.all_input_nodes[0]
                made = self._graph.node_copy(
                    node, lambda item, source=source: self._codes_of(item) if item is source else self._real_of(item)
                )
                self._codes[node, None] = made
            else:
                self._real[node] = self._graph.node_copy(node, self._real_of)
                if f"low_{node.name}" in self._modules:
                    self._real[node].target = f"low_{node.name}"
        return self._graph

    def _static(self, node: fx.Node, op: Op) -> None:
        spec = self._planned.spec_of(op)
        inputs = node.all_input_nodes if op.type != "add" else [item for item in node.args if isinstance(item, fx.Node)]
        output = self._output_of(node, op)
        target = (op.output, spec) if op.output in self._planned.coded else None
        if op.type == "add":
            values = tuple(self._codes_of(item, spec) for item in inputs)
            self._codes[output, None] = self._emitter.add(self._graph, op, values, (op.output, spec))
            return
        grid = self._grid_of(inputs[0], spec)
        value = self._codes_of(inputs[0], spec) if target is not None else self._real_of(inputs[0])
        made = self._emitter.anchor(self._graph, op, value, grid, target)
        if target is None:
            self._real[output] = made
        else:
            self._codes[output, None] = made

    def _output_of(self, node: fx.Node, op: Op) -> fx.Node:
        return next(iter(node.users)) if op.relu else node

    def _grid_of(self, node: fx.Node, spec: QuantSpec) -> Place:
        origin = self._planned.coded.get(node.name)
        return (node.name, spec) if origin is None else (origin, self._specs[origin])

    def _real_of(self, node: fx.Node) -> fx.Node:
        if node not in self._real:
            self._real[node] = self._emitter.dequantize(self._graph, self._codes[node, None])
        return self._real[node]

    def _codes_of(self, node: fx.Node, spec: QuantSpec | None = None) -> fx.Node:
        if (node, None) in self._codes:
            return self._codes[node, None]
        if (node, spec) not in self._codes:
            assert spec is not None  # noqa: S101 - a coded node is written before it is read
            self._codes[node, spec] = self._emitter.quantize(self._graph, self._real_of(node), node.name, spec)
        return self._codes[node, spec]


def _swapped(captured: Captured, node: fx.Node, config: Any) -> nn.Module:
    key = ("swapped", str(node.target), config)
    if key not in captured.cache:
        captured.cache[key] = swap.swapped(captured.module(node), config)
    return captured.cache[key]


def _attribute(root: nn.Module, path: str) -> Any:
    for part in path.split("."):
        root = getattr(root, part)
    return root
