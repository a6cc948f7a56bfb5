"""A known candidate built, evaluated and certified on today's code and data, without a search.

It goes the way of every run (`prepare`, `search`, `finish`) with a strategy that proposes the one candidate: so its number is measured as that of
a winner is, on the saved artifact and the whole evaluation set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from neural_tune import recipe
from neural_tune.engine import search
from neural_tune.evaluation.result import OUTPUT_PREFIX
from neural_tune.finish import failed, finish, halted
from neural_tune.preparation import Halted, Run, prepare
from neural_tune.protocols import Array, Forecast
from neural_tune.result import TuneResult
from neural_tune.space import TuningSpace
from neural_tune.stored_model import StoredModel
from neural_tune.task import Task
from neural_tune.trials import VALUES_FILE
from neural_tune.values import FLOAT, Candidate, History, Objective, Objectives, OpConfig, Proposal, StopRule

Choice = Callable[[TuningSpace], Candidate]


class Replay:
    """A strategy that proposes one candidate, the one that `choice` finds in the space."""

    name = "replay"
    needs_exact_metrics = True  # a replay is never cut short: its number is the point
    wants: frozenset[str] = frozenset()

    def __init__(self, choice: Choice) -> None:
        """Take the function from the space to the candidate."""
        self._choice = choice
        self._candidate: Candidate | None = None

    def propose(self, space: TuningSpace, history: History) -> Proposal | None:
        """Return the candidate once; None for the float model, which is no candidate."""
        candidate = self._chosen(space)
        if history.results or history.pending or candidate.is_float:
            return None
        return Proposal(candidate, "replayed")

    def _chosen(self, space: TuningSpace) -> Candidate:
        if self._candidate is None:
            self._candidate = self._choice(space)
        return self._candidate

    def is_content(self, space: TuningSpace, history: History) -> bool:  # noqa: ARG002 - protocol
        """Return True: there is nothing else to try."""
        return True

    def forecast(self, space: TuningSpace) -> Forecast:
        """Return one trial; raises what the choice raises, so that a faulty recipe is refused before anything is measured."""
        trials = 0 if self._chosen(space).is_float else 1
        return Forecast(expected=trials, worst=trials)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay gave.

    Attributes:
        result: As of any run.
        run: The run, whose bench can measure more; None when the float model could not be run.
        values: Metric -> value per sample of the replayed model, in data order, for metrics that are a mean over samples.
    """

    result: TuneResult
    run: Run | None = None
    values: Mapping[str, Array] = field(default_factory=dict)


def replay(task: Task, choice: Choice, stored: StoredModel | None = None) -> Replayed:
    """Build, evaluate and certify the candidate that `choice` returns, under the configuration of `task`.

    Args:
        task: Model, data, configuration.
        choice: Finds the candidate in the space.
        stored: The candidate as a model that training made: evaluated instead of being trained again.

    Raises:
        NeuralTuneError: the task cannot be started, or `choice` refuses the space.
        Exception: whatever the user's own functions raise, untouched.
    """
    config = replace(
        task.config,
        stop=StopRule(max_trials=1),
        executor="local",
        workers=1,
        # Speed is measured when the winner is finished, whatever the objective.
        objectives=Objectives((Objective("size"),)),
    )
    task = replace(task, config=config, strategy=Replay(choice), objective_functions={}, resume=None)
    try:
        run = prepare(task)
    except Halted as halt:
        with halt.journal:
            return Replayed(halted(task, halt))
    if stored is not None:
        run.bench = stored.on(run.bench)
    with run.journal:
        if run.problem:
            return Replayed(failed(run, f"the float baseline is not sane: {run.problem}"), run)
        reason, is_interrupted = search(run)
        result = finish(run, reason, is_interrupted=is_interrupted)
    return Replayed(result, run, _values(run.directory.trial(1)))


def from_recipe(path: Path) -> Choice:
    """Return the choice that the recipe at `path` makes. It raises ConfigError where the recipe does not fit the space."""
    return lambda space: recipe.read(path, space)


def fitted(candidate: Candidate) -> Choice:
    """Return the choice of what is left of `candidate` in a space: what is no longer on offer becomes float, never an error."""

    def choose(space: TuningSpace) -> Candidate:
        ops: dict[str, OpConfig] = {}
        for group in space.groups:
            config = candidate.config_of(group.ops[0])
            ops |= dict.fromkeys(group.ops, config if config in group.choices else FLOAT)
        tensors = {name for op in space.capability.ops for name in (*op.inputs, *op.outputs)}
        ranges = [choice for choice in candidate.ranges if choice.tensor in tensors]
        kept = [name for name in candidate.recipes if name in space.capability.recipes]
        return Candidate.of(ops, ranges, kept)

    return choose


def _values(folder: Path) -> dict[str, Array]:
    path = folder / VALUES_FILE
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as stored:
        named = {name.removeprefix("value:"): name for name in stored.files if name.startswith("value:")}
        return {name: stored[key] for name, key in named.items() if not name.startswith(OUTPUT_PREFIX)}
