"""The front of accuracy and all objectives by NSGA-II (Deb et al. 2002), with the criterion as a constraint (Deb's constrained dominance).

Every objective counts for itself, and so does the slack to the criterion. Objectives are measured for accepted candidates; the others are compared by
how much they miss the criterion, as constrained dominance does. The front is that of the accepted trials. From Optuna.
"""

from __future__ import annotations

import math
from typing import Any

from neural_tune.errors import ConfigError
from neural_tune.protocols import Forecast
from neural_tune.space import TuningSpace
from neural_tune.values import BUILTIN_OBJECTIVES, History, Objectives, Proposal, TrialResult
from neural_tune_strategies.studies import Choices, derived_seed, first_new, load_optuna, quiet

_ASKS = 5  # how often a generation may repeat itself before a uniform draw takes its place


class Pareto:
    """Optuna's NSGAIISampler as strategy `pareto`.

    The preferred candidate comes first. The trials so far are replayed into a fresh study before every proposal, in the order in which they ended.

    Args:
        seed: Decides every draw, together with the history.
        population: Candidates per generation, 2 or more.
        trials: The strategy is content after so many.

    Raises:
        ConfigError: an option is out of range.
    """

    name = "pareto"
    needs_exact_metrics = True
    wants: frozenset[str] = frozenset()

    def __init__(self, seed: int = 0, *, population: int = 20, trials: int = 60) -> None:
        for option, value, least in (("population", population, 2), ("trials", trials, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                message = f"strategy 'pareto': {option}: found {value!r}, expected an integer, {least} or more"
                raise ConfigError(message)
        self.seed = seed
        self.population = population
        self.trials = trials

    def propose(self, space: TuningSpace, history: History) -> Proposal | None:
        """Return the next candidate of the current generation; None when the whole space was seen."""
        if not space.groups:
            return None
        preferred = space.preferred()
        if preferred.digest not in history.seen:
            return Proposal(preferred, f"full {space.precision}: the preferred precision of every op")
        choices = Choices(space)
        optuna = load_optuna()
        with quiet():
            study = self._replayed(optuna, choices, history)
            distributions = choices.distributions()

            def ask() -> dict[str, int]:
                return dict(study.ask(distributions).params)

            return first_new(choices, history, self.seed, ask, _ASKS, self._generation(history))

    def is_content(self, space: TuningSpace, history: History) -> bool:
        """Return whether something was accepted and the trials are spent, or the space is."""
        enough = len(history.results) >= min(self.trials, space.size)
        return bool(history.accepted) and (enough or self.propose(space, history) is None)

    def forecast(self, space: TuningSpace) -> Forecast:
        """Return the trials after which it is content, and the size of the space."""
        return Forecast(expected=min(self.trials, space.size), worst=space.size)

    def _generation(self, history: History) -> str:
        return f"NSGA-II, generation {(len(history.results) + len(history.pending)) // self.population}"

    def _replayed(self, optuna: Any, choices: Choices, history: History) -> Any:
        """Return a study that went through `history`, ready to be asked."""
        names = tuple(dict.fromkeys((*history.objectives.names, "size")))
        directions = ["maximize", *(_direction(name, history.objectives) for name in names)]
        distributions = choices.distributions()
        study = optuna.create_study(directions=directions, sampler=self._sampler(optuna, 0))
        for result in history.results:
            places = choices.places(result.trial.candidate)
            if places is not None:
                study.enqueue_trial(places)
                trial = study.ask(distributions)
                slack = _finite(history.slack(result))
                trial.set_constraint("criterion", -slack)
                study.tell(trial, [slack, *_objectives(result, history, names)])
        told = len(history.results) + len(history.pending)
        study.sampler = self._sampler(optuna, derived_seed(self.seed, self.name, told))
        return study

    def _sampler(self, optuna: Any, seed: int) -> Any:
        return optuna.samplers.NSGAIISampler(population_size=self.population, seed=seed)


def _direction(name: str, objectives: Objectives) -> str:
    found = next(
        (item.higher_is_better for item in objectives.items if item.name == name), BUILTIN_OBJECTIVES.get(name)
    )
    return "maximize" if found else "minimize"


def _objectives(result: TrialResult, history: History, names: tuple[str, ...]) -> list[float]:
    """Return the measured values; the float model's where nothing was measured, which constrained dominance never looks at."""
    float_model = history.baseline.objectives
    return [_finite(result.objectives.get(name, float_model.get(name, 0.0))) for name in names]


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.copysign(1e9, value)
