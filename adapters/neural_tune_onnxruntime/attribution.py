"""Traces the nodes of an optimized graph back to the ops that the user knows.

The optimizer renames (`<op>_token_3`, `<tensor>_nchwc`), fuses (a node that does the work of four ops writes the tensor of the last one) and
changes layouts (float kernels work on blocks of channels, integer kernels on channels last). A node is traced by its name, else by the tensor
it writes; a fused one counts for its convolution or product. Conversions count for the tensor that crosses a border between float and codes, and
where there is no such border (a change of layout inside the float model) for the op that needs them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from neural_tune_onnxruntime.graph import Graph, Op
from neural_tune_onnxruntime.model import OnnxModel

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_LAYOUTS = ("ReorderInput", "ReorderOutput", "Transpose")
_CONVERSIONS = (_QUANTIZE, _DEQUANTIZE, *_LAYOUTS)
_ANCHORS = ("ConvTranspose", "Conv", "Gemm", "MatMul")
_TOKEN = re.compile(r"_token_\d+$")
_MOVED = re.compile(r"(_pre_q|_q_to_dq|_q|_dq)$")
_BLOCKED = "_nchwc"
_REACH = 6  # ops between the last one of a fusion and its anchor


@dataclass(slots=True)
class Spent:
    """Milliseconds by what they were spent on.

    Attributes:
        ops: Op -> time of its kernels, and of the layout changes it needs.
        enter: Tensor -> time to turn it into codes.
        leave: Tensor -> time to turn its codes into float.
        layout: Tensor -> the part of `ops` that is layout changes of this tensor.
        unknown: Time of nodes that could not be traced.
    """

    ops: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    enter: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    leave: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    layout: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    unknown: float = 0.0

    @property
    def share_known(self) -> float:
        """Share of the time that was traced to an op or a border."""
        known = sum(map(sum, (self.ops.values(), self.enter.values(), self.leave.values())))
        return known / max(known + self.unknown, 1e-12)


def attribute(model: OnnxModel, optimized: Graph, cost: Mapping[str, float]) -> Spent:
    """Return what the nodes of `optimized` cost, by the ops and tensors of `model`.

    Args:
        model: The float model; the candidate has the same ops and tensors.
        optimized: What the optimizer made of the candidate.
        cost: Node -> milliseconds; a node that is missing was not seen, and nothing is said about its op.
    """
    tracer = _Tracer(model, optimized)
    spent = Spent()
    for node in optimized.ops:
        if node.name in cost:
            tracer.book(node, cost[node.name], spent)
    return spent


def carried(model: OnnxModel, node: Op) -> tuple[str, ...]:
    """Return the tensors of `model` whose elements the first output of an optimized node holds, as far as names tell."""
    names = (node.outputs[0], node.name.removesuffix(_BLOCKED) if node.name.endswith(_BLOCKED) else "")
    found = (_stem(model, name) for name in names if name)
    return tuple(dict.fromkeys(name for name in found if name is not None))


def _stem(model: OnnxModel, tensor: str) -> str | None:
    """Return the tensor of the model that a tensor of the optimized graph carries, in whatever layout or precision."""
    known = model.graph
    for name in (tensor, tensor.split(model.mark, maxsplit=1)[0], _MOVED.sub("", tensor)):
        if name in known.producers or name in model.input_names:
            return name
    return None


class _Tracer:
    def __init__(self, model: OnnxModel, optimized: Graph) -> None:
        self._model = model
        self._graph = model.graph
        self._mark = model.mark
        self._ops = {op.name: op for op in model.graph.ops}
        self._optimized = optimized

    def book(self, node: Op, cost: float, spent: Spent) -> None:
        """Add the cost of one node to what it was spent on."""
        if not self._is_conversion(node):
            op = self._op(node)
            if op is None:
                spent.unknown += cost
            else:
                spent.ops[op.name] += cost
            return
        tensor, side = self._tensor(node), self._side(node)
        if tensor is not None and side is not None:
            (spent.enter if side == _QUANTIZE else spent.leave)[tensor] += cost
            return
        op = self._needing(node)
        if op is None:
            spent.unknown += cost
            return
        spent.ops[op.name] += cost
        if tensor is not None:
            spent.layout[tensor] += cost

    def _is_conversion(self, node: Op) -> bool:
        kind = _short(node.type)
        if kind not in _CONVERSIONS:
            return False
        original = self._ops.get(_TOKEN.sub("", node.name))
        return original is None or original.type != node.type

    def _op(self, node: Op) -> Op | None:
        """Return the op that a node does the work of."""
        return next((op for op in self._named(node)), None)

    def _named(self, node: Op) -> Iterator[Op]:
        kind = next((anchor for anchor in _ANCHORS if anchor in _short(node.type)), "")
        name = _TOKEN.sub("", node.name).removeprefix("fused ")
        starts = [self._ops.get(name)]
        if name.endswith(_BLOCKED):
            starts.append(self._graph.producers.get(name.removesuffix(_BLOCKED)))
        starts += [self._graph.producers.get(self._stem(tensor) or "") for tensor in node.outputs]
        for start in starts:
            if start is not None:
                yield self._behind(start, kind)

    def _behind(self, op: Op, kind: str) -> Op:
        """Return the nearest op of type `kind` at or before `op`; `op` itself when there is none."""
        front = [op]
        for _ in range(_REACH):
            match = next((item for item in front if item.type == kind), None)
            if match is not None or not kind:
                return match or op
            front = [
                self._graph.producers[tensor]
                for item in front
                for tensor in item.inputs
                if tensor in self._graph.producers
            ]
        return op

    def _stem(self, tensor: str) -> str | None:
        return _stem(self._model, tensor)

    def _tensor(self, node: Op) -> str | None:
        """Return the tensor that a conversion converts."""
        around = [node, *self._before(node), *self._after(node)]
        # A change of layout on the way belongs to the conversion it serves, which the optimizer may have moved past a Clip or a pool.
        around.sort(key=lambda item: _short(item.type) in _LAYOUTS)
        found = next((stem for stem in map(self._own_tensor, around) if stem is not None), None)
        if found is not None:
            return found
        producer = self._optimized.producers.get(node.inputs[0])
        op = self._op(producer) if producer is not None and not self._is_conversion(producer) else None
        return op.outputs[0] if op is not None else None

    def _own_tensor(self, node: Op) -> str | None:
        names = [node.name, node.outputs[0], node.inputs[0]]
        if _short(node.type) in (_QUANTIZE, _DEQUANTIZE) and self._mark not in node.name:
            # Moved by the optimizer past a Transpose or Reshape: its scale tells which tensor it belongs to.
            names = [node.inputs[1], *names]
        return next((stem for stem in map(self._stem, names) if stem is not None), None)

    def _side(self, node: Op) -> str | None:
        """Return whether a conversion is on the way into codes or out of them; None for a change of layout alone."""
        before = [_short(item.type) for item in self._before(node)]
        after = [_short(item.type) for item in self._after(node)]
        kinds = [*before, _short(node.type)]
        for kind in (_DEQUANTIZE, _QUANTIZE):
            if kind in kinds:
                return kind
        return next((kind for kind in (_DEQUANTIZE, _QUANTIZE) if kind in after), None)

    def _before(self, node: Op) -> Iterator[Op]:
        """Yield the conversions directly before a node, the nearest first."""
        producer = self._optimized.producers.get(node.inputs[0])
        while producer is not None and self._is_conversion(producer):
            yield producer
            producer = self._optimized.producers.get(producer.inputs[0])

    def _after(self, node: Op) -> Iterator[Op]:
        """Yield the conversions directly behind a node."""
        for reader in self._optimized.consumers.get(node.outputs[0], ()):
            if self._is_conversion(reader):
                yield reader
                yield from self._after(reader)

    def _needing(self, node: Op) -> Op | None:
        """Return the op for which a layout is changed: the one before, or the one behind a ReorderInput."""
        if _short(node.type) == "ReorderInput":
            for reader in self._optimized.consumers.get(node.outputs[0], ()):
                return self._op(reader)
        producer = self._optimized.producers.get(node.inputs[0])
        while producer is not None and self._is_conversion(producer):
            producer = self._optimized.producers.get(producer.inputs[0])
        if producer is not None:
            return self._op(producer)
        readers = self._optimized.consumers.get(node.outputs[0], ())
        return self._op(readers[0]) if readers and not self._is_conversion(readers[0]) else None


def _short(kind: str) -> str:
    return kind.rpartition(".")[2]
