"""What a candidate does to a module in eager mode: which modules are exchanged, and between which of them codes travel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from neural_tune.calibration import Statistics
from neural_tune.protocols import AdapterOptions, BuildReport
from neural_tune.values import Candidate, FrozenMap, Mode, OpConfig, QuantSpec
from neural_tune_pytorch.backend import Feed
from neural_tune_pytorch.backends import op_choices, swap
from neural_tune_pytorch.backends.eager_flow import Flow
from neural_tune_pytorch.calling import Calling


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """A module that has a low-precision form.

    Attributes:
        name: Module path.
        type: Its class.
        relu: Whether a Relu behind it is done in the kernel as well (the one in forward then changes nothing).
        why: Why it is float only.
    """

    name: str
    type: str
    relu: bool = False
    why: str = ""

    @property
    def source(self) -> str:
        """Name of the tensor it reads."""
        return f"{self.name}:in"

    @property
    def target(self) -> str:
        """Name of the tensor it writes, behind the Relu."""
        return f"{self.name}:out"

    @property
    def tensors(self) -> tuple[str, ...]:
        """Both of them."""
        return self.source, self.target


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Captured:
    """The float module, batch norms folded, and what it does with its tensors. Nobody changes it.

    Attributes:
        module: Float.
        flow: One recorded run of it.
        ops: Every module of a quantizable type that was called.
        calling: How the original is called.
        example: One batch.
        options: What the configuration says.
        cache: Parts of candidates that depend on the float model only.
    """

    module: nn.Module
    flow: Flow
    ops: tuple[Op, ...]
    calling: Calling
    example: Feed
    options: AdapterOptions
    cache: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """A candidate laid over the modules.

    Attributes:
        configs: Op name -> config, for the ops that are really in low precision.
        reasons: Op name -> why it is float although the candidate asks for more.
        static: The static ones by name.
        fed: Static ops whose input arrives as codes.
        staying: Static ops whose output stays codes.
    """

    configs: Mapping[str, OpConfig]
    reasons: Mapping[str, str]
    static: Mapping[str, Op]
    fed: frozenset[str]
    staying: frozenset[str]

    def spec_of(self, name: str) -> QuantSpec:
        """Return the spec of the activations of a static op. Raises CapabilityError where no kernel takes it."""
        return op_choices.activation_of(name, self.configs[name])

    def has_float_borders(self, name: str) -> bool:
        """Return whether a static op runs in the kernel with float input and output."""
        is_alone = name not in self.staying and name not in self.fed
        return self.static[name].type == "Linear" and is_alone and swap.offers_float_borders()


def plan(captured: Captured, candidate: Candidate, statistics: Statistics | None) -> Plan:
    """Return what `candidate` does.

    Raises:
        CapabilityError: it names an op that the model does not have, or that has no low-precision form.
    """
    infinite = statistics.infinite if statistics is not None else ()
    configs, reasons = op_choices.chosen(captured.ops, candidate, infinite)
    known = {op.name: op for op in captured.ops}
    static = {name: known[name] for name, config in configs.items() if config.mode is Mode.STATIC}
    int8, flow = frozenset(static), captured.flow
    staying = frozenset(
        name
        for name in static
        if _written(flow, name) and all(flow.stays(tensor, int8) for tensor in _written(flow, name))
    )
    coded = flow.coded(frozenset(tensor for name in staying for tensor in _written(flow, name)))
    fed = frozenset(name for name in static if all(set(call.inputs) <= coded for call in flow.calls_of(name)))
    return Plan(configs=configs, reasons=reasons, static=static, fed=fed, staying=staying)


def places(captured: Captured, planned: Plan) -> dict[tuple[str, QuantSpec], tuple[str, ...]]:
    """Return every tensor that is laid on a grid, with the ops that read its codes (none where codes are only written)."""
    flow = captured.flow
    found: dict[tuple[str, QuantSpec], tuple[str, ...]] = {}
    for name, op in planned.static.items():
        if name not in planned.fed:
            found[op.source, planned.spec_of(name)] = (name,)
        if not planned.has_float_borders(name):
            coded = flow.coded(frozenset(_written(flow, name))) if name in planned.staying else frozenset()
            found[op.target, planned.spec_of(name)] = tuple(
                other
                for other in planned.static
                if other in planned.fed and any(coded.intersection(call.inputs) for call in flow.calls_of(other))
            )
    return found


def report(captured: Captured, planned: Plan) -> BuildReport:
    """Return what became of every op."""
    borders = sum((name not in planned.fed) + (name not in planned.staying) for name in planned.static)
    counts = FrozenMap({"int8_kernels": float(op_choices.kernel_count(planned.configs)), "borders": float(borders)})
    return BuildReport(ops=op_choices.outcomes(captured.ops, planned.configs, planned.reasons), counts=counts)


def _written(flow: Flow, name: str) -> tuple[int, ...]:
    return tuple(tensor for call in flow.calls_of(name) for tensor in call.outputs)
