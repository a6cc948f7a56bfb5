"""Quantization-aware training on the exported graph: fake_quant on the edges of the plan, so that what is trained is what Inductor compiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import fx, nn

from neural_tune.calibration import Statistics
from neural_tune.values import Candidate
from neural_tune_pytorch.backend import Built
from neural_tune_pytorch.backends import swap
from neural_tune_pytorch.backends.pt2e import observe, plan
from neural_tune_pytorch.backends.pt2e.backend import built_of
from neural_tune_pytorch.backends.pt2e.capture import Captured, attribute
from neural_tune_pytorch.backends.pt2e.codes import Codes
from neural_tune_pytorch.backends.pt2e.plan import Edge
from neural_tune_pytorch.backends.swap import Grid
from neural_tune_pytorch.model import copy_of
from neural_tune_pytorch.qat_fake_quant import FakeQuant, WeightFakeQuant, check_finite


class Pt2eTrainee:
    """A trainable graph of a candidate, and how it becomes integers. Implements `neural_tune_pytorch.qat.Trainee`.

    Edges whose range is found at run time (dynamic) are float in training; their weights are rounded.
    """

    def __init__(self, captured: Captured, candidate: Candidate, statistics: Statistics | None) -> None:
        graph = copy_of(captured.graph)
        assert isinstance(graph, fx.GraphModule)  # noqa: S101 - a copy
        self._captured = replace(captured, graph=graph, cache={})
        # Without calibration the example says which edges there are; their ranges are found in training.
        known = statistics or observe.observe(captured, [captured.example])
        self._planned = plan.plan(self._captured, candidate, known)
        self._edges: dict[Edge, FakeQuant] = {}
        self.network: nn.Module = self._written(is_known=statistics is not None)
        for parameter in self.network.parameters():
            parameter.requires_grad_(requires_grad=parameter.is_floating_point())

    def finish(self, threads: int | None) -> Built:
        """Return the trained graph in integers; it is compiled when it is first called.

        Raises:
            AdapterError: training left something that cannot be quantized.
        """
        check_finite(self.network)
        for parameter in self.network.parameters():
            parameter.requires_grad_(requires_grad=False)
        static: Mapping[Edge, Codes] = {edge: _codes(found.grid()) for edge, found in self._edges.items()}
        return built_of(self._captured, replace(self._planned, static=static), threads)

    def _written(self, *, is_known: bool) -> fx.GraphModule:
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        graph.output(graph.graph_copy(self._captured.graph.graph, copies))
        twins = {original.name: copy for original, copy in copies.items()}
        modules: dict[str, nn.Module] = {}
        made: dict[tuple[fx.Node, Codes], fx.Node] = {}
        rounds: dict[tuple[fx.Node, Codes], FakeQuant] = {}
        for (name, position), codes in self._planned.static.items():
            reader = twins[name]
            source = reader.args[position]
            assert isinstance(source, fx.Node)  # noqa: S101 - a plan is made of edges
            key = (source, codes)
            if key not in made:
                start = Grid(scale=codes.scale, zero=codes.zero, last=codes.last) if is_known else None
                rounds[key] = modules[f"grid_{len(modules)}"] = FakeQuant(start, last=codes.last, tensor=source.name)
                with graph.inserting_before(_first_reader(source)):
                    made[key] = graph.call_module(f"grid_{len(modules) - 1}", (source,))
            reader.update_arg(position, made[key])
            self._edges[name, position] = rounds[key]
        for name in sorted(self._planned.weights):
            node = twins[name]
            weight = node.args[1]
            assert isinstance(weight, fx.Node)  # noqa: S101 - an anchor's weight is a get_attr node
            modules[f"weight_{len(modules)}"] = WeightFakeQuant(
                attribute(self._captured.graph, str(weight.target)), swap.WEIGHT
            )
            with graph.inserting_before(node):
                node.update_arg(1, graph.call_module(f"weight_{len(modules) - 1}", (weight,)))
        holder = copy_of(nn.Module())
        for name, module in modules.items():
            holder.add_module(name, module)
        return _joined(self._captured.graph, holder, graph)


def _joined(root: fx.GraphModule, holder: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """Return a module of `graph` over the parameters of `root` (the very same) and the modules of `holder`."""
    targets: dict[str, object] = dict(holder.named_children())
    for node in graph.nodes:
        if node.op == "get_attr":
            targets[str(node.target)] = attribute(root, str(node.target))
        elif node.op == "call_module" and str(node.target) not in targets:
            targets[str(node.target)] = root.get_submodule(str(node.target))
    return fx.GraphModule(targets, graph)


def _first_reader(source: fx.Node) -> fx.Node:
    order = {node: place for place, node in enumerate(source.graph.nodes)}
    return min(source.users, key=lambda node: order[node])


def _codes(grid: Grid) -> Codes:
    return Codes(scale=grid.scale, zero=grid.zero, last=grid.last)
