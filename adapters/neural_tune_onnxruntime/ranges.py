"""What calibration saw of the tensors that a candidate quantizes, for the report page."""

from __future__ import annotations

from neural_tune.calibration import Statistics
from neural_tune.numerics.qparams import Parameters
from neural_tune.protocols import ObservedTensor
from neural_tune.values import Candidate
from neural_tune_onnxruntime import build
from neural_tune_onnxruntime.model import OnnxModel
from neural_tune_onnxruntime.recipes import variants
from neural_tune_onnxruntime.rewrite import regions


def observed(model: OnnxModel, candidate: Candidate, statistics: Statistics) -> tuple[ObservedTensor, ...]:
    """Return every tensor that `candidate` codes with a range of its own, in graph order."""
    if candidate.recipes and candidate.ops:
        variant = variants.prepare(model, candidate.recipes, statistics)
        model, statistics = variant.model, variant.statistics or statistics
    planned = regions.plan(model, candidate, build.ranges_of(statistics))
    chosen = {choice.tensor: choice.observer.value for choice in candidate.ranges}
    for op in model.graph.ops:
        # A choice for what an op writes holds for the tensor behind its Relu, where the codes are; a known range has no observer at all.
        tail = planned.tails.get(op.name)
        if tail is not None and op.outputs[0] in chosen:
            chosen.setdefault(tail, chosen[op.outputs[0]])
        if model.kernels[op.name].bounds is not None:
            chosen[op.outputs[0]] = ""
    in_codes = {*planned.configs, *planned.carried}
    found = []
    for tensor, coded in planned.coded.items():
        if coded.source == tensor and tensor in statistics.tensors:
            readers = tuple(op.name for op in model.graph.ops if tensor in op.inputs and op.name in in_codes)
            observer = chosen.get(tensor, coded.spec.observer.value)
            found.append(_entry(tensor, readers, observer, coded.parameters, statistics))
    return tuple(found)


def _entry(
    tensor: str, readers: tuple[str, ...], observer: str, parameters: Parameters, statistics: Statistics
) -> ObservedTensor:
    scale = float(parameters.scale)
    return ObservedTensor.of(
        tensor,
        statistics.of(tensor),
        ops=readers,
        observer=observer,
        low=scale * (parameters.first - parameters.zero),
        high=scale * (parameters.last - parameters.zero),
    )
