"""Quantization-aware training of Keras 3 models: copy with fake_quant, the user's own training, the int8 graph on the trained ranges.

Batch norm stays as it is while training (its statistics go on moving) and is folded when the int8 graph is made, as for every float model.
That the two agree rests on `qat_plan`: fake_quant sits on exactly the tensors that are codes in the int8 graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.values import Candidate, Observer
from neural_tune_tensorflow import qat_plan
from neural_tune_tensorflow.backend import Built
from neural_tune_tensorflow.backends import onednn
from neural_tune_tensorflow.fixed_ranges import FixedRanges
from neural_tune_tensorflow.qat_layers import Grid, RangeKind, Sign, TensorRange
from neural_tune_tensorflow.qat_plan import Coded

_LOG = logging.getLogger(__name__)
Deploy = Callable[[Any, Mapping[str, tuple[float, float]], int | None], Built]


class KerasTraining:
    """Implements `neural_tune.protocols.Training`.

    Attributes:
        model: The Keras model to compile and fit; its name, inputs and outputs are those of the caller's.
        left: Op -> why it is not trained and stays in float.
    """

    def __init__(
        self, source: Any, trainee: Any, ranges: Mapping[str, TensorRange], left: Mapping[str, str], deploy: Deploy
    ) -> None:
        """Hold what training needs.

        Args:
            source: The caller's model.
            trainee: The copy with fake_quant.
            ranges: Tensor -> its range in the copy.
            left: Ops that are not trained.
            deploy: Makes the int8 graph from (plain Keras model, ranges, threads).
        """
        self.model = trainee
        self.left = dict(left)
        self._source = source
        self._ranges = dict(ranges)
        self._deploy = deploy

    def finish(self, threads: int | None) -> Built:
        """Return the trained model in integers.

        Raises:
            AdapterError: a weight or a range is not finite, or a range never saw a value.
        """
        for weight in self.model.weights:
            if not np.isfinite(np.asarray(weight)).all():
                message = f"training left values in {weight.path!r} that are not finite; lower the learning rate"
                raise AdapterError(message)
        return self._deploy(qat_plan.plain(self._source, self.model), self.ranges(), threads)

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Return the trained (low, high) of every tensor.

        Raises:
            AdapterError: one never saw a value.
        """
        found = {name: item.bounds() for name, item in self._ranges.items()}
        unseen = sorted(name for name, bounds in found.items() if bounds is None)
        if unseen:
            message = (
                f"{len(unseen)} tensors have no range, {unseen[0]!r} among them: nothing was calibrated, and train_func never ran the model "
                "with training=True"
            )
            raise AdapterError(message)
        return {name: bounds for name, bounds in found.items() if bounds is not None}


def training(hold: Any, candidate: Candidate, statistics: Any | None, kind: RangeKind = "ema") -> KerasTraining:
    """Return a trainable copy of the caller's Keras model with fake_quant where `candidate` quantizes.

    Args:
        hold: An onednn hold; `hold.source.keras` is the caller's model.
        candidate: What to train in integers.
        statistics: Ranges to start from; None lets training find them.
        kind: How ranges move while training: "ema" follows the batches, "learned" follows the gradient.

    Raises:
        CapabilityError: it is no Keras model that can be rebuilt layer by layer, or nothing of it can be trained.
    """
    source = hold.source.keras
    qat_plan.check_model(source)
    scopes = qat_plan.scopes_of(source)
    left = qat_plan.untrainable_ops(source, scopes, candidate)
    # What calibration saw as infinite (a mask) has no range to train either.
    infinite: frozenset[str] = getattr(statistics, "infinite", frozenset())
    while True:
        chosen = qat_plan.without(candidate, left)
        if chosen.is_float:
            message = f"no op of the candidate can be trained: {'; '.join(sorted(set(left.values()))[:3])}"
            raise CapabilityError(message)
        coded = codes_of(hold, chosen, infinite)
        # What becomes float may leave others without a place for their codes.
        hidden = {**coded.refused, **qat_plan.hidden_codes(source, scopes, coded)}
        if not hidden:
            break
        left.update(hidden)
    for name, reason in left.items():
        _LOG.info("op %s stays in float: %s", name, reason)
    plan = qat_plan.plan(source, scopes, chosen, coded, left)
    trainee, ranges = qat_plan.rebuild(source, plan, kind)
    if statistics is not None:
        planned = onednn.planned_of(hold, chosen, statistics)
        for root, item in ranges.items():
            item.set_range(planned.codes[root].low, planned.codes[root].high)

    def deploy(model: Any, found: Mapping[str, tuple[float, float]], threads: int | None) -> Built:
        everywhere = {tensor: found[root] for tensor, root in coded.roots.items()}
        return _explained(onednn.deploy(hold, model, chosen, FixedRanges(everywhere, infinite), threads), left)

    return KerasTraining(source, trainee, ranges, left, deploy)


def codes_of(hold: Any, candidate: Candidate, infinite: frozenset[str] = frozenset()) -> Coded:
    """Return which tensors are codes in the int8 graph of `candidate`, and which of them share a range; those of `infinite` have none."""
    probe = _Probe(hold.units.never_negative, infinite)
    planned = onednn.planned_of(hold, candidate, probe)
    roots: dict[str, str] = {}
    by_bound: dict[float, str] = {}
    for tensor, code in planned.codes.items():
        roots[tensor] = by_bound.setdefault(code.high, tensor)
    origins: dict[str, list[str]] = {}
    for tensor in (*planned.entered, *planned.written):
        origins.setdefault(roots[tensor], []).append(tensor)
    return Coded(
        roots=roots,
        grids={root: Grid(sign=_sign(planned, hold, root, origins[root])) for root in by_bound.values()},
        entered=frozenset(planned.entered),
        written=dict(planned.written),
        bare=frozenset(name for name in planned.configs if hold.units.by_name[name].activation is None),
        sources={name: hold.units.by_name[name].source for name in planned.configs},
        refused=planned.refused,
    )


class _Probe:
    """Ranges in which every tensor has a bound of its own, so that tensors that share a range are seen to."""

    def __init__(self, unsigned: Collection[str], infinite: frozenset[str]) -> None:
        self.infinite = infinite
        self._unsigned = unsigned
        self._numbers: dict[str, int] = {}

    def range_of(
        self, tensor: str, observer: Observer, percentile: float | None = None, *, symmetric: bool, levels: int
    ) -> tuple[float, float]:
        """Return a range whose bound no other tensor has."""
        del observer, percentile, levels
        # Below 6, where the range of a Relu6 is cut.
        high = 1.0 + self._numbers.setdefault(tensor, len(self._numbers)) * 1e-6
        return (0.0, high) if tensor in self._unsigned and not symmetric else (-high, high)


def _sign(planned: Any, hold: Any, root: str, origins: Collection[str]) -> Sign:
    """Return the sign of a range's codes; where only the values decide it, the rule is that of the int8 graph."""
    if not planned.codes[root].is_signed:
        return "unsigned"
    open_ones = [tensor for tensor in origins if tensor not in hold.units.never_negative]
    return "signed" if any(tensor in planned.written for tensor in open_ones) else "auto"


def _explained(built: Built, left: Mapping[str, str]) -> Built:
    """Return `built` with the reasons of the ops that were not trained in its report."""
    ops = tuple(replace(op, reason=left[op.name]) if op.name in left else op for op in built.report.ops)
    return replace(built, report=replace(built.report, ops=ops))
