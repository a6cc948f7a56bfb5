"""From float towards int8, op type by op type, keeping what holds: INC 2.x's `conservative` (quant_level 0), repaired.

Types come in execution order, those with anchors (convolutions, matrix products) first. All ops of a type are quantized on top of what
was kept so far; where that is not accepted, the type is split into halves, and these again, down to single ops. So a type of n ops of which
b do not hold takes about 2 b log2(n) trials and 2 n - 1 at most, and 1 where all hold. Every accepted step costs a whole pass: this is for
models where full int8 is hopeless.

INC took or left whole types, and returned after the first type that held, which left most of the model in float.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from neural_tune.protocols import Forecast
from neural_tune.space import OpGroup, TuningSpace
from neural_tune.values import Candidate, History, Proposal, Role
from neural_tune_strategies.verdicts import Verdicts


class Conservative:
    """Op types into int8 one after the other, as strategy `conservative`; see the module.

    Each trial decides the next, so it waits for pending ones. The seed plays no part. When nothing holds, nothing is accepted.
    """

    name = "conservative"
    needs_exact_metrics = False
    wants: frozenset[str] = frozenset()

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def propose(self, space: TuningSpace, history: History) -> Proposal | None:
        """Return the next candidate of the walk; None when it is over or a pending result decides how to go on."""
        verdicts = Verdicts(history)
        return verdicts.first_open(_walk(space, verdicts))

    def is_content(self, space: TuningSpace, history: History) -> bool:
        """Return whether something was accepted and every type has had its turn."""
        return bool(history.accepted) and self.propose(space, history) is None and not history.pending

    def forecast(self, space: TuningSpace) -> Forecast:
        """Return one trial per type, and those of splitting every type down to single ops."""
        types = _by_type(space)
        return Forecast(expected=len(types), worst=sum(2 * len(groups) - 1 for groups in types.values()))


def _by_type(space: TuningSpace) -> dict[str, list[OpGroup]]:
    types: dict[str, list[OpGroup]] = {}
    for group in sorted(space.groups, key=lambda group: group.role is not Role.ANCHOR):
        types.setdefault(group.type, []).append(group)
    return types


def _walk(space: TuningSpace, verdicts: Verdicts) -> Iterator[Proposal]:
    """Yield the search; when it is resumed, the verdict on what was yielded last is known."""
    kept: list[OpGroup] = []
    for kind, groups in _by_type(space).items():
        open_parts = [groups]
        while open_parts:
            part = open_parts.pop()
            candidate = _in_int8(space, [*kept, *part])
            yield Proposal(candidate, f"{_described(part, kind)} on top of {len(kept)} groups in int8")
            if verdicts.is_accepted(candidate):
                kept += part
            elif len(part) > 1:
                middle = len(part) // 2
                open_parts += [part[middle:], part[:middle]]


def _in_int8(space: TuningSpace, groups: Sequence[OpGroup]) -> Candidate:
    return space.candidate({group.name: group.choices[0] for group in groups})


def _described(part: Sequence[OpGroup], kind: str) -> str:
    return part[0].name if len(part) == 1 else f"{len(part)} {kind} groups"
