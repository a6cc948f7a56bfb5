"""The float model as an FX graph: traced whole, batch norm folded, every op named. And which of its tensors int8 can travel through."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from neural_tune.errors import CapabilityError
from neural_tune.protocols import AdapterOptions
from neural_tune_pytorch.backend import Source
from neural_tune_pytorch.backends import swap
from neural_tune_pytorch.calling import Calling
from neural_tune_pytorch.model import copy_of, first_line

ADDITIONS = (operator.add, operator.iadd, torch.add)
_RELUS = (nn.ReLU, functional.relu, torch.relu, torch.relu_, "relu", "relu_")
# Each computes the same on codes as on real values, to the last bit (checked on this torch by a test): no scale changes.
_PASSING_MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.Flatten,
    nn.MaxPool1d,
    nn.MaxPool2d,
)
_PASSING_FUNCTIONS = (
    functional.relu,
    functional.relu6,
    functional.dropout,
    functional.max_pool2d,
    torch.max_pool2d,
    functional.pad,
    torch.relu,
    torch.flatten,
    torch.reshape,
    torch.permute,
    torch.transpose,
    torch.squeeze,
    torch.unsqueeze,
    operator.getitem,
)
_PASSING_METHODS = frozenset(
    {
        "relu",
        "flatten",
        "reshape",
        "view",
        "permute",
        "transpose",
        "contiguous",
        "squeeze",
        "unsqueeze",
        "clone",
        "detach",
        "dropout",
    }
)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One op of the graph.

    Attributes:
        name: Module path ("layer1.conv1", a second call has "#2" behind it), or the node's name for a function.
        type: Class of the module, or name of the function.
        node: Name of its node.
        inputs: Nodes of the tensors that would be read as codes.
        output: The node whose value the op writes as codes: its own, or that of the Relu it swallows.
        relu: Whether a Relu is done in the kernel.
        why: Why it is float only; empty when it has int8 kernels.
    """

    name: str
    type: str
    node: str
    inputs: tuple[str, ...] = ()
    output: str = ""
    relu: bool = False
    why: str = ""

    @property
    def tensors(self) -> tuple[str, ...]:
        """What it reads and writes as codes."""
        return tuple(name for name in (*self.inputs, self.output) if name)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Captured:
    """The float model in FX form. Nobody changes it.

    Attributes:
        graph: Float, batch norm folded; takes flat tensors, returns a tuple of tensors.
        ops: Every op, in execution order.
        calling: How the original is called.
        example: One batch.
        options: What the configuration says.
        cache: Parts of candidates that depend on the float model only.
    """

    graph: fx.GraphModule
    ops: tuple[Op, ...]
    calling: Calling
    example: tuple[Tensor, ...]
    options: AdapterOptions
    cache: dict[Any, Any] = field(default_factory=dict)

    def module(self, node: fx.Node) -> nn.Module:
        """Return the module that a call_module node calls."""
        return self.graph.get_submodule(str(node.target))

    def nodes(self) -> dict[str, fx.Node]:
        """Return the nodes by name."""
        return {node.name: node for node in self.graph.graph.nodes}


def capture(source: Source, options: AdapterOptions) -> Captured:
    """Return `source` as a graph.

    Raises:
        CapabilityError: the module cannot be traced symbolically, or the graph computes something else than the module.
    """
    root = _Root(copy_of(source.module), source.calling)
    try:
        tracer = _Tracer(len(source.calling.inputs))
        graph = fx.GraphModule(tracer.root_of(root), tracer.trace(root))
        with torch.no_grad():
            traced = graph(*source.example)
            expected = root(*source.example)
    except Exception as error:
        raise CapabilityError(
            f"FX cannot trace {type(source.module).__name__} ({type(error).__name__}: {first_line(error)}); use backend 'pt2e' or 'eager'"
        ) from error
    if not all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in zip(traced, expected, strict=True)):
        raise CapabilityError(
            f"the FX graph of {type(source.module).__name__} computes something else than the module; use backend 'pt2e' or 'eager'"
        )
    _fold_norms(graph, source.example)
    graph.graph.eliminate_dead_code(_must_stay)
    graph.delete_all_unused_submodules()
    graph.recompile()
    for parameter in graph.parameters():
        parameter.requires_grad_(requires_grad=False)
    graph.eval()
    with torch.no_grad():
        shapes = tensors(graph, source.example)
    return Captured(
        graph=graph, ops=_ops(graph, shapes), calling=source.calling, example=source.example, options=options
    )


def is_relu(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether `node` is a Relu, as module, function or method."""
    return _kind_of(graph, node) in _RELUS


def passes(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether `node` computes the same on codes as on real values, with one tensor in and the same scale out."""
    kind = _kind_of(graph, node)
    if node.op == "call_module":
        return kind in _PASSING_MODULES
    if not node.args or not isinstance(node.args[0], fx.Node) or len(node.all_input_nodes) < 1:
        return False
    if kind is functional.pad:
        return _argument(node, 2, "mode", "constant") == "constant" and not _argument(node, 3, "value", 0)
    if kind is operator.getitem:
        return _is_slice(node.args[1])
    return kind in _PASSING_METHODS if node.op == "call_method" else kind in _PASSING_FUNCTIONS


def tensors(graph: fx.GraphModule, example: tuple[Tensor, ...]) -> dict[str, tuple[int, ...]]:
    """Return the names of the nodes whose value is a float tensor, with its shape in the example."""
    found: dict[str, tuple[int, ...]] = {}

    def note(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor) and value.is_floating_point():
            found[node.name] = tuple(value.shape)

    Watching(graph, note).run(*example)
    return found


class Watching(fx.Interpreter):
    """Runs a graph and shows every value to a function."""

    def __init__(self, graph: fx.GraphModule, note: Callable[[fx.Node, Any], None]) -> None:
        super().__init__(graph)
        self._note = note

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and show its value."""
        value = super().run_node(n)
        self._note(n, value)
        return value


def _must_stay(node: fx.Node) -> bool:
    """Return whether a call does something besides its result: FX itself takes methods that write in place (`x.view(-1).sub_(1)`) for dead."""
    writes = node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__")
    return writes or bool(node.kwargs.get("inplace")) or node.is_impure()


class _Root(nn.Module):
    """The model behind the flat calling convention, also for the proxies of a trace."""

    def __init__(self, model: nn.Module, calling: Calling) -> None:
        super().__init__()
        self.model = model
        self._calling = calling

    def forward(self, *values: Any) -> tuple[Any, ...]:
        return tuple(_leaves(self._calling.call(self.model, values)))


class _Tracer(fx.Tracer):
    """Traces a root with so many flat inputs."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self._inputs = inputs

    def root_of(self, root: nn.Module) -> nn.Module:
        return root

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:  # noqa: ARG002 - the signature of fx
        return root_fn, [
            self.root,
            *(self.create_proxy("placeholder", f"input{number}", (), {}) for number in range(self._inputs)),
        ]


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Tensor | fx.Proxy):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _leaves(item)


def _kind_of(graph: fx.GraphModule, node: fx.Node) -> Any:
    return type(graph.get_submodule(str(node.target))) if node.op == "call_module" else node.target


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _is_slice(index: Any) -> bool:
    items = index if isinstance(index, tuple) else (index,)
    return all(isinstance(item, slice) or item is Ellipsis for item in items)


def _fold_norms(graph: fx.GraphModule, example: tuple[Tensor, ...]) -> None:
    """Fold every batch norm into the convolution or linear whose only reader it is."""
    with torch.no_grad():
        shapes = tensors(graph, example)
    calls: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    for node in list(graph.graph.nodes):
        if node.op != "call_module" or not isinstance(graph.get_submodule(str(node.target)), _NORMS):
            continue
        before = node.args[0]
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        if calls[str(before.target)] > 1 or calls[str(node.target)] > 1:
            continue
        axes = len(shapes.get(before.name, ()))
        folded = folded_norm(graph.get_submodule(str(before.target)), graph.get_submodule(str(node.target)), axes)
        if folded is not None:
            graph.set_submodule(str(before.target), folded)
            node.replace_all_uses_with(before)
            graph.graph.erase_node(node)


def folded_norm(module: nn.Module, norm: nn.Module, axes: int) -> nn.Module | None:
    """Return `module` with the batch norm behind it folded in; None where that cannot be done. Both are only read.

    Args:
        module: A Linear or convolution.
        norm: The batch norm that reads it, and nothing else does.
        axes: Number of axes of the tensor between them. A norm goes along axis 1, which is that of the output channels only where a
            convolution has its batch axis, and a Linear no axis between rows and features.
    """
    if type(module) not in swap.ANCHORS or getattr(norm, "running_var", None) is None:
        return None
    if axes != (2 if isinstance(module, nn.Linear) else module.weight.dim()):
        return None
    fuse = torch.nn.utils.fusion
    together = fuse.fuse_linear_bn_eval if isinstance(module, nn.Linear) else fuse.fuse_conv_bn_eval
    made: nn.Module = together(module.eval(), norm.eval())
    return made.eval()


def _ops(graph: fx.GraphModule, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Op, ...]:
    seen: dict[str, int] = {}
    found = []
    for node in graph.graph.nodes:
        if node.op == "call_module":
            path = str(node.target).removeprefix("model.")
            seen[path] = seen.get(path, 0) + 1
            name = path if seen[path] == 1 else f"{path}#{seen[path]}"
            module = graph.get_submodule(str(node.target))
            if isinstance(module, swap.QUANTIZABLE):
                found.append(_module_op(graph, node, name, module))
        elif (
            _is_sum(node) and len({shapes.get(item.name) for item in node.all_input_nodes}) == 1 and node.name in shapes
        ):
            found.append(_sum(graph, node))
        elif node.op == "call_function" and node.target in (
            functional.linear,
            functional.conv2d,
            torch.matmul,
            torch.bmm,
            operator.matmul,
        ):
            kind = getattr(node.target, "__name__", str(node.target))
            found.append(
                Op(
                    name=node.name,
                    type=kind,
                    node=node.name,
                    why="a function call without a module of its own has no int8 kernel in FX mode",
                )
            )
    return tuple(found)


def _module_op(graph: fx.GraphModule, node: fx.Node, name: str, module: nn.Module) -> Op:
    why = swap.refusal(module)
    if isinstance(module, swap.ANCHORS) and len(node.all_input_nodes) != 1:
        why = "it is called with something else than one tensor"
    if not isinstance(module, swap.ANCHORS) or why:
        return Op(name=name, type=type(module).__name__, node=node.name, why=why)
    return _writing(
        graph, node, Op(name=name, type=type(module).__name__, node=node.name, inputs=(node.all_input_nodes[0].name,))
    )


def _is_sum(node: fx.Node) -> bool:
    return (
        node.op == "call_function" and node.target in ADDITIONS and len(node.all_input_nodes) == 2 and not node.kwargs
    )


def _sum(graph: fx.GraphModule, node: fx.Node) -> Op:
    return _writing(
        graph,
        node,
        Op(name=node.name, type="add", node=node.name, inputs=tuple(item.name for item in node.all_input_nodes)),
    )


def _writing(graph: fx.GraphModule, node: fx.Node, op: Op) -> Op:
    """Return `op` with the tensor it writes: that behind the Relu where only a Relu reads it."""
    readers = list(node.users)
    relu = len(readers) == 1 and is_relu(graph, readers[0])
    output = readers[0].name if relu else node.name
    return Op(name=op.name, type=op.type, node=op.node, inputs=op.inputs, output=output, relu=relu)
