"""What calibration saw of the tensors that a candidate quantizes, for the report page."""

from __future__ import annotations

from neural_tune.protocols import ObservedTensor
from neural_tune_tensorflow.model import OnednnModel
from neural_tune_tensorflow.rewrite.plan import Code, Plan
from neural_tune_tensorflow.statistics import Statistics

# More bins than this cannot be told apart on a page.
_BINS = 160


def observed(model: OnednnModel, plan: Plan, statistics: Statistics) -> tuple[ObservedTensor, ...]:
    """Return every tensor that int8 ops write or that is turned into codes for them."""
    names = [tensor for tensor in plan.codes if tensor in plan.entered or tensor in plan.written]
    return tuple(_entry(model, plan, tensor, statistics) for tensor in names if tensor in statistics.tensors)


def _entry(model: OnednnModel, plan: Plan, tensor: str, statistics: Statistics) -> ObservedTensor:
    seen = statistics.of(tensor)
    histogram = seen.histogram.at_most(_BINS)
    code: Code = plan.codes[tensor]
    return ObservedTensor(
        tensor=tensor,
        ops=tuple(name for name in plan.configs if model.units.by_name[name].source == tensor),
        observer=code.observer.value,
        low=code.low,
        high=code.high,
        minimum=seen.minimum,
        maximum=seen.maximum,
        start=histogram.start * histogram.width,
        width=histogram.width,
        counts=tuple(int(count) for count in histogram.counts),
    )
