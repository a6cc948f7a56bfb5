"""Graphs with recipes applied, each made once: new constants, a proof that the function stayed, statistics of what changed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

from torch import Tensor

from neural_tune.calibration import Statistics
from neural_tune.calibration.spool import Spool
from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.numerics import preservation
from neural_tune.numerics.rescaling import Change
from neural_tune.values import Candidate
from neural_tune_pytorch.backends.pt2e import observe
from neural_tune_pytorch.backends.pt2e.capture import Captured
from neural_tune_pytorch.backends.pt2e.plan import Plan, observed_tensors, plan
from neural_tune_pytorch.recipes import bias_correction, derive, edges, equalization, probe, smoothquant

logger = logging.getLogger(__name__)
Propose: TypeAlias = Callable[[Captured, Spool], Change]

# In the order in which they are applied, and offered: each finds what the ones before it left.
_PROPOSALS: Mapping[str, Propose] = MappingProxyType(
    {equalization.NAME: equalization.propose, smoothquant.NAME: smoothquant.propose}
)
_OFFERS: Mapping[str, Callable[[Captured], bool]] = MappingProxyType(
    {
        equalization.NAME: equalization.is_offered,
        smoothquant.NAME: smoothquant.is_offered,
        bias_correction.NAME: bias_correction.is_offered,
    }
)
_LOCK = threading.RLock()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Variant:
    """A graph with recipes applied.

    Attributes:
        captured: Same ops and tensors, other constants; the given graph itself where no recipe had anything to do.
        statistics: Ranges that fit it.
        source: The statistics it was made from.
        refused: Recipe -> node -> why the recipe leaves it alone.
    """

    captured: Captured
    statistics: Statistics
    source: Statistics
    refused: Mapping[str, Mapping[str, str]]


def offered(captured: Captured) -> tuple[str, ...]:
    """Return the recipes that have something to do in a model, in the order in which they are applied.

    They look at calibration data, and at activations that are rounded: nothing is offered for weight_only, and none where a model is trained.
    """
    options = captured.options
    if options.approach not in ("static", "auto") and not (
        options.approach == "dynamic" and options.has_data is not False
    ):
        return ()
    return tuple(name for name, is_offered in _OFFERS.items() if is_offered(captured))


def planned(captured: Captured, candidate: Candidate, statistics: Statistics | None) -> tuple[Captured, Plan]:
    """Return the plan of a candidate and the graph it is for: the model's own, or one with the candidate's recipes applied.

    Raises:
        CapabilityError: the candidate asks for what the model does not have.
        AdapterError: there are no statistics, or no calibration inputs to look at.
    """
    captured, statistics = changed(captured, candidate, statistics)
    found = plan(captured, candidate, statistics)
    corrected = biases(captured, candidate, found, statistics)
    return (bias_correction.with_biases(captured, corrected) if corrected else captured), found


def changed(
    captured: Captured, candidate: Candidate, statistics: Statistics | None
) -> tuple[Captured, Statistics | None]:
    """Return the graph with the function-preserving recipes of a candidate applied, and the statistics that fit it. Raises as `prepare` does."""
    if not (candidate.recipes and candidate.ops):
        return captured, statistics
    variant = prepare(captured, candidate.recipes, statistics)
    return variant.captured, variant.statistics


def biases(
    captured: Captured, candidate: Candidate, found: Plan, statistics: Statistics | None
) -> Mapping[str, Tensor]:
    """Return node -> corrected bias for the ops that a plan gives int8 weights; empty where the candidate does not ask for it."""
    if bias_correction.NAME not in candidate.recipes or statistics is None or statistics.inputs is None:
        return {}
    with _LOCK:
        return bias_correction.biases(captured, found.weights, statistics.inputs)


def prepare(captured: Captured, names: Iterable[str], statistics: Statistics | None) -> Variant:
    """Return `captured` with the recipes of `names` applied, in their own order; made once, and remembered with the model.

    Raises:
        CapabilityError: a name is not offered for this model.
        AdapterError: there are no calibration inputs to look at.
    """
    wanted, known = frozenset(names), offered(captured)
    wrong = sorted(wanted - set(known))
    if wrong:
        raise CapabilityError(f"recipes: found {wrong}, the pt2e backend offers {list(known)} for this model")
    if statistics is None or statistics.inputs is None:
        raise AdapterError(
            f"recipes {sorted(wanted)} look at the calibration inputs, but there are none: calibrate first"
        )
    found = _prepared(captured, tuple(name for name in _PROPOSALS if name in wanted), statistics)
    # It may have been made for a probe, whose networks are not compiled: how networks run is for the one to say who asks.
    if found.captured.options == captured.options:
        return found
    return replace(found, captured=replace(found.captured, options=captured.options))


def _prepared(captured: Captured, names: tuple[str, ...], statistics: Statistics) -> Variant:
    if not names:
        return Variant(captured=captured, statistics=statistics, source=statistics, refused={})
    with _LOCK:
        found = captured.cache.get(("variant", names))
        if not (isinstance(found, Variant) and found.source is statistics):
            found = _apply(names[-1], _prepared(captured, names[:-1], statistics))
            captured.cache["variant", names] = found
        return found


def _apply(name: str, before: Variant) -> Variant:
    spool = before.source.inputs
    if spool is None:  # unreachable: `prepare` refuses
        raise AdapterError("there are no calibration inputs: calibrate first")
    change = _PROPOSALS[name](before.captured, spool)
    refused = {**before.refused, name: change.refused}
    if not change.edits:
        return replace(before, refused=refused)
    norms = {node for node, position in change.edits} if name == smoothquant.NAME else set()
    kept = {node: edges.kept_readers(before.captured, node) for node in norms & set(change.tensors)}
    after = derive.derive(before.captured, change.edits, kept, name)
    distance = difference(before.captured, after, spool)
    if not distance <= preservation.TOLERANCE:
        note = f"{name} was not applied: it changes the float outputs by {distance:.1e}, expected at most {preservation.TOLERANCE:.0e}"
        logger.warning("%s", note)
        unchanged = replace(before.captured, changes=(*before.captured.changes, note))
        return replace(before, captured=unchanged, refused={**refused, name: {"": note}})
    notes = (change.note, *(() if spool.is_whole else (_partial(name, spool),)))
    after = replace(after, changes=(*before.captured.changes, *notes))
    logger.info("%s; float outputs differ by %.1e", change.note, distance)
    return Variant(
        captured=after,
        statistics=_observed_anew(after, change.tensors, before.statistics, spool),
        source=before.source,
        refused=refused,
    )


def difference(before: Captured, after: Captured, spool: Spool) -> float:
    """Return the largest relative L2 difference of an output on the first calibration samples; infinite for NaN."""
    runs = [probe.outputs(item, spool, preservation.SAMPLES) for item in (before, after)]
    return preservation.difference(*runs)


def _observed_anew(captured: Captured, tensors: tuple[str, ...], before: Statistics, spool: Spool) -> Statistics:
    """Return `before` with new statistics for those tensors whose values a recipe has changed, and for those that are new."""
    needed = set(observed_tensors(captured))
    wanted = frozenset(needed & set(tensors) | (needed - set(before.tensors) - before.infinite))
    if not wanted:
        return before
    found = observe.observe(captured, (feed for feed, _ in probe.feeds(captured, spool)), wanted)
    kept = {name: item for name, item in before.tensors.items() if name not in tensors}
    return replace(before, tensors={**kept, **found.tensors}, infinite=(before.infinite - wanted) | found.infinite)


def _partial(name: str, spool: Spool) -> str:
    return f"{name} looked at the first {spool.batches} of {spool.seen} calibration batches: more are not kept on disk"
