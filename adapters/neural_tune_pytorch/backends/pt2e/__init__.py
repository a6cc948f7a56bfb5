"""PT2E: torch.export, Q/DQ graphs of our own, Inductor with freezing."""

from neural_tune_pytorch.backends.pt2e.backend import Pt2eBackend

__all__ = ["Pt2eBackend"]
