"""What calibration saw of the tensors that a candidate quantizes, for the report page."""

from __future__ import annotations

from neural_tune.calibration import Statistics
from neural_tune.protocols import ObservedTensor
from neural_tune_tensorflow.model import OnednnModel
from neural_tune_tensorflow.rewrite.plan import Code, Plan


def observed(model: OnednnModel, plan: Plan, statistics: Statistics) -> tuple[ObservedTensor, ...]:
    """Return every tensor that int8 ops write or that is turned into codes for them."""
    names = [tensor for tensor in plan.codes if tensor in plan.entered or tensor in plan.written]
    return tuple(_entry(model, plan, tensor, statistics) for tensor in names if tensor in statistics.tensors)


def _entry(model: OnednnModel, plan: Plan, tensor: str, statistics: Statistics) -> ObservedTensor:
    code: Code = plan.codes[tensor]
    readers = tuple(name for name in plan.configs if model.units.by_name[name].source == tensor)
    observer = code.observer.value
    return ObservedTensor.of(
        tensor, statistics.of(tensor), ops=readers, observer=observer, low=code.low, high=code.high
    )
