"""Every candidate, in a fixed order, until the space or the budget is spent.

The order is that of `TuningSpace.__iter__`: the preferred candidate first, the last group varying fastest, float fallback
included as every group's last choice, the float model itself left out. It is a reference for small spaces and for
regression tests; a model of N ops with c choices has c ** N - 1 candidates.
"""

from __future__ import annotations

from neural_tune.protocols import Forecast
from neural_tune.space import TuningSpace
from neural_tune.values import History, Proposal
from neural_tune_strategies.enumeration import Enumeration


class Exhaustive:
    """The lowest-numbered candidate that the history has not seen, as strategy `exhaustive`.

    The seed plays no part. Pending trials count as seen, so any number of workers is kept busy.
    """

    name = "exhaustive"
    needs_exact_metrics = False
    wants: frozenset[str] = frozenset()

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._enumeration: Enumeration | None = None

    def propose(self, space: TuningSpace, history: History) -> Proposal | None:
        """Return the next candidate in order; None when all have been proposed."""
        enumeration = self._numbers(space)
        seen = enumeration.seen(history)
        number = next((number for number in range(len(seen) + 1) if number not in seen), 0)
        if number >= enumeration.size:
            return None
        return Proposal(enumeration.candidate(number), f"number {number + 1} of {enumeration.size}")

    def is_content(self, space: TuningSpace, history: History) -> bool:  # noqa: ARG002 - protocol
        """Return whether anything was accepted: candidates come in order of preference."""
        return bool(history.accepted)

    def forecast(self, space: TuningSpace) -> Forecast:
        """Return the size of the space, and half of it: the mean place of the only acceptable candidate."""
        return Forecast(expected=(space.size + 1) // 2, worst=space.size)

    def _numbers(self, space: TuningSpace) -> Enumeration:
        # A memo only: a proposal is the same with a fresh object.
        if self._enumeration is None or self._enumeration.space is not space:
            self._enumeration = Enumeration(space)
        return self._enumeration
