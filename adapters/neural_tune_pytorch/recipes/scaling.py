"""The rescaling of edges (`neural_tune.numerics.rescaling`) on an exported graph: constants from its attributes, moments from a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

from neural_tune.calibration.spool import Spool
from neural_tune.numerics import rescaling
from neural_tune.numerics.rescaling import Change, Edge, Refusal
from neural_tune_pytorch.backends.pt2e.capture import Captured, attribute
from neural_tune_pytorch.recipes import probe


def rescale(name: str, captured: Captured, found: Iterable[Edge | Refusal], spool: Spool) -> Change:
    """Return the rescaling of all edges of the graph."""
    nodes = {node.name: node for node in captured.graph.graph.nodes}

    def constant(node: str, position: int) -> NDArray[Any]:
        values: NDArray[Any] = attribute(captured.graph, str(nodes[node].args[position].target)).detach().numpy()
        return values

    return rescaling.rescale(name, found, constant, lambda axes: probe.moments(captured, axes, spool))
