"""What stock TensorFlow offers for a model: the choices of every op, best first, and the reason for what is missing."""

from __future__ import annotations

from itertools import product
from typing import Any

from neural_tune.errors import CapabilityError
from neural_tune.values import (
    FLOAT,
    Capability,
    DType,
    Granularity,
    Mode,
    Observer,
    OpCapability,
    OpConfig,
    QuantSpec,
    Role,
)
from neural_tune_tensorflow import kernels
from neural_tune_tensorflow.model import OnednnModel
from neural_tune_tensorflow.passes.products import BATCHED
from neural_tune_tensorflow.rewrite.casts import CAST
from neural_tune_tensorflow.rewrite.plan import SUM_FUSION
from neural_tune_tensorflow.rewrite.units import CARRIERS, Unit
from neural_tune_tensorflow.runtime import VERSION

# minmax keeps every value and is the best start on most nets; then by how much they clip.
OBSERVERS = (Observer.MINMAX, Observer.PERCENTILE, Observer.KL, Observer.MSE)
_WEIGHT = {
    kind: QuantSpec(dtype=DType.INT8, granularity=kind) for kind in (Granularity.PER_CHANNEL, Granularity.PER_TENSOR)
}
_WHY = {
    "BatchMatMulV2": "both operands are activations: stock TensorFlow has no int8 kernel for that",
    "Einsum": "both operands are activations: stock TensorFlow has no int8 kernel for that",
    "Conv3D": "Conv3D: stock TensorFlow has no int8 kernel for it",
    "Conv2DBackpropInput": "deconvolution: stock TensorFlow has no int8 kernel for it",
    "Conv3DBackpropInputV2": "deconvolution: stock TensorFlow has no int8 kernel for it",
    "AddV2": "Add: in int8 it would have to write in place, which gives wrong sums or crashes",
    "Add": "Add: in int8 it would have to write in place, which gives wrong sums or crashes",
    "While": "its body stays in float: static quantization does not enter functions",
    "StatelessWhile": "its body stays in float: static quantization does not enter functions",
    "If": "its branches stay in float: static quantization does not enter functions",
    "StatelessIf": "its branches stay in float: static quantization does not enter functions",
}


def query(model: OnednnModel) -> Capability:
    """Return the choices of every op of `model`, in execution order."""
    ops = tuple(_op(model, node) for node in model.graph if node.op not in ("Const", "Placeholder"))
    return Capability(
        framework="tensorflow",
        runtime_version=VERSION,
        instruction_set=kernels.instruction_set(),
        ops=ops,
        inputs=tuple(port.name for port in model.inputs),
        # Off unless the user names it: its kernel writes in place, which is safe only where the planner can prove it.
        recipes=(SUM_FUSION,) if model.sum_fusion else (),
        notes=model.source.notes,
    )


def check(name: str, config: OpConfig) -> None:
    """Hold a config to what the kernels can do.

    Raises:
        CapabilityError: they cannot; the message names op and reason.
    """
    activation, weight = config.activation, config.weight
    why = ""
    if config.mode is Mode.CAST:
        why = kernels.why_no_bf16() if config == CAST else "a cast is to bf16, activation and weight alike"
    elif config.mode is not Mode.STATIC or activation is None or weight is None:
        why = "the onednn backend runs static int8 and bf16 (activation and weight)"
    elif weight.dtype is not DType.INT8 or not weight.symmetric or weight.granularity is Granularity.PER_GROUP:
        why = "weights are int8, symmetric, per_channel or per_tensor"
    elif weight.observer is not Observer.MINMAX:
        why = "the range of a weight is its minimum and maximum"
    elif activation.dtype not in (DType.INT8, DType.UINT8) or not activation.symmetric:
        why = "activations are int8 or uint8 with zero point 0 (matrix products alone would take another, and share tensors with convolutions and pooling)"
    elif activation.granularity is not Granularity.PER_TENSOR or activation.reduce_range or weight.reduce_range:
        why = "activations are quantized per_tensor over the full range"
    if why:
        raise CapabilityError(f"op {name!r} cannot run as {config.describe()!r}: {why}")


def spec_of(model: OnednnModel, unit: Unit, observer: Observer = Observer.MINMAX) -> QuantSpec:
    """Return how the input of a unit is quantized: uint8 where it cannot be negative, else int8."""
    is_unsigned = unit.source in model.units.never_negative
    return QuantSpec(dtype=DType.UINT8 if is_unsigned else DType.INT8, observer=observer)


def _op(model: OnednnModel, node: Any) -> OpCapability:
    unit = model.units.by_name.get(node.name)
    constants = [value for name in node.input if (value := model.graph.value(name)) is not None]
    plain = {
        "name": node.name,
        "type": node.op,
        "inputs": tuple(
            dict.fromkeys(name for name in node.input if model.graph.nodes[name.split(":")[0]].op != "Const")
        ),
        "outputs": (node.name,),
        "parameters": sum(value.size for value in constants if value.dtype.kind == "f"),
    }
    if unit is not None:
        why = kernels.missing().get(unit.kind, "") or _unit_why(model, unit)
        if why:
            return OpCapability(role=Role.NEVER, choices=(FLOAT,), why=why, **plain)
        preferred, extra = _choices(model, unit)
        plain["inputs"], plain["outputs"] = (unit.source,), (unit.tail,)
        return OpCapability(role=Role.ANCHOR, choices=(*preferred, FLOAT), extra=extra, **plain)
    if node.name in model.units.owner:
        owner = model.units.owner[node.name]
        plain["inputs"], plain["outputs"] = (model.units.by_name[owner].tail,), ()
        return OpCapability(role=Role.PASS_THROUGH, choices=(FLOAT,), why=f"part of {owner!r}", **plain)
    if node.op in CARRIERS:
        return OpCapability(role=Role.PASS_THROUGH, choices=(FLOAT,), why="follows its neighbours", **plain)
    why = (
        model.units.refused.get(node.name)
        or _many_matrices(model, node)
        or _WHY.get(node.op)
        or f"{node.op}: no int8 kernel in stock TensorFlow"
    )
    return OpCapability(role=Role.NEVER, choices=(FLOAT,), why=why, **plain)


def _many_matrices(model: OnednnModel, node: Any) -> str:
    """Return why a batched product with a constant was not lowered to a product of matrices; "" for any other op."""
    weight = model.graph.value(node.input[1]) if node.op in BATCHED else None
    return "" if weight is None else "one matrix per member of the batch: the int8 kernel multiplies by one"


def _unit_why(model: OnednnModel, unit: Unit) -> str:
    weight = model.graph.value(unit.weight)
    if unit.kind == "DepthwiseConv2dNative" and weight is not None and weight.shape[3] != 1:
        return "depth multiplier above 1: the int8 kernel is not known to be right for it"
    return ""


def _choices(model: OnednnModel, unit: Unit) -> tuple[tuple[OpConfig, ...], tuple[OpConfig, ...]]:
    """Return what a search tries (per_channel weights with every observer, then per_tensor), and the rest: bf16 only where a rule asks for it."""
    every = [
        OpConfig(mode=Mode.STATIC, activation=spec_of(model, unit, observer), weight=_WEIGHT[granularity])
        for granularity, observer in product((Granularity.PER_CHANNEL, Granularity.PER_TENSOR), OBSERVERS)
    ]
    preferred = tuple(every[: len(OBSERVERS) + 1])
    casts = () if kernels.why_no_bf16() else (CAST,)
    return preferred, (*every[len(OBSERVERS) + 1 :], *casts)
