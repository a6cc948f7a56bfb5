"""What the installed torch offers for a model: the choices of every op, best first, and the reason for what is missing."""

from __future__ import annotations

from collections import defaultdict
from typing import TypeAlias

import torch

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
from neural_tune_pytorch.backends.pt2e import lowering, stored
from neural_tune_pytorch.backends.pt2e.capture import Captured, attribute
from neural_tune_pytorch.backends.pt2e.lowering import Probe
from neural_tune_pytorch.backends.pt2e.ops import Op
from neural_tune_pytorch.recipes import variants

APPROACHES = ("static", "dynamic", "auto", "weight_only", "qat")
# minmax keeps every value and is the best start on most nets; then by how much they clip.
OBSERVERS = (Observer.MINMAX, Observer.PERCENTILE, Observer.KL, Observer.MSE)
WEIGHT = QuantSpec(dtype=DType.INT8, granularity=Granularity.PER_CHANNEL)
_Offer: TypeAlias = tuple[tuple[OpConfig, ...], tuple[OpConfig, ...], str]
_EVERYTHING = Probe(convolution=True, linear=True, dynamic=True)


def query(captured: Captured) -> Capability:
    """Return the choices of every op.

    Raises:
        CapabilityError: the approach is none of this backend's.
    """
    approach = captured.options.approach
    if approach not in APPROACHES:
        raise CapabilityError(f"approach {approach!r}: the pt2e backend offers {', '.join(APPROACHES)}")
    probe = lowering.probe() if captured.compiles else _EVERYTHING
    groups = _groups(captured)
    ops = tuple(_capability(op, captured, probe, groups.get(op.name, "")) for op in captured.ops)
    return Capability(
        framework="pytorch",
        runtime_version=torch.__version__,
        instruction_set=instruction_set(),
        ops=ops,
        inputs=captured.calling.names,
        recipes=variants.offered(captured),
        notes=(*captured.notes, *_notes(probe)),
    )


def instruction_set() -> str:
    """Return what decides the speed of int8, such as "x86 avx512 vnni amx"."""
    found = ["vnni"] if torch.cpu._is_vnni_supported() else []  # noqa: SLF001 - torch has no public question for it
    found += ["amx"] if torch.cpu._is_amx_tile_supported() else []  # noqa: SLF001
    return " ".join(["cpu", torch.backends.cpu.get_cpu_capability().lower(), *found])


def static(
    observer: Observer, *, symmetric: bool = False, reduce_range: bool = False, with_weight: bool = True
) -> OpConfig:
    """Return the static int8 config for an observer."""
    activation = QuantSpec(dtype=DType.UINT8, symmetric=symmetric, observer=observer, reduce_range=reduce_range)
    return OpConfig(mode=Mode.STATIC, activation=activation, weight=WEIGHT if with_weight else None)


def dynamic(*, reduce_range: bool = False) -> OpConfig:
    """Return the dynamic int8 config: the range of the input is found when the op runs."""
    activation = QuantSpec(dtype=DType.UINT8, symmetric=False, reduce_range=reduce_range)
    return OpConfig(mode=Mode.DYNAMIC, activation=activation, weight=WEIGHT)


def reduces(captured: Captured) -> bool:
    """Return whether activations have seven bits: without VNNI the products of two pairs saturate in 16 bits."""
    wish = captured.options.reduce_range
    return not torch.cpu._is_vnni_supported() if wish is None else wish  # noqa: SLF001 - torch has no public question for it


def _capability(op: Op, captured: Captured, probe: Probe, group: str) -> OpCapability:
    choices, extra, why = _choices(op, captured, probe)
    return OpCapability(
        name=op.name,
        type=op.type,
        role=op.role if op.is_quantizable or op.role is Role.PASS_THROUGH else Role.NEVER,
        choices=(*choices, FLOAT),
        extra=extra,
        group=group,
        why=why,
        inputs=op.inputs,
        outputs=(op.node,),
        parameters=op.parameters,
    )


def _choices(op: Op, captured: Captured, probe: Probe) -> _Offer:
    """Return choices, extra, and why something is missing. What only stores a weight comes last, unless it is asked for, or all there is."""
    if not op.is_quantizable or probe.problem:
        return (), (), op.why or _unlowered(probe)
    approach = captured.options.approach
    stores, others = stored.offered(op, captured)
    if approach == "qat":
        return (
            _kernels(op, captured, probe) if op.type != "embedding" else ((), (), "embedding: its table is not trained")
        )
    if op.type == "embedding" or approach == "weight_only":
        return stores, others, "" if stores else f"{op.type}: it has no weight of its own"
    choices, extra, why = _kernels(op, captured, probe)
    return choices, (*extra, *stores, *others), why


def _kernels(op: Op, captured: Captured, probe: Probe) -> _Offer:
    """Return what runs in int8 kernels."""
    approach, narrow = captured.options.approach, reduces(captured)
    is_linear, has_weight = op.type == "linear", bool(op.weight)
    statics = tuple(static(observer, reduce_range=narrow, with_weight=has_weight) for observer in OBSERVERS)
    symmetric = tuple(
        static(observer, symmetric=True, reduce_range=narrow, with_weight=has_weight) for observer in OBSERVERS
    )
    if approach == "dynamic":
        if not is_linear:
            return (), (), f"{op.type}: no dynamic int8 kernel in Inductor, only linear has one"
        return ((dynamic(reduce_range=narrow),), (), "") if probe.dynamic else ((), (), _unlowered(probe))
    if not (probe.linear if is_linear else probe.convolution):
        return (), (), _unlowered(probe)
    if approach == "qat":
        return statics[:1], (), ""
    if approach == "auto" and is_linear and probe.dynamic:
        return (*statics, dynamic(reduce_range=narrow)), symmetric, ""
    return statics, symmetric, ""


def _unlowered(probe: Probe) -> str:
    return probe.problem or "this build of torch does not lower it to an int8 kernel on this processor (probed)"


def _groups(captured: Captured) -> dict[str, str]:
    """Return op -> group: ops over one weight, and linears of one shape that read one tensor (query, key and value)."""
    by_weight: dict[tuple[int, bool], list[Op]] = defaultdict(list)
    by_input: dict[tuple[str, int], list[Op]] = defaultdict(list)
    for op in captured.ops:
        if op.weight:
            weight = attribute(captured.graph, op.weight)
            # A table and a linear over one weight need not agree: codes with a scale per row serve both, and are stored once.
            by_weight[weight.data_ptr(), op.type == "embedding"].append(op)
            if op.type == "linear":
                by_input[op.inputs[0], weight.shape[1]].append(op)
    found: dict[str, str] = {}
    for ops, what in (
        *((ops, "one weight") for ops in by_weight.values()),
        *((ops, "one input") for ops in by_input.values()),
    ):
        if len(ops) > 1:
            known = next(
                (found[op.name] for op in ops if op.name in found), f"{ops[0].name} and {len(ops) - 1} more ({what})"
            )
            found.update({op.name: known for op in ops})
    return found


def _notes(probe: Probe) -> tuple[str, ...]:
    if probe.problem:
        return (
            f"nothing can be compiled here, so no op can be int8: {probe.problem}. Install a C++ compiler, or pass options={{'compile': False}} to study accuracy on the Q/DQ graph",
        )
    return ()
