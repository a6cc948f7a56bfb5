"""What a candidate does to an FX graph: which ops become int8, which tensors travel as codes, and on which grid. Rewriting and simulation both follow it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from torch import fx

from neural_tune.calibration import Statistics
from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.numerics import qparams
from neural_tune.protocols import BuildReport, ObservedTensor
from neural_tune.values import Candidate, FrozenMap, Mode, Observer, OpConfig, QuantSpec, TensorRange
from neural_tune_pytorch.backends import op_choices, swap
from neural_tune_pytorch.backends.fx_graph import Captured, Op, passes
from neural_tune_pytorch.backends.swap import Grid

Place: TypeAlias = tuple[str, QuantSpec]
"""A tensor, and how it is coded: one grid."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """A candidate laid over a graph.

    Attributes:
        configs: Op name -> config, for the ops that are really in low precision.
        reasons: Op name -> why it is float although the candidate asks for more.
        static: Node -> its op, for the ops that read codes.
        coded: Nodes whose value exists as codes because an int8 op wrote it or it passed on from there -> the node whose grid they lie on.
        readers: Nodes that some int8 op reads as codes, directly or through ops that pass codes on.
    """

    configs: Mapping[str, OpConfig] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    static: Mapping[str, Op] = field(default_factory=dict)
    coded: Mapping[str, str] = field(default_factory=dict)
    readers: frozenset[str] = frozenset()

    def spec_of(self, op: Op) -> QuantSpec:
        """Return the spec of the activations of a static op."""
        return op_choices.activation_of(op.name, self.configs[op.name])

    def places(self) -> dict[Place, tuple[str, ...]]:
        """Return every tensor that is laid on a grid, with the ops that read its codes (none where codes are only written)."""
        written = {op.output: self.spec_of(op) for op in self.static.values() if op.output in self.coded}
        found: dict[Place, tuple[str, ...]] = {}
        for op in self.static.values():
            for tensor in op.inputs:
                origin = self.coded.get(tensor)
                place = (tensor, self.spec_of(op)) if origin is None else (origin, written[origin])
                found[place] = (*found.get(place, ()), op.name)
            if op.output in written:
                found.setdefault((op.output, written[op.output]), ())
        return found


def plan(captured: Captured, candidate: Candidate, statistics: Statistics | None) -> Plan:
    """Return what `candidate` does.

    Raises:
        CapabilityError: it names an op that the model does not have, or that has no int8 kernel.
    """
    infinite = statistics.infinite if statistics is not None else ()
    configs, reasons = op_choices.chosen(captured.ops, candidate, infinite)
    static = {op.node: op for op in captured.ops if op.name in configs and configs[op.name].mode is Mode.STATIC}
    _drop_lonely_sums(captured, static, configs, reasons)
    readers = _readers(captured, static)
    return Plan(
        configs=configs, reasons=reasons, static=static, readers=readers, coded=_coded(captured, static, readers)
    )


def report(captured: Captured, planned: Plan) -> BuildReport:
    """Return what became of every op, in kernels."""
    counts = FrozenMap({"int8_kernels": float(op_choices.kernel_count(planned.configs))})
    return BuildReport(ops=op_choices.outcomes(captured.ops, planned.configs, planned.reasons), counts=counts)


def simulation_report(captured: Captured, planned: Plan, bits: int) -> BuildReport:
    """Return what became of every op where its codes are simulated in float: no kernel at all."""
    found = report(captured, planned)
    return replace(found, counts=FrozenMap({"int8_kernels": 0.0}), notes=(simulation_note(bits),))


def simulation_note(bits: int) -> str:
    """Return what a person should know about fewer than 8 bits."""
    return f"{bits} bits are simulated in float: there is no kernel for them, nothing gets faster or smaller"


def observed_tensors(captured: Captured) -> tuple[str, ...]:
    """Return every tensor that some candidate lays on a grid."""
    return tuple(dict.fromkeys(name for op in captured.ops if not op.why for name in op.tensors))


def bits_of(extra: Mapping[str, object]) -> int:
    """Return the option `bits`: 8, or 2 to 7 for a simulation.

    Raises:
        CapabilityError: it is something else.
    """
    bits = extra.get("bits", 8)
    if not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= 8:
        raise CapabilityError(f"options.bits: found {bits!r}, expected 8, or 2 to 7 to simulate fewer bits")
    return bits


def grid_over(low: float, high: float, spec: QuantSpec, bits: int = 8) -> Grid:
    """Return the codes over [low, high] widened to hold zero."""
    if bits == 8:
        found = qparams.activation_parameters(low, high, spec)
        first, last = qparams.code_range(spec)
        return Grid(scale=float(found.scale), zero=found.zero, first=first, last=last)
    last = (1 << bits) - 1
    bottom, top = min(low, 0.0), max(high, 0.0)
    if spec.symmetric:
        top = max(-bottom, top)
        bottom = -top
    scale = np.float64(top - bottom) / last or 1.0
    return Grid(scale=float(np.float32(scale)), zero=int(np.round(-bottom / scale)), last=last)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """Where grids come from: the statistics of calibration.

    Attributes:
        statistics: None raises at the first grid that is asked for.
        overrides: Tensor -> the observer chosen for it.
        bits: Bits of a code.
    """

    statistics: Statistics | None
    overrides: Mapping[str, TensorRange]
    bits: int = 8

    @classmethod
    def of(cls, candidate: Candidate, statistics: Statistics | None, bits: int = 8) -> Ranges:
        """Return the ranges of a candidate."""
        return cls(statistics=statistics, overrides={item.tensor: item for item in candidate.ranges}, bits=bits)

    def observer(self, tensor: str, spec: QuantSpec) -> Observer:
        """Return the observer of a tensor: the one chosen for it, or that of the op's spec."""
        choice = self.overrides.get(tensor)
        return choice.observer if choice is not None else spec.observer

    def shown(self, places: Mapping[Place, tuple[str, ...]]) -> tuple[ObservedTensor, ...]:
        """Return what calibration saw of tensors on their grids, given with the ops that read them. Raises as `grid` does."""
        return tuple(self._shown(tensor, spec, ops) for (tensor, spec), ops in places.items())

    def _shown(self, tensor: str, spec: QuantSpec, ops: tuple[str, ...]) -> ObservedTensor:
        grid = self.grid(tensor, spec)
        assert self.statistics is not None  # noqa: S101 - `grid` refuses
        low, high = ((code - grid.zero) * grid.scale for code in (grid.first, grid.last))
        observer = self.observer(tensor, spec).value
        return ObservedTensor.of(tensor, self.statistics.of(tensor), ops=ops, observer=observer, low=low, high=high)

    def grid(self, tensor: str, spec: QuantSpec) -> Grid:
        """Return the grid of a tensor.

        Raises:
            AdapterError: there are no statistics of it.
        """
        if self.statistics is None:
            raise AdapterError(
                f"tensor {tensor!r} is to be quantized statically, but there are no statistics: calibrate first"
            )
        choice = self.overrides.get(tensor)
        observer = self.observer(tensor, spec)
        percentile = choice.percentile if choice is not None else spec.percentile
        levels = qparams.levels(spec) if self.bits == 8 else 1 << self.bits
        low, high = self.statistics.range_of(tensor, observer, percentile, symmetric=spec.symmetric, levels=levels)
        return grid_over(low, high, spec, self.bits)


def _drop_lonely_sums(
    captured: Captured, static: dict[str, Op], configs: dict[str, OpConfig], reasons: dict[str, str]
) -> None:
    """A sum joins int8 neighbours: where nothing that it reads was written by one, two roundings would buy nothing."""
    nodes = captured.nodes()
    for op in captured.ops:
        if (
            op.node in static
            and op.type == "add"
            and not any(_written(captured, nodes[name], static) for name in op.inputs)
        ):
            del static[op.node], configs[op.name]
            reasons[op.name] = "it joins int8 neighbours only, and what it reads is float"


def _written(captured: Captured, node: fx.Node, static: Mapping[str, Op]) -> str:
    """Return the node whose grid `node` would lie on, looking back through ops that pass codes on; "" where none wrote codes."""
    written = {op.output for op in static.values()}
    while node.name not in written:
        if not passes(captured.graph, node):
            return ""
        node = node.all_input_nodes[0]
    return str(node.name)


def _readers(captured: Captured, static: Mapping[str, Op]) -> frozenset[str]:
    wanted: set[str] = set()
    for node in reversed(captured.graph.graph.nodes):
        if node.name in static:
            wanted.update(static[node.name].inputs)
        elif node.name in wanted and passes(captured.graph, node):
            wanted.add(node.all_input_nodes[0].name)
    return frozenset(wanted)


def _coded(captured: Captured, static: Mapping[str, Op], readers: frozenset[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for op in static.values():
        # A Linear whose output nobody wants as codes leaves it in float; a convolution and a sum have no such kernel.
        if op.output in readers or op.type != "Linear" or not swap.offers_float_borders():
            found[op.output] = op.output
    swallowed = {op.output for op in static.values() if op.relu}
    for node in captured.graph.graph.nodes:
        if node.name in swallowed or node.name in found or node.name not in readers or not passes(captured.graph, node):
            continue
        source = node.all_input_nodes[0].name
        if source in found:
            found[node.name] = found[source]
    return found
