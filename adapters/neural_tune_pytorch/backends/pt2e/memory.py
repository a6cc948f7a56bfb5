"""Who writes to memory that is not his in an exported graph: to a caller's batch, or to a buffer of the model; and which outputs are memory of the model."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx

aten = torch.ops.aten
# They read the form of a tensor, and none of its numbers.
_FORMS = {aten.sym_size.int, aten.sym_numel.default, aten.sym_stride.int}
_LIKE = ("_like", "new_")


def with_own_inputs(graph_module: fx.GraphModule) -> None:
    """Let a graph work on copies of the inputs that it writes to, in place: files of before `Calling.call` copied them hold such graphs.

    A batch belongs to the caller, and shares its memory with his numpy arrays. A graph that changes no input stays as it is, and pays nothing.
    """
    graph = graph_module.graph
    places = [node for node in graph.nodes if node.op == "placeholder"]
    for place in written(graph).intersection(places):
        with graph.inserting_after(places[-1]):
            copy = graph.call_function(aten.clone.default, (place,))
        copy.meta = dict(place.meta)
        place.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)
    graph.lint()
    graph_module.recompile()


def written(graph: fx.Graph) -> set[fx.Node]:
    """Return the inputs and constants that ops of the graph write to, themselves or through views of them."""
    origins: dict[fx.Node, set[fx.Node]] = {}
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_function":
            origins[node] = {node}
            continue
        shared = list(_shared(node))
        origins[node] = {root for argument, _ in shared for root in origins[argument]}
        found |= {root for argument, is_written in shared if is_written for root in origins[argument]}
    return {node for node in found if node.op in ("placeholder", "get_attr")}


def buffers(graph_module: fx.GraphModule) -> dict[str, Tensor]:
    """Return path -> tensor for the constants of the model that its graph writes to at every call."""
    paths = sorted({str(node.target) for node in written(graph_module.graph) if node.op == "get_attr"})
    found = {path: operator.attrgetter(path)(graph_module) for path in paths}
    return {path: value for path, value in found.items() if isinstance(value, Tensor)}


@contextmanager
def kept(graph_module: fx.GraphModule) -> Iterator[None]:
    """Give the model's buffers back the values they have now when the block ends: a trial run is no call of the user's."""
    before = [(tensor, tensor.clone()) for tensor in buffers(graph_module).values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, values in before:
                tensor.copy_(values)


def constant_outputs(graph: fx.Graph) -> tuple[int, ...]:
    """Return the positions of the outputs that depend on no number of an input, on their shapes at most.

    Code that is compiled for one shape hands out the same memory for them at every call.
    """
    depends: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or (
            node.op not in ("get_attr", "output")
            and not _reads_forms(node)
            and any(source in depends for source in node.all_input_nodes)
        ):
            depends.add(node)
    outputs = next(iter(reversed(graph.nodes))).args[0]
    if not isinstance(outputs, tuple | list):
        return ()
    return tuple(at for at, item in enumerate(outputs) if isinstance(item, fx.Node) and item not in depends)


def _reads_forms(node: fx.Node) -> bool:
    name = node.target._schema.name if isinstance(node.target, torch._ops.OpOverload) else ""  # noqa: SLF001 - an op's only description
    return node.target in _FORMS or name.endswith(_LIKE[0]) or name.startswith(f"aten::{_LIKE[1]}")


def _shared(node: fx.Node) -> Iterator[tuple[fx.Node, bool]]:
    """Yield the arguments whose memory a call shares with its result, and whether it writes to them."""
    if node.target is operator.getitem:
        yield node.args[0], False
    if not isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001 - its only name
        return
    for position, argument in enumerate(node.target._schema.arguments):  # noqa: SLF001 - an op's only description
        if argument.alias_info is None:
            continue
        value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, fx.Node):
                yield item, argument.alias_info.is_write
