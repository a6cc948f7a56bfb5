"""Edges: tensors whose channels may be rescaled without changing what the model computes.

An edge runs from a producer with constants (Conv, Gemm, MatMul, a norm) through ops that commute with a positive factor per channel (Relu, pooling,
reshaping ...) to consumers with constants. Dividing the producer's constants by `s` and multiplying the consumers' by `s`, per channel, leaves the
function as it is, and changes the ranges of the tensors between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from neural_tune.numerics.rescaling import Edge, Part, Reader, Refusal
from neural_tune_onnxruntime.graph import FLOAT32, Graph, Op
from neural_tune_onnxruntime.model import OnnxModel


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor on the way, with its channel axis and the number of axes."""

    tensor: str
    axis: int
    rank: int
    channels: int
    flat: bool = False


class _NoWayError(Exception):
    """Internal: the walk met something that does not commute."""


def weight_edges(model: OnnxModel) -> Iterator[Edge | Refusal]:
    """Yield, for every op with a weight, the edge to the one op with a weight that reads its result."""
    for op in model.graph.ops:
        if model.kernels[op.name].weight is not None or op.type == "BatchNormalization":
            found = _edge(op, model, branches=False)
            if found is not None:
                yield found


def norm_edges(model: OnnxModel) -> Iterator[Edge | Refusal]:
    """Yield, for every normalisation with a constant scale, the edge to all the products that read its result."""
    for op in model.graph.ops:
        if op.type in ("LayerNormalization", "SimplifiedLayerNormalization") or _is_gain(op, model.graph):
            found = _edge(op, model, branches=True)
            if found is not None:
                yield found


def _is_gain(op: Op, graph: Graph) -> bool:
    """Return whether `op` multiplies an activation by one constant per feature, as a decomposed norm ends."""
    constants = [name for name in op.inputs if name in graph.constants]
    if op.type != "Mul" or len(constants) != 1:
        return False
    shape = graph.constants[constants[0]].shape
    return graph.ranks.get(op.outputs[0], 0) > 1 and len(shape) == 1 and shape[0] > 1


def _edge(op: Op, model: OnnxModel, *, branches: bool) -> Edge | Refusal | None:
    """Return the edge behind `op`; None where nothing with a weight follows at all (the last op of a model)."""
    start = _start(op, model)
    if isinstance(start, str):
        return Refusal(producer=op.name, reason=start)
    place, divided = start
    walk = _Walk(model, branches, divided=list(divided), tensors=[])
    try:
        walk.follow(place)
    except _NoWayError as obstacle:
        return Refusal(producer=op.name, reason=str(obstacle))
    return Edge(
        producer=op.name,
        kind=op.type,
        channels=place.channels,
        tensors=tuple(walk.tensors),
        divided=tuple(walk.divided),
        readers=tuple(walk.readers),
    )


def _start(op: Op, model: OnnxModel) -> tuple[_Place, tuple[Part, ...]] | str:
    """Return where the result of `op` begins and which of its constants scale it; or why that is not possible."""
    graph = model.graph
    rank = graph.ranks.get(op.outputs[0], 0)
    if not rank or graph.elem_types.get(op.outputs[0]) != FLOAT32:
        return f"the shape or type of {op.outputs[0]!r} is unknown"
    if any(name for name in op.outputs[1:]):
        return f"{op.name!r} has more than one result"
    produced = _PRODUCERS[op.type](op, graph, rank)
    if isinstance(produced, str):
        return produced
    axis, parts = produced
    wrong = [op.inputs[part.position] for part in parts if not _is_float(op.inputs[part.position], graph)]
    if wrong:
        return f"{wrong[0]!r} is no float32 constant"
    first = graph.constants[op.inputs[parts[0].position]].shape
    return _Place(op.outputs[0], axis, rank, first[len(first) - 1 - parts[0].trailing]), parts


def _is_float(name: str, graph: Graph) -> bool:
    return name in graph.constants and graph.constants[name].elem_type == FLOAT32


def _from_conv(op: Op, graph: Graph, rank: int) -> tuple[int, tuple[Part, ...]]:
    del graph
    bias = (Part(op=op.name, position=2),) if op.input(2) else ()
    return 1, (Part(op=op.name, position=1, trailing=rank - 1), *bias)


def _from_gemm(op: Op, graph: Graph, rank: int) -> tuple[int, tuple[Part, ...]]:
    del graph, rank
    bias = (Part(op=op.name, position=2),) if op.input(2) else ()
    return 1, (Part(op=op.name, position=1, trailing=1 if op.attribute("transB", 0) else 0), *bias)


def _from_matmul(op: Op, graph: Graph, rank: int) -> tuple[int, tuple[Part, ...]] | str:
    if op.input(1) not in graph.constants or len(graph.constants[op.input(1)].shape) < 2:
        return "its right operand is no constant matrix"
    return rank - 1, (Part(op=op.name, position=1),)


def _from_batch_norm(op: Op, graph: Graph, rank: int) -> tuple[int, tuple[Part, ...]] | str:
    del graph, rank
    if op.attribute("training_mode", 0):
        return "it is in training mode"
    return 1, (Part(op=op.name, position=1), Part(op=op.name, position=2))


def _from_layer_norm(op: Op, graph: Graph, rank: int) -> tuple[int, tuple[Part, ...]] | str:
    del graph
    if op.attribute("axis", -1) not in (-1, rank - 1):
        return "it normalises more than the last axis"
    bias = (Part(op=op.name, position=2),) if op.input(2) else ()
    return rank - 1, (Part(op=op.name, position=1), *bias)


def _from_gain(op: Op, graph: Graph, rank: int) -> tuple[int, tuple[Part, ...]]:
    position = next(index for index, name in enumerate(op.inputs) if name in graph.constants)
    return rank - 1, (Part(op=op.name, position=position),)


_PRODUCERS: Mapping[str, Callable[[Op, Graph, int], tuple[int, tuple[Part, ...]] | str]] = MappingProxyType(
    {
        "Conv": _from_conv,
        "Gemm": _from_gemm,
        "MatMul": _from_matmul,
        "BatchNormalization": _from_batch_norm,
        "LayerNormalization": _from_layer_norm,
        "SimplifiedLayerNormalization": _from_layer_norm,
        "Mul": _from_gain,
    }
)


@dataclass(slots=True)
class _Walk:
    """Goes from a tensor to everything that reads it."""

    model: OnnxModel
    branches: bool
    divided: list[Part]
    tensors: list[str]
    readers: list[Reader] = field(default_factory=list)

    def follow(self, place: _Place) -> None:
        """Go on behind `place`, to the consumers.

        Raises:
            _NoWayError: something there does not commute.
        """
        graph = self.model.graph
        if place.tensor in graph.fixed:
            raise _NoWayError(f"{place.tensor!r} is an output of the model, or read by a subgraph")
        readers = graph.consumers.get(place.tensor, ())
        if len(readers) != 1 and not (self.branches and readers):
            raise _NoWayError(f"{place.tensor!r} has {len(readers)} readers")
        self.tensors.append(place.tensor)
        for op in readers:
            if op.inputs.count(place.tensor) != 1:
                raise _NoWayError(f"{op.name!r} reads {place.tensor!r} twice")
            consumed = self._consume(op, place)
            if consumed is not None:
                self.readers.append(consumed)
            else:
                self.follow(self._pass(op, place))

    def _consume(self, op: Op, place: _Place) -> Reader | None:
        kernel = self.model.kernels[op.name]
        if kernel.weight is None or not kernel.is_quantizable or op.inputs[0] != place.tensor:
            return None
        if not place.channels:
            raise _NoWayError(f"{place.tensor!r} has no channels")
        shape = self.model.graph.constants[op.inputs[kernel.weight]].shape
        if op.type == "Conv" and place.axis == 1 and not place.flat:
            part = Part(op=op.name, position=1, groups=op.attribute("group", 1))
            width = shape[1] * part.groups
        elif op.type == "Gemm" and place.axis == 1 and place.rank == 2 and not op.attribute("transA", 0):
            across = bool(op.attribute("transB", 0))
            width = shape[1] if across else shape[0]
            part = Part(op=op.name, position=1, trailing=0 if across else 1, repeat=max(1, width // place.channels))
        elif op.type == "MatMul" and place.axis == place.rank - 1 and len(shape) == 2:
            width = shape[0]
            part = Part(op=op.name, position=1, trailing=1, repeat=max(1, width // place.channels))
        else:
            raise _NoWayError(f"{op.name!r} ({op.type}) reads {place.tensor!r} along another axis than its channels")
        if (part.repeat * place.channels != width and not part.groups) or (part.repeat > 1 and not place.flat):
            raise _NoWayError(f"{op.name!r} ({op.type}) has {width} inputs for {place.channels} channels")
        return Reader(op=op.name, tensor=place.tensor, axis=place.axis, weight=part)

    def _pass(self, op: Op, place: _Place) -> _Place:
        step = _STEPS.get(op.type)
        if step is None:
            raise _NoWayError(f"{op.name!r} ({op.type}) does not commute with a factor per channel")
        outcome = step(op, place, self.model)
        if isinstance(outcome, str):
            raise _NoWayError(f"{op.name!r} ({op.type}) {outcome}")
        if isinstance(outcome, Part):
            self.divided.append(outcome)
            outcome = place
        rank = self.model.graph.ranks.get(op.outputs[0], 0)
        if rank != outcome.rank or any(name for name in op.outputs[1:]):
            raise _NoWayError(f"{op.name!r} ({op.type}) has a result of unexpected shape")
        return replace(outcome, tensor=op.outputs[0])


_Outcome: TypeAlias = "_Place | Part | str"


def _same(op: Op, place: _Place, model: OnnxModel) -> _Outcome:
    """Positively homogeneous, element by element: f(s x) = s f(x) for s > 0."""
    del model
    return place if op.inputs[0] == place.tensor else "reads it as a parameter"


def _clip(op: Op, place: _Place, model: OnnxModel) -> _Outcome:
    if op.inputs[0] != place.tensor:
        return "reads it as a bound"
    names = (op.input(1), op.input(2))
    if any(name and name not in model.graph.constants for name in names):
        return "has bounds that are computed"
    low, high = (float(model.store.array(name).reshape(-1)[0]) if name else None for name in names)
    if low in (None, 0.0, -np.inf) and high in (None, 0.0, np.inf):
        return place
    return f"cuts off at [{low}, {high}], which a factor per channel would move (as Relu6 does)"


def _image(op: Op, place: _Place, model: OnnxModel) -> _Outcome:
    """Pooling works on every channel for itself; zero padding stays zero, and the lowest value stays the lowest."""
    del model, op
    return place if place.axis == 1 and not place.flat else "does not pool behind the channels"


def _reduce(op: Op, place: _Place, model: OnnxModel) -> _Outcome:
    axes = _integers(op, "axes", 1, model)
    if axes is None:
        return "reduces over all axes, or over computed ones"
    found = {axis % place.rank for axis in axes}
    if place.axis in found:
        return "reduces over the channels"
    if op.attribute("keepdims", 1):
        return place
    before = sum(axis < place.axis for axis in found)
    return replace(place, axis=place.axis - before, rank=place.rank - len(found))


def _flatten(op: Op, place: _Place, model: OnnxModel) -> _Outcome:
    del model
    if op.attribute("axis", 1) % place.rank != 1 or place.axis != 1:
        return "does not flatten from the channels on"
    return replace(place, rank=2, flat=True)


def _reshape(op: Op, place: _Place, model: OnnxModel) -> _Outcome:
    """Taken only as a flatten: [0, -1], or [-1, n] where n is what one sample holds."""
    name = op.input(1)
    target = model.store.array(name).reshape(-1).tolist() if name in model.graph.constants else []
    if len(target) != 2 or place.axis != 1 or place.rank < 2 or op.attribute("allowzero", 0):
        return "does not flatten from the channels on"
    size = _sample_size(place, model)
    if target == [0, -1] or (size is not None and target in ([-1, size], [0, size])):
        return replace(place, rank=2, flat=True)
    return "does not flatten from the channels on"


def _sample_size(place: _Place, model: OnnxModel) -> int | None:
    graph = model.proto.graph
    for value in (*graph.value_info, *graph.output):
        if value.name == place.tensor:
            dims = [item.dim_value for item in value.type.tensor_type.shape.dim][1:]
            return int(np.prod(dims)) if all(dims) else None
    return None


def _squeeze(op: Op, place: _Place, model: OnnxModel) -> _Outcome:
    axes = _integers(op, "axes", 1, model)
    if axes is None:
        return "takes away axes that are not named"
    found = {axis % place.rank for axis in axes}
    if place.axis in found:
        return "takes away the channels"
    return replace(place, axis=place.axis - sum(axis < place.axis for axis in found), rank=place.rank - len(found))


def _unsqueeze(op: Op, place: _Place, model: OnnxModel) -> _Outcome:
    axes = _integers(op, "axes", 1, model)
    if axes is None:
        return "adds axes that are computed"
    rank = place.rank + len(axes)
    added = {axis % rank for axis in axes}
    kept = [axis for axis in range(rank) if axis not in added]
    return replace(place, axis=kept[place.axis], rank=rank)


def _transpose(op: Op, place: _Place, model: OnnxModel) -> _Outcome:
    del model
    order = list(op.attribute("perm", list(range(place.rank))[::-1]))
    return replace(place, axis=order.index(place.axis))


def _pad(op: Op, place: _Place, model: OnnxModel) -> _Outcome:
    amounts = _integers(op, "pads", 1, model)
    value = op.input(2)
    if amounts is None or len(amounts) != 2 * place.rank:
        return "pads by amounts that are computed"
    if amounts[place.axis] or amounts[place.axis + place.rank]:
        return "pads the channels"
    if op.attribute("mode", b"constant") != b"constant" or not value or model.graph.zeros.get(value, False):
        return place
    return "pads with another value than zero"


def _slice(op: Op, place: _Place, model: OnnxModel) -> _Outcome:
    axes = _integers(op, "axes", 3, model)
    if axes is None:
        return "cuts along axes that are computed"
    return "cuts along the channels" if place.axis in {axis % place.rank for axis in axes} else place


def _add(op: Op, place: _Place, model: OnnxModel) -> _Outcome:
    """An addition of a constant per channel is a bias, and scales with it."""
    position = 1 if op.inputs[0] == place.tensor else 0
    name = op.inputs[position]
    if not _is_float(name, model.graph):
        return "joins it with another activation (a residual addition), whose channels keep their scale"
    shape = model.graph.constants[name].shape
    if len(shape) > place.rank:
        return "adds a constant of more axes"
    if place.flat:
        return "adds a constant behind a flattened image"
    return Part(op=op.name, position=position, trailing=place.rank - 1 - place.axis)


def _scale(op: Op, place: _Place, model: OnnxModel) -> _Outcome:
    """(s x) c = s (x c), whatever c is, as long as it adds no axes."""
    other = op.inputs[1] if op.inputs[0] == place.tensor else op.inputs[0]
    if op.type == "Div" and op.inputs[0] != place.tensor:
        return "divides by it"
    if other not in model.graph.constants or len(model.graph.constants[other].shape) > place.rank:
        return "joins it with another activation"
    return place


def _integers(op: Op, attribute: str, position: int, model: OnnxModel) -> list[int] | None:
    """Return a list that older opsets keep in an attribute and newer ones in a constant input; None if it is not known."""
    found = op.attribute(attribute, None)
    if found is not None:
        return [int(item) for item in found]
    name = op.input(position)
    if name not in model.graph.constants:
        return None
    return [int(item) for item in model.store.array(name).reshape(-1)] or None


_STEPS: Mapping[str, Callable[[Op, _Place, OnnxModel], _Outcome]] = MappingProxyType(
    {
        **dict.fromkeys(("Relu", "LeakyRelu", "PRelu", "Identity", "Dropout"), _same),
        "Clip": _clip,
        **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), _image),
        **dict.fromkeys(("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"), _reduce),
        "Flatten": _flatten,
        "Reshape": _reshape,
        "Squeeze": _squeeze,
        "Unsqueeze": _unsqueeze,
        "Transpose": _transpose,
        "Pad": _pad,
        "Slice": _slice,
        "Add": _add,
        "Mul": _scale,
        "Div": _scale,
    }
)
