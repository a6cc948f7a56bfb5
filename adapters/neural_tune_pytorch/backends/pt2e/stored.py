"""Weights that are stored in fewer bits and computed with in float: int8 embedding tables, weight-only int8 and int4, bf16.

Everything is written in plain aten ops, so that the file loads with torch alone. A table is gathered as codes and dequantized afterwards: it stays int8 in memory too.
The weights of linears and convolutions do not: Inductor folds their dequantization when it compiles, so weight-only makes a file smaller and no network faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from neural_tune.errors import CapabilityError
from neural_tune.values import DType, Granularity, Mode, OpConfig, QuantSpec
from neural_tune_pytorch.backends.pt2e import codes
from neural_tune_pytorch.backends.pt2e.capture import Captured, attribute
from neural_tune_pytorch.backends.pt2e.ops import CONVOLUTIONS, LINEAR, Op

aten = torch.ops.aten
GROUP = 32
ROWS = QuantSpec(dtype=DType.INT8, granularity=Granularity.PER_CHANNEL)
WHOLE = QuantSpec(dtype=DType.INT8, granularity=Granularity.PER_TENSOR)
GROUPS = QuantSpec(dtype=DType.INT4, granularity=Granularity.PER_GROUP, group_size=GROUP)
_BF16 = QuantSpec(dtype=DType.BF16)
CAST = OpConfig(mode=Mode.CAST, activation=_BF16, weight=_BF16)


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A weight as it is stored.

    Attributes:
        parts: Suffix of the name -> tensor.
        shape: Shape of the float weight.
        spec: How it is quantized.
    """

    parts: dict[str, Tensor]
    shape: tuple[int, ...]
    spec: QuantSpec


def weight_only(spec: QuantSpec) -> OpConfig:
    """Return the config that stores a weight as `spec` says."""
    return OpConfig(mode=Mode.WEIGHT_ONLY, weight=spec)


def offered(op: Op, captured: Captured) -> tuple[tuple[OpConfig, ...], tuple[OpConfig, ...]]:
    """Return the weight-only configs of an op, best first, and those that run but are less accurate (one scale per table) or no integers (bf16)."""
    if not op.weight:
        return (), ()
    if op.type == "embedding":
        return (weight_only(ROWS),), (weight_only(WHOLE),)
    casts = (CAST,) if has_bf16() else ()
    if op.type == "linear" and attribute(captured.graph, op.weight).shape[1] % GROUP == 0:
        return (weight_only(ROWS), weight_only(GROUPS)), casts
    return (weight_only(ROWS),), casts


def has_bf16() -> bool:
    """Return whether oneDNN has bf16 kernels for this processor."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - torch has no public question for it


def check(op: Op, config: OpConfig, captured: Captured) -> None:
    """Raise CapabilityError unless `config` (weight_only or cast) is one that this op is offered."""
    first, rest = offered(op, captured)
    if config not in (*first, *rest):
        known = ", ".join(item.describe() for item in (*first, *rest)) or "none without a weight"
        raise CapabilityError(
            f"op {op.name!r} ({op.type}): found {config.describe()}, expected one of its forms with a stored weight: {known}"
        )


def packed(captured: Captured, path: str, spec: QuantSpec) -> Packed:
    """Return the weight at `path` as it is stored; computed once per model."""
    key = ("packed", path, spec)
    if key not in captured.cache:
        weight = attribute(captured.graph, path).detach()
        captured.cache[key] = Packed(_parts(captured, path, weight, spec), tuple(weight.shape), spec)
    return captured.cache[key]  # type: ignore[no-any-return]


def _parts(captured: Captured, path: str, weight: Tensor, spec: QuantSpec) -> dict[str, Tensor]:
    if spec.dtype is DType.BF16:
        return {"bf16": weight.to(torch.bfloat16)}
    if spec == GROUPS:
        return dict(zip(("int4", "int4_scale"), codes.packed_groups(weight, GROUP), strict=True))
    if spec == WHOLE:
        flat, scale, _ = codes.quantized_weight(weight.reshape(1, -1))
        return {"int8_whole": flat.view(weight.shape), "scale_whole": scale}
    # The very tensors, under the very names, that an int8 kernel over the same weight has: a table that is tied to a linear is stored once.
    values, scale, _ = weight_codes(captured, path)
    return {"int8": values, "scale": scale}


def weight_codes(captured: Captured, path: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the codes, scales and zero points of a weight with one scale per row; computed once per model."""
    key = ("weight", path)
    if key not in captured.cache:
        captured.cache[key] = codes.quantized_weight(attribute(captured.graph, path).detach())
    return captured.cache[key]  # type: ignore[no-any-return]


def float_weight(stored: Packed) -> Tensor:
    """Return what a stored weight stands for, in float32 and the shape of the original."""
    graph = fx.Graph()
    read = _read_weight(graph, stored, [graph.placeholder(name) for name in stored.parts])
    graph.output(read)
    return fx.GraphModule({}, graph)(*stored.parts.values())


def write(graph: fx.Graph, node: fx.Node, stored: Packed, names: list[str]) -> None:
    """Let `node` (an embedding, a linear or a convolution of `graph`) read its weight as it is stored, from the attributes `names`."""
    with graph.inserting_before(node):
        parts = [graph.get_attr(name) for name in names]
        if stored.spec.dtype is DType.BF16:
            computed = _cast(graph, node, parts[0])
        elif node.target in (*CONVOLUTIONS, LINEAR):
            node.update_arg(1, _read_weight(graph, stored, parts))
            return
        else:
            computed = _gathered(graph, node, stored, parts)
    node.replace_all_uses_with(computed)
    graph.erase_node(node)


def cast_call(target: Any, arguments: tuple[Any, ...], weight: Tensor) -> Tensor:
    """Return a linear or convolution computed in bf16 from float arguments, in float32: what `write` makes of a cast op, eagerly."""
    source, _, *rest = arguments
    if rest and isinstance(rest[0], Tensor):
        rest[0] = rest[0].to(torch.bfloat16)
    return target(source.to(torch.bfloat16), weight, *rest).to(torch.float32)


def _cast(graph: fx.Graph, node: fx.Node, weight: fx.Node) -> fx.Node:
    source, _, *rest = node.args
    if rest and isinstance(rest[0], fx.Node):
        rest[0] = graph.call_function(aten.to.dtype, (rest[0], torch.bfloat16))
    narrow = graph.call_function(aten.to.dtype, (source, torch.bfloat16))
    result = graph.call_function(node.target, (narrow, weight, *rest), dict(node.kwargs))
    return graph.call_function(aten.to.dtype, (result, torch.float32))


def _gathered(graph: fx.Graph, node: fx.Node, stored: Packed, parts: list[fx.Node]) -> fx.Node:
    """Return the rows of a table: gathered as codes, then multiplied with their scales."""
    values, scale = parts
    _, *rest = node.args
    rows = graph.call_function(aten.embedding.default, (values, *rest))
    if stored.spec == ROWS:
        column = graph.call_function(aten.unsqueeze.default, (scale, 1))
        scale = graph.call_function(aten.embedding.default, (column, *rest))
    real = graph.call_function(aten.to.dtype, (rows, torch.float32))
    return graph.call_function(aten.mul.Tensor, (real, scale))


def _read_weight(graph: fx.Graph, stored: Packed, parts: list[fx.Node]) -> fx.Node:
    values, scale = parts
    if stored.spec == GROUPS:
        return _read_groups(graph, stored, values, scale)
    if stored.spec == ROWS:
        scale = graph.call_function(aten.view.default, (scale, [-1, *[1] * (len(stored.shape) - 1)]))
    real = graph.call_function(aten.to.dtype, (values, torch.float32))
    return graph.call_function(aten.mul.Tensor, (real, scale))


def _read_groups(graph: fx.Graph, stored: Packed, values: fx.Node, scale: fx.Node) -> fx.Node:
    """Return a matrix from two codes per byte: the even columns lie in the low halves, 8 stands for zero."""
    rows, columns = stored.shape
    low = graph.call_function(aten.bitwise_and.Scalar, (values, 15))
    high = graph.call_function(aten.bitwise_right_shift.Tensor_Scalar, (values, 4))
    both = graph.call_function(aten.stack.default, ([low, high], -1))
    grouped = graph.call_function(aten.view.default, (both, [rows, columns // GROUP, GROUP]))
    real = graph.call_function(aten.to.dtype, (grouped, torch.float32))
    centred = graph.call_function(aten.sub.Tensor, (real, 8))
    scaled = graph.call_function(aten.mul.Tensor, (centred, scale))
    return graph.call_function(aten.view.default, (scaled, [rows, columns]))
