"""A graph with other constants: same ops, same tensors, same function, other weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx

from neural_tune.numerics.rescaling import Edits
from neural_tune_pytorch.backends.pt2e.build import with_tensors
from neural_tune_pytorch.backends.pt2e.capture import Captured
from neural_tune_pytorch.backends.pt2e.ops import Op, weight_position


def derive(captured: Captured, edits: Edits, kept: Mapping[str, tuple[str, ...]], label: str) -> Captured:
    """Return `captured` with some constants replaced, each by one that only its op reads; names of ops and tensors stay.

    Args:
        captured: Never changed.
        edits: (node, position) -> the new constant. A position behind the last argument adds one (a bias where there was none).
        kept: Node -> those of its readers that go on reading what it wrote before: from a twin of it, with the old constants.
        label: A word for the names of the constants.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    result = graph.output(graph.graph_copy(captured.graph.graph, copies))
    twins = {original.name: copy for original, copy in copies.items()}
    twins[next(iter(reversed(captured.graph.graph.nodes))).name] = (
        result  # a reader like any other, and none that is copied
    )
    for name, readers in kept.items():
        _keep(graph, twins[name], [twins[reader] for reader in readers if reader in twins])
    tensors: dict[str, Tensor] = {}
    for (name, position), values in edits.items():
        path = f"{name}_{label}_{position}"
        tensors[path] = torch.from_numpy(values).contiguous()
        _set(graph, twins[name], position, path, tensors[path])
    graph.eliminate_dead_code()
    twin = with_tensors(captured.graph, graph, tensors)
    nodes = {node.name: node for node in graph.nodes}
    ops = tuple(_renewed(op, nodes[op.node]) for op in captured.ops)
    return replace(captured, graph=twin, ops=ops, cache={})


def _keep(graph: fx.Graph, node: fx.Node, readers: list[fx.Node]) -> None:
    if not readers:
        return
    with graph.inserting_after(node):
        twin = graph.create_node(node.op, node.target, node.args, node.kwargs, f"{node.name}_kept")
    twin.meta = dict(node.meta)
    for reader in readers:
        reader.replace_input_with(node, twin)


def _set(graph: fx.Graph, node: fx.Node, position: int, path: str, values: Tensor) -> None:
    with graph.inserting_before(node):
        read = graph.get_attr(path)
    read.meta["val"] = values
    arguments = [*node.args, *(None,) * (position + 1 - len(node.args))]
    arguments[position] = read
    node.args = tuple(arguments)


def _renewed(op: Op, node: fx.Node) -> Op:
    """Return the description of an op whose constants, or whose inputs' writers, have other names now."""
    inputs = tuple(dict.fromkeys(item.name for item in node.all_input_nodes if item.op != "get_attr"))
    weight = str(node.args[weight_position(node)].target) if op.weight else ""
    return replace(op, inputs=inputs, weight=weight)
