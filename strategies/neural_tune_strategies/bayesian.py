"""Bayesian optimisation with a Gaussian process over the choices of all groups (Jones et al. 1998; constrained: Gardner et al. 2014).

One process models the slack to the criterion, and the cheapest candidate that is likely to meet it is proposed. Choices are categories and float
is one of them. INC's `bayesian` relaxed choices to real numbers and rounded them, maximised accuracy whatever its direction, and
could not fall back to float. From Optuna.
"""

from __future__ import annotations

from typing import Any

from neural_tune_strategies.studies import ConstrainedSearch


class Bayesian(ConstrainedSearch):
    """Optuna's GPSampler as strategy `bayesian`: few trials, each proposal a fit of O(n ** 3) in the trials so far."""

    name = "bayesian"
    label = "Gaussian process"
    asks = 2  # the maximum of an acquisition hardly moves, and every ask is a fit

    def sampler(self, optuna: Any, seed: int) -> Any:
        """Return the sampler; evaluations repeat exactly, so no noise is modelled."""
        return optuna.samplers.GPSampler(n_startup_trials=self.startup, seed=seed, deterministic_objective=True)
