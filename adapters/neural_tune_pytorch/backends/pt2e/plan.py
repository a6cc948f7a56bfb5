"""From a candidate and the statistics to the edges that are quantized, each with its codes. The one place where fusion rules live.

The writer of Q/DQ graphs, the toggle model and the report all follow the plan, so that they cannot disagree about a partial candidate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import fx

from neural_tune.calibration import Statistics
from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.protocols import OpOutcome
from neural_tune.values import Candidate, Granularity, Mode, OpConfig, QuantSpec, Role, TensorRange
from neural_tune_pytorch.backends.pt2e import codes, stored
from neural_tune_pytorch.backends.pt2e.capture import Captured
from neural_tune_pytorch.backends.pt2e.codes import Codes
from neural_tune_pytorch.backends.pt2e.ops import ACTIVATIONS, ADDITIONS, CONVOLUTIONS, LINEAR, POOLS, Op

STORED = (Mode.WEIGHT_ONLY, Mode.CAST)
"""Modes without an int8 kernel: what changes is how a weight is stored, or that the op is computed in bf16."""
Edge: TypeAlias = tuple[str, int]
"""Node and position of the argument that is read as codes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """What a candidate does to the graph.

    Attributes:
        static: Edge -> its codes.
        sources: Static edge -> the tensor whose range its codes cover (that before a max pool which carries codes).
        dynamic: Edges whose range is found at run time -> largest code.
        weights: Nodes whose weight is int8 codes that an int8 kernel reads.
        stored: Node -> config, where a weight is only stored in fewer bits (weight_only), or the op is cast to bf16.
        configs: Op name -> config, for the ops that are really quantized.
        reasons: Op name -> why it is float though the candidate asks for more.
    """

    static: Mapping[Edge, Codes] = field(default_factory=dict)
    sources: Mapping[Edge, str] = field(default_factory=dict)
    dynamic: Mapping[Edge, int] = field(default_factory=dict)
    weights: frozenset[str] = frozenset()
    stored: Mapping[str, OpConfig] = field(default_factory=dict)
    configs: Mapping[str, OpConfig] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def kernels(self) -> int:
        """Number of int8 kernels that the compiler is expected to make: one per op with int8 weights."""
        return len(self.weights)


def plan(captured: Captured, candidate: Candidate, statistics: Statistics | None) -> Plan:
    """Return what `candidate` does to the graph.

    Raises:
        AdapterError: a static op has no statistics.
        CapabilityError: the candidate asks for a scheme or an op that is not lowered.
    """
    known = {op.name: op for op in captured.ops}
    unknown = sorted(set(candidate.ops) - set(known))
    if unknown:
        raise CapabilityError(f"the candidate names the ops {unknown[:5]}, which the model does not have")
    configs: dict[str, OpConfig] = {}
    reasons: dict[str, str] = {}
    for op in captured.ops:
        config = candidate.config_of(op.name)
        if config.is_float:
            continue
        refusal = _refusal(captured, op, config, configs, statistics)
        if refusal:
            reasons[op.name] = refusal
        else:
            configs[op.name] = config
    ranges = {choice.tensor: choice for choice in candidate.ranges}
    kernels = {name: config for name, config in configs.items() if config.mode not in STORED}
    wanted, dynamic = _edges(captured, kernels)
    sources = _sources(captured, kernels, wanted)
    return Plan(
        static={edge: _codes(tensor, wanted[edge], ranges, statistics) for edge, tensor in sources.items()},
        sources=sources,
        dynamic=dynamic,
        weights=frozenset(known[name].node for name in kernels if known[name].weight),
        stored={known[name].node: config for name, config in configs.items() if config.mode in STORED},
        configs=configs,
        reasons=reasons,
    )


def outcomes(captured: Captured, planned: Plan) -> tuple[OpOutcome, ...]:
    """Return what became of every op."""
    found = []
    for op in captured.ops:
        config = planned.configs.get(op.name)
        precision = "float" if config is None else config.describe()
        reason = (
            "" if config is not None else planned.reasons.get(op.name) or op.why or "the candidate keeps it in float"
        )
        found.append(OpOutcome(name=op.name, type=op.type, precision=precision, reason=reason))
    return tuple(found)


def observed_tensors(captured: Captured) -> tuple[str, ...]:
    """Return every tensor that some candidate quantizes: whatever is calibrated must cover all of these."""
    nodes = {node.name: node for node in captured.graph.graph.nodes}
    names: dict[str, None] = {}
    for op in captured.ops:
        if op.is_quantizable:
            names.update(dict.fromkeys(str(nodes[op.node].args[position]) for position in op.edges))
    for node in captured.graph.graph.nodes:
        if node.target in POOLS:
            names[str(node.args[0])] = None
    return tuple(names)


def _refusal(
    captured: Captured, op: Op, config: OpConfig, before: Mapping[str, OpConfig], statistics: Statistics | None
) -> str:
    """Return why an op stays float against the candidate's wish; "" when it does not."""
    if not op.is_quantizable:
        raise CapabilityError(f"the candidate quantizes {op.name!r} ({op.type}): {op.why}")
    if config.mode in STORED:
        stored.check(op, config, captured)
        return ""
    _check(op, config)
    if op.role is Role.COMPANION and (op.anchor not in before or before[op.anchor].mode in STORED):
        return f"it is part of the kernel of {op.anchor!r}, which is not int8"
    if config.mode is Mode.STATIC and statistics is not None:
        infinite = sorted(statistics.infinite.intersection(op.inputs))
        if infinite:
            return f"its input {infinite[0]!r} took infinite values in calibration, so it has no range"
    return ""


def _check(op: Op, config: OpConfig) -> None:
    allowed: tuple[Mode, ...] = (Mode.STATIC, Mode.DYNAMIC) if op.type == "linear" else (Mode.STATIC,)
    if op.type == "embedding":
        allowed = ()
    if config.mode not in allowed or config.activation is None:
        raise CapabilityError(f"op {op.name!r} ({op.type}): {config.describe()} has no int8 kernel here")
    codes.last_code(config.activation)
    weight = config.weight
    if op.weight and (
        weight is None
        or weight.dtype != "int8"
        or not weight.symmetric
        or weight.granularity is not Granularity.PER_CHANNEL
    ):
        raise CapabilityError(
            f"op {op.name!r} ({op.type}): weight {weight.describe() if weight else 'float'} would silently run in float; Inductor lowers int8 sym per_channel only"
        )


def _edges(captured: Captured, configs: Mapping[str, OpConfig]) -> tuple[dict[Edge, QuantSpec], dict[Edge, int]]:
    """Return static edge -> spec, and dynamic edge -> largest code, for the int8 ops alone: no pool is among them."""
    dynamic: dict[Edge, int] = {}
    wanted: dict[Edge, QuantSpec] = {}
    for op in captured.ops:
        config = configs.get(op.name)
        if config is None or config.activation is None:
            continue
        for position in op.edges:
            if config.mode is Mode.DYNAMIC:
                dynamic[op.node, position] = codes.last_code(config.activation)
            else:
                wanted[op.node, position] = config.activation
    return wanted, dynamic


def _sources(captured: Captured, configs: Mapping[str, OpConfig], wanted: dict[Edge, QuantSpec]) -> dict[Edge, str]:
    """Return static edge -> the tensor whose range it takes; `wanted` gains the edges of the max pools that carry codes."""
    nodes = {node.name: node for node in captured.graph.graph.nodes}
    pooled = _through_pools(captured, configs, nodes, wanted)
    read = {edge: str(nodes[edge[0]].args[edge[1]]) for edge in wanted}
    for pool in pooled:
        reader = next(edge for edge, source in read.items() if source == pool)
        wanted[pool, 0] = wanted[reader]
    return {edge: pooled.get(source, source) for edge, source in read.items()} | {
        (pool, 0): tensor for pool, tensor in pooled.items()
    }


def _through_pools(
    captured: Captured, configs: Mapping[str, OpConfig], nodes: Mapping[str, fx.Node], wanted: Mapping[Edge, QuantSpec]
) -> dict[str, str]:
    """Return max pool -> its input, where the codes can be made before the pool: int8 writes its input, and only int8 reads its output, all alike.

    The largest of the codes is the code of the largest, so nothing changes but the memory that is moved: a quarter of it.
    """
    quantized = {op.node for op in captured.ops if op.name in configs}
    found: dict[str, str] = {}
    for node in nodes.values():
        if node.target not in POOLS:
            continue
        readers = [
            (user.name, position) for user in node.users for position, item in enumerate(user.args) if item is node
        ]
        specs = {wanted.get(edge) for edge in readers}
        if len(specs) == 1 and None not in specs and _writer(node.args[0]) in quantized:
            found[node.name] = str(node.args[0])
    return found


def _writer(value: object) -> str:
    """Return the name of the convolution, linear or sum behind a tensor, looking through activation functions."""
    while isinstance(value, fx.Node) and value.target in ACTIVATIONS:
        value = value.args[0]
    is_kernel = isinstance(value, fx.Node) and value.target in (*CONVOLUTIONS, LINEAR, *ADDITIONS)
    return value.name if is_kernel and isinstance(value, fx.Node) else ""


def _codes(tensor: str, spec: QuantSpec, ranges: Mapping[str, TensorRange], statistics: Statistics | None) -> Codes:
    if statistics is None:
        raise AdapterError(
            f"tensor {tensor!r} is to be quantized statically, but there are no statistics: calibrate first"
        )
    choice = ranges.get(tensor)
    observer = choice.observer if choice is not None else spec.observer
    percentile = choice.percentile if choice is not None else spec.percentile
    low, high = statistics.range_of(tensor, observer, percentile, symmetric=spec.symmetric, levels=codes.levels(spec))
    return Codes.of(low, high, spec)
