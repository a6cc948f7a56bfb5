"""FX graph mode: the module traced as a graph, int8 kernels of `torch.ao` put in op by op. No compiler is needed, and a trial costs milliseconds.

`prepare_fx` and `convert_fx` are not used: they take a candidate per *module name*, observe for every candidate anew, and break on partial candidates of
residual nets (torch 2.13: "Tried to erase Node relu but it still had 1 users"). The graph is rewritten here; the kernels, and the oracle of the tests, are torch's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from neural_tune.calibration import Collector, Statistics
from neural_tune.protocols import AdapterOptions, ObservedTensor
from neural_tune.values import FLOAT, Candidate, Capability, Mode, OpCapability, OpConfig, Role
from neural_tune_pytorch.backend import Built, Feed, Source
from neural_tune_pytorch.backends import fx_graph, fx_plan, fx_rewrite, scripted, swap, swap_script
from neural_tune_pytorch.backends.fx_graph import Captured, Op
from neural_tune_pytorch.backends.fx_plan import Ranges
from neural_tune_pytorch.backends.scripted import ScriptedBackend


class FxBackend(ScriptedBackend):
    """Implements `neural_tune_pytorch.backend.Backend`."""

    name = "fx"

    def capture(self, source: Source, options: AdapterOptions) -> Captured:
        """Return the FX graph of the module.

        Raises:
            CapabilityError: it cannot be traced symbolically, or torch has no int8 kernels.
        """
        swap.engine_name()
        fx_plan.bits_of(options.extra)
        return fx_graph.capture(source, options)

    def identity(self, captured: Captured) -> str:
        """Return the code of the graph."""
        return f"fx;{swap.engine_name()};{fx_plan.bits_of(captured.options.extra)};{captured.graph.code}"

    def query(self, captured: Captured) -> Capability:
        """Return the choices of every op."""
        bits = fx_plan.bits_of(captured.options.extra)
        notes = (fx_plan.simulation_note(bits),) if bits < 8 else ()
        return scripted.capability((_capability(captured, op) for op in captured.ops), captured.calling.names, notes)

    def observe(self, captured: Captured, batches: Iterable[Feed]) -> Statistics:
        """Read `batches` once and return the statistics of every tensor that a candidate may lay on a grid."""
        return observe(captured.graph, fx_plan.observed_tensors(captured), batches)

    def build(
        self, captured: Captured, candidate: Candidate, statistics: Statistics | None, threads: int | None
    ) -> Built:
        """Return `candidate` with int8 kernels, or simulated where fewer bits were asked for."""
        self.refuse_recipes(candidate)
        planned = fx_plan.plan(captured, candidate, statistics)
        bits = fx_plan.bits_of(captured.options.extra)
        if bits < 8 and planned.static:
            from neural_tune_pytorch import qat_fx  # noqa: PLC0415 - training builds on this module

            return qat_fx.simulated(captured, candidate, statistics, threads)
        modules: dict[str, nn.Module] = {}
        kernels = fx_rewrite.Kernels(captured, planned, Ranges.of(candidate, statistics), modules)
        network = fx_rewrite.rewrite(captured, planned, kernels, modules)
        return swap_script.built(
            network, captured.calling, captured.example, self.name, fx_plan.report(captured, planned), threads
        )

    def ranges(self, captured: Captured, candidate: Candidate, statistics: Statistics) -> tuple[ObservedTensor, ...]:
        """Return what calibration saw of the tensors that travel as codes."""
        planned = fx_plan.plan(captured, candidate, statistics)
        bits = fx_plan.bits_of(captured.options.extra)
        return Ranges.of(candidate, statistics, bits).shown(planned.places())


def observe(graph: fx.GraphModule, names: tuple[str, ...], batches: Iterable[Feed]) -> Statistics:
    """Return the statistics of the named nodes of a graph over `batches`.

    Raises:
        DataError: there is no batch, or a tensor holds NaN.
        AdapterError: the graph breaks on a batch.
    """
    collector, wanted = Collector(), set(names)

    def note(node: fx.Node, value: Any) -> None:
        if node.name in wanted and isinstance(value, Tensor):
            collector.see(node.name, np.asarray(value))

    return scripted.watched(lambda feed: fx_graph.Watching(graph, note).run(*feed), batches, collector)


def _capability(captured: Captured, op: Op) -> OpCapability:
    bare = OpCapability(
        name=op.name,
        type=op.type,
        role=Role.NEVER,
        choices=(FLOAT,),
        why=op.why,
        inputs=op.inputs,
        outputs=(op.output,) if op.output else (),
    )
    if op.why:
        return bare
    if op.type == "add":
        is_static = captured.options.approach in ("static", "auto", "qat")
        why = "" if is_static else "a sum has static int8 kernels only"
        role = Role.COMPANION if is_static else Role.NEVER
        return replace(bare, role=role, choices=_sum_choices(captured) if is_static else (FLOAT,), why=why)
    module = captured.module(captured.nodes()[op.node])
    return scripted.offered(bare, module, captured.options, bits=fx_plan.bits_of(captured.options.extra))


def _sum_choices(captured: Captured) -> tuple[OpConfig, ...]:
    observers = swap.OBSERVERS[:1] if captured.options.approach == "qat" else swap.OBSERVERS
    specs = [swap.static_spec(observer, reduce_range=captured.options.reduce_range) for observer in observers]
    return (*(OpConfig(mode=Mode.STATIC, activation=spec) for spec in specs), FLOAT)
