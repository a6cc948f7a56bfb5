"""Quantization-aware training on the FX graph: fake_quant exactly where the kernels will round, so that what is trained is what runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from neural_tune.calibration import Statistics
from neural_tune.values import Candidate, QuantSpec
from neural_tune_pytorch.backend import Built
from neural_tune_pytorch.backends import fx_plan, fx_rewrite, swap, swap_script
from neural_tune_pytorch.backends.fx_graph import Captured, Op
from neural_tune_pytorch.backends.fx_plan import Place, Plan, Ranges
from neural_tune_pytorch.backends.swap import Grid, WeightGrid
from neural_tune_pytorch.model import copy_of
from neural_tune_pytorch.qat_fake_quant import FakeQuant, Trained, check_finite


class FxTrainee:
    """A trainable graph of a candidate, and how it becomes integers. Implements `neural_tune_pytorch.qat.Trainee`."""

    def __init__(
        self, captured: Captured, candidate: Candidate, statistics: Statistics | None, *, learned: bool = True
    ) -> None:
        self._bits = fx_plan.bits_of(captured.options.extra)
        self._planned = fx_plan.plan(captured, candidate, statistics)
        self._captured = replace(captured, graph=_copied(captured.graph), cache={})
        ranges = Ranges.of(candidate, statistics, self._bits) if statistics is not None else None
        modules: dict[str, nn.Module] = {}
        self._emitter = _Simulation(self._captured, self._planned, ranges, modules, self._bits)
        self.network: nn.Module = fx_rewrite.rewrite(self._captured, self._planned, self._emitter, modules)
        for parameter in self.network.parameters():
            parameter.requires_grad_(requires_grad=learned)

    def finish(self, threads: int | None) -> Built:
        """Return the trained model with int8 kernels; below 8 bits, the simulation itself.

        Raises:
            AdapterError: training left something that cannot be quantized.
        """
        check_finite(self.network)
        self.network.eval()
        captured, planned = self._captured, self._planned
        if self._bits < 8:
            return self.simulation(threads)
        for parameter in captured.graph.parameters():
            parameter.requires_grad_(requires_grad=False)
        modules: dict[str, nn.Module] = {}
        kernels = _Learned(captured, planned, self._emitter, modules)
        network = fx_rewrite.rewrite(captured, planned, kernels, modules)
        return swap_script.built(
            network, captured.calling, captured.example, "fx", fx_plan.report(captured, planned), threads
        )

    def simulation(self, threads: int | None) -> Built:
        """Return the fake_quant graph, its steps fixed, as a model that runs (in float)."""
        captured, planned = self._captured, self._planned
        modules: dict[str, nn.Module] = {}
        with torch.no_grad():
            network = fx_rewrite.rewrite(captured, planned, _Fixed(captured, self._emitter, modules), modules)
        for parameter in network.parameters():
            parameter.requires_grad_(requires_grad=False)
        return _simulation(captured, planned, network, self._bits, threads)


def simulated(captured: Captured, candidate: Candidate, statistics: Statistics | None, threads: int | None) -> Built:
    """Return a candidate of fewer than 8 bits, not trained: weights on the widest grid, as post-training quantization has them.

    Raises:
        AdapterError: there are no statistics.
    """
    bits = fx_plan.bits_of(captured.options.extra)
    planned = fx_plan.plan(captured, candidate, statistics)
    modules: dict[str, nn.Module] = {}
    emitter = _Simulation(captured, planned, Ranges.of(candidate, statistics, bits), modules, bits)
    with torch.no_grad():
        fixed: dict[str, nn.Module] = {}
        network = fx_rewrite.rewrite(captured, planned, _Plain(captured, planned, emitter, fixed, bits), fixed)
    return _simulation(captured, planned, network, bits, threads)


def _simulation(captured: Captured, planned: Plan, network: fx.GraphModule, bits: int, threads: int | None) -> Built:
    report = fx_plan.simulation_report(captured, planned, bits)
    return swap_script.built(network.eval(), captured.calling, captured.example, "fx", report, threads)


class _FloatOps(ABC):
    """Emits float ops, rounded where a kernel would write codes."""

    @abstractmethod
    def quantize(self, graph: fx.Graph, value: fx.Node, tensor: str, spec: QuantSpec) -> fx.Node:
        """Round on the grid of `tensor`."""

    def dequantize(self, graph: fx.Graph, value: fx.Node) -> fx.Node:  # noqa: ARG002 - the signature of an emitter
        """Return the value: it is float already."""
        return value

    def add(self, graph: fx.Graph, op: Op, values: tuple[fx.Node, ...], target: Place) -> fx.Node:
        """Return the rounded sum."""
        made = graph.call_function(torch.add, values)
        return self.quantize(graph, graph.call_function(torch.relu, (made,)) if op.relu else made, *target)


class _Simulation(_FloatOps):
    """Emits float ops with trainable fake_quant; one grid per tensor and spec."""

    def __init__(
        self, captured: Captured, planned: Plan, ranges: Ranges | None, modules: dict[str, nn.Module], bits: int
    ) -> None:
        self._captured = captured
        self._planned = planned
        self._ranges = ranges
        self._modules = modules
        self._bits = bits
        self._nodes = captured.nodes()
        self._grids: dict[tuple[str, QuantSpec], FakeQuant] = {}

    def grid(self, tensor: str, spec: QuantSpec) -> Grid:
        """Return a grid as it stands."""
        return self.fake_quant(tensor, spec).grid()

    def fake_quant(self, tensor: str, spec: QuantSpec) -> FakeQuant:
        """Return the fake_quant of a tensor."""
        key = (tensor, spec)
        if key not in self._grids:
            start = None if self._ranges is None else self._ranges.grid(tensor, spec)
            last = (1 << self._bits) - 1 if self._bits < 8 or not spec.reduce_range else 127
            self._grids[key] = FakeQuant(start, last=last, symmetric=spec.symmetric, tensor=tensor)
        return self._grids[key]

    def trained(self, op: Op) -> Trained:
        """Return the trainable form of an anchor."""
        name = f"trained_{op.node}"
        if name not in self._modules:
            spec = self._planned.configs[op.name].weight or swap.WEIGHT
            self._modules[name] = Trained(
                self._captured.module(self._nodes[op.node]), spec, bits=self._bits, relu=op.relu
            )
        found = self._modules[name]
        assert isinstance(found, Trained)  # noqa: S101 - put there two lines above
        return found

    def quantize(self, graph: fx.Graph, value: fx.Node, tensor: str, spec: QuantSpec) -> fx.Node:
        """Round on the grid of `tensor`."""
        found = self.fake_quant(tensor, spec)
        name = f"grid_{list(self._grids).index((tensor, spec))}"
        self._modules[name] = found
        return graph.call_module(name, (value,))

    def anchor(self, graph: fx.Graph, op: Op, value: fx.Node, source: Place, target: Place | None) -> fx.Node:
        """Return the output, rounded where the kernel writes codes; with a float output the input is rounded here."""
        self.trained(op)
        if target is None and op.inputs[0] not in self._planned.coded:  # what was rounded stays rounded
            value = self.quantize(graph, value, *source)
        made = graph.call_module(f"trained_{op.node}", (value,))
        return made if target is None else self.quantize(graph, made, *target)


class _Learned(fx_rewrite.Kernels):
    """Emits int8 kernels on the grids that were learned."""

    def __init__(self, captured: Captured, planned: Plan, emitter: _Simulation, modules: dict[str, nn.Module]) -> None:
        super().__init__(captured, planned, emitter, modules)
        self._emitter = emitter

    def _weights(self, node: fx.Node, op: Op) -> WeightGrid:  # noqa: ARG002 - of the learned step
        trained = self._emitter.trained(op)
        return trained.fake_quant.grid(trained.module.weight.detach())


class _Fixed(_FloatOps):
    """Emits float ops on fixed grids: fake_quant without parameters, weights rounded once."""

    def __init__(self, captured: Captured, emitter: _Simulation, modules: dict[str, nn.Module]) -> None:
        self._captured = captured
        self._emitter = emitter
        self._modules = modules

    def quantize(self, graph: fx.Graph, value: fx.Node, tensor: str, spec: QuantSpec) -> fx.Node:
        """Round on the grid of `tensor`."""
        grid = self._emitter.grid(tensor, spec)
        return graph.call_function(torch.fake_quantize_per_tensor_affine, (value, grid.scale, grid.zero, 0, grid.last))

    def anchor(self, graph: fx.Graph, op: Op, value: fx.Node, source: Place, target: Place | None) -> fx.Node:
        """Return the output, rounded where a kernel would write codes."""
        name = f"fixed_{op.node}"
        self._modules[name] = self._rounded(op)
        if target is None:
            value = self.quantize(graph, value, *source)
        made = graph.call_module(name, (value,))
        made = graph.call_function(torch.relu, (made,)) if op.relu else made
        return made if target is None else self.quantize(graph, made, *target)

    def _rounded(self, op: Op) -> nn.Module:
        trained = self._emitter.trained(op)
        return _with_weight(trained.module, trained.fake_quant(trained.module.weight))


class _Plain(_Fixed):
    """Emits float ops whose weights lie on the widest grid."""

    def __init__(
        self, captured: Captured, planned: Plan, emitter: _Simulation, modules: dict[str, nn.Module], bits: int
    ) -> None:
        super().__init__(captured, emitter, modules)
        self._planned = planned
        self._bits = bits
        self._nodes = captured.nodes()

    def _rounded(self, op: Op) -> nn.Module:
        module = self._captured.module(self._nodes[op.node])
        grid = swap.weight_grid(module.weight, self._planned.configs[op.name].weight or swap.WEIGHT, self._bits)
        step = grid.scale.reshape([-1] + [1] * (module.weight.dim() - 1))
        return _with_weight(module, (module.weight / step).round().clamp(-grid.last, grid.last) * step)


def _with_weight(module: nn.Module, weight: Any) -> nn.Module:
    made = copy_of(module)
    made.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    return made


def _copied(graph: fx.GraphModule) -> fx.GraphModule:
    made = copy_of(graph)
    assert isinstance(made, fx.GraphModule)  # noqa: S101 - a copy
    return made
