"""Cross-layer equalization: channels between two layers with weights get comparable ranges (Nagel et al. 2019, arXiv:1906.04721).

ONNX Runtime quantizes activations per tensor, so that a channel a hundred times smaller than its neighbour keeps one or two levels. A factor per channel, taken
out of the producer's weights and put into the consumer's, moves the difference to where it costs nothing: the weights have a scale
per output channel. The paper chooses the factors from the ranges of the weights alone; here the observed ranges of the
activations decide, through a prediction of the noise (`factors`).
"""

from __future__ import annotations

from neural_tune.calibration.spool import Spool
from neural_tune.numerics.rescaling import Change, Edge
from neural_tune_onnxruntime.model import OnnxModel
from neural_tune_onnxruntime.recipes import edges
from neural_tune_onnxruntime.recipes.scaling import rescale

NAME = "equalization"


def is_offered(model: OnnxModel) -> bool:
    """Return whether the model has a pair of layers to equalize."""
    return any(isinstance(item, Edge) for item in edges.weight_edges(model))


def propose(model: OnnxModel, spool: Spool) -> Change:
    """Return the equalization of all pairs."""
    return rescale(NAME, model, edges.weight_edges(model), spool)
