"""Tensors whose channels may be rescaled without changing what a model computes, and the constants that come out of it.

An edge runs from a producer with constants (a convolution, a product, a norm) through ops that commute with a positive factor per channel to consumers with
constants. Dividing the producer's constants by `s` and multiplying the consumers' by `s`, per channel, leaves the function as it is, and changes the ranges of
the tensors between. Adapters find the edges in their graphs and read and write the constants; the arithmetic is here, once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from neural_tune.numerics import factors
from neural_tune.numerics.factors import Floats, Moments, Weights

Edits: TypeAlias = Mapping[tuple[str, int], NDArray[Any]]
"""(op, position of the argument) -> the constant that this op, and no other, gets there."""
Constant: TypeAlias = Callable[[str, int], NDArray[Any]]
"""Returns the constant that an op has at a position."""
Choose: TypeAlias = Callable[[Sequence[Weights], Moments], Floats]
"""Returns the factors of an edge from the weights of its readers and what was seen of the activation they read."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Change:
    """What a recipe wants to do to a model, before anything is done.

    Attributes:
        edits: New constants; empty when there is nothing to do.
        tensors: Activations whose values change with them, so that their statistics must be taken anew.
        refused: Op -> why the recipe leaves it alone.
        note: What was done, for a person.
    """

    edits: Edits
    tensors: tuple[str, ...] = ()
    refused: Mapping[str, str]
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One constant of one op, along the channels of an edge.

    Attributes:
        op: Op name.
        position: Position of the constant among the op's inputs.
        trailing: Axes behind the channel axis.
        repeat: How often each channel appears side by side (a flattened image).
        groups: Groups of a convolution whose *input* channels these are; 0 for everything else.
    """

    op: str
    position: int
    trailing: int = 0
    repeat: int = 1
    groups: int = 0

    def scaled(self, values: NDArray[np.floating[Any]], by: Floats) -> NDArray[np.floating[Any]]:
        """Return `values` times `by` (float64, one factor per channel), broadcast where the constant was."""
        if self.groups:
            grouped = values.reshape(self.groups, values.shape[0] // self.groups, values.shape[1], -1)
            return (grouped * by.reshape(self.groups, 1, values.shape[1], 1)).reshape(values.shape)
        return values * np.repeat(by, self.repeat).reshape(-1, *(1,) * self.trailing)

    def summarised(self, values: NDArray[np.floating[Any]]) -> Weights:
        """Return the summary of a weight (of a convolution, or a matrix) per output and input channel."""
        if self.groups:
            return Weights.of(values.reshape(self.groups, values.shape[0] // self.groups, values.shape[1], -1))
        by_output = values.T if self.trailing else values
        return Weights.of(by_output.reshape(1, by_output.shape[0], by_output.shape[1] // self.repeat, self.repeat))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A consumer of an edge.

    Attributes:
        op: Op name.
        tensor: The activation it reads.
        axis: Channel axis of that activation.
        weight: Its constant operand along the input channels.
    """

    op: str
    tensor: str
    axis: int
    weight: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A producer, what lies behind it, and its consumers.

    Attributes:
        producer: Op name.
        kind: Op type of the producer.
        channels: Number of factors.
        tensors: Activations whose values change with the factors.
        divided: Constants to divide by the factors.
        readers: Consumers, whose weights are multiplied.
    """

    producer: str
    kind: str
    channels: int
    tensors: tuple[str, ...]
    divided: tuple[Part, ...]
    readers: tuple[Reader, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why nothing can be rescaled behind a producer.

    Attributes:
        producer: Op name.
        reason: What stands in the way.
    """

    producer: str
    reason: str


def rescale(
    name: str,
    found: Iterable[Edge | Refusal],
    constant: Constant,
    moments: Callable[[Mapping[str, int]], Mapping[str, Moments]],
    choose: Choose = factors.choose,
) -> Change:
    """Return the rescaling of all edges, each with the factors that `choose` takes for it.

    Args:
        name: Of the recipe, for the note.
        found: The edges, and the producers without one.
        constant: Reads the float model.
        moments: Returns what was seen of some tensors (given with their channel axes) per channel; called once, where there is an edge.
        choose: The choice of factors.
    """
    listed = list(found)
    edges = [item for item in listed if isinstance(item, Edge)]
    refused = {item.producer: item.reason for item in listed if isinstance(item, Refusal)}
    axes = {edge.readers[0].tensor: edge.readers[0].axis for edge in edges}
    seen = moments(axes) if axes else {}
    draft = _Draft(constant)
    changed: list[Edge] = []
    for edge in edges:
        activation = _per_channel(seen[edge.readers[0].tensor], edge)
        chosen = choose([draft.weights(reader) for reader in edge.readers], activation)
        if np.all(chosen == 1.0):
            refused[edge.producer] = "no factors are predicted to quantize better than none"
            continue
        draft.apply(edge, chosen)
        changed.append(edge)
    tensors = tuple(tensor for edge in changed for tensor in edge.tensors)
    note = f"{name}: rescaled the channels behind {len(changed)} ops"
    return Change(edits=draft.finished(), tensors=tensors, refused=refused, note=note)


class _Draft:
    """The constants of a model while several edges change them: an op in the middle of a chain lies on two."""

    def __init__(self, constant: Constant) -> None:
        self._edits: dict[tuple[str, int], NDArray[Any]] = {}
        self._constant = constant

    def weights(self, reader: Reader) -> Weights:
        """Return the summary of a reader's weight as it is now."""
        return reader.weight.summarised(self._current(reader.weight))

    def apply(self, edge: Edge, chosen: Floats) -> None:
        """Divide the constants in front of the edge by `chosen` and multiply those behind it."""
        for part in edge.divided:
            self._edits[part.op, part.position] = part.scaled(self._current(part), 1.0 / chosen)
        for reader in edge.readers:
            part = reader.weight
            self._edits[part.op, part.position] = part.scaled(self._current(part), chosen)

    def finished(self) -> dict[tuple[str, int], NDArray[Any]]:
        """Return the new constants as float32, rounded once."""
        return {key: values.astype(np.float32) for key, values in self._edits.items()}

    def _current(self, part: Part) -> NDArray[Any]:
        key = (part.op, part.position)
        return self._edits[key] if key in self._edits else np.asarray(self._constant(*key), np.float64)


def _per_channel(seen: Moments, edge: Edge) -> Moments:
    """Fold the features of a flattened image back into its channels."""
    repeat = edge.readers[0].weight.repeat
    if repeat == 1:
        return seen
    low, high, mean, square = (
        values.reshape(edge.channels, repeat) for values in (seen.low, seen.high, seen.mean, seen.square)
    )
    return replace(seen, low=low.min(1), high=high.max(1), mean=mean.mean(1), square=square.mean(1))
