"""Fallback in the order of the curvature of the loss, then back to int8: HAWQ (Dong et al. 2019, 2020) under an accuracy criterion.

HAWQ-V2 (arXiv 1911.03852) ranks a layer by the mean trace of the Hessian of the loss by its weights times the squared distance of the weights from their
quantized selves: the second-order term of what quantizing them adds to the loss. (The first HAWQ, arXiv 1905.03696, took the top eigenvalue.) The trace is
Hutchinson's estimate, from products of the Hessian with random signs, which needs gradients: an adapter without them (`protocols.Differentiates`) is refused
before anything is run. It looks at weights only: damage that activations take does not show, which is why `auto` and `mse` rank by outputs.

HAWQ spreads a bit budget; here the ranking decides what falls back to float, in the stages of `mse`. INC's `hawq_v2` perturbed activations with the weights
of another model and ranked in an order of its own; on a tuned op list of ours neither matters.
"""

from __future__ import annotations

from neural_tune.values import FrozenMap, Insight
from neural_tune_strategies.mse import Mse


class Hawq(Mse):
    """One fallback at a time by Hessian trace and weight error, as strategy `hawq`; the stages and their cost are those of `mse`.

    The ability to differentiate is wanted from the start, so that its absence shows before the search; the traces themselves are
    computed with it.
    """

    name = "hawq"
    probe = "curvature"
    label = "curvature"
    wants: frozenset[str] = frozenset({"curvature"})

    def scores(self, insight: Insight) -> FrozenMap[float]:
        """Return group -> curvature times weight error."""
        return insight.curvature
