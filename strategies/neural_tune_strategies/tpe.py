"""Tree-structured Parzen estimator over the choices of all groups, jointly (Bergstra et al. 2011; multivariate: Falkner et al. 2018).

Densities of the choices of good and of other trials are compared; the criterion is a constraint (Watanabe and Hutter 2022). INC's `tpe` installed
hyperopt at run time, had no float among its choices and only looked at accuracy. From Optuna.
"""

from __future__ import annotations

from typing import Any

from neural_tune_strategies.studies import ConstrainedSearch


class Tpe(ConstrainedSearch):
    """Optuna's TPESampler as strategy `tpe`: cheap per trial, at its best with a hundred trials or more."""

    name = "tpe"
    label = "TPE"

    def sampler(self, optuna: Any, seed: int) -> Any:
        """Return the multivariate sampler."""
        return optuna.samplers.TPESampler(n_startup_trials=self.startup, multivariate=True, seed=seed)
