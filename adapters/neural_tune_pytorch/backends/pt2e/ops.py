"""The ops of an exported graph: their names, what int8 can do with them, and the edges that would be quantized.

What an int8 kernel reads are *edges*: (op, position of the argument). A candidate that quantizes an op puts a quantize/dequantize pair on its edges and
integer codes in place of its weight; nothing else in the graph changes. So any subset of ops is a set of edges, and float readers of a tensor are never touched.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from neural_tune.values import Role

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default)
LINEAR = aten.linear.default
ADDITIONS = (aten.add.Tensor, aten.add_.Tensor)
EMBEDDING = aten.embedding.default
POOLS = (aten.max_pool2d.default,)
# What Inductor folds into the epilogue of a convolution before its sum with a residual is closed.
ACTIVATIONS = (
    aten.relu.default,
    aten.relu_.default,
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.relu6.default,
    aten.hardswish.default,
    aten.hardswish_.default,
    aten.silu.default,
    aten.silu_.default,
    aten.gelu.default,
    aten.clamp.default,
)
_MOVES = (
    "view", "reshape", "flatten", "transpose", "permute", "squeeze", "unsqueeze", "slice", "select", "expand", "contiguous", "clone", "split",
    "chunk", "unbind", "t", "cat", "stack", "constant_pad_nd", "pad", "alias", "_unsafe_view", "unflatten", "repeat", "index", "narrow", "zeros_like",
)  # fmt: skip
_WHY_NOT = {
    "layer_norm": "normalization: no int8 kernel, it needs float statistics",
    "group_norm": "normalization: no int8 kernel, it needs float statistics",
    "batch_norm": "a batch normalization that no convolution or linear precedes: no int8 kernel",
    "softmax": "softmax: no int8 kernel",
    "scaled_dot_product_attention": "attention: no int8 kernel that was faster in our measurements",
    "matmul": "product of two activations: int8 brought no gain in our measurements",
    "bmm": "product of two activations: int8 brought no gain in our measurements",
    "mm": "product of two activations: int8 brought no gain in our measurements",
    "lstm": "recurrent op: no int8 kernel in Inductor (backend 'eager' quantizes it dynamically)",
    "gru": "recurrent op: no int8 kernel in Inductor (backend 'eager' quantizes it dynamically)",
    "conv_transpose2d": "transposed convolution: no int8 kernel",
    "conv3d": "3-D convolution: no int8 kernel",
    "mul": "elementwise product: Inductor computes it in float whatever its inputs are",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One op of the normalised graph.

    Attributes:
        name: Module path, or module path and function; "#2" for the second call.
        type: "conv2d", "linear", "add" ...
        node: Name of its node, which is the name of the tensor it writes.
        role: The part it plays.
        why: Why it has no int8 form; empty for anchors and companions.
        inputs: Names of the activations it reads.
        edges: Positions of the arguments that int8 reads as codes.
        weight: Path of its constant matrix, kernel or table; empty without one.
        anchor: For an addition: name of the op of the convolution it is folded into.
        parameters: Number of constant elements it owns.
    """

    name: str
    type: str
    node: str
    role: Role
    why: str = ""
    inputs: tuple[str, ...] = ()
    edges: tuple[int, ...] = ()
    weight: str = ""
    anchor: str = ""
    parameters: int = 0

    @property
    def is_quantizable(self) -> bool:
        """True for anchors and companions."""
        return self.role in (Role.ANCHOR, Role.COMPANION)


def find_ops(graph: fx.GraphModule) -> tuple[Op, ...]:
    """Return every op of a normalised graph that computes a tensor, in execution order."""
    nodes = [node for node in graph.graph.nodes if _is_op(node)]
    names = _names(nodes)
    fused = _residuals(graph, nodes)
    return tuple(_op(graph, node, names, fused) for node in nodes)


def _is_op(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    value = node.meta.get("val")
    return isinstance(value, Tensor) or (
        isinstance(value, tuple | list) and any(isinstance(item, Tensor) for item in value)
    )


def type_of(node: fx.Node) -> str:
    """Return the plain name of the aten op, such as "conv2d"."""
    target: Any = node.target
    text = target._schema.name.split("::")[-1] if isinstance(target, torch._ops.OpOverload) else str(target)  # noqa: SLF001 - an op's only name
    return text.rstrip("_") or text


def _names(nodes: Iterable[fx.Node]) -> dict[str, str]:
    """Return node name -> op name: the module's path where the module is this very op, else path and function."""
    seen: Counter[str] = Counter()
    names: dict[str, str] = {}
    for node in nodes:
        path, kind = _module_of(node)
        own = type_of(node)
        is_module = kind.rsplit(".", 1)[-1].lower() == own.replace("_", "") or kind.startswith("torch.nn.modules")
        name = path if is_module and path else f"{path}.{own}" if path else own
        seen[name] += 1
        names[node.name] = name if seen[name] == 1 else f"{name}#{seen[name]}"
    return names


def _module_of(node: fx.Node) -> tuple[str, str]:
    """Return path and type of the innermost module a node comes from; the path is the one in the caller's module."""
    stack = node.meta.get("nn_module_stack") or {}
    path, kind = list(stack.values())[-1] if stack else ("", "")
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    head, _, rest = path.partition(".")
    return (rest if head == "model" else path), kind  # `Flat` holds the caller's module as "model"


def _residuals(graph: fx.GraphModule, nodes: Iterable[fx.Node]) -> dict[str, tuple[fx.Node, int]]:
    """Return addition -> (its convolution, position of the other summand), for sums that become part of a convolution's kernel.

    The convolution must be read by nothing else, both summands must have the same shape, and no convolution can close two sums.
    """
    found: dict[str, tuple[fx.Node, int]] = {}
    order = {node: number for number, node in enumerate(graph.graph.nodes)}
    for node in nodes:
        if node.target not in ADDITIONS or node.kwargs or len(node.args) != 2:
            continue
        left, right = node.args
        if (
            not (isinstance(left, fx.Node) and isinstance(right, fx.Node))
            or left is right
            or _shape(left) != _shape(right)
        ):
            continue
        closing = [item for item in (left, right) if item.target in CONVOLUTIONS and len(item.users) == 1]
        if closing:
            last = max(
                closing, key=lambda item: order[item]
            )  # the sum is computed with the convolution that comes last
            found[node.name] = (last, 1 if last is left else 0)
    return found


def _shape(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta.get("val")
    return tuple(map(str, value.shape)) if isinstance(value, Tensor) else ()


def _op(graph: fx.GraphModule, node: fx.Node, names: Mapping[str, str], fused: Mapping[str, tuple[fx.Node, int]]) -> Op:
    kind = type_of(node)
    activations = tuple(dict.fromkeys(item.name for item in node.all_input_nodes if item.op != "get_attr"))
    constants = [item for item in node.all_input_nodes if item.op == "get_attr"]
    shared: dict[str, Any] = {
        "name": names[node.name],
        "type": kind,
        "node": node.name,
        "inputs": activations,
        "parameters": sum(_size(graph, item) for item in constants),
    }
    if node.target in CONVOLUTIONS or node.target is LINEAR:
        why = _why_no_kernel(graph, node)
        if not why:
            return Op(**shared, role=Role.ANCHOR, edges=(0,), weight=str(node.args[1].target))
        return Op(**shared, role=Role.NEVER, why=why)
    if node.target is EMBEDDING:
        why = _why_no_table(graph, node)
        if not why:
            return Op(**shared, role=Role.ANCHOR, weight=str(node.args[0].target))
        return Op(**shared, role=Role.NEVER, why=why)
    if node.name in fused:
        convolution, other = fused[node.name]
        return Op(**shared, role=Role.COMPANION, edges=(other,), anchor=names[convolution.name])
    if node.target in POOLS:
        return Op(
            **shared,
            role=Role.PASS_THROUGH,
            why="carries codes where the convolution before it writes them and int8 reads them",
        )
    if kind in _MOVES:
        return Op(**shared, role=Role.PASS_THROUGH, why="moves values only: it has no precision of its own")
    if node.target in ACTIVATIONS and _follows_anchor(node):
        return Op(**shared, role=Role.PASS_THROUGH, why="computed inside the kernel of the op before it")
    if kind == "add" and any(item.target is LINEAR for item in node.all_input_nodes):
        return Op(
            **shared,
            role=Role.PASS_THROUGH,
            why="a sum behind a linear: its kernel adds in float, which is as fast and more accurate",
        )
    return Op(**shared, role=Role.NEVER, why=_WHY_NOT.get(kind, f"{kind}: no int8 kernel in Inductor"))


def _follows_anchor(node: fx.Node) -> bool:
    source = node.args[0]
    return isinstance(source, fx.Node) and (source.target in (*CONVOLUTIONS, LINEAR) or source.target in ADDITIONS)


def _why_no_kernel(graph: fx.GraphModule, node: fx.Node) -> str:
    weight = node.args[1]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return "its weight is computed, not constant: int8 kernels need packed weights"
    values = operator.attrgetter(str(weight.target))(graph)
    if values.dtype != torch.float32:
        return f"its weight is {values.dtype}, expected float32"
    source = node.args[0]
    value = source.meta.get("val") if isinstance(source, fx.Node) else None
    if not isinstance(value, Tensor) or value.dtype != torch.float32 or source.op == "get_attr":
        return "its input is no float32 activation"
    return ""


def _why_no_table(graph: fx.GraphModule, node: fx.Node) -> str:
    weight = node.args[0]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return "its table is computed, not constant"
    values = operator.attrgetter(str(weight.target))(graph)
    return "" if values.dtype == torch.float32 else f"its table is {values.dtype}, expected float32"


def weight_position(node: fx.Node) -> int:
    """Return the position of the weight among the arguments of an anchor: a table comes first, a matrix or kernel second."""
    return 0 if node.target is EMBEDDING else 1


def _size(graph: fx.GraphModule, node: fx.Node) -> int:
    value = operator.attrgetter(str(node.target))(graph)
    return int(value.numel()) if isinstance(value, Tensor) else 0
