"""The probes before a search: which op hurts, which recipe helps, what int8 gains - on unlabeled calibration samples, at no evaluation.

"One-in": the divergence of the model's *outputs* when a single group is quantized and everything else is float. Errors of single groups add up
well, so they predict any subset; the error of an op's own output does not (rank correlation near 0, measured), and neither does quantizing
everything but one op.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from neural_tune.errors import AdapterError
from neural_tune.protocols import Inputs, Outputs, ProbesSensitivity, ProfilesLatency
from neural_tune.space import TuningSpace
from neural_tune.trials import Workbench
from neural_tune.values import FLOAT_CANDIDATE, Candidate, FrozenMap, Insight, LatencyProfile

logger = logging.getLogger(__name__)

# A recipe is taken when it lowers the divergence of full int8 by more than this share: less is within the noise of a few samples.
_WORTHWHILE = 0.05
_Progress = Callable[[int, int], None]


def gather(
    bench: Workbench, space: TuningSpace, wants: frozenset[str], batches: Sequence[Inputs], progress: _Progress
) -> Insight:
    """Run the probes that a strategy wants and return what they found; what the adapter cannot do stays empty.

    Args:
        bench: The adapter, the model and the statistics.
        space: The tuning space.
        wants: Some of "divergence", "recipes" and "latency".
        batches: Calibration inputs.
        progress: Told the probes done and to do.
    """
    probe = _Probe(bench, batches)
    full = space.preferred()
    recipes = tuple(name for name in space.optional_recipes if "recipes" in wants)
    groups = len(space.groups) if "divergence" in wants else 0
    todo = 1 + len(recipes) + groups * (2 if recipes else 1)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(min(done, todo), todo)

    base = probe.divergence(full)
    step()
    chosen, best = _choose_recipes(probe, full, recipes, base, step)
    plain = probe.one_in(space, full, step) if groups else {}
    helped = full if not chosen else Candidate.of(full.ops, full.ranges, (*full.recipes, *chosen))
    with_recipes = probe.one_in(space, helped, step) if groups and chosen else {}
    return Insight(
        divergence=FrozenMap(plain),
        full=base,
        recipes=chosen,
        full_with_recipes=best,
        divergence_with_recipes=FrozenMap(with_recipes),
        latency=_profile(bench, helped) if "latency" in wants else None,
        samples=probe.samples,
        forwards=probe.forwards,
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


class _Probe:
    """Runs candidates on the calibration batches and compares their outputs with those of the float model."""

    def __init__(self, bench: Workbench, batches: Sequence[Inputs]) -> None:
        self.forwards = 0
        self._bench = bench
        self._batches = batches
        built = bench.adapter.build(bench.model, FLOAT_CANDIDATE, None, bench.config.threads)
        self._reference = self._run(lambda inputs: bench.adapter.run(built, inputs))
        self.samples = sum(len(outputs[0]) for outputs in self._reference)

    def divergence(self, candidate: Candidate) -> float:
        """Return the divergence of a candidate, built as it would be for a trial; infinite when it cannot be built."""
        bench = self._bench
        try:
            built = bench.adapter.build(bench.model, candidate, bench.statistics, bench.config.threads)
            return divergence(self._reference, self._run(lambda inputs: bench.adapter.run(built, inputs)))
        except AdapterError as error:
            logger.info("probe of %s failed: %s", candidate.digest, error)
            return float("inf")

    def one_in(self, space: TuningSpace, full: Candidate, step: Callable[[], None]) -> dict[str, float]:
        """Return group -> divergence when only that group of `full` is quantized."""
        found: dict[str, float] = {}
        toggles = self._toggles(full)
        for group in space.groups:
            ops = frozenset(group.ops)
            if toggles is None:
                alone = {name: full.config_of(name) for name in ops}
                found[group.name] = self.divergence(Candidate.of(alone, full.ranges, full.recipes))
            else:
                outputs = self._run(lambda inputs, ops=ops: toggles.run(ops, inputs))  # type: ignore[misc]
                found[group.name] = divergence(self._reference, outputs)
            step()
        return found

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


def _choose_recipes(
    probe: _Probe, full: Candidate, recipes: Sequence[str], base: float, step: Callable[[], None]
) -> tuple[tuple[str, ...], float]:
    """Add recipes one by one, in the adapter's order, keeping those that lower the divergence of full int8."""
    chosen: tuple[str, ...] = ()
    best = base
    for name in recipes:
        found = probe.divergence(Candidate.of(full.ops, full.ranges, (*full.recipes, *chosen, name)))
        if found < best * (1.0 - _WORTHWHILE):
            chosen, best = (*chosen, name), found
        step()
    return chosen, best


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
