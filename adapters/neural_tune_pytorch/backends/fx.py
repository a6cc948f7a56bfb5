"""FX graph mode: the module traced as a graph, int8 kernels of `torch.ao` put in op by op. No compiler is needed, and a trial costs milliseconds.

`prepare_fx` and `convert_fx` are not used: they take a candidate per *module name*, observe for every candidate anew, and break on partial candidates of
residual nets (torch 2.13: "Tried to erase Node relu but it still had 1 users"). The graph is rewritten here; the kernels, and the oracle of the tests, are torch's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from neural_tune.errors import AdapterError, CapabilityError, DataError
from neural_tune.protocols import AdapterOptions, Toggles
from neural_tune.values import FLOAT, Candidate, Capability, LatencyProfile, Mode, OpCapability, OpConfig, Role
from neural_tune_pytorch.backend import Built, Feed, Source
from neural_tune_pytorch.backends import fx_graph, fx_plan, fx_rewrite, swap, swap_script
from neural_tune_pytorch.backends.fx_graph import Captured, Op
from neural_tune_pytorch.backends.fx_plan import Ranges
from neural_tune_pytorch.model import first_line
from neural_tune_pytorch.statistics import Collector, Statistics


class FxBackend:
    """Implements `neural_tune_pytorch.backend.Backend`."""

    name = "fx"

    def unusable(self, options: AdapterOptions) -> str:  # noqa: ARG002 - protocol
        """Return "": an engine that is missing is refused by `capture`."""
        return ""

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
        notes: tuple[str, ...] = ()
        if fx_plan.bits_of(captured.options.extra) < 8:
            notes = (
                f"{fx_plan.bits_of(captured.options.extra)} bits are simulated in float: there is no kernel for them, nothing gets faster or smaller",
            )
        return Capability(
            framework="pytorch",
            runtime_version=torch.__version__,
            instruction_set=f"{torch.backends.cpu.get_cpu_capability()} {'vnni' if swap.has_vnni() else 'no vnni'}, engine {swap.engine_name()}",
            ops=tuple(_capability(captured, op) for op in captured.ops),
            inputs=captured.calling.names,
            notes=notes,
        )

    def observe(self, captured: Captured, batches: Iterable[Feed]) -> Statistics:
        """Read `batches` once and return the statistics of every tensor that a candidate may lay on a grid."""
        return observe(captured.graph, fx_plan.observed_tensors(captured), batches)

    def build(
        self, captured: Captured, candidate: Candidate, statistics: Statistics | None, threads: int | None
    ) -> Built:
        """Return `candidate` with int8 kernels, or simulated where fewer bits were asked for."""
        if candidate.recipes:
            raise CapabilityError(
                f"recipes {list(candidate.recipes)}: backend 'fx' folds batch norm always and offers no other"
            )
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

    def restore(self, artifact: Path, metadata: Mapping[str, Any], threads: int | None) -> Built:
        """Return what was saved as TorchScript."""
        return swap_script.restore(artifact, metadata, threads)

    def toggles(
        self,
        captured: Captured,  # noqa: ARG002 - the signature of the protocol
        candidate: Candidate,  # noqa: ARG002
        statistics: Statistics | None,  # noqa: ARG002
        threads: int | None,  # noqa: ARG002
    ) -> Toggles:
        """Refuse: a build costs milliseconds, so single candidates are built instead."""
        raise AdapterError(
            "backend 'fx' has no toggle model: a build costs milliseconds, so single candidates are built instead"
        )

    def profile(
        self,
        captured: Captured,  # noqa: ARG002 - the signature of the protocol
        candidate: Candidate,  # noqa: ARG002
        statistics: Statistics | None,  # noqa: ARG002
        feed: Feed,  # noqa: ARG002
        threads: int,  # noqa: ARG002
    ) -> LatencyProfile:
        """Refuse: there is no profile per op here."""
        raise AdapterError("backend 'fx' does not attribute run time to ops; use backend 'pt2e'")


def observe(graph: fx.GraphModule, names: tuple[str, ...], batches: Iterable[Feed]) -> Statistics:
    """Return the statistics of the named nodes of a graph over `batches`.

    Raises:
        DataError: there is no batch, or a tensor holds NaN.
        AdapterError: the graph breaks on a batch.
    """
    collector, wanted, count = Collector(), set(names), 0

    def note(node: fx.Node, value: Any) -> None:
        if node.name in wanted and isinstance(value, Tensor):
            collector.see(node.name, np.asarray(value))

    for feed in batches:
        count += 1
        try:
            with torch.no_grad():
                fx_graph.Watching(graph, note).run(*feed)
        except DataError:
            raise
        except Exception as error:
            raise AdapterError(
                f"the float model breaks in calibration ({type(error).__name__}: {first_line(error)})"
            ) from error
        collector.end_batch()
    if not count:
        raise DataError("calibration found no batch, expected one or more")
    return collector.statistics()


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
    choices, extra = swap.choices(module, captured.options.approach, reduce_range=captured.options.reduce_range)
    if fx_plan.bits_of(captured.options.extra) < 8:
        choices, extra = (*(config for config in choices if config.mode is Mode.STATIC), FLOAT), ()
    why = "" if len(choices) > 1 else f"{op.type} has no {captured.options.approach} form here"
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return replace(
        bare,
        role=Role.ANCHOR if len(choices) + len(extra) > 1 else Role.NEVER,
        choices=choices,
        extra=extra,
        why=why,
        parameters=parameters,
    )


def _sum_choices(captured: Captured) -> tuple[OpConfig, ...]:
    observers = swap.OBSERVERS[:1] if captured.options.approach == "qat" else swap.OBSERVERS
    specs = [swap.static_spec(observer, reduce_range=captured.options.reduce_range) for observer in observers]
    return (*(OpConfig(mode=Mode.STATIC, activation=spec) for spec in specs), FLOAT)
