"""What calibration saw of the tensors that a candidate reads as codes, for the report page."""

from __future__ import annotations

from neural_tune.calibration import Statistics
from neural_tune.protocols import ObservedTensor
from neural_tune.values import Candidate
from neural_tune_pytorch.backends.pt2e.capture import Captured
from neural_tune_pytorch.backends.pt2e.codes import Codes
from neural_tune_pytorch.backends.pt2e.plan import plan
from neural_tune_pytorch.recipes import variants


def observed(captured: Captured, candidate: Candidate, statistics: Statistics) -> tuple[ObservedTensor, ...]:
    """Return every tensor that a static op of `candidate` reads, in graph order; one entry per set of codes that it is laid on."""
    captured, fitting = variants.changed(captured, candidate, statistics)
    statistics = fitting or statistics
    planned = plan(captured, candidate, statistics)
    chosen = {choice.tensor: choice.observer for choice in candidate.ranges}
    readers: dict[tuple[str, Codes, str], list[str]] = {}
    for op in captured.ops:
        for edge in [(op.node, position) for position in op.edges]:
            spec = planned.configs[op.name].activation if edge in planned.static else None
            if spec is not None:
                tensor = planned.sources[edge]
                key = (tensor, planned.static[edge], chosen.get(tensor, spec.observer).value)
                readers.setdefault(key, []).append(op.name)
    return tuple(_entry(statistics, *key, tuple(dict.fromkeys(ops))) for key, ops in readers.items())


def _entry(statistics: Statistics, tensor: str, codes: Codes, observer: str, ops: tuple[str, ...]) -> ObservedTensor:
    return ObservedTensor.of(
        tensor,
        statistics.of(tensor),
        ops=ops,
        observer=observer,
        low=-codes.zero * codes.scale,
        high=(codes.last - codes.zero) * codes.scale,
    )
