"""The table of op types: which part each plays in an int8 region on ONNX Runtime's CPU provider, and why.

The numbers are "float kernel time over int8 kernel time", measured with onnxruntime 1.31 on x86 with VNNI, one thread, inside a
region; "isolated" includes the conversion at both ends. To add an op type, add one row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from neural_tune.values import Role
from neural_tune_onnxruntime.graph import FLOAT32, Graph, Op


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What the runtime can do with one op in int8.

    Attributes:
        role: The part the op plays.
        data: Positions of the inputs that are quantized activations.
        weight: Position of the constant operand; None where there is none.
        bias: Position of the constant bias; None where there is none.
        axis: Channel axis of the constant operand; None where the kernel takes one scale only.
        emits: True when the kernel is integer only with a quantized output.
        shares_scale: True when the output has the scale of the input.
        on_codes: True when the runtime does not fuse the op, so that the graph must hand it the codes themselves.
        needs_reader: True when the op is int8 only if something int8 reads it.
        in_search: False where int8 loses by itself: offered only to a user who asks for it.
        bounds: Range of the output where it is known beforehand; None where calibration finds it.
        why: Reason for what is missing.
    """

    role: Role
    data: tuple[int, ...] = ()
    weight: int | None = None
    bias: int | None = None
    axis: int | None = None
    emits: bool = False
    shares_scale: bool = False
    on_codes: bool = False
    needs_reader: bool = False
    in_search: bool = True
    bounds: tuple[float, float] | None = None
    why: str = ""

    @property
    def is_quantizable(self) -> bool:
        """True when the op has an int8 choice of its own."""
        return self.role in (Role.ANCHOR, Role.COMPANION)


def kernel_of(op: Op, graph: Graph, opset: int) -> Kernel:
    """Return what the runtime can do with `op`."""
    rule = _TABLE.get(op.type)
    if rule is None:
        return _never(_WHY_NEVER.get(op.type) or _why_unlisted(op, graph))
    if opset < 10:
        return _never(f"opset {opset} has no QuantizeLinear, and the model could not be converted to a newer one")
    if any(
        producer is not None and producer.type == "DequantizeLinear" for producer in map(graph.producers.get, op.inputs)
    ):
        return _never("the source model already quantizes it")
    kernel = rule(op, graph)
    if kernel.axis is not None and opset < 13:
        kernel = replace(kernel, axis=None, why=f"opset {opset}: DequantizeLinear takes no axis, so per_tensor only")
    return kernel


def _never(why: str) -> Kernel:
    return Kernel(role=Role.NEVER, why=why)


def _is_activation(tensor: str, graph: Graph) -> bool:
    return bool(tensor) and tensor not in graph.constants


def _is_float_weight(tensor: str, graph: Graph) -> bool:
    return tensor in graph.constants and graph.constants[tensor].elem_type == FLOAT32


def _other_type(op: Op, graph: Graph) -> str:
    """Return why the data of `op` is no float32 activation; "" when it is (or nothing is known and the weight decides)."""
    kind = graph.elem_types.get(op.input(0), FLOAT32)
    return "" if kind == FLOAT32 else "works on another type than float32"


def _conv(op: Op, graph: Graph) -> Kernel:
    weight, bias = op.input(1), op.input(2)
    if not _is_float_weight(weight, graph):
        return _never("the weight is no float32 constant: the int8 kernel packs it once")
    if not _is_activation(op.input(0), graph) or _other_type(op, graph):
        return _never(_other_type(op, graph) or "the input is a constant")
    if bias and not _is_float_weight(bias, graph):
        return _never("the bias is no float32 constant")
    shape, group = graph.constants[weight].shape, op.attribute("group", 1)
    if len(shape) < 3 or 0 in shape:
        return _never(f"a weight of shape {list(shape)} is no kernel of a convolution")
    kernel = Kernel(role=Role.ANCHOR, data=(0,), weight=1, bias=2 if bias else None, axis=0, emits=True)
    if group == 1:
        return kernel  # 3x3 x3.99, 1x1 x3.73, 1-D x4.28; isolated 3.9, 3.1, 4.2
    if shape[1] == 1:  # depthwise x0.74, isolated 0.44: float in the middle of a region costs two conversions more
        return replace(kernel, why="depthwise: slower in int8 by itself, but it keeps the region around it whole")
    # grouped (32) x0.69, isolated 0.66
    return replace(kernel, in_search=False, why="grouped convolution: the int8 kernel is slower than float (x0.7)")


def _gemm(op: Op, graph: Graph) -> Kernel:
    weight, bias = op.input(1), op.input(2)
    if not _is_float_weight(weight, graph):
        return _never("B is no float32 constant")
    if not _is_activation(op.input(0), graph) or _other_type(op, graph):
        return _never(_other_type(op, graph) or "A is a constant")
    for name, position in (("alpha", 1), ("beta", 2)):
        # The integer kernel drops them: beta 0.75 relative error, alpha 0.50. Normalisation has folded what it could.
        if op.attribute(name, 1.0) != 1.0 and op.input(position):
            return _never(
                f"{name}={op.attribute(name, 1.0):g} on an operand that is no constant: the int8 kernel ignores {name}"
            )
    if len(graph.constants[weight].shape) != 2 or 0 in graph.constants[weight].shape:
        return _never(f"B of shape {list(graph.constants[weight].shape)} is no matrix")
    axis = 0 if op.attribute("transB", 0) else 1
    features = graph.constants[weight].shape[axis]
    if bias:
        shape = graph.constants[bias].shape if _is_float_weight(bias, graph) else None
        if shape is None or shape not in ((features,), (1, features), (1,), (), (1, 1)):
            return _never("C is no constant of one value per output feature: the int8 kernel takes such a bias only")
    # x4.0, isolated 3.8; a quantized output is not needed
    return Kernel(role=Role.ANCHOR, data=(0,), weight=1, bias=2 if bias else None, axis=axis)


def _matmul(op: Op, graph: Graph) -> Kernel:
    left, right = op.inputs[0], op.inputs[1]
    if not _is_activation(left, graph):
        return _never("the left operand is a constant: the int8 kernel packs the right one")
    if _other_type(op, graph):
        return _never(_other_type(op, graph))
    if right not in graph.constants:
        # QLinearMatMul x1.24, isolated 0.98, and attention scores lose accuracy.
        why = "both operands are activations: int8 gains nothing (x1.0) and costs accuracy"
        if graph.elem_types.get(left) != FLOAT32 or graph.elem_types.get(right) != FLOAT32:
            return _never(why)
        return Kernel(role=Role.ANCHOR, data=(0, 1), in_search=False, why=why)
    if not _is_float_weight(right, graph):
        return _never("the right operand is no float32 constant")
    rank = len(graph.constants[right].shape)
    if 0 in graph.constants[right].shape:
        return _never("the right operand is empty")
    if rank < 2 or graph.ranks.get(left, 2) < 2:
        return _never("a product with a vector: memory-bound, no packed int8 kernel")
    if rank > 2:  # builds, and is then refused at run time
        return Kernel(role=Role.ANCHOR, data=(0,), weight=1, why=f"constant of rank {rank}: per_tensor only")
    return Kernel(
        role=Role.ANCHOR, data=(0,), weight=1, axis=1
    )  # x3.7, isolated 3.4; without output Q MatMulIntegerToFloat


def _joining(
    *,
    search: bool = True,
    reader: bool = False,
    shares: bool = False,
    first: int = 0,
    bounds: tuple[float, float] | None = None,
    why: str = "",
) -> Callable[[Op, Graph], Kernel]:
    """Return the rule of a companion that reads activations at all its inputs from `first` on."""

    def rule(op: Op, graph: Graph) -> Kernel:
        data = tuple(range(first, 1 if shares else len(op.inputs)))
        if any(not _is_activation(op.inputs[position], graph) for position in data):
            return _never("one operand is a constant: the runtime fuses no int8 kernel for that")
        if any(graph.elem_types.get(op.inputs[position]) != FLOAT32 for position in data):
            return _never("works on another type than float32, or its type is unknown")
        kernel = Kernel(role=Role.COMPANION, data=data, emits=True, shares_scale=shares, needs_reader=reader)
        return replace(kernel, in_search=search, bounds=bounds, why=why)

    return rule


def _resize(op: Op, graph: Graph) -> Kernel:
    if op.attribute("mode", b"nearest") != b"nearest":
        return _never("the runtime carries codes through nearest only: interpolation is not fused")
    return _joining(reader=True, shares=True)(op, graph)  # x0.67, with AMX x0.94; two conversions cost more than that


def _passing(op: Op, graph: Graph) -> Kernel:
    """Carries codes as they are: x > 1 in a region."""
    if not _is_activation(op.input(0), graph):
        return _never("works on constants")
    if graph.elem_types.get(op.input(0)) != FLOAT32:
        return _never("works on another type than float32, or its type is unknown")
    if any(graph.elem_types.get(name, FLOAT32) != FLOAT32 for name in op.outputs if name):
        return _never("returns another type than float32")
    return Kernel(role=Role.PASS_THROUGH, data=(0,), shares_scale=True, why="follows its neighbours")


def _gather(op: Op, graph: Graph) -> Kernel:
    if not _is_activation(op.input(0), graph):
        return _never(
            "looks up a constant table: a look-up is no arithmetic, codes only save space (approach weight_only)"
        )
    return _passing(op, graph)  # x2.2


def _max_pool(op: Op, graph: Graph) -> Kernel:
    """Free behind an int8 convolution; alone x0.02 (NCHW codes). Quantization is monotone, so pooling codes is exact."""
    if len([name for name in op.outputs if name]) > 1:
        return _never("returns indices")
    return _passing(op, graph)


def _pad(op: Op, graph: Graph) -> Kernel:
    """Not fused between DQ and Q, but standard Pad takes codes: padding with zero is padding with the zero point.

    ResNet-20 with padded shortcuts: 7 instead of 9 integer Adds without it.
    """
    if len(op.inputs) < 2:
        return _never("an old form of Pad, which takes no codes")
    value, mode = op.input(2), op.attribute("mode", b"constant")
    if mode == b"constant" and value and not (value in graph.constants and graph.zeros.get(value, False)):
        return _never("pads with another value than the constant zero")
    if op.input(1) not in graph.constants:
        return _never("pads by amounts that are computed")
    kernel = _passing(op, graph)
    return replace(kernel, on_codes=True) if kernel.role is Role.PASS_THROUGH else kernel


def _folding(op: Op, graph: Graph) -> Kernel:
    if graph.elem_types.get(op.input(0)) != FLOAT32 or not _is_activation(op.input(0), graph):
        return _never("works on another type than float32, or its type is unknown")
    return Kernel(role=Role.PASS_THROUGH, data=(0,), why="saturation of an int8 op before it does its work")


_TABLE: Mapping[str, Callable[[Op, Graph], Kernel]] = MappingProxyType(
    {
        "Conv": _conv,
        "Gemm": _gemm,
        "MatMul": _matmul,
        "Add": _joining(),  # x1.0, isolated 0.30
        "GlobalAveragePool": _joining(),  # x1.2, isolated 0.3
        "Sigmoid": _joining(reader=True),  # x1.3, isolated 0.6: only between int8 ops
        # Alone these lose or gain little, but between int8 ops the two conversions that a float op needs cost more than they do
        # (isolated, that is with two conversions too many: 0.36, 0.35, 0.42). So: only where int8 ops read what they write.
        "Mul": _joining(reader=True),  # x0.75, with AMX x1.2
        "LeakyRelu": _joining(reader=True),  # x0.67, with AMX x0.84
        "Concat": _joining(reader=True),  # x0.39, with AMX x1.16
        "Resize": _resize,
        "Softmax": _joining(
            search=False,
            bounds=(0.0, 1.0),
            why="Softmax: the int8 kernel is five times slower than float (x0.16 to x0.19)",
        ),
        "AveragePool": _joining(
            search=False, why="AveragePool: the int8 kernel is at least six times slower than float (x0.02 to x0.15)"
        ),
        "Where": _joining(search=False, first=1, why="Where: no gain was measured"),
        "MaxPool": _max_pool,
        "Pad": _pad,
        "Relu": _folding,  # removed: free
        "Clip": _folding,
        "Gather": _gather,
        **dict.fromkeys(
            (
                *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Identity"),  # x2 to x8
                *("Split", "Expand", "Tile", "DepthToSpace"),  # x2.9, x3.8, x4.3, x1.25
                *("ReduceMax", "ReduceMin"),  # x3.6, x3.9; exact on codes, because quantization is monotone
                "GatherElements",  # x2.2 as Gather
            ),
            _passing,
        ),
    }
)
_NOT_FUSED = "not fused: the runtime has no int8 kernel for it, conversions would be pure loss"
# Fused transformer ops have integer forms (QAttention, QEmbedLayerNormalization), which the runtime's own tool writes; BERT-base is no faster in them
# (x2.82) than the dynamic products of the graph that is not fused (x2.87).
_FUSED = "fused before quantization: give the graph as exported, whose products are int8 and as fast"
_WHY_NEVER: Mapping[str, str] = MappingProxyType(
    {
        "If": "its bodies stay in float: static quantization does not enter subgraphs",
        "Loop": "its body stays in float: static quantization does not enter subgraphs",
        "Scan": "its body stays in float: static quantization does not enter subgraphs",
        "QuantizeLinear": "the source model already quantizes here",
        "DequantizeLinear": "the source model already quantizes here",
        "LSTM": "LSTM: int8 kernels are dynamic only",
        "GRU": "GRU: no int8 kernel",
        "com.microsoft.Attention": _FUSED,
        "com.microsoft.EmbedLayerNormalization": _FUSED,
        **dict.fromkeys(
            (
                *(
                    "LayerNormalization",
                    "InstanceNormalization",
                    "BatchNormalization",
                    "GroupNormalization",
                    "Gelu",
                    "Tanh",
                ),
                *("HardSwish", "HardSigmoid", "Erf", "Sub", "Div", "Pow", "Sqrt", "ReduceMean", "ConvTranspose"),
            ),
            _NOT_FUSED,
        ),
    }
)


def _why_unlisted(op: Op, graph: Graph) -> str:
    kinds = {graph.elem_types.get(name) for name in op.outputs if name}
    if kinds and None not in kinds and FLOAT32 not in kinds:
        return "computes no float32 tensor"
    return "no int8 kernel in ONNX Runtime"
