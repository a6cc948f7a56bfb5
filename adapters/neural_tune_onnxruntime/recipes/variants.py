"""Models with recipes applied, each made once: new constants, a proof that the function stayed, statistics of what changed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

from neural_tune.calibration import Statistics
from neural_tune.calibration.spool import Spool
from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.numerics import preservation
from neural_tune.numerics.rescaling import Change
from neural_tune.values import Role
from neural_tune_onnxruntime import calibrate
from neural_tune_onnxruntime.model import OnnxModel
from neural_tune_onnxruntime.recipes import bias_correction, equalization, probe, smoothquant
from neural_tune_onnxruntime.recipes.derive import derive

logger = logging.getLogger(__name__)

Propose: TypeAlias = Callable[[OnnxModel, Spool], Change]

# In the order in which they are applied, and offered: each finds what the ones before it left.
_PROPOSALS: Mapping[str, Propose] = MappingProxyType(
    {
        equalization.NAME: equalization.propose,
        smoothquant.NAME: smoothquant.propose,
        bias_correction.NAME: bias_correction.propose,
    }
)
_OFFERS: Mapping[str, Callable[[OnnxModel], bool]] = MappingProxyType(
    {
        equalization.NAME: equalization.is_offered,
        smoothquant.NAME: smoothquant.is_offered,
        bias_correction.NAME: bias_correction.is_offered,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Variant:
    """A model with recipes applied.

    Attributes:
        model: Same ops and tensors, other constants; the given model itself where no recipe had anything to do.
        statistics: Ranges that fit it.
        source: The statistics it was made from.
        refused: Recipe -> op -> why the recipe leaves it alone.
    """

    model: OnnxModel
    statistics: Statistics
    source: Statistics
    refused: Mapping[str, Mapping[str, str]]


def offered(model: OnnxModel) -> tuple[str, ...]:
    """Return the recipes that have something to do in `model`, in the order in which they are applied."""
    return tuple(name for name, is_offered in _OFFERS.items() if is_offered(model))


def check(names: Iterable[str], model: OnnxModel) -> None:
    """Hold a candidate to the recipes there are.

    Raises:
        CapabilityError: a name is not offered for this model.
    """
    wrong = [name for name in names if name not in _OFFERS or not _OFFERS[name](model)]
    if wrong:
        message = f"recipes: found {wrong}, the ONNX Runtime adapter offers {list(offered(model))} for this model"
        raise CapabilityError(message)


def prepare(model: OnnxModel, names: Iterable[str], statistics: Statistics | None) -> Variant:
    """Return `model` with the recipes of `names` applied, in their own order; made once, and remembered with the model.

    Raises:
        CapabilityError: a name is not offered for this model.
        AdapterError: there are no calibration inputs to look at, or the runtime breaks.
    """
    wanted = frozenset(names)
    check(sorted(wanted), model)
    if statistics is None or statistics.inputs is None:
        message = f"recipes {sorted(wanted)} look at the calibration inputs, but there are none: calibrate first"
        raise AdapterError(message)
    return _prepared(model, tuple(name for name in _PROPOSALS if name in wanted), statistics)


def _prepared(model: OnnxModel, names: tuple[str, ...], statistics: Statistics) -> Variant:
    if not names:
        return Variant(model=model, statistics=statistics, source=statistics, refused={})
    found = model.variants.made.get(names)
    if isinstance(found, Variant) and found.source is statistics:
        return found
    with model.variants.lock:
        found = model.variants.made.get(names)
        if not (isinstance(found, Variant) and found.source is statistics):
            found = _apply(names[-1], _prepared(model, names[:-1], statistics))
            model.variants.made[names] = found
        return found


def _apply(name: str, before: Variant) -> Variant:
    spool = before.source.inputs
    if spool is None:  # unreachable: `prepare` refuses
        raise AdapterError("there are no calibration inputs: calibrate first")
    change = _PROPOSALS[name](before.model, spool)
    refused = {**before.refused, name: change.refused}
    if not change.edits:
        return replace(before, refused=refused)
    after = derive(before.model, change.edits, name)
    distance = difference(before.model, after, spool)
    if not distance <= preservation.TOLERANCE:
        note = f"{name} was not applied: it changes the float outputs by {distance:.1e}, expected at most {preservation.TOLERANCE:.0e}"
        logger.warning("%s", note)
        unchanged = replace(before.model, notes=(*before.model.notes, note))
        return replace(before, model=unchanged, refused={**refused, name: {"": note}})
    notes = (change.note, *([_partial(name, spool)] if not spool.is_whole else []))
    after = replace(after, notes=(*before.model.notes, *notes))
    logger.info("%s; float outputs differ by %.1e", change.note, distance)
    return Variant(
        model=after,
        statistics=_observed_anew(after, change.tensors, before.statistics, spool),
        source=before.source,
        refused=refused,
    )


def difference(before: OnnxModel, after: OnnxModel, spool: Spool) -> float:
    """Return the largest relative L2 difference of an output on the first calibration samples; infinite for NaN."""
    names = [value.name for value in before.proto.graph.output]
    runs = [probe.run(item, (), (), names, spool, preservation.SAMPLES) for item in (before, after)]
    return preservation.difference(*([found for found, _ in each] for each in runs))


def _observed_anew(model: OnnxModel, tensors: tuple[str, ...], before: Statistics, spool: Spool) -> Statistics:
    """Return `before` with new statistics for those tensors whose values a recipe has changed.

    What only a Relu or Clip behind an op with a weight reads never carries codes: it is left out, and asking for it is an error.
    """
    changed = [name for name in tensors if name in before.tensors]
    if not changed:
        return before
    wanted = [name for name in changed if not _is_inside(name, model)]
    found = calibrate.collect(model.session_for_outputs, wanted, spool.feeds()) if wanted else Statistics({})
    kept = {name: item for name, item in before.tensors.items() if name not in changed}
    return replace(before, tensors={**kept, **found.tensors}, infinite=before.infinite | found.infinite)


def _is_inside(tensor: str, model: OnnxModel) -> bool:
    writer, reader = model.graph.producers.get(tensor), model.graph.sole_consumer(tensor)
    if writer is None or reader is None or reader.type not in ("Relu", "Clip"):
        return False
    return (model.kernels[writer.name].role, model.kernels[reader.name].role) == (Role.ANCHOR, Role.PASS_THROUGH)


def _partial(name: str, spool: Spool) -> str:
    return f"{name} looked at the first {spool.batches} of {spool.seen} calibration batches: more are not kept on disk"
