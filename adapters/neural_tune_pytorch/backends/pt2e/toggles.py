"""One graph in which the quantization of every edge and every weight can be switched, without a rebuild.

The switches sit on the superset of edges, and which of them are on for a subset of ops is what `plan` says: the very function that decides about a candidate that is really
built. So the toggle model of a subset and the Q/DQ graph of the same subset compute the same numbers, also where fusion breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from neural_tune.calibration import Statistics
from neural_tune.errors import CapabilityError
from neural_tune.protocols import Inputs, Outputs
from neural_tune.values import Candidate, Mode, OpConfig
from neural_tune_pytorch.backends.pt2e import stored
from neural_tune_pytorch.backends.pt2e.capture import Captured
from neural_tune_pytorch.backends.pt2e.codes import Codes
from neural_tune_pytorch.backends.pt2e.lowering import Reference
from neural_tune_pytorch.backends.pt2e.ops import weight_position
from neural_tune_pytorch.backends.pt2e.plan import Plan, plan
from neural_tune_pytorch.backends.pt2e.stored import weight_codes
from neural_tune_pytorch.inputs import to_arrays, to_feed
from neural_tune_pytorch.recipes import variants
from neural_tune_pytorch.threads import threads as running_with


class EdgeSwitch(nn.Module):
    """Hands an activation through, or what remains of it after quantization."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: Codes | int | None = None

    def forward(self, values: Tensor) -> Tensor:
        """Return the values as the switch stands: float, static codes, or codes of a range found now."""
        if self.codes is None:
            return values
        ops = torch.ops.quantized_decomposed
        if isinstance(self.codes, Codes):
            grid = (self.codes.scale, self.codes.zero, 0, self.codes.last, torch.uint8)
            return ops.dequantize_per_tensor(ops.quantize_per_tensor(values, *grid), *grid)
        last = self.codes
        scale, zero = ops.choose_qparams(values, 0, last, torch.finfo(torch.float32).eps, torch.uint8)
        quantized = ops.quantize_per_tensor.tensor(values, scale, zero, 0, last, torch.uint8)
        return ops.dequantize_per_tensor.tensor(quantized, scale, zero, 0, last, torch.uint8)


class WeightSwitch(nn.Module):
    """Hands a weight through, or what its codes stand for."""

    def __init__(self, quantized: Tensor) -> None:
        super().__init__()
        self.is_on = False
        self.register_buffer("quantized", quantized, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight as the switch stands."""
        return self.quantized if self.is_on else weight


class BiasSwitch(nn.Module):
    """Hands out the bias of an op (None where it has none), or the one that its rounded weight is corrected with."""

    def __init__(self, corrected: Tensor) -> None:
        super().__init__()
        self.is_on = False
        self.register_buffer("corrected", corrected, persistent=False)

    def forward(self, bias: Tensor | None) -> Tensor | None:
        """Return the bias as the switch stands."""
        return self.corrected if self.is_on else bias


class CastSwitch(nn.Module):
    """Computes a linear or convolution in float, or in bf16."""

    def __init__(self, target: Callable[..., Tensor], weight: Tensor) -> None:
        super().__init__()
        self.is_on = False
        self._target = target
        self.register_buffer("narrow", weight, persistent=False)

    def forward(self, *arguments: Any) -> Tensor:
        """Return the op's output in float32, computed as the switch stands."""
        return stored.cast_call(self._target, arguments, self.narrow) if self.is_on else self._target(*arguments)


class ToggleModel:
    """Implements `neural_tune.protocols.Toggles`. Not for several threads at a time."""

    def __init__(
        self, captured: Captured, candidate: Candidate, statistics: Statistics | None, threads: int | None
    ) -> None:
        """Write the graph with the switches.

        Raises:
            AdapterError: a static op has no statistics.
            CapabilityError: the candidate asks for what is not lowered.
        """
        self._candidate = candidate
        self._captured, self._statistics = variants.changed(captured, candidate, statistics)
        self._threads = threads
        self._plans: dict[frozenset[str], Plan] = {}
        self._edges: dict[tuple[str, int], EdgeSwitch] = {}
        self._weights: dict[str, WeightSwitch | CastSwitch] = {}
        self._biases: dict[str, BiasSwitch] = {}
        full = self._plan(frozenset(candidate.ops))
        self._network = Reference(self._write(full, variants.biases(self._captured, candidate, full, self._statistics)))

    def run(self, int8_ops: frozenset[str], inputs: Inputs) -> Outputs:
        """Return the outputs when exactly `int8_ops` are quantized.

        Raises:
            CapabilityError: the candidate does not quantize one of them.
            DataError: the inputs do not fit the model.
        """
        planned = self._plan(frozenset(int8_ops))
        for edge, switch in self._edges.items():
            switch.codes = planned.static.get(edge, planned.dynamic.get(edge))
        for node, weight in self._weights.items():
            weight.is_on = node in planned.weights or node in planned.stored
        for node, bias in self._biases.items():
            bias.is_on = node in planned.weights
        with running_with(self._threads):
            return to_arrays(self._network(*to_feed(inputs, self._captured.calling)))

    def _plan(self, int8_ops: frozenset[str]) -> Plan:
        if int8_ops not in self._plans:
            unknown = sorted(int8_ops - set(self._candidate.ops))
            if unknown:
                raise CapabilityError(
                    f"found the ops {unknown[:5]}, expected a subset of those the candidate quantizes"
                )
            kept = {name: config for name, config in self._candidate.ops.items() if name in int8_ops}
            self._plans[int8_ops] = plan(self._captured, Candidate.of(kept, self._candidate.ranges), self._statistics)
        return self._plans[int8_ops]

    def _write(self, full: Plan, corrected: Mapping[str, Tensor]) -> fx.GraphModule:
        """Return the float graph with a switch on every edge and weight of the full plan, and on every bias that a recipe corrects.

        A subset never has an edge that the full plan lacks: pools carry codes only where all their readers do.
        """
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        graph.output(graph.graph_copy(self._captured.graph.graph, copies))
        twins = {original.name: copy for original, copy in copies.items()}
        root = nn.Module()
        for node in graph.nodes:
            if node.op == "get_attr":
                name = f"constant_{str(node.target).replace('.', '_')}"
                value = _attribute(self._captured.graph, str(node.target))
                setattr(root, name, value)
                node.target = name
        for number, (name, position) in enumerate((*full.static, *full.dynamic)):
            switch = self._edges[name, position] = EdgeSwitch()
            root.add_module(f"edge{number}", switch)
            _insert(graph, twins[name], position, f"edge{number}")
        for number, name in enumerate(sorted(full.weights)):
            path = next(op.weight for op in self._captured.ops if op.node == name)
            quantized = torch.ops.quantized_decomposed.dequantize_per_channel(
                *weight_codes(self._captured, path), 0, -127, 127, torch.int8
            )
            switch_of_weight = self._weights[name] = WeightSwitch(quantized)
            root.add_module(f"weight{number}", switch_of_weight)
            _insert(graph, twins[name], 1, f"weight{number}")
        for number, (name, values) in enumerate(corrected.items()):
            bias_switch = self._biases[name] = BiasSwitch(values)
            root.add_module(f"bias{number}", bias_switch)
            _insert(graph, twins[name], 2, f"bias{number}")
        for number, (name, config) in enumerate(full.stored.items()):
            root.add_module(f"stored{number}", self._store(graph, twins[name], name, config, f"stored{number}"))
        return fx.GraphModule(root, graph)

    def _store(self, graph: fx.Graph, node: fx.Node, name: str, config: OpConfig, module: str) -> nn.Module:
        """Put the switch of a weight that is only stored in fewer bits, or of a cast, into the graph and return it."""
        path = next(op.weight for op in self._captured.ops if op.node == name)
        assert config.weight is not None  # noqa: S101 - the plan was checked
        packed = stored.packed(self._captured, path, config.weight)
        if config.mode is Mode.WEIGHT_ONLY:
            weight = self._weights[name] = WeightSwitch(stored.float_weight(packed))
            _insert(graph, node, weight_position(node), module)
            return weight
        cast = self._weights[name] = CastSwitch(node.target, packed.parts["bf16"])
        with graph.inserting_before(node):
            switched = graph.call_module(module, node.args)
        node.replace_all_uses_with(switched)
        graph.erase_node(node)
        return cast


def _insert(graph: fx.Graph, node: fx.Node, position: int, module: str) -> None:
    arguments = [*node.args, *(None,) * (position + 1 - len(node.args))]
    with graph.inserting_before(node):
        arguments[position] = graph.call_module(module, (arguments[position],))
    node.args = tuple(arguments)


def _attribute(module: nn.Module, path: str) -> object:
    value: object = module
    for part in path.split("."):
        value = getattr(value, part)
    return value
