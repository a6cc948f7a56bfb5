"""Cross-layer equalization: channels between two layers with weights get comparable ranges (Nagel et al. 2019, arXiv:1906.04721).

Activations have one scale per tensor, so that a channel a hundred times smaller than its neighbour keeps one or two levels. A factor per channel, taken out of
the producer's weights and put into the consumer's, moves the difference into weights, which have a scale per output channel. The
factors come from a prediction of the noise on the observed activations (`neural_tune.numerics.factors`).
"""

from __future__ import annotations

from neural_tune.calibration.spool import Spool
from neural_tune.numerics.rescaling import Change, Edge
from neural_tune_pytorch.backends.pt2e.capture import Captured
from neural_tune_pytorch.recipes import edges, scaling

NAME = "equalization"


def is_offered(captured: Captured) -> bool:
    """Return whether the model has a pair of layers to equalize."""
    return any(isinstance(item, Edge) for item in edges.weight_edges(captured))


def propose(captured: Captured, spool: Spool) -> Change:
    """Return the equalization of all pairs."""
    return scaling.rescale(NAME, captured, edges.weight_edges(captured), spool)
