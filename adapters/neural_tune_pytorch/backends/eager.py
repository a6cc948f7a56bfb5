"""Eager mode: int8 modules put in place of float ones, in a model whose forward stays Python.

What INC and `torch.ao` ask the user for is done here: batch norms are folded, QuantStubs and DeQuantStubs set where codes begin and end, Relus found. What cannot be done in
eager mode: a sum in the user's forward (`x + y`) stays float, because it is not a module. Int8 is then an island between two floats, and tensors stay quantized only
from one int8 module to the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neural_tune.calibration import Collector, Statistics
from neural_tune.errors import CapabilityError
from neural_tune.protocols import AdapterOptions, ObservedTensor
from neural_tune.values import FLOAT, Candidate, Capability, OpCapability, OpConfig, QuantSpec, Role
from neural_tune_pytorch.backend import Built, Feed, Source
from neural_tune_pytorch.backends import eager_flow, eager_plan, fx_graph, fx_plan, scripted, swap, swap_script
from neural_tune_pytorch.backends.eager_flow import Flow
from neural_tune_pytorch.backends.eager_plan import Captured, Op, Plan
from neural_tune_pytorch.backends.fx_plan import Ranges
from neural_tune_pytorch.backends.scripted import ScriptedBackend
from neural_tune_pytorch.backends.swap import Grid
from neural_tune_pytorch.calling import Flat
from neural_tune_pytorch.model import copy_of

_ISLANDS = "eager mode: sums and other functions in forward() stay float; int8 modules are islands with a quantize before and a dequantize behind"


class EagerBackend(ScriptedBackend):
    """Implements `neural_tune_pytorch.backend.Backend`."""

    name = "eager"

    def capture(self, source: Source, options: AdapterOptions) -> Captured:
        """Return the module with batch norms folded, and a recording of one run.

        Raises:
            CapabilityError: nothing in it has a low-precision form, or torch has no int8 kernels.
        """
        swap.engine_name()
        if fx_plan.bits_of(options.extra) < 8:
            raise CapabilityError("options.bits: fewer than 8 bits are simulated by backend 'fx' only")
        module = copy_of(source.module)
        if isinstance(module, torch.fx.GraphModule):
            raise CapabilityError("an exported program has no modules to exchange; use backend 'pt2e'")

        def run(changed: nn.Module) -> Any:
            return source.calling.call(changed, source.example)

        for anchor, norm, axes in list(eager_flow.foldable_norms(module, eager_flow.record(module, run))):
            folded = fx_graph.folded_norm(module.get_submodule(anchor), module.get_submodule(norm), axes)
            if folded is not None:
                module.set_submodule(anchor, folded)
                module.set_submodule(norm, nn.Identity())
        for parameter in module.parameters():
            parameter.requires_grad_(requires_grad=False)
        flow = eager_flow.record(module, run)
        ops = tuple(
            _op(module, flow, path) for path in flow.modules if isinstance(module.get_submodule(path), swap.QUANTIZABLE)
        )
        if all(op.why for op in ops):
            raise CapabilityError(
                "eager mode found no Linear, convolution, LSTM, GRU or Embedding that it could exchange"
            )
        return Captured(
            module=module, flow=flow, ops=ops, calling=source.calling, example=source.example, options=options
        )

    def identity(self, captured: Captured) -> str:
        """Return the structure of the module."""
        return f"eager;{swap.engine_name()};{captured.module!r};{captured.ops!r}"

    def query(self, captured: Captured) -> Capability:
        """Return the choices of every op."""
        notes = (_ISLANDS,) if captured.options.approach in ("static", "auto", "qat") else ()
        return scripted.capability((_capability(captured, op) for op in captured.ops), captured.calling.names, notes)

    def observe(self, captured: Captured, batches: Iterable[Feed]) -> Statistics:
        """Read `batches` once and return the statistics of what every convolution and linear reads and writes."""
        collector = Collector()
        module = copy_of(captured.module)
        for op in captured.ops:
            if not op.why:
                module.get_submodule(op.name).register_forward_hook(_observer(collector, op))
        return scripted.watched(lambda feed: captured.calling.call(module, feed), batches, collector)

    def build(
        self, captured: Captured, candidate: Candidate, statistics: Statistics | None, threads: int | None
    ) -> Built:
        """Return the module with the ops of `candidate` exchanged."""
        self.refuse_recipes(candidate)
        planned = eager_plan.plan(captured, candidate, statistics)
        ranges = Ranges.of(candidate, statistics)
        module = copy_of(captured.module)
        for name, config in planned.configs.items():
            if name in planned.static:
                grids = _Grids(ranges, planned.static[name], planned.spec_of(name))
                weights = swap.weight_grid(module.get_submodule(name).weight, config.weight or swap.WEIGHT)
                module.set_submodule(name, island(captured, planned, name, grids.source(), grids.target(), weights))
            else:
                module.set_submodule(name, _swapped(captured, name, config))
        return finished(captured, planned, module, threads)

    def ranges(self, captured: Captured, candidate: Candidate, statistics: Statistics) -> tuple[ObservedTensor, ...]:
        """Return what calibration saw of the tensors between which int8 modules compute."""
        planned = eager_plan.plan(captured, candidate, statistics)
        return Ranges.of(candidate, statistics).shown(eager_plan.places(captured, planned))


def island(
    captured: Captured, planned: Plan, name: str, source: Grid | None, target: Grid | None, weights: swap.WeightGrid
) -> nn.Module:
    """Return an op as an int8 module with its borders; a grid may be None where the plan does not need it."""
    module, op = captured.module.get_submodule(name), planned.static[name]
    is_float = planned.has_float_borders(name)
    known = source or Grid(scale=1.0, zero=0)
    kernel = swap.static(module, weights, known, None if is_float else target, relu=op.relu)
    quantizes = source if not is_float else None
    return _Island(
        kernel, quantizes, dequantizes_input=is_float, dequantizes_output=not is_float and name not in planned.staying
    )


def finished(captured: Captured, planned: Plan, module: nn.Module, threads: int | None) -> Built:
    """Return a module with exchanged parts as a `Built`."""
    network = Flat(module.eval(), captured.calling).eval()
    return swap_script.built(
        network, captured.calling, captured.example, "eager", eager_plan.report(captured, planned), threads
    )


class _Island(nn.Module):
    """An int8 module between its borders."""

    def __init__(
        self, kernel: nn.Module, source: Grid | None, *, dequantizes_input: bool, dequantizes_output: bool
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.has_grid = source is not None
        self.scale = 1.0 if source is None else source.scale
        self.zero_point = 0 if source is None else source.zero
        self.dequantizes_input = dequantizes_input
        self.dequantizes_output = dequantizes_output

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, as codes or real."""
        if x.is_quantized:
            x = x.dequantize() if self.dequantizes_input else x
        elif not self.dequantizes_input:
            if not self.has_grid:
                # It was trained on the codes of the op before it: any range made up here would be wrong without a word.
                raise RuntimeError(
                    "an int8 module got a float input where codes always arrived: forward() took another path"
                )
            x = torch.quantize_per_tensor(x, self.scale, self.zero_point, torch.quint8)
        y = self.kernel(x)
        return y.dequantize() if self.dequantizes_output else y


@dataclass(frozen=True, slots=True)
class _Grids:
    """The grids of one op."""

    ranges: Ranges
    op: Op
    spec: QuantSpec

    def source(self) -> Grid:
        return self.ranges.grid(self.op.source, self.spec)

    def target(self) -> Grid:
        return self.ranges.grid(self.op.target, self.spec)


def _observer(collector: Collector, op: Op) -> Any:
    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if op.type in ("LSTM", "GRU", "Embedding"):
            return
        collector.see(op.source, np.asarray(inputs[0]))
        collector.see(op.target, np.asarray(torch.relu(output) if op.relu else output))

    return hook


def _op(module: nn.Module, flow: Flow, path: str) -> Op:
    child = module.get_submodule(path)
    why = swap.refusal(child)
    if path in flow.touched:
        why = "forward() of another module reads its weight directly, so it must stay what it is"
    elif isinstance(child, swap.ANCHORS) and any(len(call.inputs) != 1 for call in flow.calls_of(path)):
        why = "it is called with something else than one tensor"
    relu = isinstance(child, swap.ANCHORS) and flow.has_relu(path)
    return Op(name=path, type=type(child).__name__, relu=relu, why=why)


def _capability(captured: Captured, op: Op) -> OpCapability:
    module = captured.module.get_submodule(op.name)
    is_anchor = isinstance(module, swap.ANCHORS)
    inputs, outputs = ((op.source,), (op.target,)) if is_anchor else ((), ())
    bare = OpCapability(
        name=op.name, type=op.type, role=Role.NEVER, choices=(FLOAT,), why=op.why, inputs=inputs, outputs=outputs
    )
    return bare if op.why else scripted.offered(bare, module, captured.options)


def _swapped(captured: Captured, name: str, config: OpConfig) -> nn.Module:
    key = (name, config)
    if key not in captured.cache:
        captured.cache[key] = swap.swapped(captured.module.get_submodule(name), config)
    return captured.cache[key]
