"""The candidates of a space as numbers, so that a space of any size can be walked without being built."""

from __future__ import annotations

from math import prod

from neural_tune.space import TuningSpace
from neural_tune.values import Candidate, History


class Enumeration:
    """A bijection between the candidates of a space (the float model left out) and the integers from 0 to `size` - 1.

    The order is that of `TuningSpace.__iter__`: number 0 is the preferred candidate, and the last group varies fastest. The
    float model would be number `size`, since FLOAT is the last choice of every group. Integers are unbounded, so a space of
    6 ** 150 candidates costs no more than its number of groups.
    """

    def __init__(self, space: TuningSpace) -> None:
        self.space = space
        self.size = prod(len(group.choices) for group in space.groups) - 1
        self._places = [{config: place for place, config in enumerate(group.choices)} for group in space.groups]
        self._tunable = frozenset(space.op_names)
        self._recipes = tuple(sorted(space.recipes))
        self._numbers: dict[Candidate, int | None] = {}

    def candidate(self, number: int) -> Candidate:
        """Return candidate `number`, which must be in range(size)."""
        choices = {}
        for group in reversed(self.space.groups):
            number, place = divmod(number, len(group.choices))
            choices[group.name] = group.choices[place]
        return self.space.candidate(choices)

    def number(self, candidate: Candidate) -> int | None:
        """Return the number of `candidate`; None for the float model and for candidates that are not of this kind."""
        if candidate not in self._numbers:
            self._numbers[candidate] = self._count(candidate)
        return self._numbers[candidate]

    def seen(self, history: History) -> set[int]:
        """Return the numbers of all candidates that `history` has tried or is running."""
        trials = [result.trial for result in history.results]
        numbers = (self.number(trial.candidate) for trial in (*trials, *history.pending))
        return {number for number in numbers if number is not None}

    def _count(self, candidate: Candidate) -> int | None:
        foreign = (
            candidate.is_float
            or candidate.ranges
            or candidate.recipes != self._recipes
            or not self._tunable.issuperset(candidate.ops)
        )
        if foreign:
            return None
        number = 0
        for group, places in zip(self.space.groups, self._places, strict=True):
            configs = {candidate.config_of(name) for name in group.ops}
            place = places.get(configs.pop()) if len(configs) == 1 else None
            if place is None:
                return None
            number = number * len(group.choices) + place
        return number
