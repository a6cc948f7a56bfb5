"""The history looked up by candidate, for strategies that replay their stages up to the first candidate without a result."""

from __future__ import annotations

from collections.abc import Iterable

from neural_tune.values import Candidate, History, Proposal, TrialResult


class Verdicts:
    """What became of every candidate."""

    def __init__(self, history: History) -> None:
        self._results: dict[Candidate, TrialResult] = {}
        for result in history.results:
            self._results.setdefault(result.trial.candidate, result)
        self._pending = {trial.candidate for trial in history.pending}

    def is_accepted(self, candidate: Candidate) -> bool:
        """Return whether `candidate` was tried and accepted."""
        result = self._results.get(candidate)
        return result is not None and result.is_accepted

    def is_done(self, candidate: Candidate) -> bool:
        """Return whether `candidate` has a result."""
        return candidate in self._results

    def first_open(self, stages: Iterable[Proposal]) -> Proposal | None:
        """Return the first proposal without a result; None when there is none, or when it is running."""
        proposal = next((proposal for proposal in stages if proposal.candidate not in self._results), None)
        return None if proposal is None or proposal.candidate in self._pending else proposal
