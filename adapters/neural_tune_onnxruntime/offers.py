"""Which of an op's precisions an approach puts first, which it leaves to a rule, and which it has not.

| approach | searched, best first | left to a rule |
|---|---|---|
| static | static | 16-bit activations, casts, whatever else runs statically; for ops without static form, the others |
| dynamic | dynamic; int8 tables | ConvInteger, weight-only, casts |
| weight_only | 8 bits, then 4 bits; int8 tables | other block sizes, asymmetric blocks, the other accuracy level |
| auto | convolutional models: static, then dynamic. Others: dynamic, then static, then 8 bits | everything else |

Why dynamic first where there are no convolutions (onnxruntime 1.31, x86 with VNNI, one thread, BERT-base): as fast as static (x2.83 to 2.92 against 2.84 to 3.02),
no range that calibration could get wrong, and MiniLM keeps 0.8505 of 0.8520 where the static form of every op falls to 0.5546. Why never for convolutions:
ConvInteger is half as fast as float.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from neural_tune.values import FLOAT, DType, Granularity, Mode, OpConfig, QuantSpec, Role
from neural_tune_onnxruntime import forms
from neural_tune_onnxruntime.forms import Forms
from neural_tune_onnxruntime.graph import Op
from neural_tune_onnxruntime.kernels import Kernel
from neural_tune_onnxruntime.model import OnnxModel

_PRODUCTS = ("MatMul", "Gemm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What `capability` says of one op.

    Attributes:
        choices: Precisions to search, best first, ending in FLOAT.
        extra: What a rule may ask for.
        role: The part the op plays.
        why: Reason for what is missing.
    """

    choices: tuple[OpConfig, ...]
    extra: tuple[OpConfig, ...]
    role: Role
    why: str


def offer(
    op: Op, model: OnnxModel, static: tuple[OpConfig, ...], static_extra: tuple[OpConfig, ...], why: str
) -> Offer:
    """Return the choices of `op` for the approach of `model`.

    Args:
        op: The op.
        model: The model.
        static: Its static choices, best first, without FLOAT.
        static_extra: Everything else that runs statically.
        why: Reason for what is missing, of the static ones.
    """
    kernel, found = model.kernels[op.name], forms.offered(op, model)
    static_extra = (*static_extra, *_wide(kernel, static or static_extra))
    first, rest = _ordered(op, model, static, static_extra, found)
    if model.approach != "static" and not first:
        why = found.why or ("" if model.approach == "auto" else _no_form(model.approach)) or why
    elif model.approach == "weight_only" or (first and not static):
        why = found.why
    is_anchor = kernel.role is Role.NEVER and bool(first or rest)
    return Offer(
        choices=(*first, FLOAT),
        extra=tuple(config for config in dict.fromkeys(rest) if config not in first),
        role=Role.ANCHOR if is_anchor else kernel.role,
        why=why,
    )


def prefers_dynamic(model: OnnxModel) -> bool:
    """Return whether products run dynamically first under `auto`: unless most weights are those of convolutions."""
    sizes = {"Conv": 0, "other": 0}
    for op in model.graph.ops:
        weight = model.graph.constants.get(op.input(1))
        if weight is not None and (op.type in ("Conv", "LSTM") or op.type in _PRODUCTS):
            sizes["Conv" if op.type == "Conv" else "other"] += weight.size
    return sizes["other"] >= sizes["Conv"]


def takes_recipes(model: OnnxModel) -> bool:
    """Return whether recipes have anything to do: they look at calibration data, and at activations that are rounded."""
    return model.approach in ("static", "auto") or (model.approach == "dynamic" and model.has_data)


def _ordered(
    op: Op, model: OnnxModel, static: tuple[OpConfig, ...], static_extra: tuple[OpConfig, ...], found: Forms
) -> tuple[tuple[OpConfig, ...], tuple[OpConfig, ...]]:
    """Return what is searched and what is left to a rule."""
    dynamic, light = found.dynamic, found.weight_only
    if model.approach == "static":
        # Beside static choices no other mode: a wish such as "int8 activations" would let blocks of weights into a static search.
        others = () if static or static_extra else (*dynamic, *light, *found.slow)
        return static, (*static_extra, *others, *found.cast)
    if model.approach == "dynamic":
        first = dynamic or (light if op.type == "Gather" else ())
        return first, (*light, *found.cast, *found.slow)
    if model.approach == "weight_only":
        return light, (*dynamic, *found.cast, *found.slow)
    running = _worth_a_trial(dynamic)
    if op.type in _PRODUCTS and prefers_dynamic(model):
        first = (*running, *static, *_eight_bits(light))
    else:
        first = (*static, *running, *(light if op.type == "Gather" else _eight_bits(light)))
    return first, (*static_extra, *dynamic, *light, *found.cast, *found.slow)


def _worth_a_trial(dynamic: tuple[OpConfig, ...]) -> tuple[OpConfig, ...]:
    """Return the dynamic forms that `auto` searches: behind a faster scale per tensor the scales per channel, as the way back to accuracy; else the first."""
    specs = [config.weight for config in dynamic[:1] if config.weight is not None]
    return dynamic if any(spec.granularity is Granularity.PER_TENSOR for spec in specs) else dynamic[:1]


def _eight_bits(configs: Iterable[OpConfig]) -> tuple[OpConfig, ...]:
    """Return the forms in blocks that are faster than float; 4 bits are a matter of size, left to a rule."""
    return tuple(config for config in configs if config.weight is not None and config.weight.dtype is DType.INT8)


def _wide(kernel: Kernel, configs: tuple[OpConfig, ...]) -> tuple[OpConfig, ...]:
    """Return 16-bit activations with the weights of the first static choice."""
    if not configs or not kernel.is_quantizable:
        return ()
    weight, emits = configs[0].weight, configs[0].output is not None
    specs = [QuantSpec(dtype=d, symmetric=s) for d, s in product((DType.UINT16, DType.INT16), (False, True))]
    return tuple(
        OpConfig(mode=Mode.STATIC, activation=spec, weight=weight, output=spec if emits else None) for spec in specs
    )


def _no_form(approach: str) -> str:
    return f"no {approach} form of this op"
