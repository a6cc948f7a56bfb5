"""Which tensors carry 8-bit codes in a candidate, over which range, and who turns them into codes and back.

A convolution always writes codes; a matrix product writes them where only int8 ops read it, else float. What lies between (pooling,
padding, reshaping, concatenation) carries codes when they come from int8 and go to int8. A range belongs to a tensor: its writer and
all its readers share it, and ops that carry codes share it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.values import Candidate, Mode, Observer, OpConfig
from neural_tune_tensorflow.backend import Ranges
from neural_tune_tensorflow.graph import Graph, node_of
from neural_tune_tensorflow.rewrite.activations import Readers
from neural_tune_tensorflow.rewrite.units import CARRIERS, Unit, Units

_FLAT = 1e-30  # a tensor of zeros has no range: any will do
_RELU6 = 6.0
# The recipe that lets convolutions take residual sums over; off unless the user asks for it.
SUM_FUSION = "sum_fusion"
_FARTHEST = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """How a tensor is laid out over 8 bits: real = code * high / (127 or 255).

    Attributes:
        is_signed: True for s8 (-127..127), False for u8 (0..255).
        high: The largest real value that has a code.
        observer: How it was found.
    """

    is_signed: bool
    high: float
    observer: Observer

    @property
    def low(self) -> float:
        """The smallest real value that has a code."""
        return -self.high if self.is_signed else 0.0

    @property
    def scale(self) -> float:
        """One step."""
        return self.high / (127.0 if self.is_signed else 255.0)

    def describe(self) -> str:
        """Return a short form."""
        return f"{'int8' if self.is_signed else 'uint8'} sym per_tensor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """A residual sum that a convolution takes over: relu(convolution + summand), written into the summand's own memory.

    Attributes:
        add: The AddV2 node.
        tail: The Relu behind it.
        summand: The other operand, in unsigned codes.
    """

    add: str
    tail: str
    summand: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """The decisions for one candidate.

    Attributes:
        configs: Units that run in int8, with their configs.
        codes: Tensor -> its codes, for every tensor that exists in codes.
        entered: Tensors that float ops write and int8 ops read.
        written: Tail -> unit that writes it as codes.
        carried: Nodes that carry codes.
        refused: Op -> why it stays float though the candidate asked for int8.
        sums: Convolution -> the residual sum it takes over.
        casts: Units that run in bfloat16.
    """

    configs: Mapping[str, OpConfig]
    codes: Mapping[str, Code]
    entered: frozenset[str]
    written: Mapping[str, str]
    carried: frozenset[str]
    refused: Mapping[str, str]
    sums: Mapping[str, Sum] = field(default_factory=dict)
    casts: frozenset[str] = frozenset()

    def tail_of(self, unit: Unit) -> str:
        """Return the tensor behind a unit, behind its residual sum where it takes one over."""
        return self.sums[unit.name].tail if unit.name in self.sums else unit.tail


def plan(graph: Graph, units: Units, readers: Readers, candidate: Candidate, ranges: Ranges | None) -> Plan:
    """Return what `candidate` means.

    Raises:
        AdapterError: a range is needed and there are no statistics.
        CapabilityError: the candidate names what does not exist.
    """
    _check(graph, units, candidate)
    planner = _Planner(graph, units, readers, candidate, getattr(ranges, "infinite", frozenset()))
    planner.choose()
    planner.walk()
    if ranges is None and planner.coded:
        raise AdapterError(
            f"tensor {next(iter(planner.coded))!r} is to be quantized statically, but there are no statistics: calibrate first"
        )
    return planner.finish(ranges)


def data_inputs(node: Any) -> list[str]:
    """Return the inputs through which a carrier carries."""
    return list(node.input[:-1]) if node.op == "ConcatV2" else list(node.input[:1])


def _check(graph: Graph, units: Units, candidate: Candidate) -> None:
    for name, config in candidate.ops.items():
        if name not in graph.nodes:
            raise CapabilityError(f"the candidate names op {name!r}, which the model does not have")
        if name not in units.by_name:
            raise CapabilityError(f"op {name!r} ({graph.nodes[name].op}) has no int8 form here: {config.describe()}")
    for choice in candidate.ranges:
        if choice.tensor not in graph.shapes:
            raise CapabilityError(f"the candidate names tensor {choice.tensor!r}, which the model does not have")


@dataclass(slots=True)
class _Planner:
    graph: Graph
    units: Units
    readers: Readers
    candidate: Candidate
    infinite: frozenset[str]
    configs: dict[str, OpConfig] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    wanted: set[str] = field(default_factory=set)
    coded: dict[str, None] = field(default_factory=dict)
    entered: set[str] = field(default_factory=set)
    written: dict[str, str] = field(default_factory=dict)
    carried: set[str] = field(default_factory=set)
    parents: dict[str, str] = field(default_factory=dict)
    clipped: dict[str, bool] = field(default_factory=dict)
    sums: dict[str, Sum] = field(default_factory=dict)
    casts: set[str] = field(default_factory=set)

    def choose(self) -> None:
        """Note the units that run in int8 or bfloat16, and which tensors int8 ops would like as codes."""
        for name, config in self.candidate.ops.items():
            unit = self.units.by_name[name]
            if config.mode is Mode.CAST:
                self.casts.add(name)
                continue
            rangeless = [item for item in (unit.source, unit.tail) if item in self.infinite]
            if rangeless and (rangeless[0] == unit.source or not unit.is_product):
                self.refused[name] = f"tensor {rangeless[0]!r} takes infinite values, as a mask does: it has no range"
            else:
                self.configs[name] = config
        for node in reversed(list(self.graph)):
            if node.name in self.configs:
                self.wanted.add(self.units.by_name[node.name].source)
            elif node.op in CARRIERS and node.name in self.wanted and self._can_carry(node):
                self.wanted.update(data_inputs(node))

    def walk(self) -> None:
        """Decide on every op in execution order."""
        for node in self.graph:
            if node.name in self.configs:
                self._take(self.units.by_name[node.name])
            elif node.op in CARRIERS and node.name not in self.coded and self._can_carry(node):
                self._carry(node)

    def _take(self, unit: Unit) -> None:
        if unit.source not in self.coded:
            self.coded[unit.source] = None
            self.entered.add(unit.source)
        hands_out_codes = self._only_int8_reads(unit.tail) and unit.tail not in self.infinite and not unit.summand
        if not unit.is_product or hands_out_codes:
            found = self._sum_of(unit) if SUM_FUSION in self.candidate.recipes else None
            if found is not None:
                self.sums[unit.name] = found
            tail = unit.tail if found is None else found.tail
            self.coded[tail] = None
            self.written[tail] = unit.name
            kind = unit.activation.kind if unit.activation is not None else ""
            self.clipped[unit.tail] = kind == "Relu6" and not unit.is_product

    def _sum_of(self, unit: Unit) -> Sum | None:
        """Return the residual sum that `unit` may take over; None where the write in place is not proven safe.

        The kernel writes the result into the summand's memory. So nobody may read the summand later: every other reader must be an ancestor of the
        convolution, and the summand no result. Signed summands give wrong sums (measured), so it must be the unsigned codes behind a Relu.
        """
        following = self.readers.get(unit.tail, [])
        if unit.kind != "Conv2D" or unit.activation is not None or len(following) != 1 or not following[0]:
            return None
        add = self.graph.nodes[following[0]]
        behind = self.readers.get(add.name, [])
        if (
            add.op not in ("AddV2", "Add")
            or len(behind) != 1
            or not behind[0]
            or self.graph.nodes[behind[0]].op != "Relu"
        ):
            return None
        summand = next((name for name in add.input if name != unit.tail), "")
        writer = self.units.by_name.get(self.written.get(summand, ""))
        shapes = self.graph.shapes
        # Codes of a convolution, or those that were made of a float tensor: then too only int8 ops read the memory that is written.
        is_coded = summand in self.entered or (writer is not None and not writer.is_product)
        if not is_coded or summand not in self.units.never_negative:
            return None
        if shapes.get(summand) is None or shapes.get(summand) != shapes.get(unit.tail):
            return None
        others = [name for name in self.readers.get(summand, []) if name != add.name]
        if "" in others or any(self.graph.nodes[name].op in CARRIERS for name in others):
            return None
        # Reading the summand itself, the convolution would overwrite its own input (measured: a crash).
        before = self._ancestors(unit.name, summand) - {unit.name, *unit.nodes}
        if unit.source == summand or not set(others) <= before:
            return None
        return Sum(add=add.name, tail=behind[0], summand=summand)

    def _ancestors(self, name: str, stop: str) -> set[str]:
        """Return the nodes that run before `name`, as far as they follow from the tensor `stop`."""
        found: set[str] = set()
        todo = [name]
        while todo and len(found) < _FARTHEST:
            node = todo.pop()
            if node not in found and node != node_of(stop):
                found.add(node)
                todo.extend(node_of(item) for item in self.graph.nodes[node].input)
        return found

    def _carry(self, node: Any) -> None:
        sources = data_inputs(node)
        is_worth_it = node.name in self.wanted or (node.op == "MaxPool" and sources[0] in self.written)
        if not is_worth_it or any(name not in self.coded for name in sources):
            return
        # A Relu6 saturates at the end of its range, so it shares no range with a tensor that goes further.
        if len({self.clipped.get(self.root(name), False) for name in sources}) > 1:
            return
        self.carried.add(node.name)
        self.coded[node.name] = None
        for name in sources:
            self._join(node.name, name)

    def _can_carry(self, node: Any) -> bool:
        if self.graph.dtypes.get(node.name) != self.graph.dtypes.get(node.input[0]) or node.name in self.units.owner:
            return False
        if node.op == "MaxPool":
            return node.attr["data_format"].s in (b"", b"NHWC") and node.attr["padding"].s in (b"SAME", b"VALID")
        return node.op != "ConcatV2" or self.graph.value(node.input[-1]) is not None

    def _only_int8_reads(self, tensor: str) -> bool:
        for name in self.readers.get(tensor, []):
            if not name:
                return False
            owner = name if name in self.configs else self.units.owner.get(name, "")
            if owner in self.configs and self.units.by_name[owner].source == tensor:
                continue
            node = self.graph.nodes[name]
            if not (node.op in CARRIERS and name in self.wanted and self._can_carry(node)):
                return False
        return bool(self.readers.get(tensor))

    def root(self, tensor: str) -> str:
        """Return the tensor that stands for all that share a range with `tensor`."""
        while tensor in self.parents:
            tensor = self.parents[tensor]
        return tensor

    def _join(self, one: str, other: str) -> None:
        first, second = self.root(one), self.root(other)
        if first != second:
            self.parents[first] = second

    def finish(self, ranges: Ranges | None) -> Plan:
        """Return the decisions with a range for every coded tensor."""
        groups: dict[str, list[str]] = {}
        for tensor in self.coded:
            groups.setdefault(self.root(tensor), []).append(tensor)
        codes: dict[str, Code] = {}
        for members in groups.values():
            if ranges is not None:
                code = self._code(members, ranges)
                codes.update(dict.fromkeys(members, code))
        return Plan(
            configs=self.configs,
            codes=codes,
            entered=frozenset(self.entered),
            written=self.written,
            carried=frozenset(self.carried),
            refused=self.refused,
            sums=self.sums,
            casts=frozenset(self.casts),
        )

    def _code(self, members: list[str], ranges: Ranges) -> Code:
        origins = [name for name in members if name in self.entered or name in self.written]
        is_signed = not all(self._is_never_negative(name, ranges) for name in origins)
        observer, percentile = self._observer(members)
        high = 0.0
        for name in origins:
            low, top = ranges.range_of(
                name, observer, percentile, symmetric=is_signed, levels=255 if is_signed else 256
            )
            bound = max(abs(low), abs(top)) if is_signed else max(top, 0.0)
            high = max(high, min(bound, _RELU6) if self.clipped.get(name) else bound)
        return Code(is_signed=is_signed, high=high if high > _FLAT else 1.0, observer=observer)

    def _is_never_negative(self, tensor: str, ranges: Ranges) -> bool:
        if tensor in self.units.never_negative:
            return True
        if tensor in self.written:
            return False
        return ranges.range_of(tensor, Observer.MINMAX, symmetric=False, levels=256)[0] >= 0.0

    def _observer(self, members: list[str]) -> tuple[Observer, float | None]:
        """Return what a range choice says, else what the first reader asks for, else the writer."""
        choices = {choice.tensor: choice for choice in self.candidate.ranges}
        for name in members:
            if name in choices:
                return choices[name].observer, choices[name].percentile
        for unit, config in self.configs.items():
            if self.units.by_name[unit].source in members and config.activation is not None:
                return config.activation.observer, config.activation.percentile
        for name in members:
            writing = self.configs[self.written[name]].activation if name in self.written else None
            if writing is not None:
                return writing.observer, writing.percentile
        return Observer.MINMAX, None
