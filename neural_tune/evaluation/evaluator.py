"""How good is a model? `FunctionEvaluator` asks the user's function; `MetricEvaluator` runs data and can stop early, exactly.

Early rejection: the float model's pass is the baseline. A candidate visits the samples that the float model holds by the thinnest margin
first; after every batch the best value that each metric can still reach is known, and when even that fails the criterion the candidate is
rejected. No statistics are involved: a full pass would have rejected it too. Nothing is ever accepted on a part of the data.
"""

from __future__ import annotations

import io
import json
import logging
import math
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from neural_tune import atomic_file
from neural_tune.errors import ConfigError, DataError
from neural_tune.evaluation.certificate import Certificate, Resampled, certify
from neural_tune.evaluation.data import as_loader
from neural_tune.evaluation.identity import described
from neural_tune.evaluation.metric import USER_CODE, Metric
from neural_tune.evaluation.metrics import as_number, best_possible
from neural_tune.evaluation.metrics import metrics as build_metrics
from neural_tune.evaluation.result import OUTPUT_PREFIX, Evaluation
from neural_tune.evaluation.samples import Batch, SampleSet, concatenate, concatenate_labels, take_labels
from neural_tune.protocols import AnyAdapter, Array, Outputs
from neural_tune.values import AccuracyCriterion, FrozenMap

logger = logging.getLogger(__name__)

Hopeless = Callable[[Mapping[str, float]], bool]
Progress = Callable[[int, int], None]

_FORMAT = 1
# Outputs of the baseline and of complete trials are kept for resampled intervals (F1, Spearman ...) up to this size.
_KEPT_OUTPUTS = 64 << 20
# Re-run samples may differ from the first run by this much of the largest output before they count as different.
_REPEATS = 1e-5


class Evaluator(Protocol):
    """Says how good a built model is. One evaluator serves one run: the baseline first, then candidates, one at a time.

    Attributes:
        size: Samples of the evaluation set; 0 before the baseline, and always for an opaque function.
        directions: Metric -> higher is better, where the evaluator knows it.
    """

    size: int
    directions: Mapping[str, bool]

    def identity(self) -> str:
        """Return a text that says what is measured, the same in every process; a run must not go on with another one."""

    def baseline(self, adapter: AnyAdapter, built: Any, progress: Progress | None = None) -> Evaluation:
        """Evaluate the float model on everything and remember it."""

    def evaluate(
        self,
        adapter: AnyAdapter,
        built: Any,
        *,
        hopeless: Hopeless | None = None,
        progress: Progress | None = None,
        is_batch_bound: bool = False,
    ) -> Evaluation:
        """Evaluate a candidate; stop as soon as `hopeless(best metrics still possible)` is True.

        `is_batch_bound` says that its output for a sample may depend on the other samples of the batch.
        """

    def save_baseline(self, path: Path) -> None:
        """Write what `restore_baseline` needs; numbers and text only."""

    def restore_baseline(self, path: Path) -> bool:
        """Bring a saved baseline back; False when there is none that fits, and a new one is needed.

        Raises:
            DataError: the evaluation data are not those of the saved baseline.
        """

    def certify(self, final: Evaluation, *, criterion: AccuracyCriterion | None = None, seed: int = 0) -> Certificate:
        """Return the drop of a complete evaluation against the baseline, with intervals; `criterion` gives unknown directions."""


class _Remembers:
    """What both evaluators share: the baseline, on disk and against a final evaluation."""

    def __init__(self, directions: Mapping[str, bool]) -> None:
        self.size = 0
        self.directions: Mapping[str, bool] = dict(directions)
        self.baseline_evaluation: Evaluation | None = None

    def certify(self, final: Evaluation, *, criterion: AccuracyCriterion | None = None, seed: int = 0) -> Certificate:
        """Return the certificate of `final`, which must be complete. Raises DataError before a baseline."""
        baseline = self._known_baseline()
        directions = dict(self.directions)
        for name in baseline.metrics:
            rule = criterion.metrics.get(name, criterion) if criterion is not None else None
            directions.setdefault(name, rule.higher_is_better if rule is not None else True)
        return certify(baseline, final, directions, resampled=self._resampled(final), seed=seed)

    def _resampled(self, final: Evaluation) -> Mapping[str, Resampled]:  # noqa: ARG002 - nothing to resample in general
        return {}

    def _known_baseline(self) -> Evaluation:
        if self.baseline_evaluation is None:
            raise DataError("there is no baseline yet: evaluate the float model first")
        return self.baseline_evaluation

    def save_baseline(self, path: Path) -> None:
        """Write the baseline as an npz file without pickle; the file appears whole or not at all."""
        baseline = self._known_baseline()
        meta = {
            "format": _FORMAT,
            "metrics": {name: float(value).hex() for name, value in baseline.metrics.items()},
            "samples": baseline.samples,
            "passes": baseline.passes,
            "seconds": baseline.seconds,
            **self._identity(),
        }
        arrays = {"meta": np.array(json.dumps(meta)), **self._extra_arrays()}
        arrays |= {f"value:{name}": array for name, array in (baseline.values or {}).items()}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type] # numpy's stub takes every keyword for allow_pickle
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_file.write(path, buffer.getvalue())

    def restore_baseline(self, path: Path) -> bool:
        """Bring the baseline back from `path`; False when the file is absent, damaged, or of other metrics.

        Raises:
            DataError: the evaluation data are not those of the saved baseline.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            meta = json.loads(str(arrays.pop("meta")))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            logger.info("no usable baseline in %s: %s", path, error)
            return False
        if meta.get("format") != _FORMAT or any(meta.get(key) != value for key, value in self._kind().items()):
            return False
        self._take(meta, arrays)
        values = {name.removeprefix("value:"): array for name, array in arrays.items() if name.startswith("value:")}
        self.baseline_evaluation = Evaluation(
            metrics=FrozenMap({name: float.fromhex(value) for name, value in meta["metrics"].items()}),
            samples=meta["samples"],
            passes=meta["passes"],
            seconds=meta["seconds"],
            values=values or None,
        )
        return True

    def _kind(self) -> dict[str, Any]:
        """Return what must be the same in a file for it to be usable."""
        return {"evaluator": type(self).__name__}

    def _identity(self) -> dict[str, Any]:
        return self._kind()

    def _extra_arrays(self) -> dict[str, Array]:
        return {}

    def _take(self, meta: dict[str, Any], arrays: dict[str, Array]) -> None:
        """Restore what `_identity` and `_extra_arrays` saved."""


class FunctionEvaluator(_Remembers):
    """The user's function decides: it gets the framework's native model and returns a number or a dict of numbers.

    A plain number is the metric "accuracy". NaN is let through (no criterion accepts it); whatever the function raises propagates.
    """

    def __init__(self, eval_func: Callable[[Any], object]) -> None:
        """Take `eval_func(model)`."""
        super().__init__({})
        self._eval_func = eval_func

    def identity(self) -> str:
        """Return class, module, name and code of the function; not what it reads from elsewhere (see `identity.described`)."""
        return f"{type(self).__name__}: {described(self._eval_func)}"

    def baseline(self, adapter: AnyAdapter, built: Any, progress: Progress | None = None) -> Evaluation:
        """Call the function on the float model.

        Raises:
            DataError: it returned no number.
        """
        self.baseline_evaluation = self.evaluate(adapter, built, progress=progress)
        return self.baseline_evaluation

    def evaluate(
        self,
        adapter: AnyAdapter,
        built: Any,
        *,
        hopeless: Hopeless | None = None,  # noqa: ARG002 - an opaque function cannot be stopped half way
        progress: Progress | None = None,
        is_batch_bound: bool = False,  # noqa: ARG002 - the function makes its own batches
    ) -> Evaluation:
        """Call the function on a model; one call counts as one pass.

        Raises:
            DataError: it returned no number, or other metrics than for the float model.
        """
        start = time.perf_counter()
        returned = self._eval_func(adapter.native(built))
        seconds = time.perf_counter() - start
        found = numbers_of(returned)
        if self.baseline_evaluation is not None and set(found) != set(self.baseline_evaluation.metrics):
            raise DataError(
                f"eval_func returned the metrics {sorted(found)}, but {sorted(self.baseline_evaluation.metrics)} for the float model; "
                "expected the same names every time"
            )
        if progress is not None:
            progress(1, 1)
        return Evaluation(metrics=FrozenMap(found), samples=0, passes=1.0, seconds=seconds)


def numbers_of(returned: object) -> dict[str, float]:
    """Return the metrics in what an eval_func returned: a dict of numbers, or one number, which is called "accuracy".

    Raises:
        DataError: it is neither; the message says what came back.
    """
    if not isinstance(returned, Mapping):
        return {"accuracy": as_number(returned, "eval_func")}
    if not returned or not all(isinstance(name, str) for name in returned):
        raise DataError(
            f"eval_func returned {returned!r:.80}, expected a number, or a dict of metric names and numbers"
        )
    return {name: as_number(value, f"eval_func for {name!r}") for name, value in returned.items()}


@dataclass(slots=True)
class _Pass:
    """One pass under way.

    Attributes:
        size: Samples of the set; 0 while unknown (the baseline).
        outputs: Outputs per batch, in the order of the visit.
        rows: Sample numbers per batch.
        labels: Labels per batch.
        values: Per-sample values per additive metric, per batch.
    """

    size: int
    outputs: list[Outputs] = field(default_factory=list)
    rows: list[Array] = field(default_factory=list)
    labels: list[object] = field(default_factory=list)
    values: dict[str, list[Array]] = field(default_factory=dict)
    done: int = 0

    def add(self, batch: Batch, outputs: Outputs, values: Mapping[str, Array]) -> None:
        self.outputs.append(outputs)
        self.rows.append(batch.rows)
        self.labels.append(batch.labels)
        for name, array in values.items():
            self.values.setdefault(name, []).append(array)
        self.done += len(batch.rows)

    def bounds(self, metrics: Sequence[Metric]) -> dict[str, float]:
        """Return the best value that each metric can still reach."""
        seen = {name: math.fsum(float(part.sum()) for part in parts) for name, parts in self.values.items()}
        return {
            metric.name: best_possible(metric, seen.get(metric.name, 0.0), self.done, self.size) for metric in metrics
        }

    def order(self) -> Array:
        """Return the permutation that brings what was visited into data order."""
        return np.argsort(np.concatenate(self.rows), kind="stable")


class MetricEvaluator(_Remembers):
    """A loader and metrics: per-sample values where the metrics have them, so that candidates are rejected early and exactly.

    Samples are cached as numpy up to `cache_bytes`, and candidates then visit them in margin order, in batches of the loader's size; data
    beyond the budget are re-read in their own order (rejection is still exact, but later), and every batch is compared with the first
    reading by content.

    Where a model's output for one sample depends on the others of its batch, another order would give other numbers than a plain pass. A candidate with
    dynamic quantization is announced as one (`is_batch_bound`: its scales are taken over the batch) and visited in data order, on the very batches of a
    plain pass. Others are guarded against: the first visit in margin order, and every complete one, ends with one batch run once more as the loader
    gave it, that of which the largest share was visited. If their outputs differ the visit does not count, and this candidate and all later
    ones are evaluated in data order.

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
        super().__init__(_directions(self.metrics))
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
        for metric in self._stated:
            own = criterion.metrics.get(metric.name)
            if own is None or metric.library != USER_CODE or metric.higher_is_better is None:
                continue
            if own.higher_is_better != metric.higher_is_better:
                raise ConfigError(
                    f"metric {metric.name!r}: found higher_is_better={metric.higher_is_better} with the metric and "
                    f"{own.higher_is_better} in its accuracy criterion, expected one direction. Change one of them"
                )
        self.metrics = tuple(_settled(metric, criterion) for metric in self._stated)
        self.directions = _directions(self.metrics)
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
        ran = _Pass(self.size)
        for batch in self._samples.in_data_order():
            outputs = self._run_batch(adapter, built, batch, ran)
            if guide is not None:
                margins.append(guide(outputs, batch.labels))
            if progress is not None:
                progress(ran.done, self.size)
        self.size = self._samples.size
        self._margin = np.concatenate(margins) if margins else None
        self.baseline_evaluation = self._complete(ran, start, ran.done)
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
            if self._is_reorderable and ran.done < self.size:
                return self._cut(ran, start, ran.done)
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
    ) -> _Pass:
        """Run batches until the end, or until even the best that is still possible is not enough."""
        ran = _Pass(self.size)
        for batch in batches:
            self._run_batch(adapter, built, batch, ran)
            if progress is not None:
                progress(ran.done, self.size)
            if hopeless is not None and ran.done < self.size and hopeless(ran.bounds(self.metrics)):
                break
        return ran

    def _run_batch(self, adapter: AnyAdapter, built: Any, batch: Batch, ran: _Pass) -> Outputs:
        outputs = _checked(adapter.run(built, batch.inputs), len(batch.rows))
        values = {
            metric.name: metric.per_sample(outputs, batch.labels) for metric in self._additive if metric.per_sample
        }
        ran.add(batch, outputs, values)
        return outputs

    def _witness(self, ran: _Pass) -> Batch:
        """Return the batch of the loader of which the largest share was visited; the first one of several."""
        visited = np.concatenate(ran.rows)
        return max(self._samples.in_data_order(), key=lambda batch: float(np.isin(batch.rows, visited).mean()))

    def _agrees(self, adapter: AnyAdapter, built: Any, ran: _Pass, witness: Batch) -> bool:
        """Run `witness` and return whether its outputs are those of the same samples in other company."""
        again = _checked(adapter.run(built, witness.inputs), len(witness.rows))
        # A batch of another length may take another kernel, and round differently, without meaning anything.
        alike = [place for place, rows in enumerate(ran.rows) if len(rows) == len(witness.rows)]
        places = alike if any(np.isin(witness.rows, ran.rows[place]).any() for place in alike) else range(len(ran.rows))
        rows = np.concatenate([ran.rows[place] for place in places])
        shared, here, there = np.intersect1d(rows, witness.rows, assume_unique=True, return_indices=True)
        for position, outputs in enumerate(again):
            visited = np.concatenate([ran.outputs[place][position] for place in places])
            if not len(shared) or not _agree(np.asarray(outputs)[there], visited[here]):
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

    def _ended(self, ran: _Pass, start: float, samples: int) -> Evaluation:
        return (self._complete if ran.done == self.size else self._cut)(ran, start, samples)

    def _cut(self, ran: _Pass, start: float, samples: int) -> Evaluation:
        return Evaluation(
            metrics=FrozenMap(),
            bounds=FrozenMap(ran.bounds(self.metrics)),
            samples=samples,
            passes=samples / self.size,
            is_complete=False,
            seconds=time.perf_counter() - start,
        )

    def _complete(self, ran: _Pass, start: float, samples: int) -> Evaluation:
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


def _directions(metrics: Sequence[Metric]) -> dict[str, bool]:
    return {metric.name: metric.higher_is_better for metric in metrics if metric.higher_is_better is not None}


def _settled(metric: Metric, criterion: AccuracyCriterion) -> Metric:
    if metric.higher_is_better is not None:
        return metric
    return replace(metric, higher_is_better=criterion.metrics.get(metric.name, criterion).higher_is_better)


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


def _checked(outputs: object, length: int) -> Outputs:
    """Return the outputs of one batch as arrays. Raises DataError unless each has `length` rows."""
    arrays = (
        tuple(np.asarray(output) for output in outputs) if isinstance(outputs, tuple | list) else (np.asarray(outputs),)
    )
    for position, array in enumerate(arrays):
        if array.ndim == 0 or len(array) != length:
            raise DataError(
                f"output {position} of the model has shape {array.shape} for a batch of {length} samples; expected the batch axis first. "
                "Choose the model's outputs, or give an eval_func"
            )
    if not arrays:
        raise DataError("the model gave no output; expected at least one array")
    return arrays


def _agree(again: Array, before: Array) -> bool:
    if again.shape != before.shape:
        return False
    if again.dtype.kind != "f":
        return bool((again == before).all())
    finite = np.isfinite(before)
    scale = float(np.abs(before[finite]).max(initial=0.0))
    same = np.isclose(again, before, rtol=0.0, atol=_REPEATS * max(scale, 1e-30), equal_nan=True)
    return bool(same.all())


def directed(criterion: AccuracyCriterion, directions: Mapping[str, bool]) -> AccuracyCriterion:
    """Return `criterion` with the direction of every metric whose direction is known; what it constrains stays the same.

    A metric of ours knows whether higher is better; a criterion that says otherwise would accept the worst candidates and make early
    rejection wrong.

    Args:
        criterion: The criterion.
        directions: Metric -> higher is better, of every metric the evaluation returns: a criterion without metrics of its own gets these.
    """
    if not directions:
        return criterion
    named = criterion.metrics or dict.fromkeys(directions, criterion)
    rules = {
        name: replace(rule, higher_is_better=directions.get(name, rule.higher_is_better), metrics=FrozenMap())
        for name, rule in named.items()
    }
    return replace(criterion, metrics=FrozenMap(rules))
