"""What the installed runtime offers for a model: the choices of every op, best first, and the reason for what is missing."""

from __future__ import annotations

from functools import cache
from itertools import product

import onnxruntime

from neural_tune.errors import CapabilityError
from neural_tune.values import (
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
from neural_tune_onnxruntime import offers
from neural_tune_onnxruntime.graph import Op
from neural_tune_onnxruntime.kernels import Kernel
from neural_tune_onnxruntime.model import OnnxModel
from neural_tune_onnxruntime.offers import Offer
from neural_tune_onnxruntime.processor import Processor
from neural_tune_onnxruntime.recipes import variants

# minmax keeps every value and is the best start on most convolutional nets; then by how much they clip.
OBSERVERS = (Observer.MINMAX, Observer.PERCENTILE, Observer.KL, Observer.MSE)
UNREACHED = "joins int8 neighbours only, and none is within reach"
_EIGHT_BITS = (DType.UINT8, DType.INT8)
_ACTIVATIONS = (*_EIGHT_BITS, DType.UINT16, DType.INT16)


def query(model: OnnxModel) -> Capability:
    """Return the choices of every op of `model`, in execution order; found out once per model."""
    if "capability" not in model.remembered:
        model.remembered["capability"] = _found(model)
    known: Capability = model.remembered["capability"]
    return known


def _found(model: OnnxModel) -> Capability:
    graph = model.graph
    joining, searched = (_reachable(model, search=search) for search in (False, True))
    ops = tuple(
        OpCapability(
            name=op.name,
            type=op.type,
            role=offer.role,
            choices=offer.choices,
            extra=offer.extra,
            why=offer.why,
            inputs=graph.activations(op),
            outputs=tuple(name for name in op.outputs if name),
            parameters=sum(graph.constants[name].size for name in dict.fromkeys(op.inputs) if name in graph.constants),
        )
        for op in graph.ops
        for offer in (_offer(op, model, joining, searched),)
    )
    return Capability(
        framework="onnxruntime",
        runtime_version=onnxruntime.__version__,
        instruction_set=model.processor.name,
        ops=ops,
        inputs=model.input_names,
        recipes=variants.offered(model) if offers.takes_recipes(model) else (),
        notes=model.notes,
    )


def _offer(op: Op, model: OnnxModel, joining: frozenset[str], searched: frozenset[str]) -> Offer:
    kernel = model.kernels[op.name]
    static = preferred(kernel, model.processor) if kernel.in_search and op.name in searched else ()
    extra = _extra(kernel, model.processor) if op.name in joining else ()
    is_known = op.name in joining or not kernel.is_quantizable or not kernel.in_search
    return offers.offer(op, model, static, extra, kernel.why if is_known else UNREACHED)


def _reachable(model: OnnxModel, *, search: bool) -> frozenset[str]:
    """Return the anchors, and the companions that codes of some anchor can reach: a model that is quantized already leaves companions without one.

    Args:
        model: The model.
        search: Whether only the ops count that a search may quantize.
    """
    found: set[str] = set()
    # Under `auto` a companion is searched only beside ops whose first choice is static.
    dynamic_first = search and model.approach == "auto" and offers.prefers_dynamic(model)
    anchored = {
        op.name
        for op in model.graph.ops
        if model.kernels[op.name].role is Role.ANCHOR and (model.kernels[op.name].in_search or not search)
    }
    beside = {op.name for op in model.graph.ops if not (dynamic_first and op.type in ("MatMul", "Gemm"))}
    direct = {op.inputs[p] for op in model.graph.ops if op.name in anchored for p in model.kernels[op.name].data}
    codes: set[str] = set()
    for op in model.graph.ops:
        kernel = model.kernels[op.name]
        data = [op.inputs[position] for position in kernel.data]
        if kernel.role is Role.COMPANION:
            joins = any(name in codes for name in data) and all(name in codes or name in direct for name in data)
        else:
            joins = op.name in anchored
        hands_on = joins and op.name in beside
        if joins:
            found.add(op.name)
        if hands_on or (kernel.role is Role.PASS_THROUGH and data[0] in codes):
            codes.update(op.outputs)
    return frozenset(found)


@cache
def preferred(kernel: Kernel, processor: Processor) -> tuple[OpConfig, ...]:
    """Return the choices worth searching, best first, without FLOAT.

    uint8 activations and int8 weights (int8 for both on ARM); per_channel with every observer, then per_tensor.
    """
    if not kernel.is_quantizable:
        return ()
    dtype = DType.INT8 if processor.signed_activations else DType.UINT8
    activations = [QuantSpec(dtype=dtype, symmetric=False, observer=observer) for observer in OBSERVERS]
    if kernel.weight is None:
        return tuple(_config(kernel, activation, None) for activation in activations)
    per_tensor = QuantSpec(dtype=DType.INT8, reduce_range=processor.saturates)
    if kernel.axis is None:
        return tuple(_config(kernel, activation, per_tensor) for activation in activations)
    per_channel = QuantSpec(dtype=DType.INT8, granularity=Granularity.PER_CHANNEL, reduce_range=processor.saturates)
    rows = [_config(kernel, activation, per_channel) for activation in activations]
    return (*rows, _config(kernel, activations[0], per_tensor))


def refusal(kernel: Kernel, config: OpConfig) -> str:
    """Return why the runtime cannot run an op in `config`; "" when it can."""
    activation, weight = config.activation, config.weight
    if not kernel.is_quantizable:
        return kernel.why or "it has no choice of its own"
    if config.mode is not Mode.STATIC:
        return f"mode {config.mode.value}: expected static"
    if activation is None or (weight is None) != (kernel.weight is None):
        return "a static op needs an activation spec, and a weight spec exactly if it has a constant operand"
    if any(spec.dtype not in _ACTIVATIONS for spec in (activation, config.output) if spec is not None):
        return "activations are uint8 or int8 (or 16 bits, which the CPU computes in float)"
    if any(spec.observer is Observer.GPTQ for spec in (activation, weight, config.output) if spec is not None):
        return "GPTQ is for weights in blocks"
    if weight is not None and weight.dtype not in _EIGHT_BITS:
        return "static weights are uint8 or int8"
    if any(spec.granularity is not Granularity.PER_TENSOR for spec in (activation, config.output) if spec is not None):
        return "activations are quantized per_tensor"
    return "" if weight is None else _weight_refusal(kernel, activation, weight)


def check(name: str, kernel: Kernel, config: OpConfig) -> None:
    """Hold a candidate to what the runtime can do.

    Raises:
        CapabilityError: it cannot; the message names the op and the reason.
    """
    reason = refusal(kernel, config)
    if reason:
        message = f"op {name!r} cannot run as {config.describe()!r}: {reason}"
        raise CapabilityError(message)


def _weight_refusal(kernel: Kernel, activation: QuantSpec, weight: QuantSpec) -> str:
    if activation.dtype is DType.INT8 and weight.dtype is DType.UINT8:
        return "int8 activations with uint8 weights have no kernel"
    if weight.granularity is Granularity.PER_GROUP:
        return "static kernels take no groups"
    if weight.granularity is Granularity.PER_TENSOR:
        return ""
    if kernel.axis is None:
        return kernel.why or "its weight is quantized per_tensor only"
    if not weight.symmetric:
        return "per_channel weights share one zero point, so they are symmetric"
    if weight.axis not in (None, kernel.axis):
        # Unoptimized this computes the right thing; fused, the runtime applies the scales to the wrong axis (error 0.81).
        return f"axis {weight.axis}: the channel axis of this op is {kernel.axis}"
    return ""


@cache
def _extra(kernel: Kernel, processor: Processor) -> tuple[OpConfig, ...]:
    """Return everything else the runtime really runs: slower or less accurate here, for a user who asks for it."""
    if not kernel.is_quantizable:
        return ()
    found = preferred(kernel, processor)
    activations = [
        QuantSpec(dtype=dtype, symmetric=symmetric, observer=observer)
        for symmetric, dtype, observer in product((False, True), _EIGHT_BITS, OBSERVERS)
    ]
    weights: list[QuantSpec | None] = [None]
    if kernel.weight is not None:
        # uint8 weights cost a factor 1.4 to 2.5 against int8 ones; reduced range costs a bit where nothing saturates.
        weights = [
            QuantSpec(dtype=dtype, symmetric=symmetric, granularity=granularity, reduce_range=reduced)
            for reduced, dtype, symmetric, granularity in product(
                (processor.saturates, not processor.saturates),
                (DType.INT8, DType.UINT8),
                (True, False),
                (Granularity.PER_CHANNEL, Granularity.PER_TENSOR),
            )
        ]
    offered = tuple(_config(kernel, activation, weight) for activation, weight in product(activations, weights))
    if not kernel.in_search:
        return (*found, *(c for c in offered if c not in found and not refusal(kernel, c)))
    return tuple(config for config in offered if config not in found and not refusal(kernel, config))


def _config(kernel: Kernel, activation: QuantSpec, weight: QuantSpec | None) -> OpConfig:
    # Conv and the companions are integer only with a quantized output. Gemm and MatMul are as fast without, and more accurate.
    return OpConfig(mode=Mode.STATIC, activation=activation, weight=weight, output=activation if kernel.emits else None)
