"""Data and metrics say how good a model is, and a candidate that cannot be good enough is stopped early, exactly.

Early rejection: the float model's pass is the baseline. A candidate visits the samples that the float model holds by the thinnest margin
first; after every batch the best value that each metric can still reach is known, and when even that fails the criterion the candidate is
rejected. No statistics are involved: a full pass would have rejected it too. Nothing is ever accepted on a part of the data.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from neural_tune.evaluation import directions
from neural_tune.evaluation.certificate import Resampled
from neural_tune.evaluation.data import as_loader
from neural_tune.evaluation.evaluator import Hopeless, Progress
from neural_tune.evaluation.identity import described
from neural_tune.evaluation.metric import USER_CODE, Metric
from neural_tune.evaluation.metrics import metrics as build_metrics
from neural_tune.evaluation.outputs import agree, checked
from neural_tune.evaluation.remembered_baseline import RemembersBaseline
from neural_tune.evaluation.result import OUTPUT_PREFIX, Evaluation
from neural_tune.evaluation.running_pass import RunningPass
from neural_tune.evaluation.samples import Batch, SampleSet, concatenate, concatenate_labels, take_labels
from neural_tune.evaluation.sanity import near_chance
from neural_tune.protocols import AnyAdapter, Array, Outputs
from neural_tune.values import AccuracyCriterion, FrozenMap

logger = logging.getLogger(__name__)

# Outputs of the baseline and of complete trials are kept for resampled intervals (F1, Spearman ...) up to this size.
_KEPT_OUTPUTS = 64 << 20


class MetricEvaluator(RemembersBaseline):
    """A loader and metrics: per-sample values where the metrics have them, so that candidates are rejected early and exactly.

    Samples are cached as numpy up to `cache_bytes`, and candidates then visit them in margin order, in batches of the loader's size; data
    beyond the budget are re-read in their own order (rejection is still exact, but later), and every batch is compared with the first
    reading by content.

    Where a model's output for one sample depends on the others of its batch, another order would give other numbers than a plain pass. A candidate with
    dynamic quantization is announced as one (`is_batch_bound`: its scales are taken over the batch) and visited in data order, on the very batches of a
    plain pass. Others are guarded against: every visit in margin order ends with one batch run once more as the loader gave it, that of which the largest
    share was visited. If their outputs differ the visit does not count, and this candidate and all later ones are evaluated in data order.

    Attributes:
        metrics: The metrics. One whose direction nobody stated has None there until `settle`; until then nothing is rejected early.
        input_names: Names of the model's inputs; set them where batches are flat tuples of several inputs (see `split_batch`).
        notices: What a person should know, such as a model that depends on its batch.
    """

    def __init__(
        self,
        loader: object,
        metrics: object,
        *,
        cache_bytes: int = 1 << 30,
        batch_size: int = 32,
        input_names: Sequence[str] = (),
    ) -> None:
        """Take data (see `as_loader`) and metrics (see `metrics.metrics`).

        Raises:
            ConfigError: a metric is unknown.
            DataError: the loader can be read only once.
        """
        self.metrics = build_metrics(metrics)
        super().__init__(directions.stated(self.metrics))
        self._stated = self.metrics
        self.notices: list[str] = []
        self._samples = SampleSet(as_loader(loader, batch_size), cache_bytes, input_names)
        self._margin: Array | None = None
        self._is_reorderable: bool | None = None  # None: no candidate has shown it yet

    def identity(self) -> str:
        """Return class and every metric with all its options; for a callable its module, name and code."""
        return "; ".join((type(self).__name__, *(_spec(metric) for metric in self._stated)))

    def settle(self, criterion: AccuracyCriterion) -> Mapping[str, bool]:
        """Take directions that no metric states from `criterion`, and return those of all metrics. To be called before the baseline.

        Raises:
            ConfigError: a callable states one direction, and the criterion of its own the other.
        """
        self.metrics = directions.settled(self._stated, criterion)
        self.directions = directions.stated(self.metrics)
        return self.directions

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the model's inputs, where they are known."""
        return self._samples.input_names

    @input_names.setter
    def input_names(self, names: Sequence[str]) -> None:
        self._samples.input_names = tuple(names)

    @property
    def _additive(self) -> tuple[Metric, ...]:
        return tuple(metric for metric in self.metrics if metric.per_sample is not None)

    def baseline(self, adapter: AnyAdapter, built: Any, progress: Progress | None = None) -> Evaluation:
        """Run the float model over everything, in data order; keep its per-sample values and margins.

        Raises:
            DataError: the data are empty, malformed, without labels, or do not fit the metrics.
        """
        for metric in self.metrics:
            metric.warm_up()  # the first import of a metrics library takes seconds, which say nothing about a pass
        start = time.perf_counter()
        margins: list[Array] = []
        guide = next((metric.margin for metric in self._additive if metric.margin is not None), None)
        ran = RunningPass(self.size)
        for batch in self._samples.in_data_order():
            outputs = self._run_batch(adapter, built, batch, ran)
            if guide is not None:
                margins.append(guide(outputs, batch.labels))
            if progress is not None:
                progress(ran.done, self.size)
        self.size = self._samples.size
        self._margin = np.concatenate(margins) if margins else None
        self.baseline_evaluation = self._complete(ran, start, ran.done)
        for metric in self.metrics if self._samples.is_cached else ():
            notice = near_chance(metric, self.baseline_evaluation.metrics[metric.name], self._samples.labels())
            if notice and notice not in self.notices:
                self.notices.append(notice)
        return self.baseline_evaluation

    def evaluate(
        self,
        adapter: AnyAdapter,
        built: Any,
        *,
        hopeless: Hopeless | None = None,
        progress: Progress | None = None,
        is_batch_bound: bool = False,
    ) -> Evaluation:
        """Run a candidate, in margin order if it may be stopped and is not bound to its batches; metrics come from the library on outputs in data order.

        Raises:
            DataError: there is no baseline, or the data changed.
        """
        self._known_baseline()
        if len(self.directions) < len(self.metrics):
            hopeless = None  # the best value that is still possible is not known without a direction
        start = time.perf_counter()
        visits = [] if is_batch_bound else self._visits(hopeless)
        spent = 0
        if len(visits) > 1:
            ran = self._visit(adapter, built, (self._samples.gather(rows) for rows in visits), hopeless, progress)
            witness = self._witness(ran)
            self._is_reorderable = self._agrees(adapter, built, ran, witness)
            spent = ran.done + len(witness.rows)
            if self._is_reorderable:
                return self._ended(ran, start, spent)
        ran = self._visit(adapter, built, self._samples.in_data_order(), hopeless, progress)
        return self._ended(ran, start, spent + ran.done)

    def _visits(self, hopeless: Hopeless | None) -> list[Array]:
        """Return row numbers per batch in margin order; nothing where data order is the right one."""
        if hopeless is None or self._margin is None or self._is_reorderable is False or not self._samples.is_cached:
            return []
        return self._samples.visits(self._margin)

    def _visit(
        self,
        adapter: AnyAdapter,
        built: Any,
        batches: Iterable[Batch],
        hopeless: Hopeless | None,
        progress: Progress | None,
    ) -> RunningPass:
        """Run batches until the end, or until even the best that is still possible is not enough."""
        ran = RunningPass(self.size)
        for batch in batches:
            self._run_batch(adapter, built, batch, ran)
            if progress is not None:
                progress(ran.done, self.size)
            if hopeless is not None and ran.done < self.size and hopeless(ran.bounds(self.metrics)):
                break
        return ran

    def _run_batch(self, adapter: AnyAdapter, built: Any, batch: Batch, ran: RunningPass) -> Outputs:
        outputs = checked(adapter.run(built, batch.inputs), len(batch.rows))
        values = {
            metric.name: metric.per_sample(outputs, batch.labels) for metric in self._additive if metric.per_sample
        }
        ran.add(batch, outputs, values)
        return outputs

    def _witness(self, ran: RunningPass) -> Batch:
        """Return the batch of the loader of which the largest share was visited; the first one of several."""
        visited = np.concatenate(ran.rows)
        return max(self._samples.in_data_order(), key=lambda batch: float(np.isin(batch.rows, visited).mean()))

    def _agrees(self, adapter: AnyAdapter, built: Any, ran: RunningPass, witness: Batch) -> bool:
        """Run `witness` and return whether its outputs are those of the same samples in other company."""
        again = checked(adapter.run(built, witness.inputs), len(witness.rows))
        # A batch of another length may take another kernel, and round differently, without meaning anything.
        alike = [place for place, rows in enumerate(ran.rows) if len(rows) == len(witness.rows)]
        places = alike if any(np.isin(witness.rows, ran.rows[place]).any() for place in alike) else range(len(ran.rows))
        rows = np.concatenate([ran.rows[place] for place in places])
        shared, here, there = np.intersect1d(rows, witness.rows, assume_unique=True, return_indices=True)
        for position, outputs in enumerate(again):
            visited = np.concatenate([ran.outputs[place][position] for place in places])
            if not len(shared) or not agree(np.asarray(outputs)[there], visited[here]):
                self._note(
                    "the outputs of a candidate depend on which samples share a batch, though none of its ops is quantized dynamically: "
                    "candidates are evaluated in data order"
                )
                return False
        return True

    def _note(self, notice: str) -> None:
        logger.warning("%s", notice)
        if notice not in self.notices:
            self.notices.append(notice)

    def _ended(self, ran: RunningPass, start: float, samples: int) -> Evaluation:
        return (self._complete if ran.done == self.size else self._cut)(ran, start, samples)

    def _cut(self, ran: RunningPass, start: float, samples: int) -> Evaluation:
        return Evaluation(
            metrics=FrozenMap(),
            bounds=FrozenMap(ran.bounds(self.metrics)),
            samples=samples,
            passes=samples / self.size,
            is_complete=False,
            seconds=time.perf_counter() - start,
        )

    def _complete(self, ran: RunningPass, start: float, samples: int) -> Evaluation:
        """Let the library compute the metrics on everything, in data order."""
        order = ran.order()
        ordered = bool((order[1:] > order[:-1]).all())
        outputs = tuple(concatenate(parts, "outputs") for parts in zip(*ran.outputs, strict=True))
        if not ordered:
            outputs = tuple(output[order] for output in outputs)
        labels = self._samples.labels() if self._samples.is_cached else concatenate_labels(ran.labels)
        found = {metric.name: metric.compute(outputs, labels) for metric in self.metrics}
        values = {name: np.concatenate(parts)[order] for name, parts in ran.values.items()}
        values |= self._outputs_to_keep(outputs)
        return Evaluation(
            metrics=FrozenMap(found),
            samples=samples,
            passes=samples / self.size,
            seconds=time.perf_counter() - start,
            values=values or None,
        )

    @property
    def _resampling(self) -> tuple[Metric, ...]:
        # A user's metric may take minutes; the library's take milliseconds.
        return tuple(metric for metric in self.metrics if metric.per_sample is None and metric.library != USER_CODE)

    def _outputs_to_keep(self, outputs: Outputs) -> dict[str, Array]:
        fits = sum(output.nbytes for output in outputs) <= _KEPT_OUTPUTS
        if not (self._resampling and fits and self._samples.is_cached):
            return {}
        return {f"{OUTPUT_PREFIX}{position}": output for position, output in enumerate(outputs)}

    def _resampled(self, final: Evaluation) -> Mapping[str, Resampled]:
        """Return, per metric that is no mean, a function from sample numbers to the metric of float and candidate."""
        before, after = self._known_baseline().outputs, final.outputs
        if not before or not after or not self._samples.is_cached:
            return {}
        labels = self._samples.labels()

        def resampler(metric: Metric) -> Resampled:
            def both(rows: Array) -> tuple[float, float]:
                wanted = take_labels(labels, rows)
                old, new = (tuple(output[rows] for output in outputs) for outputs in (before, after))
                return metric.compute(old, wanted), metric.compute(new, wanted)

            return both

        return {metric.name: resampler(metric) for metric in self._resampling}

    def _kind(self) -> dict[str, Any]:
        return {"evaluator": type(self).__name__, "described": self.identity(), "directions": dict(self.directions)}

    def _identity(self) -> dict[str, Any]:
        return {**self._kind(), "size": self.size, "digests": list(self._samples.digests)}

    def _extra_arrays(self) -> dict[str, Array]:
        return {} if self._margin is None else {"margin": self._margin}

    def _take(self, meta: dict[str, Any], arrays: dict[str, Array]) -> None:
        self._samples.expect(meta["digests"])
        self.size, self._margin = int(meta["size"]), arrays.get("margin")


def _spec(metric: Metric) -> str:
    """Return what was asked for; of a `Metric` that somebody built himself, its parts."""
    parts = (
        metric.name,
        metric.library,
        metric.higher_is_better,
        metric.compute,
        metric.per_sample,
        metric.best_per_sample,
    )
    return metric.spec or described(parts)
