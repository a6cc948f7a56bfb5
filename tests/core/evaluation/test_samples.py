from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neural_tune import (
    AccuracyCriterion,
    DataError,
    PerformanceConfig,
    PostTrainingQuantConfig,
    TuneResult,
    TuningCriterion,
    events,
    fit,
)
from neural_tune.evaluation import CalibrationStream, MetricEvaluator
from neural_tune.preparation import PROBE_SAMPLES, _cut, _tee
from neural_tune.testing import ToyAdapter, ToyTask, toy_task

LABELS = np.arange(77) % 2
RIGHT = np.eye(2)[LABELS] * np.random.default_rng(0).uniform(0.5, 2.0, (77, 1))


class TableAdapter:
    """A model is a table of outputs; its input is the row number."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.visited: list[int] = []

    def run(self, built: np.ndarray, inputs: Any) -> tuple[np.ndarray, ...]:
        rows = np.asarray(inputs)[:, 0].astype(int)
        self.sizes.append(len(rows))
        self.visited += rows.tolist()
        return (built[rows],)


class Reusing:
    """A loader that fills the same two arrays (or tensors, or lists) for every batch."""

    def __init__(self, kind: str, size: int = 11) -> None:
        self.kind, self.size = kind, size

    def __iter__(self) -> Iterator[object]:
        x, y = np.zeros((self.size, 1)), np.zeros(self.size, np.int64)
        views: tuple[object, object] = (x, y)
        if self.kind == "torch":
            torch = pytest.importorskip("torch", reason="torch is not installed")
            views = (torch.from_numpy(x), torch.from_numpy(y))
        if self.kind == "objects":
            views = (x, [{"label": y[row : row + 1]} for row in range(self.size)])
        if self.kind == "members":
            views = ({"x": x}, (y, y))
        for start in range(0, 77, self.size):
            x[:, 0], y[:] = np.arange(start, start + self.size), LABELS[start : start + self.size]
            yield views


def never(bounds: object) -> bool:
    return False


def hits(outputs: np.ndarray, labels: Any) -> float:
    if isinstance(labels, list):
        labels = np.array([label["label"][0] for label in labels])
    return float((outputs.argmax(axis=1) == (labels[0] if isinstance(labels, tuple) else labels)).mean())


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
@pytest.mark.parametrize("kind", ["numpy", "torch", "objects"])
def test_a_loader_that_reuses_its_buffers_is_read_as_it_was_at_every_batch(kind: str, cache_bytes: int) -> None:
    evaluator, adapter = MetricEvaluator(Reusing(kind), hits, cache_bytes=cache_bytes), TableAdapter()
    assert evaluator.baseline(adapter, RIGHT).metrics == {"hits": 1.0}  # type: ignore[arg-type]
    half = np.where(np.arange(77)[:, None] < 33, RIGHT, -RIGHT)
    assert evaluator.evaluate(adapter, half).metrics == {"hits": 33 / 77}  # type: ignore[arg-type]
    assert adapter.visited == [*range(77), *range(77)]


def test_members_that_share_a_buffer_are_kept_too() -> None:
    class Named(TableAdapter):
        def run(self, built: np.ndarray, inputs: Any) -> tuple[np.ndarray, ...]:
            return super().run(built, inputs["x"])

    evaluator, adapter = MetricEvaluator(Reusing("members"), {"topk": {"labels": 1}}), Named()
    assert evaluator.baseline(adapter, RIGHT).metrics == {"topk": 1.0}  # type: ignore[arg-type]
    assert evaluator.evaluate(adapter, RIGHT, hopeless=never).metrics == {"topk": 1.0}  # type: ignore[arg-type]
    assert sorted(adapter.visited[77:154]) == list(range(77))


@pytest.mark.parametrize("sizes", [(32, 32, 13), (13, 32, 32), (20, 37, 20)])
def test_margin_order_visits_batches_of_the_loaders_own_sizes(sizes: tuple[int, ...]) -> None:
    starts = np.cumsum((0, *sizes))
    batches = [
        (np.arange(a, b)[:, None], LABELS[a:b]) for a, b in zip(starts.tolist(), starts.tolist()[1:], strict=False)
    ]
    evaluator, adapter = MetricEvaluator(batches, "topk"), TableAdapter()
    evaluator.baseline(adapter, RIGHT)  # type: ignore[arg-type]
    evaluator.evaluate(adapter, RIGHT, hopeless=never)  # type: ignore[arg-type]
    assert adapter.sizes == [*sizes, *sizes, sizes[0]]
    visited = adapter.visited[77:154]
    assert sorted(visited) == list(range(77))
    assert (np.diff(RIGHT.max(axis=1)[visited]) >= 0).all()


# ------------------------------------------------------------------------------------------------ probes


def test_probe_batches_are_whole_and_copies() -> None:
    def batches() -> Iterator[np.ndarray]:
        buffer = np.zeros((24, 2), np.float32)
        for number in range(5):
            buffer[:] = number
            yield buffer

    kept: list[Any] = []
    stream = CalibrationStream(batches(), 100)
    for batch in _tee(stream, kept):
        batch[:] = -1  # type: ignore[index] # what an adapter does to its batch stays with it
    assert [len(batch) for batch in kept] == [24] * -(-PROBE_SAMPLES // 24)
    assert sum(len(batch) for batch in kept[:-1]) < PROBE_SAMPLES
    assert [batch[0, 0] for batch in kept] == list(range(len(kept)))


def test_a_cut_sample_shares_no_memory_with_its_batch() -> None:
    table = np.ones((4, 2))
    for batch in (table, (table,), {"x": table}):
        cut = _cut(batch, 3)
        array = cut["x"] if isinstance(cut, dict) else cut[0] if isinstance(cut, tuple) else cut
        assert array.shape == (3, 2)  # type: ignore[attr-defined]
        assert not np.shares_memory(array, table)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ fixed batches


class FixedBatchAdapter(ToyAdapter):
    """A framework whose model was exported for batches of 40."""

    def run(self, built: Any, inputs: Any) -> Any:
        return super().run(built, _fixed(inputs))

    def calibrate(self, model: Any, batches: Iterable[Any], directory: Path) -> Any:
        return super().calibrate(model, (_fixed(batch) for batch in batches), directory)

    def guard(self, artifact: Path, inputs: Any) -> tuple[str, ...]:
        return super().guard(artifact, _fixed(inputs))


def _fixed(inputs: Any) -> Any:
    if len(inputs) != 40:
        raise DataError(f"inputs: found a batch of {len(inputs)}, expected 40: the model was exported for it")
    return inputs


class Stages:
    def __init__(self) -> None:
        self.seen: list[object] = []

    def on_event(self, event: object) -> None:
        self.seen.append(event)


def tuned(task: ToyTask, workspace: Path, reporter: Any, batch_size: int | None, strategy: str) -> TuneResult:
    config = PostTrainingQuantConfig(
        workspace=str(workspace),
        performance=PerformanceConfig(warmup=1, repeats=12, seconds=0.05, batch_size=batch_size),
        tuning_criterion=TuningCriterion(strategy=strategy, max_trials=3),
        accuracy_criterion=AccuracyCriterion(True, "absolute", 0.005),
    )
    rows = [(task.inputs[start : start + 40], task.labels[start : start + 40]) for start in range(0, 400, 40)]
    return fit(task.model, config, rows, None, rows, "topk", framework=FixedBatchAdapter(), reporter=reporter)


@pytest.mark.parametrize("strategy", ["basic", "auto"])
def test_a_model_of_one_batch_size_is_tuned_with_the_loaders_batches_alone(strategy: str, tmp_path: Path) -> None:
    result = tuned(toy_task(), tmp_path, Stages(), None, strategy)
    assert result.accepted
    assert not any("samples were asked for" in notice for notice in result.notices)  # 120, a little more than asked for


def test_a_batch_size_for_measuring_that_the_model_refuses_is_an_error_before_the_search(tmp_path: Path) -> None:
    stages = Stages()
    with pytest.raises(DataError, match="found a batch of 8, expected 40"):
        tuned(toy_task(), tmp_path, stages, 8, "basic")
    assert not [event for event in stages.seen if isinstance(event, events.TrialStarted)]
