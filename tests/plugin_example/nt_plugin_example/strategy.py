"""The strategy: full int8, then one group at a time in float, the first one first."""

from __future__ import annotations

from neural_tune.protocols import Forecast
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT, History, Proposal


class OneByOne:
    """At most N + 1 trials on N groups; finds a model with a single bad op and no other."""

    name = "one_by_one"
    needs_exact_metrics = False
    wants: frozenset[str] = frozenset()

    def __init__(self, seed: int = 0, *, backwards: bool = False) -> None:
        self.seed = seed
        self.backwards = backwards

    def propose(self, space: TuningSpace, history: History) -> Proposal | None:
        """Return the first candidate that the history has not seen."""
        return next((proposal for proposal in self._plan(space) if proposal.candidate.digest not in history.seen), None)

    def is_content(self, space: TuningSpace, history: History) -> bool:
        """Return whether anything was accepted."""
        return bool(history.accepted)

    def forecast(self, space: TuningSpace) -> Forecast:
        """Return the length of the plan."""
        trials = len(self._plan(space))
        return Forecast(expected=trials, worst=trials)

    def _plan(self, space: TuningSpace) -> list[Proposal]:
        full = space.preferred()
        groups = space.groups[::-1] if self.backwards else space.groups
        plan = [Proposal(full, "full int8")]
        plan += [Proposal(space.with_choice(full, group, FLOAT), f"{group.name} in float") for group in groups]
        return [proposal for proposal in plan if not proposal.candidate.is_float]
