"""Candidates drawn uniformly, without repetition: random search (Bergstra and Bengio, JMLR 13, 2012).

Draw number k is a hash of (seed, k) taken modulo the size of the space, so it is the same on every machine and Python version, and
neither the space nor a permutation of it is ever built. A draw that came up before is passed over; distinct draws of a uniform
source are a uniform draw without replacement.
"""

from __future__ import annotations

import hashlib

from neural_tune.protocols import Forecast
from neural_tune.space import TuningSpace
from neural_tune.values import History, Proposal
from neural_tune_strategies.enumeration import Enumeration


class _Draws:
    """The distinct draws of one seed from range(size), in order and as far as they were asked for."""

    def __init__(self, seed: int, size: int) -> None:
        self._seed = seed
        self._size = size
        # Eight bytes more than the size needs: taking the remainder favours no number by more than 2 ** -64.
        self._bytes = (size.bit_length() + 7) // 8 + 8
        self._tries = 0
        self._known: set[int] = set()
        self._order: list[int] = []

    def __getitem__(self, place: int) -> int:
        """Return distinct draw number `place`, which must be below the size."""
        while len(self._order) <= place:
            text = f"neural_tune random {self._seed} {self._tries}"
            drawn = int.from_bytes(hashlib.shake_128(text.encode()).digest(self._bytes), "big") % self._size
            self._tries += 1
            if drawn not in self._known:
                self._known.add(drawn)
                self._order.append(drawn)
        return self._order[place]


class Random:
    """The first draw that the history has not seen, as strategy `random`.

    Float fallback is among the choices of every group, so a model with one bad op can be rescued. Pending trials count as
    seen, so any number of workers is kept busy.
    """

    name = "random"
    needs_exact_metrics = False
    wants: frozenset[str] = frozenset()

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._memo: tuple[Enumeration, _Draws] | None = None

    def propose(self, space: TuningSpace, history: History) -> Proposal | None:
        """Return the next draw; None when the space is exhausted."""
        enumeration, draws = self._sequence(space)
        seen = enumeration.seen(history)
        if len(seen) >= enumeration.size:
            return None
        place = next(place for place in range(len(seen) + 1) if draws[place] not in seen)
        return Proposal(enumeration.candidate(draws[place]), f"draw {place + 1} of seed {self.seed}")

    def is_content(self, space: TuningSpace, history: History) -> bool:  # noqa: ARG002 - protocol
        """Return whether anything was accepted; to search on for a faster model, give a timeout."""
        return bool(history.accepted)

    def forecast(self, space: TuningSpace) -> Forecast:
        """Return the size of the space, and half of it: the mean place of the only acceptable candidate."""
        return Forecast(expected=(space.size + 1) // 2, worst=space.size)

    def _sequence(self, space: TuningSpace) -> tuple[Enumeration, _Draws]:
        # A memo only: a proposal is the same with a fresh object.
        if self._memo is None or self._memo[0].space is not space:
            enumeration = Enumeration(space)
            self._memo = (enumeration, _Draws(self.seed, enumeration.size))
        return self._memo
