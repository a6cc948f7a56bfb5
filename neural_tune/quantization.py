"""INC 2.x's import path: `from neural_tune.quantization import fit`."""

from neural_tune.api import fit, load

__all__ = ["fit", "load"]
