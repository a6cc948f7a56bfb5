"""SmoothQuant: outlier channels move from a norm's result into the weights behind it (Xiao et al. 2022, arXiv:2211.10438).

The result of a LayerNorm has a few channels that are far larger than the others, and they set the scale for all. The norm's own scale and bias are divided by
a factor per channel, and the rows of every MatMul or Gemm that reads the result are multiplied by it. The paper's migration
strength alpha is one number for the whole model; here every norm gets its own, by the predicted noise of all its readers together (`factors`).
"""

from __future__ import annotations

from neural_tune.calibration.spool import Spool
from neural_tune.numerics.rescaling import Change, Edge
from neural_tune_onnxruntime.model import OnnxModel
from neural_tune_onnxruntime.recipes import edges
from neural_tune_onnxruntime.recipes.scaling import rescale

NAME = "smoothquant"


def is_offered(model: OnnxModel) -> bool:
    """Return whether the model has a norm whose result only products with constants read."""
    return any(isinstance(item, Edge) for item in edges.norm_edges(model))


def propose(model: OnnxModel, spool: Spool) -> Change:
    """Return the smoothing of all norms."""
    return rescale(NAME, model, edges.norm_edges(model), spool)
