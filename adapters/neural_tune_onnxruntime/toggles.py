"""One session in which any subset of a candidate's ops runs in int8: the op of every anchor and companion sits behind a switch.

Each op that a candidate quantizes becomes `If(switch){Q/DQ op}{float op}`. Only the branch that is taken is computed, and the runtime fuses
inside the branches as it does outside, so a probe costs one forward pass of the kernels that a really built candidate would use.
(Computing both precisions always and selecting one would cost two.) The switches are inputs of the graph, so nothing is rebuilt.

What an op does in int8 depends a little on its neighbours: a MatMul hands out codes only if an int8 op reads them, a tensor
behind a MaxPool has the scale of the int8 op before it, a companion joins a region or stays float. `regions.plan` decides that, here as for a real
candidate. Each distinct way to run one op is a branch of its own; those of full int8 and of every op alone are there from the
start, and a subset that needs another one adds it (one rebuild, remembered).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from neural_tune.calibration import Statistics
from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.numerics.qparams import Parameters
from neural_tune.protocols import Inputs, Outputs
from neural_tune.values import Candidate, OpConfig
from neural_tune_onnxruntime import session
from neural_tune_onnxruntime.build import looking_at, ranges_of, start
from neural_tune_onnxruntime.graph import FLOAT32, Op
from neural_tune_onnxruntime.inputs import InputInfo, to_feed
from neural_tune_onnxruntime.model import OnnxModel
from neural_tune_onnxruntime.recipes import bias_correction, variants
from neural_tune_onnxruntime.rewrite import qdq, regions
from neural_tune_onnxruntime.rewrite.regions import Regions

logger = logging.getLogger(__name__)

_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Manner:
    """One way to run an op in int8; two plans that agree in this write the same nodes.

    Attributes:
        config: What it was asked for.
        reads: Per input, how the op sees it: its codes' parameters, None for float.
        writes: Parameters of the codes it hands out; None for float.
    """

    config: OpConfig
    reads: tuple[Parameters | None, ...]
    writes: Parameters | None

    @classmethod
    def of(cls, op: Op, planned: Regions) -> Manner | None:
        """Return how `op` runs in a plan; None for float."""
        config = planned.configs.get(op.name)
        if config is None:
            return None
        coded = [planned.coded.get(tensor) for tensor in op.inputs]
        reads = tuple(item.parameters if item is not None and item.is_read_by(op) else None for item in coded)
        tail = planned.tails.get(op.name)
        return cls(config, reads, planned.coded[tail].parameters if tail is not None else None)


@dataclass(slots=True, eq=False)
class Unit:
    """An op behind a switch, with the Relu or Clip that may be folded into it.

    Attributes:
        op: The op.
        follower: The activation behind it; None where there is none.
        plans: Every known manner of the op, with a plan in which it occurs.
    """

    op: Op
    follower: Op | None
    plans: dict[Manner, Regions] = field(default_factory=dict)

    @property
    def output(self) -> str:
        """The tensor that the rest of the graph sees."""
        return (self.follower or self.op).outputs[0]

    def learn(self, planned: Regions) -> bool:
        """Note how the op runs in a plan; return whether that is new."""
        manner = Manner.of(self.op, planned)
        if manner is None or manner in self.plans:
            return False
        self.plans[manner] = planned
        return True


class ToggleModel:
    """Implements `neural_tune.protocols.Toggles`. Not for several threads at a time."""

    def __init__(
        self, model: OnnxModel, candidate: Candidate, statistics: Statistics | None, threads: int | None
    ) -> None:
        """Build the session.

        Raises:
            AdapterError: there are no statistics for a tensor it needs, or the runtime refuses the graph.
            CapabilityError: the candidate asks for what the model or the runtime does not have.
        """
        if candidate.recipes and candidate.ops:
            variant = variants.prepare(model, candidate.recipes, statistics)
            model, statistics = variant.model, variant.statistics
        model = looking_at(model, statistics)
        several = [op.name for op in model.graph.ops if op.name in candidate.ops and sum(map(bool, op.outputs)) > 1]
        if several:
            raise AdapterError(
                f"op {several[0]!r} has several results: a switch has one, so candidates are built instead"
            )
        self._model = self._int8_model = model
        self._candidate = candidate
        self._find_range = ranges_of(statistics)
        self._threads = threads
        self._choices: dict[frozenset[str], Mapping[str, Manner]] = {}
        full = self._plan(candidate.ops)
        if bias_correction.NAME in candidate.recipes and full.configs and statistics is not None:
            # The correction of an op depends on that op alone, so the one of full int8 serves every subset.
            self._int8_model = bias_correction.corrected(model, full.configs, statistics)
        followers = {owner: name for name, owner in full.folded.items()}
        ops = {op.name: op for op in model.graph.ops}
        self._units = {
            name: Unit(ops[name], ops[followers[name]] if name in followers else None) for name in full.configs
        }
        alone = {frozenset({name}): self._plan((name,)) for name in self._units}
        for planned in (full, *alone.values()):
            self._learn(planned)
        self._choices |= {names: self._manners(planned) for names, planned in alone.items()}
        self._start()

    def run(self, int8_ops: frozenset[str], inputs: Inputs) -> Outputs:
        """Return the outputs when exactly `int8_ops` are quantized.

        Raises:
            CapabilityError: the candidate does not quantize one of them.
            DataError: the inputs do not fit the model.
            AdapterError: the runtime breaks on them.
        """
        manners = self._choose(frozenset(int8_ops))
        switches = {switch: np.array(manners.get(name) == manner) for (name, manner), switch in self._switches.items()}
        feed = to_feed(inputs, self._inputs)
        try:
            return tuple(self._session.run(None, feed | switches))
        except session.RUNTIME_ERRORS as error:
            message = f"the toggle model breaks on inputs of shape {[list(v.shape) for v in feed.values()]}: {session.first_line(error)}"
            raise AdapterError(message) from error

    def _choose(self, int8_ops: frozenset[str]) -> Mapping[str, Manner]:
        """Return how each unit runs in a subset (float ones left out); a manner that is new is built first."""
        found = self._choices.get(int8_ops)
        if found is None:
            planned = self._plan(int8_ops)
            if self._learn(planned):
                logger.info(
                    "the subset of %d ops runs some op in a new way; the toggle model is built again", len(int8_ops)
                )
                self._start()
            found = self._manners(planned)
            if len(self._choices) >= _REMEMBERED:
                self._choices.clear()
            self._choices[int8_ops] = found
        return found

    def _manners(self, planned: Regions) -> dict[str, Manner]:
        manners = ((name, Manner.of(unit.op, planned)) for name, unit in self._units.items())
        return {name: manner for name, manner in manners if manner is not None}

    def _plan(self, int8_ops: Iterable[str]) -> Regions:
        names = frozenset(int8_ops)
        unknown = sorted(names - set(self._candidate.ops))
        if unknown:
            message = f"found the ops {unknown[:5]}, expected a subset of the {len(self._candidate.ops)} ops that the candidate quantizes"
            raise CapabilityError(message)
        kept = {name: config for name, config in self._candidate.ops.items() if name in names}
        return regions.plan(self._model, Candidate.of(kept, self._candidate.ranges), self._find_range)

    def _learn(self, planned: Regions) -> bool:
        return sum(unit.learn(planned) for unit in self._units.values()) > 0  # every unit learns, not only the first

    def _start(self) -> None:
        writer = _Writer(self._model, self._int8_model, self._units)
        self._switches = writer.switches
        self._session = start(writer.write(), self._model, self._threads)
        own = set(self._model.input_names)
        self._inputs = tuple(InputInfo.of(value) for value in self._session.get_inputs() if value.name in own)


class _Writer:
    """Writes the graph with the switches."""

    def __init__(self, model: OnnxModel, int8_model: OnnxModel, units: Mapping[str, Unit]) -> None:
        self._model = model
        self._int8_model = int8_model
        self._units = units
        self._inside = {unit.follower.name for unit in units.values() if unit.follower is not None}
        self._known = {value.name: value for value in model.proto.graph.value_info}
        count = itertools.count()
        self.switches = {
            (name, manner): f"switch{model.mark}{next(count)}" for name, unit in units.items() for manner in unit.plans
        }
        self._bodies = itertools.count()

    def write(self) -> onnx.ModelProto:
        """Return the graph: everything outside the units as it is in the float model."""
        source = self._model.proto
        result = onnx.ModelProto(ir_version=source.ir_version, producer_name="neural_tune")
        result.opset_import.extend(source.opset_import)
        graph = result.graph
        graph.name = source.graph.name
        graph.input.extend(source.graph.input)
        graph.input.extend(
            helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, []) for name in self.switches.values()
        )
        graph.output.extend(source.graph.output)
        for op in self._model.graph.ops:
            if op.name in self._units:
                graph.node.extend(self._switched(self._units[op.name]))
            elif op.name not in self._inside:
                graph.node.append(op.node)
        made = {name for node in graph.node for name in node.output}
        graph.value_info.extend(value for name, value in self._known.items() if name in made)
        read = {name for node in graph.node for name in node.input} | self._model.graph.fixed
        graph.initializer.extend(tensor for name, tensor in self._model.store.tensors.items() if name in read)
        return result

    def _switched(self, unit: Unit) -> Iterator[onnx.NodeProto]:
        """Yield the nodes of a unit: one If per manner, nested, with the float op innermost."""
        if not unit.plans:
            yield from (unit.op.node, *self._following(unit))
            return
        body = self._body(unit, [unit.op.node, *self._following(unit)], [], unit.output)
        for manner, planned in unit.plans.items():
            nodes, tensors, seen = qdq.write_op(self._int8_model, planned, unit.op)
            if unit.follower is not None and unit.follower.name not in planned.folded:
                nodes, seen = [*nodes, *self._following(unit)], unit.output
            nodes, tensors, seen = self._corrected(unit, nodes, tensors, seen)
            then = self._body(unit, nodes, tensors, seen)
            switch = self.switches[unit.op.name, manner]
            node = helper.make_node(
                "If", [switch], [f"{switch}_out"], f"{switch}_node", then_branch=then, else_branch=body
            )
            body = onnx.GraphProto(name=f"body{next(self._bodies)}", node=[node])
            body.output.append(self._value(unit, f"{switch}_out"))
        node = body.node[0]
        node.output[:] = [unit.output]
        yield node

    def _corrected(
        self, unit: Unit, nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], seen: str
    ) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], str]:
        """Append the bias correction of a product, which a real candidate hides in the addition of a constant behind it."""
        place = bias_correction.bias_of(unit.op, self._model) if self._int8_model is not self._model else None
        if place is None or place[0] == unit.op.name:
            return nodes, tensors, seen
        constant = next(op for op in self._model.graph.ops if op.name == place[0]).inputs[place[1]]
        shift = self._int8_model.store.array(constant) - self._model.store.array(constant)
        name, target = f"{seen}{self._model.mark}shift", f"{seen}{self._model.mark}shifted"
        node = helper.make_node("Add", [seen, name], [target], f"{target}_node")
        return [*nodes, node], [*tensors, numpy_helper.from_array(np.asarray(shift, np.float32), name)], target

    def _following(self, unit: Unit) -> list[onnx.NodeProto]:
        return [unit.follower.node] if unit.follower is not None else []

    def _body(
        self, unit: Unit, nodes: Iterable[onnx.NodeProto], tensors: Iterable[onnx.TensorProto], result: str
    ) -> onnx.GraphProto:
        """Return a branch in which every name is new, except those of the outer tensors that it reads."""
        prefix = f"b{next(self._bodies)}{self._model.mark}"
        body = onnx.GraphProto(name=f"{prefix}body")
        own = {tensor.name: tensor for tensor in tensors}
        renamed: dict[str, str] = {}

        def constant(name: str) -> None:
            found = own.get(name) or self._model.store.tensors.get(name)
            if found is not None and name not in renamed:
                copy = body.initializer.add()
                copy.CopyFrom(found)
                copy.name = renamed[name] = f"{prefix}{name}"

        for number, node in enumerate(nodes):
            for name in node.input:
                constant(name)
            copy = body.node.add()
            copy.CopyFrom(node)
            copy.name = f"{prefix}{number}"
            copy.input[:] = [renamed.get(name, name) for name in node.input]
            for name in node.output:
                renamed[name] = f"{prefix}{number}{self._model.mark}{name}" if name else ""
            copy.output[:] = [renamed[name] for name in node.output]
            body.value_info.extend(self._typed(node.output, renamed))
        body.output.append(self._value(unit, renamed[result]))
        return body

    def _typed(self, names: Iterable[str], renamed: Mapping[str, str]) -> Iterator[onnx.ValueInfoProto]:
        for name in names:
            if name in self._known:
                value = onnx.ValueInfoProto()
                value.CopyFrom(self._known[name])
                value.name = renamed[name]
                yield value

    def _value(self, unit: Unit, name: str) -> onnx.ValueInfoProto:
        """Return the type of a branch's output, with the shape where it is known."""
        if unit.output not in self._known:
            return helper.make_tensor_value_info(name, FLOAT32, None)
        value = onnx.ValueInfoProto()
        value.CopyFrom(self._known[unit.output])
        value.name = name
        return value
