"""A plan written as a graph: quantize/dequantize pairs on its edges, int8 codes in place of its weights. Milliseconds, and no calibration."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from neural_tune.values import OpConfig
from neural_tune_pytorch.backends.pt2e import stored
from neural_tune_pytorch.backends.pt2e.capture import Captured, attribute
from neural_tune_pytorch.backends.pt2e.codes import WEIGHT_FIRST, WEIGHT_LAST, Codes
from neural_tune_pytorch.backends.pt2e.ops import weight_position
from neural_tune_pytorch.backends.pt2e.plan import Plan
from neural_tune_pytorch.backends.pt2e.stored import weight_codes


def write(captured: Captured, planned: Plan) -> fx.GraphModule:
    """Return the graph of a plan over the float model's own weights (shared, not copied); those that became codes are not in it."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(captured.graph.graph, copies)
    graph.output(result)
    twins = {original.name: copy for original, copy in copies.items()}
    writer = _Writer(captured, graph)
    for (name, position), found in planned.static.items():
        writer.static(twins[name], position, found)
    for (name, position), last in planned.dynamic.items():
        writer.dynamic(twins[name], position, last)
    for name in sorted(planned.weights):
        writer.weight(twins[name])
    for name, config in planned.stored.items():
        writer.stored(twins[name], config)
    graph.eliminate_dead_code()
    # Placeholders and the output stay as they are, so every form of the model is called alike.
    return with_tensors(captured.graph, graph, writer.tensors)


def with_tensors(owner: nn.Module, graph: fx.Graph, added: Mapping[str, Tensor]) -> fx.GraphModule:
    """Return `graph` as a module that holds what the graph reads: of `added`, and for everything else the very tensors of `owner`."""
    tensors: dict[str, Any] = dict(added)
    for node in graph.nodes:
        if node.op == "get_attr" and str(node.target) not in tensors:
            tensors[str(node.target)] = attribute(owner, str(node.target))
    return fx.GraphModule(_root(tensors), graph)


class _Writer:
    """Adds the nodes of Q/DQ pairs to a graph."""

    def __init__(self, captured: Captured, graph: fx.Graph) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._captured = captured
        self._graph = graph
        self._ops = torch.ops.quantized_decomposed
        self._made: dict[tuple[fx.Node, Codes | int], tuple[fx.Node, ...]] = {}
        self._last_input = [node for node in graph.nodes if node.op == "placeholder"][-1]

    def static(self, node: fx.Node, position: int, found: Codes) -> None:
        """Let `node` read its argument as codes of a fixed scale."""
        source = node.args[position]
        assert isinstance(source, fx.Node)  # noqa: S101 - a plan is made of edges
        grid = (found.scale, found.zero, 0, found.last, torch.uint8)
        if (source, found) not in self._made:
            with self._graph.inserting_after(self._place(source)):
                quantized = self._graph.call_function(self._ops.quantize_per_tensor.default, (source, *grid))
            self._made[source, found] = (quantized,)
        (quantized,) = self._made[source, found]
        self._read(node, position, self._ops.dequantize_per_tensor.default, (quantized, *grid))

    def dynamic(self, node: fx.Node, position: int, last: int) -> None:
        """Let `node` read its argument as codes whose scale is found when it runs."""
        source = node.args[position]
        assert isinstance(source, fx.Node)  # noqa: S101 - a plan is made of edges
        if (source, last) not in self._made:
            smallest = torch.finfo(torch.float32).eps
            with self._graph.inserting_before(node):
                choice = self._graph.call_function(
                    self._ops.choose_qparams.tensor, (source, 0, last, smallest, torch.uint8)
                )
                scale = self._graph.call_function(operator.getitem, (choice, 0))
                zero = self._graph.call_function(operator.getitem, (choice, 1))
                quantized = self._graph.call_function(
                    self._ops.quantize_per_tensor.tensor, (source, scale, zero, 0, last, torch.uint8)
                )
            self._made[source, last] = (quantized, scale, zero)
        quantized, scale, zero = self._made[source, last]
        self._read(
            node, position, self._ops.dequantize_per_tensor.tensor, (quantized, scale, zero, 0, last, torch.uint8)
        )

    def weight(self, node: fx.Node) -> None:
        """Replace the weight of `node` by its codes."""
        path = str(node.args[1].target)
        prefix = path.replace(".", "_")
        names = [f"{prefix}_{part}" for part in ("int8", "scale", "zero_point")]
        self.tensors.update(zip(names, weight_codes(self._captured, path), strict=True))
        with self._graph.inserting_before(node):
            values, scale, zero = (self._graph.get_attr(name) for name in names)
            grid = (scale, zero, 0, WEIGHT_FIRST, WEIGHT_LAST, torch.int8)
            read = self._graph.call_function(self._ops.dequantize_per_channel.default, (values, *grid))
        node.update_arg(1, read)

    def stored(self, node: fx.Node, config: OpConfig) -> None:
        """Let `node` read its weight in the form in which weight_only or a cast stores it."""
        path = str(node.args[weight_position(node)].target)
        assert config.weight is not None  # noqa: S101 - the plan was checked
        packed = stored.packed(self._captured, path, config.weight)
        names = {f"{path.replace('.', '_')}_{part}": tensor for part, tensor in packed.parts.items()}
        self.tensors.update(names)
        stored.write(self._graph, node, packed, list(names))

    def _read(self, node: fx.Node, position: int, target: Any, arguments: tuple[Any, ...]) -> None:
        with self._graph.inserting_before(node):
            read = self._graph.call_function(target, arguments)
        node.update_arg(position, read)

    def _place(self, source: fx.Node) -> fx.Node:
        return self._last_input if source.op == "placeholder" else source


def _root(tensors: dict[str, Any]) -> nn.Module:
    """Return a module that holds tensors at dotted paths."""
    root = nn.Module()
    for path, value in tensors.items():
        holder = root
        *folders, leaf = path.split(".")
        for folder in folders:
            if not hasattr(holder, folder):
                holder.add_module(folder, nn.Module())
            holder = getattr(holder, folder)
        if isinstance(value, nn.Parameter):
            holder.register_parameter(leaf, value)
        elif isinstance(value, Tensor):
            holder.register_buffer(leaf, value)
        else:
            setattr(holder, leaf, value)
    return root
