"""What a candidate asks of the ops of a model, and what becomes of each: the part of a plan that FX and eager mode share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from neural_tune.errors import CapabilityError
from neural_tune.protocols import OpOutcome
from neural_tune.values import Candidate, DType, Mode, OpConfig, QuantSpec


class Exchangeable(Protocol):
    """An op that a candidate may name."""

    @property
    def name(self) -> str:
        """Its name in candidates."""

    @property
    def type(self) -> str:
        """Its kind, for people."""

    @property
    def why(self) -> str:
        """Why it is float only; "" where it is not."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors that lie on a grid when it is static."""


def chosen(
    ops: Iterable[Exchangeable], candidate: Candidate, infinite: Collection[str]
) -> tuple[dict[str, OpConfig], dict[str, str]]:
    """Return op name -> config for what `candidate` can have, and op name -> reason for what stays float all the same.

    Args:
        ops: Those of the model.
        candidate: What is asked for.
        infinite: Tensors without a range.

    Raises:
        CapabilityError: it names an op that the model does not have, or that has no low-precision form.
    """
    known = {op.name: op for op in ops}
    strange = sorted(set(candidate.ops) - set(known))
    if strange:
        raise CapabilityError(f"the candidate names the ops {strange[:5]}, which the model does not have")
    configs: dict[str, OpConfig] = {}
    reasons: dict[str, str] = {}
    for name, config in candidate.ops.items():
        op = known[name]
        if op.why:
            raise CapabilityError(f"the candidate quantizes {name!r} ({op.type}): {op.why}")
        rangeless = [tensor for tensor in op.tensors if tensor in infinite]
        if config.mode is Mode.STATIC and rangeless:
            reasons[name] = f"tensor {rangeless[0]!r} took infinite values in calibration, so it has no range"
        else:
            configs[name] = config
    return configs, reasons


def outcomes(
    ops: Iterable[Exchangeable], configs: Mapping[str, OpConfig], reasons: Mapping[str, str]
) -> tuple[OpOutcome, ...]:
    """Return what became of every op."""
    found = []
    for op in ops:
        config = configs.get(op.name)
        why = reasons.get(op.name) or op.why or "the candidate keeps it in float"
        precision = "float" if config is None else config.describe()
        found.append(OpOutcome(name=op.name, type=op.type, precision=precision, reason=why if config is None else ""))
    return tuple(found)


def kernel_count(configs: Mapping[str, OpConfig]) -> int:
    """Return the number of int8 kernels: one per static or dynamic op, because the module that runs it *is* that kernel."""
    return sum(1 for config in configs.values() if config.mode in (Mode.STATIC, Mode.DYNAMIC))


def activation_of(name: str, config: OpConfig) -> QuantSpec:
    """Return the spec of the activations of a static op.

    Raises:
        CapabilityError: no kernel takes it.
    """
    if config.activation is None or config.activation.dtype is not DType.UINT8:
        raise CapabilityError(f"op {name!r}: {config.describe()} has no int8 kernel of torch.ao; activations are uint8")
    return config.activation
