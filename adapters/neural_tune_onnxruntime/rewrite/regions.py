"""Which ops become int8, which tensors carry codes, and who reads them: the meaning of a candidate, without any protobuf.

Quantization is a property of regions, not of ops. Two rules follow from what the runtime fuses:

* A tensor written by an integer kernel exists as codes only, so *all* its readers see the dequantized codes; one reader on
  the raw tensor would keep the kernel from being fused at all.
* A tensor written in float is quantized for those of its readers that are int8; every other reader stays on the raw tensor. (The stock
  tool rewires all readers, so that an op excluded by the user computes on quantized values after all.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from neural_tune.errors import CapabilityError
from neural_tune.numerics.qparams import Parameters, activation_parameters
from neural_tune.values import Candidate, Mode, OpConfig, QuantSpec, Role, TensorRange
from neural_tune_onnxruntime import forms
from neural_tune_onnxruntime.capability import check
from neural_tune_onnxruntime.graph import Graph, Op
from neural_tune_onnxruntime.kernels import Kernel
from neural_tune_onnxruntime.model import OnnxModel
from neural_tune_onnxruntime.recipes import variants

# Returns the parameters of a tensor from its statistics, for a spec and the candidate's own choice for that tensor; None when the tensor
# has no range (a mask of infinities).
FindRange: TypeAlias = Callable[[str, QuantSpec, TensorRange | None], Parameters | None]
_FOLDABLE = ("Relu", "Clip")


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A tensor that carries codes.

    Attributes:
        tensor: Its name; behind a folded Relu, the name of the Relu's output.
        source: The tensor whose scale it has; itself, unless it was only reshaped or pooled.
        spec: How it is quantized.
        parameters: Scale and zero point.
        readers: Ops that read the codes; None when everybody does, because an integer kernel writes them.
    """

    tensor: str
    source: str
    spec: QuantSpec
    parameters: Parameters
    readers: frozenset[str] | None

    def is_read_by(self, op: Op) -> bool:
        """Return whether `op` reads the codes and not the float tensor."""
        return self.readers is None or op.name in self.readers


@dataclass(frozen=True, slots=True, kw_only=True)
class Regions:
    """The meaning of a candidate.

    Attributes:
        configs: Op -> config, for the ops that run in low precision by their own choice. Only static ones read and write codes.
        coded: Tensor -> how it is coded.
        folded: Relu or Clip -> the op before it whose saturation replaces it.
        tails: Integer op -> the tensor that carries its codes (behind a folded or kept Relu).
        carried: Pass-through ops that run on codes.
        refused: Op -> why it stays float although the candidate asks for int8.
        altered: Op -> how what it got differs from what the candidate asks for.
    """

    configs: Mapping[str, OpConfig]
    coded: Mapping[str, Coded]
    folded: Mapping[str, str]
    tails: Mapping[str, str]
    carried: frozenset[str]
    refused: Mapping[str, str]
    altered: Mapping[str, str]


def plan(model: OnnxModel, candidate: Candidate, find_range: FindRange) -> Regions:
    """Return what `candidate` means on `model`.

    Raises:
        CapabilityError: it names ops, tensors or recipes that do not exist, or configs that cannot run.
    """
    _check(model, candidate)
    static = {name: config for name, config in candidate.ops.items() if config.mode is Mode.STATIC}
    others = {name: config for name, config in candidate.ops.items() if name not in static}
    candidate = Candidate.of(static, candidate.ranges)
    # Only a look at the statistics tells that a tensor has no range. What would code it is then refused, and the rest is planned anew.
    rangeless: frozenset[str] = frozenset()
    while True:
        planner = _Planner(model.graph, model.kernels, candidate, rangeless)
        planner.look_back()
        for op in model.graph.ops:
            planner.visit(op)
        parameters = planner.lay_out(find_range)
        found = {tensor: item for tensor, item in parameters.items() if item is not None}
        if len(found) == len(parameters):
            return planner.finish(found, others)
        rangeless |= parameters.keys() - found.keys()


def _check(model: OnnxModel, candidate: Candidate) -> None:
    variants.check(candidate.recipes, model)
    ops = {op.name: op for op in model.graph.ops}
    for name, config in candidate.ops.items():
        if name not in model.kernels:
            message = f"the candidate names op {name!r}, which the model does not have"
            raise CapabilityError(message)
        if config.mode is Mode.STATIC:
            check(name, model.kernels[name], config)
        else:
            forms.check(ops[name], model, config)
    for choice in candidate.ranges:
        if choice.tensor not in model.graph.consumers and choice.tensor not in model.graph.producers:
            message = f"the candidate names tensor {choice.tensor!r}, which the model does not have"
            raise CapabilityError(message)


@dataclass(slots=True)
class _Planner:
    """Walks the graph once backward (who wants codes) and once forward (who gets them)."""

    graph: Graph
    kernels: Mapping[str, Kernel]
    candidate: Candidate
    rangeless: frozenset[str] = frozenset()
    anchors: dict[str, OpConfig] = field(default_factory=dict)
    wanted_by_anchor: set[str] = field(default_factory=set)
    wanted: set[str] = field(default_factory=set)
    direct: set[str] = field(default_factory=set)
    configs: dict[str, OpConfig] = field(default_factory=dict)
    written: dict[str, Op] = field(default_factory=dict)
    tails: dict[str, str] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    carried: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)

    def look_back(self) -> None:
        """Note which tensors int8 ops would like as codes, directly or through ops that only pass them on."""
        for op in reversed(self.graph.ops):
            kernel = self.kernels[op.name]
            if kernel.is_quantizable and op.name in self.candidate.ops:
                if self._lacks_range(op, kernel):
                    continue
                tensors = {op.inputs[position] for position in kernel.data}
                self.wanted |= tensors
                if kernel.role is Role.ANCHOR:
                    self.anchors[op.name] = self.candidate.ops[op.name]
                    self.direct |= tensors
                    self.wanted_by_anchor |= tensors
            elif kernel.shares_scale:
                for marks in (self.wanted, self.wanted_by_anchor):
                    if any(name in marks for name in op.outputs):
                        marks.add(op.inputs[0])

    def visit(self, op: Op) -> None:
        """Decide on one op; everything before it is decided."""
        kernel = self.kernels[op.name]
        if op.name in self.anchors:
            self._take_anchor(op, kernel)
        elif op.name in self.candidate.ops and op.name not in self.refused:
            self._take_companion(op, kernel)
        elif kernel.shares_scale and op.inputs[0] in self.written:
            self._carry(op)

    def tail(self, op: Op) -> tuple[str, Op | None]:
        """Return the tensor behind `op` that is worth coding, and the Relu or Clip in between."""
        result = op.outputs[0]
        reader = self.graph.sole_consumer(result)
        if reader is None or reader.type not in _FOLDABLE or self.kernels[reader.name].role is not Role.PASS_THROUGH:
            return result, None
        # A Clip whose bounds are computed cannot be judged; one that reads the tensor as its bound is no activation.
        bounds = [name for name in reader.inputs[1:] if name]
        if reader.inputs[0] != result or any(name not in self.graph.constants for name in bounds):
            return result, None
        return reader.outputs[0], reader

    def _lacks_range(self, op: Op, kernel: Kernel) -> bool:
        """Refuse `op` if a tensor that it has to read or write as codes has no range; return whether it is refused."""
        tensors = [op.inputs[position] for position in kernel.data]
        if self._must_write(op, kernel):
            tensors.append(self.tail(op)[0])
        for tensor in tensors:
            if tensor in self.rangeless:
                self.refused[op.name] = (
                    f"tensor {tensor!r} takes infinite values, as a mask does: it has no range to quantize"
                )
                return True
        return False

    def _must_write(self, op: Op, kernel: Kernel) -> bool:
        """Return whether `op`, once int8, hands out codes whoever reads them.

        Gemm and MatMul hand out float as fast as codes, and more exactly: codes only where an int8 op reads them. Not so before a Relu or
        Clip: with a float op behind that, the runtime takes the product and the activation together in float and dequantizes the weights in every call
        (onnxruntime 1.31; perceptron with a float end: FusedGemm instead of QGemm).
        """
        return kernel.emits or self.candidate.ops[op.name].output is not None or self.tail(op)[1] is not None

    def _take_anchor(self, op: Op, kernel: Kernel) -> None:
        self.configs[op.name] = self.anchors[op.name]
        tail, _ = self.tail(op)
        if self._must_write(op, kernel) or (tail in self.wanted_by_anchor and tail not in self.rangeless):
            self._write(op)

    def _take_companion(self, op: Op, kernel: Kernel) -> None:
        tensors = [op.inputs[position] for position in kernel.data]
        outside = [tensor for tensor in tensors if tensor not in self.written and tensor not in self.direct]
        if outside or not any(tensor in self.written for tensor in tensors):
            shown = (outside or tensors)[0]
            self.refused[op.name] = f"does not join an int8 region: its input {shown!r} comes from a float op"
        elif kernel.needs_reader and self.tail(op)[0] not in self.wanted:
            self.refused[op.name] = "does not join an int8 region: nothing int8 reads its output"
        else:
            self.configs[op.name] = self.candidate.ops[op.name]
            self._write(op)
            if kernel.shares_scale:
                self.sources[self.tails[op.name]] = self.sources.get(tensors[0], tensors[0])

    def _write(self, op: Op) -> None:
        tail, activation = self.tail(op)
        self.written[tail] = op
        self.tails[op.name] = tail
        if activation is not None:
            self.folded[activation.name] = op.name

    def _carry(self, op: Op) -> None:
        self.carried.add(op.name)
        source = op.inputs[0]
        for name in op.outputs:
            self.written[name] = op
            self.sources[name] = self.sources.get(source, source)

    def lay_out(self, find_range: FindRange) -> dict[str, Parameters | None]:
        """Return the parameters of every coded tensor that has a scale of its own; None for one without a range."""
        choices = {choice.tensor: choice for choice in self.candidate.ranges}
        readers = self._readers()
        found: dict[str, Parameters | None] = {}
        for tensor in dict.fromkeys((*readers, *self.written)):
            if self.sources.get(tensor, tensor) == tensor:
                writer = self.written.get(tensor)
                choice = choices.get(tensor) or (choices.get(writer.outputs[0]) if writer is not None else None)
                # Also of a Softmax that the candidate leaves in float: between codes the runtime fuses it all the same, and its kernel wraps around
                # instead of saturating (onnxruntime 1.31: code 256 becomes 0).
                maker = self.graph.producers.get(tensor)
                bounds = self.kernels[maker.name].bounds if maker is not None else None
                spec = self._spec(tensor, readers)
                known = activation_parameters(*bounds, spec) if bounds is not None else None
                found[tensor] = known or find_range(tensor, spec, choice)
        return found

    def finish(self, parameters: Mapping[str, Parameters], others: Mapping[str, OpConfig]) -> Regions:
        """Return the decisions with the parameters of every coded tensor; `others` are the ops that are not static."""
        coded: dict[str, Coded] = {}
        readers = self._readers()
        for tensor, found in parameters.items():
            limited = None if tensor in self.written else frozenset(readers[tensor])
            spec = self._spec(tensor, readers)
            coded[tensor] = Coded(tensor=tensor, source=tensor, spec=spec, parameters=found, readers=limited)
        for tensor, source in self.sources.items():
            origin = coded[source]
            coded[tensor] = Coded(
                tensor=tensor, source=source, spec=origin.spec, parameters=origin.parameters, readers=None
            )
        return Regions(
            configs=MappingProxyType({**self.configs, **others}),
            coded=MappingProxyType(coded),
            folded=MappingProxyType(self.folded),
            tails=MappingProxyType(self.tails),
            carried=frozenset(self.carried),
            refused=MappingProxyType(self.refused),
            altered=MappingProxyType(self._altered(coded)),
        )

    def _readers(self) -> dict[str, list[str]]:
        """Return tensor -> int8 ops that read it, in order."""
        found: dict[str, list[str]] = {}
        for op in self.graph.ops:
            if op.name in self.configs:
                for tensor in dict.fromkeys(op.inputs[position] for position in self.kernels[op.name].data):
                    found.setdefault(tensor, []).append(op.name)
        return found

    def _spec(self, tensor: str, readers: Mapping[str, list[str]]) -> QuantSpec:
        """Return how a tensor is quantized: as its integer producer says, else as its first int8 reader says."""
        writer = self.written.get(tensor)
        config = self.configs[writer.name] if writer is not None else None
        if config is not None and config.output is not None:
            return config.output
        first = next((self.configs[name].activation for name in readers.get(tensor, ())), None)
        spec = first or (config.activation if config is not None else None)
        if spec is None:  # unreachable while `check` insists on an activation spec
            message = f"tensor {tensor!r} carries codes, but no op around it says how"
            raise CapabilityError(message)
        return spec

    def _altered(self, coded: Mapping[str, Coded]) -> dict[str, str]:
        found: dict[str, str] = {}
        for op in self.graph.ops:
            if op.name not in self.configs:
                continue
            asked = self.configs[op.name].activation
            for position in self.kernels[op.name].data:
                tensor = op.inputs[position]
                got = coded[tensor].spec
                if asked is not None and (got.dtype, got.symmetric) != (asked.dtype, asked.symmetric):
                    found[op.name] = (
                        f"shares input {tensor!r}, which its producer or first reader quantizes as {got.describe()}"
                    )
        return found
