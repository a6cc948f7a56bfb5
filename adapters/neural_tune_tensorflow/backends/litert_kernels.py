"""What LiteRT and ai-edge-quantizer run in integers, as one table: op type -> role, modes, and why not.

| mode | what it is here | where it runs |
|---|---|---|
| static | activations and weights in int8, ranges from calibration | every op below; int8 flows between neighbours |
| dynamic | int8 (or int4) weights in the file; the kernel quantizes activations on every call | products and convolutions with a constant weight |
| weight_only | int8 (or int4) weights in the file, computed in float | the same |
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from neural_tune.values import FLOAT, DType, Granularity, Mode, Observer, OpCapability, OpConfig, QuantSpec, Role
from neural_tune_tensorflow.backends.litert_model import LiteOp

APPROACHES = ("static", "dynamic", "weight_only", "auto")
OBSERVERS = (Observer.MINMAX, Observer.PERCENTILE, Observer.KL, Observer.MSE)
_WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL"})
_TABLES = frozenset({"EMBEDDING_LOOKUP"})
_COMPANIONS = frozenset(
    {"ADD", "SUB", "MUL", "AVERAGE_POOL_2D", "CONCATENATION", "RESIZE_BILINEAR", "HARD_SWISH", "RELU"}
)
# They move values and keep the scale.
_PASSES = frozenset(
    {
        "RESHAPE",
        "TRANSPOSE",
        "MAX_POOL_2D",
        "PAD",
        "STRIDED_SLICE",
        "SLICE",
        "SPLIT",
        "SPACE_TO_DEPTH",
        "RESIZE_NEAREST_NEIGHBOR",
        "MIRROR_PAD",
    }
)
# In 8 bits they cost accuracy for little time: a softmax with scale 1/256 rounds small probabilities to zero, and a transformer whose
# norms, softmax and gelu are int8 as well came out with a relative error of 0.6.
_ROUGH = {
    "SOFTMAX": "8 bits round small probabilities to zero",
    "GELU": "8 bits cost accuracy for little time",
    "TANH": "8 bits cost accuracy for little time",
    "LOGISTIC": "8 bits cost accuracy for little time",
    "RSQRT": "8 bits are too few for a normalization",
    "SQRT": "8 bits are too few for a normalization",
    "SQUARED_DIFFERENCE": "8 bits are too few for a normalization",
    "DIV": "8 bits are too few for a division",
    "SUM": "8 bits cost accuracy for little time",
    "MEAN": "8 bits are too few for a normalization",
}
_FOUR_BITS = {
    Mode.DYNAMIC: frozenset({"CONV_2D", "FULLY_CONNECTED", "EMBEDDING_LOOKUP"}),
    Mode.WEIGHT_ONLY: frozenset({"CONV_2D", "FULLY_CONNECTED", "EMBEDDING_LOOKUP", "BATCH_MATMUL"}),
}
# Ops whose weight has no channel axis in the quantizer's table.
_PER_TENSOR_ONLY = frozenset({"BATCH_MATMUL"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What can be done with one op.

    Attributes:
        type: LiteRT's op type.
        role: The part it plays in an int8 region.
        has_weight: Whether it has a constant operand to quantize.
        is_static: Whether it can run in static int8.
        in_search: Whether a search may make it static; otherwise only a user rule can.
        why: Why something is missing.
    """

    type: str
    role: Role
    has_weight: bool = False
    is_static: bool = True
    in_search: bool = True
    why: str = ""


def kernel_of(op: LiteOp) -> Kernel:
    """Return what the runtime can do with `op`."""
    if not any(tensor.dtype == "FLOAT32" for tensor in op.outputs):
        return Kernel(type=op.type, role=Role.NEVER, is_static=False, why="computes no float values")
    weight = op.weight is not None
    if op.type in _TABLES:
        return Kernel(
            type=op.type, role=Role.ANCHOR, has_weight=weight, is_static=False, why="a table is looked up, not computed"
        )
    if op.type in _WEIGHTED:
        why = "" if weight else "no constant operand: only static int8 applies"
        return Kernel(type=op.type, role=Role.ANCHOR, has_weight=weight, why=why)
    if op.type == "MEAN" and len(op.inputs) == 2 and len(op.activations[0].shape if op.activations else ()) == 4:
        return Kernel(type=op.type, role=Role.COMPANION)
    if op.type in _COMPANIONS:
        return Kernel(type=op.type, role=Role.COMPANION)
    if op.type in _PASSES:
        return Kernel(
            type=op.type, role=Role.PASS_THROUGH, why="no choice of its own: it carries what its neighbours hand on"
        )
    if op.type in _ROUGH:
        return Kernel(type=op.type, role=Role.NEVER, in_search=False, why=_ROUGH[op.type])
    return Kernel(type=op.type, role=Role.NEVER, is_static=False, why=f"no integer kernel for {op.type}")


def capability_of(op: LiteOp, approach: str) -> OpCapability:
    """Return the choices of `op` under `approach`, best first, ending in FLOAT."""
    kernel = kernel_of(op)
    choices = choices_of(kernel, approach)
    why = kernel.why
    if not choices and not why:
        why = f"approach {approach!r} has no kernel for {op.type}"
    return OpCapability(
        name=op.name,
        type=op.type,
        role=kernel.role,
        choices=(*choices, FLOAT),
        extra=extras_of(kernel, approach),
        why=why,
        inputs=tuple(tensor.name for tensor in op.activations),
        outputs=tuple(tensor.name for tensor in op.outputs),
        parameters=op.parameters,
    )


@cache
def choices_of(kernel: Kernel, approach: str) -> tuple[OpConfig, ...]:
    """Return the precisions worth searching, without FLOAT. "auto" takes static int8 first and dynamic where that is too rough."""
    static = _static(kernel) if kernel.in_search else ()
    return {
        "static": static,
        "dynamic": _with_weight(kernel, Mode.DYNAMIC),
        "weight_only": _with_weight(kernel, Mode.WEIGHT_ONLY),
        "auto": (*static, *_with_weight(kernel, Mode.DYNAMIC)),
    }[approach]


@cache
def extras_of(kernel: Kernel, approach: str) -> tuple[OpConfig, ...]:
    """Return what the runtime also runs, for user rules: the other modes, and 4-bit weights."""
    every = (
        *_static(kernel),
        *_with_weight(kernel, Mode.DYNAMIC),
        *_with_weight(kernel, Mode.WEIGHT_ONLY),
        *_four_bits(kernel, Mode.DYNAMIC),
        *_four_bits(kernel, Mode.WEIGHT_ONLY),
    )
    chosen = choices_of(kernel, approach)
    return tuple(config for config in every if config not in chosen)


def refusal(kernel: Kernel, config: OpConfig) -> str:
    """Return why an op cannot run in `config`; "" when it can. A pass-through op takes any static config: it only carries."""
    if config.is_float:
        return ""
    offered = {_plain(item) for item in (*choices_of(kernel, "static"), *extras_of(kernel, "static"))}
    if _plain(config) in offered:
        return ""
    return (
        kernel.why or f"LiteRT runs {kernel.type} as none of this; it offers {sorted({c.describe() for c in offered})}"
    )


def _plain(config: OpConfig) -> OpConfig:
    """Return `config` without what concerns the range only."""
    activation = config.activation
    if activation is not None:
        activation = QuantSpec(
            dtype=activation.dtype, symmetric=activation.symmetric, granularity=activation.granularity
        )
    weight = config.weight
    if weight is not None:
        weight = QuantSpec(dtype=weight.dtype, symmetric=weight.symmetric, granularity=weight.granularity)
    return OpConfig(mode=config.mode, activation=activation, weight=weight)


def _static(kernel: Kernel) -> tuple[OpConfig, ...]:
    if not kernel.is_static or kernel.role is Role.PASS_THROUGH:
        return ()
    activations = [QuantSpec(dtype=DType.INT8, symmetric=False, observer=observer) for observer in OBSERVERS]
    weights = _weights(kernel, DType.INT8)
    if not weights:
        return tuple(OpConfig(mode=Mode.STATIC, activation=activation) for activation in activations)
    best = [OpConfig(mode=Mode.STATIC, activation=activation, weight=weights[0]) for activation in activations]
    return (*best, *(OpConfig(mode=Mode.STATIC, activation=activations[0], weight=weight) for weight in weights[1:]))


def _with_weight(kernel: Kernel, mode: Mode) -> tuple[OpConfig, ...]:
    return tuple(_config(mode, weight) for weight in _weights(kernel, DType.INT8))


def _four_bits(kernel: Kernel, mode: Mode) -> tuple[OpConfig, ...]:
    if kernel.type not in _FOUR_BITS[mode]:
        return ()
    return tuple(_config(mode, weight) for weight in _weights(kernel, DType.INT4))


def _weights(kernel: Kernel, dtype: DType) -> tuple[QuantSpec, ...]:
    if not kernel.has_weight:
        return ()
    per_tensor = QuantSpec(dtype=dtype)
    if kernel.type in _PER_TENSOR_ONLY:
        return (per_tensor,)
    return (QuantSpec(dtype=dtype, granularity=Granularity.PER_CHANNEL), per_tensor)


def _config(mode: Mode, weight: QuantSpec) -> OpConfig:
    # The kernel takes the range of every row of the activations at run time; nothing about it can be chosen.
    activation = QuantSpec(dtype=DType.INT8, symmetric=False) if mode is Mode.DYNAMIC else None
    return OpConfig(mode=mode, activation=activation, weight=weight)
