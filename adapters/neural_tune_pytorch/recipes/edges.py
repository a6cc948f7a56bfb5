"""Where the channels of an exported graph may be rescaled: from a convolution, linear or norm, through ops that commute with a factor, to convolutions and linears.

A norm that something else reads too (a residual sum does, in every post-norm transformer) is no obstacle: that reader gets a norm of its own, with the original
constants, which Inductor computes in the same loop.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from neural_tune.numerics.rescaling import Edge, Part, Reader, Refusal
from neural_tune_pytorch.backends.pt2e.capture import Captured, constant
from neural_tune_pytorch.backends.pt2e.ops import CONVOLUTIONS, LINEAR

aten = torch.ops.aten
NORMS = (aten.layer_norm.default, aten.rms_norm.default)
_Outcome: TypeAlias = "_Place | Part | str"


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor on the way, with its channel axis."""

    node: fx.Node
    axis: int
    flat: bool = False

    @property
    def rank(self) -> int:
        """Number of axes."""
        return int(_value(self.node).ndim)


class _NoWayError(Exception):
    """Internal: the walk met something that does not commute."""


def weight_edges(captured: Captured) -> Iterator[Edge | Refusal]:
    """Yield, for every convolution and linear, the edge to the one convolution or linear that reads its result."""
    for node in captured.graph.graph.nodes:
        if node.target in (*CONVOLUTIONS, LINEAR):
            yield _edge(captured, node, _from_weight(captured, node), list(node.users), branches=False)


def norm_edges(captured: Captured) -> Iterator[Edge | Refusal]:
    """Yield, for every normalization with constants, the edge to all the linears that read its result."""
    for node in captured.graph.graph.nodes:
        start = _from_norm(captured, node)
        if start is not None:
            yield _edge(captured, node, start, _scalable(captured, node), branches=True)


def kept_readers(captured: Captured, name: str) -> tuple[str, ...]:
    """Return the readers of a norm that do not go along with a factor, and so must go on reading what it wrote without one."""
    node = _node(captured, name)
    along = _scalable(captured, node)
    return tuple(user.name for user in node.users if user not in along)


def _scalable(captured: Captured, norm: fx.Node) -> list[fx.Node]:
    """Return the readers of a norm behind which all goes along with a factor per channel."""
    if any(_is_in_place(user) for user in norm.users):
        return []
    found = []
    for user in norm.users:
        walk = _Walk(captured, branches=True)
        try:
            walk.visit(user, _Place(norm, _value(norm).ndim - 1))
        except _NoWayError:
            continue
        # A constant behind the norm that scales along belongs to one reader; where norms have their own shift this does not come up.
        if walk.readers and not walk.divided:
            found.append(user)
    return found


def _edge(
    captured: Captured,
    node: fx.Node,
    start: tuple[int, tuple[Part, ...]] | str,
    users: list[fx.Node],
    *,
    branches: bool,
) -> Edge | Refusal:
    if isinstance(start, str):
        return Refusal(producer=node.name, reason=start)
    axis, parts = start
    if len(users) != 1 and not (branches and users):
        return Refusal(producer=node.name, reason=f"{node.name!r} has {len(users)} readers that a factor could go to")
    walk = _Walk(captured, branches=branches, divided=list(parts), tensors=[node.name])
    try:
        for user in users:
            walk.visit(user, _Place(node, axis))
    except _NoWayError as obstacle:
        return Refusal(producer=node.name, reason=str(obstacle))
    return Edge(
        producer=node.name,
        kind=str(node.target),
        channels=int(_value(node).shape[axis]),
        tensors=tuple(walk.tensors),
        divided=tuple(walk.divided),
        readers=tuple(walk.readers),
    )


def _from_weight(captured: Captured, node: fx.Node) -> tuple[int, tuple[Part, ...]] | str:
    weight = constant(captured.graph, node.args[1])
    if weight is None or weight.dtype != torch.float32:
        return "its weight is no float32 constant"
    axis = _value(node).ndim - 1 if node.target is LINEAR else _value(node).ndim - (weight.ndim - 1)
    positions = (1, 2) if len(node.args) > 2 and node.args[2] is not None else (1,)
    if why := _not_own(captured, node, positions):
        return why
    parts = [Part(op=node.name, position=1, trailing=weight.ndim - 1)]
    return axis, (*parts, *(Part(op=node.name, position=position) for position in positions[1:]))


def _from_norm(captured: Captured, node: fx.Node) -> tuple[int, tuple[Part, ...]] | str | None:
    """Return where a normalization begins and what scales it; None for any other op."""
    if node.target in NORMS:
        positions = tuple(at for at in (2, 3) if len(node.args) > at and isinstance(node.args[at], fx.Node))
        if len(node.args[1]) != 1 or 2 not in positions:
            return "it normalizes more than the last axis, or has no scale"
    elif node.target is aten.mul.Tensor and _is_gain(captured, node):
        positions = tuple(at for at in (0, 1) if constant(captured.graph, node.args[at]) is not None)
    else:
        return None
    if why := _not_own(captured, node, positions):
        return why
    return _value(node).ndim - 1, tuple(Part(op=node.name, position=at) for at in positions)


def _is_gain(captured: Captured, node: fx.Node) -> bool:
    """Return whether a product is one of an activation with one constant per feature, as a decomposed norm ends."""
    constants = [found for item in node.args if (found := constant(captured.graph, item)) is not None]
    return len(constants) == 1 and constants[0].ndim == 1 and len(constants[0]) > 1 and _value(node).ndim > 1


def _not_own(captured: Captured, node: fx.Node, positions: tuple[int, ...]) -> str:
    """Return why the constants of an op cannot be changed for it alone; "" when they can."""
    key = "reads of constants"
    if key not in captured.cache:
        reads: Counter[int] = Counter()
        for item in captured.graph.graph.nodes:
            found = constant(captured.graph, item)
            if found is not None:
                reads[found.data_ptr()] += len(item.users)
        captured.cache[key] = reads
    for position in positions:
        found = constant(captured.graph, node.args[position])
        if found is None or found.dtype != torch.float32:
            return f"its argument {position} is no float32 constant"
        if captured.cache[key][found.data_ptr()] > 1:
            return "it shares a weight with another op"
    return ""


@dataclass(slots=True)
class _Walk:
    """Goes from a tensor to everything that reads it."""

    captured: Captured
    branches: bool
    divided: list[Part] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)

    def visit(self, node: fx.Node, place: _Place) -> None:
        """Look at one reader of a tensor and at what lies behind it.

        Raises:
            _NoWayError: something there does not commute.
        """
        if node.op != "call_function" or [*node.args, *node.kwargs.values()].count(place.node) != 1:
            raise _NoWayError(f"{place.node.name!r} is an output of the model, or read twice by {node.name!r}")
        consumed = self._consume(node, place)
        if consumed is not None:
            self.readers.append(consumed)
            return
        behind = self._pass(node, place)
        users = list(behind.node.users)
        if len(users) != 1 and not (self.branches and users and not any(map(_is_in_place, users))):
            raise _NoWayError(f"{behind.node.name!r} has {len(users)} readers")
        self.tensors.append(behind.node.name)
        for user in users:
            self.visit(user, behind)

    def _consume(self, node: fx.Node, place: _Place) -> Reader | None:
        if node.target not in (*CONVOLUTIONS, LINEAR) or node.args[0] is not place.node:
            return None
        if why := _not_own(self.captured, node, (1,)):
            raise _NoWayError(f"{node.name!r}: {why}")
        shape = tuple(_value(node.args[1]).shape)
        channels = int(_value(place.node).shape[place.axis])
        if node.target is LINEAR and place.axis == place.rank - 1:
            source = self._channels_of(place)
            part = Part(op=node.name, position=1, repeat=channels // source)
            fits = shape[1] == channels and (part.repeat == 1 or place.flat)
        elif node.target is not LINEAR and place.axis == place.rank - (len(shape) - 1) and not place.flat:
            groups = node.args[6] if len(node.args) > 6 else 1
            part = Part(op=node.name, position=1, groups=int(groups))
            fits = shape[1] * part.groups == channels
        else:
            fits = False
        if not fits:
            raise _NoWayError(f"{node.name!r} reads {place.node.name!r} along another axis than its channels")
        return Reader(op=node.name, tensor=place.node.name, axis=place.axis, weight=part)

    def _channels_of(self, place: _Place) -> int:
        """Return the number of channels of the producer: a flattened image has more features than channels."""
        first = self.tensors[0] if self.tensors and place.flat else place.node.name
        node = _node(self.captured, first)
        return int(_value(node).shape[1 if place.flat else place.axis])

    def _pass(self, node: fx.Node, place: _Place) -> _Place:
        step = _STEPS.get(node.target)
        if step is None:
            raise _NoWayError(f"{node.name!r} ({node.target}) does not commute with a factor per channel")
        outcome = step(node, place, self.captured)
        if isinstance(outcome, str):
            raise _NoWayError(f"{node.name!r} ({node.target}) {outcome}")
        if isinstance(outcome, Part):
            self.divided.append(outcome)
            outcome = place
        return replace(outcome, node=node)


def _same(node: fx.Node, place: _Place, captured: Captured) -> _Outcome:
    """Positively homogeneous, element by element: f(s x) = s f(x) for s > 0."""
    del captured
    return place if node.args[0] is place.node else "reads it as a parameter"


def _clip(node: fx.Node, place: _Place, captured: Captured) -> _Outcome:
    del captured
    low, high = [*node.args[1:3], None, None][:2]
    if node.args[0] is place.node and low in (None, 0) and high in (None, math.inf):
        return place
    return f"cuts off at [{low}, {high}], which a factor per channel would move"


def _image(node: fx.Node, place: _Place, captured: Captured) -> _Outcome:
    """Pooling works on every channel for itself; zero padding stays zero, and the lowest value stays the lowest."""
    del captured, node
    return place if place.axis == 1 and not place.flat else "does not pool behind the channels"


def _reduce(node: fx.Node, place: _Place, captured: Captured) -> _Outcome:
    del captured
    axes = node.args[1] if len(node.args) > 1 else None
    keeps = bool(node.args[2]) if len(node.args) > 2 else False
    if not axes or node.kwargs:
        return "reduces over all axes"
    found = {axis % place.rank for axis in axes}
    if place.axis in found or place.flat:
        return "reduces over the channels"
    return place if keeps else replace(place, axis=place.axis - sum(axis < place.axis for axis in found))


def _flatten(node: fx.Node, place: _Place, captured: Captured) -> _Outcome:
    """View, reshape, flatten: as long as the channels stay an axis, or the image behind them is laid flat."""
    del captured
    before, after = _value(place.node).shape, _value(node).shape
    if len(after) == 2 and place.axis == 1 and not place.flat and len(before) > 2:
        features = [size for size in before[1:] if isinstance(size, int)]
        if len(features) == len(before) - 1 and after[1] == math.prod(features):
            return replace(place, flat=math.prod(features[1:]) > 1)
    if place.axis == len(before) - 1 and isinstance(before[-1], int) and after[-1] == before[-1]:
        return replace(place, axis=len(after) - 1)
    return "does not keep the channels in one axis"


def _unsqueeze(node: fx.Node, place: _Place, captured: Captured) -> _Outcome:
    del captured
    added = int(node.args[1]) % (place.rank + 1)
    return replace(place, axis=place.axis + (added <= place.axis))


def _squeeze(node: fx.Node, place: _Place, captured: Captured) -> _Outcome:
    del captured
    asked = node.args[1]
    axes = {int(axis) % place.rank for axis in (asked if isinstance(asked, list | tuple) else (asked,))}
    if place.axis in axes or _value(node).ndim != place.rank - len(axes):
        return "takes away the channels, or axes that are not known"
    return replace(place, axis=place.axis - sum(axis < place.axis for axis in axes))


def _transpose(node: fx.Node, place: _Place, captured: Captured) -> _Outcome:
    del captured
    order = list(range(place.rank))
    first, second = (int(axis) % place.rank for axis in node.args[1:3])
    order[first], order[second] = order[second], order[first]
    return replace(place, axis=order.index(place.axis))


def _permute(node: fx.Node, place: _Place, captured: Captured) -> _Outcome:
    del captured
    return replace(place, axis=[int(axis) % place.rank for axis in node.args[1]].index(place.axis))


def _pad(node: fx.Node, place: _Place, captured: Captured) -> _Outcome:
    del captured
    amounts: Any = node.args[1]
    rest = [*node.args[2:], None, None]
    mode, value = ("constant", rest[0]) if node.target is aten.constant_pad_nd.default else (rest[0], rest[1])
    behind = place.rank - 1 - place.axis
    if place.flat or any(amounts[2 * behind : 2 * behind + 2]):
        return "pads the channels"
    return place if mode not in (None, "constant") or not value else "pads with another value than zero"


def _cut(node: fx.Node, place: _Place, captured: Captured) -> _Outcome:
    """A slice or a selection along another axis than the channels."""
    del captured
    axis = int(node.args[1]) % place.rank if len(node.args) > 1 else 0
    if axis == place.axis:
        return "cuts along the channels"
    return place if node.target is aten.slice.Tensor else replace(place, axis=place.axis - (axis < place.axis))


def _add(node: fx.Node, place: _Place, captured: Captured) -> _Outcome:
    """An addition of a constant per channel is a bias, and scales with it."""
    position = 1 if node.args[0] is place.node else 0
    found = constant(captured.graph, node.args[position])
    if found is None or node.kwargs:
        return "joins it with another activation (a residual sum), whose channels keep their scale"
    if found.ndim > place.rank or place.flat or _not_own(captured, node, (position,)):
        return "adds a constant that is not its own, or not one per channel"
    return Part(op=node.name, position=position, trailing=place.rank - 1 - place.axis)


def _scale(node: fx.Node, place: _Place, captured: Captured) -> _Outcome:
    """(s x) c = s (x c), whatever c is, as long as it adds no axes."""
    is_first = node.args[0] is place.node
    other = node.args[1] if is_first else node.args[0]
    if node.kwargs or (node.target is aten.div.Tensor and not is_first):
        return "divides by it"
    if isinstance(other, int | float):
        return place
    found = constant(captured.graph, other)
    if found is None or found.ndim > place.rank:
        return "joins it with another activation"
    return place


_STEPS: Mapping[Any, Callable[[fx.Node, _Place, Captured], _Outcome]] = MappingProxyType(
    {
        **dict.fromkeys((aten.relu.default, aten.relu_.default, aten.leaky_relu.default, aten.leaky_relu_.default), _same),
        **dict.fromkeys((aten.prelu.default, aten.clone.default, aten.contiguous.default, aten.alias.default), _same),
        **dict.fromkeys((aten.clamp.default, aten.clamp_min.default), _clip),
        **dict.fromkeys((aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default), _image),
        **dict.fromkeys((aten.max_pool1d.default, aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default), _image),
        **dict.fromkeys((aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default), _reduce),
        **dict.fromkeys((aten.flatten.using_ints, aten.view.default, aten.reshape.default), _flatten),
        aten.unsqueeze.default: _unsqueeze,
        **dict.fromkeys((aten.squeeze.dim, aten.squeeze.dims), _squeeze),
        aten.transpose.int: _transpose,
        aten.permute.default: _permute,
        **dict.fromkeys((aten.constant_pad_nd.default, aten.pad.default), _pad),
        **dict.fromkeys((aten.slice.Tensor, aten.select.int), _cut),
        aten.add.Tensor: _add,
        **dict.fromkeys((aten.mul.Tensor, aten.div.Tensor), _scale),
    }
)  # fmt: skip


def _is_in_place(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable  # noqa: SLF001 - an op's only description


def _value(node: fx.Node) -> Tensor:
    return node.meta["val"]


def _node(captured: Captured, name: str) -> fx.Node:
    return next(node for node in captured.graph.graph.nodes if node.name == name)
