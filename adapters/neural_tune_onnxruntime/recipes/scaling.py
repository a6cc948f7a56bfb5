"""From edges to new constants: the part that equalization and SmoothQuant share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from neural_tune_onnxruntime.model import OnnxModel
from neural_tune_onnxruntime.recipes import factors, probe
from neural_tune_onnxruntime.recipes.change import Change
from neural_tune_onnxruntime.recipes.edges import Edge, Part, Reader, Refusal
from neural_tune_onnxruntime.recipes.factors import Moments, Weights
from neural_tune_onnxruntime.spool import Spool

# Returns the factors of an edge from the weights of its readers and what was seen of the activation they read.
Choose: TypeAlias = Callable[[Sequence[Weights], Moments], factors.Floats]


def rescale(name: str, model: OnnxModel, found: Iterable[Edge | Refusal], spool: Spool, choose: Choose) -> Change:
    """Return the rescaling of all edges, each with the factors that `choose` takes for it."""
    listed = list(found)
    edges = [item for item in listed if isinstance(item, Edge)]
    refused = {item.producer: item.reason for item in listed if isinstance(item, Refusal)}
    axes = {edge.readers[0].tensor: edge.readers[0].axis for edge in edges}
    seen = probe.moments(model, axes, spool) if axes else {}
    draft = _Draft(model)
    tensors: list[str] = []
    for edge in edges:
        activation = _per_channel(seen[edge.readers[0].tensor], edge)
        chosen = choose([draft.weights(reader) for reader in edge.readers], activation)
        if np.all(chosen == 1.0):
            refused[edge.producer] = "no factors are predicted to quantize better than none"
            continue
        draft.apply(edge, chosen)
        tensors.extend(edge.tensors)
    note = f"{name}: rescaled the channels behind {len(edges) - sum(edge.producer in refused for edge in edges)} ops"
    return Change(edits=draft.finished(), tensors=tuple(tensors), refused=refused, note=note)


class _Draft:
    """The constants of a model while several edges change them: an op in the middle of a chain lies on two."""

    def __init__(self, model: OnnxModel) -> None:
        self.edits: dict[tuple[str, int], NDArray[Any]] = {}
        self._model = model
        self._ops = {op.name: op for op in model.graph.ops}

    def weights(self, reader: Reader) -> Weights:
        """Return the summary of a reader's weight as it is now."""
        return Weights.of(grouped(self._current(reader.weight), reader.weight))

    def apply(self, edge: Edge, chosen: factors.Floats) -> None:
        """Divide the constants in front of the edge by `chosen` and multiply those behind it."""
        for part in edge.divided:
            self.edits[part.op, part.position] = part.scaled(self._current(part), 1.0 / chosen)
        for reader in edge.readers:
            part = reader.weight
            self.edits[part.op, part.position] = part.scaled(self._current(part), chosen)

    def finished(self) -> dict[tuple[str, int], NDArray[Any]]:
        """Return the new constants as float32, rounded once."""
        return {key: values.astype(np.float32) for key, values in self.edits.items()}

    def _current(self, part: Part) -> NDArray[Any]:
        key = (part.op, part.position)
        if key in self.edits:
            return self.edits[key]
        return np.asarray(self._model.store.array(self._ops[part.op].inputs[part.position]), np.float64)


def grouped(values: NDArray[Any], part: Part) -> NDArray[Any]:
    """Return a weight in the shape (groups, outputs per group, input channels per group, taps)."""
    if part.groups:
        return values.reshape(part.groups, values.shape[0] // part.groups, values.shape[1], -1)
    by_output = values.T if part.trailing else values
    return by_output.reshape(1, by_output.shape[0], by_output.shape[1] // part.repeat, part.repeat)


def _per_channel(seen: Moments, edge: Edge) -> Moments:
    """Fold the features of a flattened image back into its channels."""
    repeat = edge.readers[0].weight.repeat
    if repeat == 1:
        return seen
    rows = [values.reshape(edge.channels, repeat) for values in (seen.low, seen.high, seen.mean, seen.square)]
    return Moments(rows[0].min(1), rows[1].max(1), rows[2].mean(1), rows[3].mean(1))
