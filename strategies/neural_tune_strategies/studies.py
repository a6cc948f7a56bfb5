"""Optuna's samplers behind ask/tell: a study is told the whole history again before every proposal.

So a proposal is a function of the seed and the history alone, and a run can be resumed without storing a study. Every group is one categorical
parameter whose values are the places of its choices, float among them. Optuna is imported at first use.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from neural_tune.errors import ConfigError, PluginError
from neural_tune.protocols import Forecast
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT, Candidate, History, Proposal
from neural_tune_strategies.auto.costs import Costs, costs_of
from neural_tune_strategies.random import Random

_USUAL_TRIALS = 30


def load_optuna() -> Any:
    """Import Optuna. Raises PluginError when it is not installed."""
    try:
        return importlib.import_module("optuna")
    except ImportError as error:
        raise PluginError(f'this strategy needs optuna ({error}): pip install "neural-tune[search]"') from error


def derived_seed(seed: int, *parts: object) -> int:
    """Return 32 bits that depend on everything given, the same in every process."""
    text = " ".join(map(str, ("neural_tune", seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back Optuna's log lines and its remarks on experimental features."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class Choices:
    """Candidates as values of categorical parameters, and back."""

    def __init__(self, space: TuningSpace) -> None:
        self.space = space
        self._recipes = tuple(sorted(space.recipes))

    def distributions(self) -> dict[str, Any]:
        """Return Optuna's distribution of every group."""
        categorical = load_optuna().distributions.CategoricalDistribution
        return {group.name: categorical(tuple(range(len(group.choices)))) for group in self.space.groups}

    def candidate(self, places: dict[str, int]) -> Candidate:
        """Return the candidate behind parameter values."""
        return self.space.candidate({group.name: group.choices[places[group.name]] for group in self.space.groups})

    def places(self, candidate: Candidate) -> dict[str, int] | None:
        """Return the parameter values of `candidate`; None when it is not of this space, or has recipes or ranges of its own."""
        if candidate.ranges or candidate.recipes != self._recipes or not self.space.contains(candidate):
            return None
        return {group.name: group.choices.index(self.space.choice_of(candidate, group)) for group in self.space.groups}


@dataclass(frozen=True, slots=True)
class Told:
    """One trial as a constrained sampler sees it: values of the parameters, predicted cost, and violation (0 or less is feasible)."""

    places: dict[str, int]
    cost: float
    violation: float


def told(choices: Choices, history: History, costs: Costs) -> list[Told]:
    """Return the trials of `history`.

    The cost is predicted, so that it is known for rejected trials too. A failed trial violates as much as the worst one. A pending
    one is taken for a typical one (constant liar), which keeps several workers apart.
    """
    slacks = [history.slack(result) for result in history.results]
    known = [-slack for slack in slacks if math.isfinite(slack)]
    worst = max(known, default=1.0)
    typical = median(known) if known else 0.0
    violations = [-slack if math.isfinite(slack) else worst for slack in slacks] + [typical] * len(history.pending)
    trials = [*(result.trial for result in history.results), *history.pending]
    found = []
    for trial, violation in zip(trials, violations, strict=True):
        places = choices.places(trial.candidate)
        if places is not None:
            found.append(Told(places, costs.predict(float_groups(choices.space, trial.candidate)), violation))
    return found


def float_groups(space: TuningSpace, candidate: Candidate) -> frozenset[str]:
    """Return the names of the groups that `candidate` keeps in float."""
    return frozenset(group.name for group in space.groups if space.choice_of(candidate, group) == FLOAT)


def first_new(
    choices: Choices, history: History, seed: int, ask: Callable[[], dict[str, int]], asks: int, reason: str
) -> Proposal | None:
    """Return the first candidate that is new and not float of so many `asks`; then a uniform draw; None when all were seen."""
    seen = history.seen
    for _ in range(asks):
        candidate = choices.candidate(ask())
        if not candidate.is_float and candidate.digest not in seen:
            return Proposal(candidate, reason)
    drawn = Random(seed).propose(choices.space, history)
    return Proposal(drawn.candidate, f"{reason} repeated itself, {drawn.reason}") if drawn else None


class ConstrainedSearch:
    """What `tpe` and `bayesian` have in common: the predicted cost is minimised, under the criterion as a constraint.

    The preferred candidate comes first, then `startup` uniform draws. Subclasses say which sampler, and how often it is asked again when it
    repeats itself before a uniform draw takes its place (`asks`).

    Args:
        seed: Decides every draw, together with the history.
        startup: Trials before the sampler's model takes over, 1 or more.

    Raises:
        ConfigError: `startup` is out of range.
    """

    name = ""
    label = ""
    asks = 5
    needs_exact_metrics = True
    wants: frozenset[str] = frozenset({"latency"})

    def __init__(self, seed: int = 0, *, startup: int = 10) -> None:
        if isinstance(startup, bool) or not isinstance(startup, int) or startup < 1:
            raise ConfigError(f"strategy {self.name!r}: startup: found {startup!r}, expected an integer, 1 or more")
        self.seed = seed
        self.startup = startup

    def sampler(self, optuna: Any, seed: int) -> Any:
        """Return a fresh sampler of Optuna."""
        raise NotImplementedError

    def propose(self, space: TuningSpace, history: History) -> Proposal | None:
        """Return the sampler's next candidate; None when the whole space was seen."""
        if not space.groups:
            return None
        preferred = space.preferred()
        if preferred.digest not in history.seen:
            return Proposal(preferred, f"full {space.precision}: the preferred precision of every op")
        choices = Choices(space)
        trials = told(choices, history, costs_of(space, history.objectives, history.insight))
        if len({tuple(trial.places.values()) for trial in trials}) >= space.size:
            return None
        optuna = load_optuna()
        with quiet():
            distributions = choices.distributions()
            study = optuna.create_study(sampler=self.sampler(optuna, derived_seed(self.seed, self.name, len(trials))))
            study.add_trials(_frozen(optuna, distributions, trials))

            def ask() -> dict[str, int]:
                return dict(study.ask(distributions).params)

            return first_new(choices, history, self.seed, ask, self.asks, self.label)

    def is_content(self, space: TuningSpace, history: History) -> bool:  # noqa: ARG002 - protocol
        """Return whether anything was accepted; to search on for a cheaper model, give a timeout."""
        return bool(history.accepted)

    def forecast(self, space: TuningSpace) -> Forecast:
        """Return a usual number, which nobody knows beforehand, and the size of the space."""
        return Forecast(expected=min(_USUAL_TRIALS, space.size), worst=space.size)


def _frozen(optuna: Any, distributions: dict[str, Any], trials: Sequence[Told]) -> list[Any]:
    return [
        optuna.create_trial(
            params=trial.places,
            distributions=distributions,
            value=trial.cost,
            constraints={"criterion": trial.violation},
        )
        for trial in trials
    ]
