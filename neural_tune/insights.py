"""The probes: which op hurts, which recipe helps, what int8 gains - on unlabeled calibration samples, at no evaluation.

"One-in": the divergence of the model's *outputs* when a single group is quantized and everything else is float. Errors of single groups add up
well, so they predict any subset; the error of an op's own output does not (rank correlation near 0, measured), and neither does quantizing
everything but one op.

A strategy names the probes it wants before the search, and asks for others during it (`ProbeRequest`) - where full int8 is accepted at once, no ranking is
ever made.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.protocols import (
    AnyAdapter,
    Differentiates,
    Inputs,
    Outputs,
    ProbesSensitivity,
    ProfilesLatency,
    Simulates,
)
from neural_tune.space import TuningSpace
from neural_tune.trials import Workbench
from neural_tune.values import FLOAT_CANDIDATE, PROBES, Candidate, FrozenMap, Insight, LatencyProfile

logger = logging.getLogger(__name__)

# A recipe is taken when it lowers the divergence of full int8 by more than this share: less is within the noise of a few samples.
_WORTHWHILE = 0.05
_Progress = Callable[[int, int], None]


def gather(
    bench: Workbench,
    space: TuningSpace,
    wants: frozenset[str],
    batches: Sequence[Inputs],
    progress: _Progress,
    known: Insight | None = None,
) -> Insight:
    """Run the probes that a strategy wants and return `known` with what they found; what the adapter cannot do stays empty.

    Args:
        bench: The adapter, the model and the statistics.
        space: The tuning space.
        wants: Some of `PROBES`.
        batches: Calibration inputs.
        progress: Told the probes done and to do.
        known: What earlier probes found.

    Raises:
        CapabilityError: the curvature is wanted of an adapter that cannot differentiate.
    """
    insight = known or Insight()
    probe = _Probe(bench, batches)
    full = space.preferred()
    recipes = space.optional_recipes if "recipes" in wants else ()
    step = _Steps(
        progress, 1 + len(recipes) + len(space.groups) * len(wants & {"divergence", "divergence_with_recipes"})
    )
    if recipes:
        insight = _with_recipes(insight, probe, full, recipes, step)
    helped = full if not insight.recipes else Candidate.of(full.ops, full.ranges, (*full.recipes, *insight.recipes))
    if "latency" in wants:
        insight = replace(insight, latency=_profile(bench, helped))
    if "divergence" in wants:
        alone, together = probe.one_in(space, full, step)
        insight = replace(insight, divergence=FrozenMap(alone), full=together)
    if "divergence_with_recipes" in wants and insight.recipes:
        alone, together = probe.one_in(space, helped, step)
        insight = replace(insight, divergence_with_recipes=FrozenMap(alone), full_with_recipes=together)
    if "curvature" in wants:
        insight = replace(insight, curvature=FrozenMap(_curvature(bench, space, full, batches)))
    step()
    return replace(
        insight,
        probes=(*insight.probes, *(name for name in PROBES if name in wants)),
        samples=max(insight.samples, probe.samples),
        forwards=insight.forwards + probe.forwards,
        build_seconds=probe.build_seconds or insight.build_seconds,
    )


def has_work(adapter: AnyAdapter, space: TuningSpace, wants: frozenset[str]) -> bool:
    """Return whether anything has to be run: not for recipes where none is offered, nor for times where nobody can take them."""
    idle = {
        "recipes": not space.optional_recipes,
        "latency": not isinstance(adapter, ProfilesLatency),
    }
    return any(not idle.get(name, False) for name in wants)


def check_ability(adapter: AnyAdapter, strategy: str, wants: frozenset[str]) -> None:
    """Refuse a strategy whose probes have no substitute here.

    Raises:
        CapabilityError: it wants the curvature of the loss, and the adapter cannot differentiate.
    """
    if "curvature" in wants and not isinstance(adapter, Differentiates):
        raise CapabilityError(
            f"strategy {strategy!r} ranks ops by the curvature of the loss, but the {adapter.name!r} adapter cannot differentiate the model. "
            "Take 'auto' or 'mse', which rank by the model's outputs, or an adapter that has the protocol Differentiates (none of neural_tune's own has)"
        )


def divergence(reference: Sequence[Outputs], outputs: Sequence[Outputs]) -> float:
    """Return the normalised mean squared error of `outputs`: squared L2 distance over the variance of the reference.

    Every model output counts the same, whatever its magnitude. 0 is equality; NaN or infinite outputs diverge infinitely.
    """
    total = 0.0
    for number in range(len(reference[0])):
        expected = np.concatenate([np.asarray(batch[number], np.float64).ravel() for batch in reference])
        found = np.concatenate([np.asarray(batch[number], np.float64).ravel() for batch in outputs])
        if not np.isfinite(found).all():
            return float("inf")
        spread = float(np.mean((expected - expected.mean()) ** 2))
        total += float(np.mean((found - expected) ** 2)) / max(spread, np.finfo(np.float64).tiny)
    return total / len(reference[0])


class _Steps:
    """Counts probes for a progress display."""

    def __init__(self, progress: _Progress, todo: int) -> None:
        self._progress, self._todo, self._done = progress, todo, 0

    def __call__(self) -> None:
        """One more is done."""
        self._done += 1
        self._progress(min(self._done, self._todo), self._todo)


class _Probe:
    """Runs candidates on the calibration batches and compares their outputs with those of the float model."""

    def __init__(self, bench: Workbench, batches: Sequence[Inputs]) -> None:
        self.forwards = 0
        self.samples = 0
        self._built: list[float] = []
        self._bench = bench
        self._batches = batches
        self._float_outputs: list[Outputs] = []

    @property
    def build_seconds(self) -> float:
        """Mean wall time of building a candidate; 0 when none was built."""
        return sum(self._built) / len(self._built) if self._built else 0.0

    @property
    def _reference(self) -> list[Outputs]:
        """The float model's outputs, run when they are first needed."""
        if not self._float_outputs:
            self._float_outputs = self._outputs(self._ready(FLOAT_CANDIDATE, None))
            self.samples = sum(len(outputs[0]) for outputs in self._float_outputs)
        return self._float_outputs

    def divergence(self, candidate: Candidate) -> float:
        """Return the divergence of a candidate, built as it would be for a trial; infinite when it cannot be built."""
        try:
            start = time.perf_counter()
            built = self._ready(candidate, self._bench.statistics)
            self._built.append(time.perf_counter() - start)
            return divergence(self._reference, self._outputs(built))
        except AdapterError as error:
            logger.info("probe of %s failed: %s", candidate.digest, error)
            return float("inf")

    def one_in(self, space: TuningSpace, full: Candidate, step: Callable[[], None]) -> tuple[dict[str, float], float]:
        """Return group -> divergence when only that group of `full` is quantized, and the divergence of all of `full`."""
        found: dict[str, float] = {}
        toggles = self._toggles(full)

        def of(ops: frozenset[str]) -> float:
            if toggles is None:
                return self.divergence(
                    Candidate.of({name: full.config_of(name) for name in ops}, full.ranges, full.recipes)
                )
            return divergence(self._reference, self._run(lambda inputs: toggles.run(ops, inputs)))

        for group in space.groups:
            found[group.name] = of(frozenset(group.ops))
            step()
        return found, of(frozenset(full.ops))

    def _ready(self, candidate: Candidate, statistics: Any) -> Any:
        """Return a candidate to be run; nothing is compiled for it where the adapter can do without."""
        bench = self._bench
        make = bench.adapter.simulate if isinstance(bench.adapter, Simulates) else bench.adapter.build
        return make(bench.model, candidate, statistics, bench.config.threads)

    def _outputs(self, built: Any) -> list[Outputs]:
        adapter = self._bench.adapter
        return self._run(lambda inputs: adapter.run(built, inputs))

    def _toggles(self, full: Candidate) -> Any:
        bench = self._bench
        if not isinstance(bench.adapter, ProbesSensitivity):
            return None
        try:
            return bench.adapter.toggles(bench.model, full, bench.statistics, bench.config.threads)
        except AdapterError as error:
            logger.info("no toggle model (%s); single candidates are built instead", error)
            return None

    def _run(self, run: Callable[[Inputs], Outputs]) -> list[Outputs]:
        self.forwards += 1
        return [run(batch) for batch in self._batches]


def _with_recipes(
    insight: Insight, probe: _Probe, full: Candidate, recipes: Sequence[str], step: Callable[[], None]
) -> Insight:
    """Add recipes one by one, in the adapter's order, keeping those that lower the divergence of full int8."""
    chosen: tuple[str, ...] = ()
    base = best = probe.divergence(full)
    for name in recipes:
        found = probe.divergence(Candidate.of(full.ops, full.ranges, (*full.recipes, *chosen, name)))
        if found < best * (1.0 - _WORTHWHILE):
            chosen, best = (*chosen, name), found
        step()
    return replace(insight, full=base, recipes=chosen, full_with_recipes=best)


def _curvature(bench: Workbench, space: TuningSpace, full: Candidate, batches: Sequence[Inputs]) -> dict[str, float]:
    """Return group -> mean Hessian trace times squared weight error, summed over its ops (HAWQ-V2, Dong et al. 2020)."""
    adapter = bench.adapter
    if not isinstance(adapter, Differentiates):
        raise CapabilityError(
            f"the {adapter.name!r} adapter cannot differentiate the model: there is no curvature to rank by"
        )
    traces = adapter.hessian_traces(bench.model, batches, bench.config.seed)
    errors = adapter.weight_errors(bench.model, full)
    # A trace is estimated, so it may come out a little below 0 where there is no curvature.
    each = {name: max(traces.get(name, 0.0), 0.0) * error for name, error in errors.items()}
    return {group.name: sum(each.get(name, 0.0) for name in group.ops) for group in space.groups}


def _profile(bench: Workbench, full: Candidate) -> LatencyProfile | None:
    if not isinstance(bench.adapter, ProfilesLatency):
        return None
    try:
        return bench.adapter.profile(
            bench.model, full, bench.statistics, bench.sample, bench.config.performance.threads
        )
    except AdapterError as error:
        logger.info("no latency profile: %s", error)
        return None
