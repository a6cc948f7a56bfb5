"""SmoothQuant: outlier channels move from a norm's result into the weights behind it (Xiao et al. 2022, arXiv:2211.10438).

The norm's own scale and shift are divided by a factor per channel, and the columns of every linear that reads the result are multiplied by it. The paper's migration
strength alpha is one number for the whole model; here every norm gets its own, by the predicted noise of all its readers together
(`neural_tune.numerics.factors`). Readers that are no linears keep the norm as it was (`edges.kept_readers`).
"""

from __future__ import annotations

from neural_tune.calibration.spool import Spool
from neural_tune.numerics.rescaling import Change, Edge
from neural_tune_pytorch.backends.pt2e.capture import Captured
from neural_tune_pytorch.recipes import edges, scaling

NAME = "smoothquant"


def is_offered(captured: Captured) -> bool:
    """Return whether the model has a norm that linears read."""
    return any(isinstance(item, Edge) for item in edges.norm_edges(captured))


def propose(captured: Captured, spool: Spool) -> Change:
    """Return the smoothing of all norms."""
    return scaling.rescale(NAME, captured, edges.norm_edges(captured), spool)
