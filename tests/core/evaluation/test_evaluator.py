from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_tune.errors import ConfigError, DataError
from neural_tune.evaluation import ArrayLoader, FunctionEvaluator, MetricEvaluator, directed
from neural_tune.values import AccuracyCriterion, FrozenMap, judge

sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")


class TableAdapter:
    """A model is a table of outputs; its input is the row number, so that every visiting order can be checked."""

    def __init__(self) -> None:
        self.visited: list[int] = []
        self.batches: list[int] = []

    def run(self, built: np.ndarray, inputs: Any) -> tuple[np.ndarray, ...]:
        rows = inputs["x"] if isinstance(inputs, Mapping) else inputs
        rows = np.asarray(rows).reshape(len(rows), -1)[:, 0].astype(int)
        self.visited += rows.tolist()
        self.batches.append(len(rows))
        return (built[rows],)

    def native(self, built: object) -> object:
        return built


def evaluator_on(labels: np.ndarray, metrics: object = "topk", batch: int = 10, **options: Any) -> MetricEvaluator:
    return MetricEvaluator((np.arange(len(labels))[:, None], labels), metrics, batch_size=batch, **options)


def never(bounds: Mapping[str, float]) -> bool:
    return False


def failing(criterion: AccuracyCriterion, baseline: Mapping[str, float]) -> Callable[[Mapping[str, float]], bool]:
    return lambda bounds: not judge(criterion, bounds, baseline).is_met


def scores_of(hits: np.ndarray, labels: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """Two-class scores that are right where `hits` says so, by the given margins."""
    chosen = np.where(hits, labels, 1 - labels)
    return np.eye(2)[chosen] * margins[:, None]


# ------------------------------------------------------------------------------------------------ exact rejection


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_what_is_rejected_early_would_be_rejected_by_the_full_pass_and_nothing_is_accepted_early(
    data: st.DataObject,
) -> None:
    n = data.draw(st.integers(1, 60), label="samples")
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    labels = generator.integers(0, 2, n)
    margins = generator.integers(1, 6, n).astype(float)  # many ties
    base = scores_of(generator.random(n) < generator.random(), labels, margins)
    candidate = scores_of(generator.random(n) < generator.random(), labels, margins)
    criterion = AccuracyCriterion(
        criterion=data.draw(st.sampled_from(["relative", "absolute"])), tolerable_loss=data.draw(st.floats(0, 0.6))
    )
    metrics = data.draw(st.sampled_from(["topk", ["topk", "accuracy"], ["f1", "topk"]]))
    evaluator = evaluator_on(labels, metrics, data.draw(st.integers(1, 12), label="batch"))
    adapter = TableAdapter()
    baseline = evaluator.baseline(adapter, base).metrics
    early = evaluator.evaluate(adapter, candidate, hopeless=failing(criterion, baseline))
    full = evaluator.evaluate(adapter, candidate)
    assert full.is_complete
    verdict = judge(criterion, full.metrics, baseline)
    if early.is_complete:
        assert early.metrics == full.metrics
        assert {k: v.tolist() for k, v in early.values.items()} == {k: v.tolist() for k, v in full.values.items()}  # type: ignore[union-attr]
    else:
        assert not verdict.is_met
        assert early.metrics == {}
        assert early.samples <= max(n - 1, 0) + min(12, n)  # what was visited, and one batch once more
        assert all(early.bounds[name] >= full.metrics[name] for name in full.metrics)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 9), st.floats(0, 1), st.sampled_from(["mse", "mae"])
)
def test_early_rejection_by_an_error_is_exact_too(seed: int, n: int, batch: int, tolerance: float, name: str) -> None:
    generator = np.random.default_rng(seed)
    wanted = generator.normal(size=n)
    base, candidate = (
        wanted + generator.normal(size=n) * scale for scale in generator.choice([0.1, 0.5, 1.0, 1.01, 3.0], 2)
    )
    evaluator = evaluator_on(wanted, name, batch)
    adapter = TableAdapter()
    baseline = evaluator.baseline(adapter, base).metrics
    criterion = directed(AccuracyCriterion(tolerable_loss=tolerance), evaluator.directions)
    early = evaluator.evaluate(adapter, candidate, hopeless=failing(criterion, baseline))
    full = evaluator.evaluate(adapter, candidate)
    met = judge(criterion, full.metrics, baseline).is_met
    assert early.is_complete or not met
    if not early.is_complete:
        assert early.bounds[name] <= full.metrics[name] * (1 + 1e-12)
    else:
        assert early.metrics == full.metrics


def test_float_mistakes_and_thin_margins_come_first_so_that_rejection_is_early() -> None:
    n = 400
    labels = np.zeros(n, int)
    margins = np.linspace(8, 0.1, n)
    base = scores_of(np.arange(n) % 40 != 7, labels, margins)  # 10 mistakes, some by a wide margin
    noise = np.random.default_rng(0).normal(size=(n, 2)) * 1.5
    evaluator, adapter = evaluator_on(labels), TableAdapter()
    baseline = evaluator.baseline(adapter, base).metrics
    criterion = AccuracyCriterion(criterion="absolute", tolerable_loss=0.01)
    adapter.visited.clear()
    early = evaluator.evaluate(adapter, base + noise, hopeless=failing(criterion, baseline))
    assert not early.is_complete
    assert early.samples == len(adapter.visited) <= 50
    assert early.passes == early.samples / n
    assert sorted(adapter.visited[:10]) == [7 + 40 * i for i in range(10)]
    in_data_order = evaluator_on(labels, cache_bytes=0)
    in_data_order.baseline(adapter, base)
    late = in_data_order.evaluate(adapter, base + noise, hopeless=failing(criterion, baseline))
    assert not late.is_complete
    assert late.samples > 2 * early.samples


def test_a_metric_that_is_no_mean_cannot_reject_early() -> None:
    labels = np.arange(40) % 2
    evaluator, adapter = evaluator_on(labels, "f1"), TableAdapter()
    evaluator.baseline(adapter, np.eye(2)[labels])
    seen: list[float] = []
    result = evaluator.evaluate(adapter, np.eye(2)[1 - labels], hopeless=lambda bounds: bool(seen.append(bounds["f1"])))
    assert result.is_complete
    assert result.metrics == {"f1": 0.0}
    assert seen == [math.inf] * 3
    assert adapter.visited[-40:] == list(range(40))


def test_nan_outputs_reject_a_candidate_without_an_error() -> None:
    labels = np.arange(40) % 2
    base = np.eye(2)[labels] * np.linspace(1, 2, 40)[:, None]
    evaluator, adapter = evaluator_on(labels), TableAdapter()
    baseline = evaluator.baseline(adapter, base).metrics
    broken = base.copy()
    broken[0] = np.nan
    early = evaluator.evaluate(adapter, broken, hopeless=failing(AccuracyCriterion(tolerable_loss=0.5), baseline))
    assert (early.is_complete, early.samples) == (False, 20)  # what settled it, and a batch that it was compared with
    assert math.isnan(evaluator.evaluate(adapter, broken).metrics["topk"])


# ------------------------------------------------------------------------------------------------ data of every kind


def test_a_complete_pass_in_margin_order_gives_the_values_of_a_plain_pass() -> None:
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 5, 103)
    base, candidate = generator.normal(size=(2, 103, 5)).astype(np.float32)
    evaluator, adapter = (
        evaluator_on(labels, ["topk", {"topk": {"k": 2, "name": "top2"}}, "f1", "log_loss"]),
        TableAdapter(),
    )
    first = evaluator.baseline(adapter, base)
    assert (first.samples, first.passes, evaluator.size) == (103, 1.0, 103)
    again = evaluator.evaluate(adapter, candidate, hopeless=never)
    assert sorted(adapter.visited[103:206]) == list(range(103))
    assert adapter.visited[103:206] != list(range(103))
    plain = evaluator.evaluate(adapter, candidate)
    assert again.metrics == plain.metrics
    assert plain.metrics["topk"] == sklearn_metrics.accuracy_score(labels, candidate.argmax(axis=1))
    assert plain.values is not None
    assert np.array_equal(plain.values["topk"], candidate.argmax(axis=1) == labels)
    assert again.samples == 113  # one batch was repeated to see that the outputs do not depend on the batch
    assert plain.samples == 103


class BatchScaledAdapter(TableAdapter):
    """Rounds to a scale taken over the whole batch, as dynamic quantization does."""

    def run(self, built: np.ndarray, inputs: Any) -> tuple[np.ndarray, ...]:
        (table,) = super().run(built, inputs)
        scale = np.abs(table).max() / 3
        return (np.round(table / scale) * scale,)


def test_a_model_that_depends_on_its_batch_is_evaluated_in_data_order_after_all() -> None:
    generator = np.random.default_rng(4)
    labels = generator.integers(0, 5, 100)
    base = generator.normal(size=(100, 5))
    evaluator, adapter = evaluator_on(labels), BatchScaledAdapter()
    evaluator.baseline(adapter, base)
    plain = evaluator.evaluate(adapter, base * 1.1)
    complete = evaluator.evaluate(adapter, base * 1.1, hopeless=never)
    assert complete.metrics == plain.metrics
    assert complete.samples == 210
    assert "depend on which samples share a batch" in evaluator.notices[-1]
    assert evaluator.evaluate(adapter, base * 1.1, hopeless=never).samples == 100  # once is enough


def test_a_rejection_is_guarded_after_an_innocent_candidate_too() -> None:
    class Mixed(TableAdapter):
        """Its candidates depend on their batch unless they are right everywhere, and no adapter said so."""

        def run(self, built: np.ndarray, inputs: Any) -> tuple[np.ndarray, ...]:
            (table,) = super().run(built, inputs)
            return (table,) if np.abs(built).max() > 90 else (table - table.mean(axis=0),)

    generator = np.random.default_rng(7)
    labels = generator.integers(0, 3, 60)
    base = generator.normal(size=(60, 3))
    evaluator, adapter = evaluator_on(labels), Mixed()
    baseline = evaluator.baseline(TableAdapter(), base).metrics
    hopeless = failing(AccuracyCriterion(criterion="absolute", tolerable_loss=0.0), baseline)
    evaluator.evaluate(adapter, 100 * np.eye(3)[(labels + 1) % 3], hopeless=hopeless)
    assert not any("share a batch" in notice for notice in evaluator.notices)
    early = evaluator.evaluate(adapter, base - 5.0, hopeless=hopeless)
    assert "depend on which samples share a batch" in evaluator.notices[-1]
    assert early.is_complete or early.bounds == evaluator.evaluate(adapter, base - 5.0, hopeless=hopeless).bounds


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 12), st.floats(0, 0.4))
def test_a_candidate_that_is_bound_to_its_batches_is_rejected_exactly_where_a_plain_pass_rejects_it(
    seed: int, n: int, batch: int, tolerance: float
) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, n)
    base = generator.normal(size=(n, 3)) * generator.choice([0.2, 1.0, 5.0], (n, 1))
    evaluator, adapter = evaluator_on(labels, batch=batch), BatchScaledAdapter()
    baseline = evaluator.baseline(TableAdapter(), base).metrics
    criterion = AccuracyCriterion(criterion="absolute", tolerable_loss=tolerance)
    plain = evaluator.evaluate(adapter, base).metrics
    early = evaluator.evaluate(adapter, base, hopeless=failing(criterion, baseline), is_batch_bound=True)
    assert early.is_complete or not judge(criterion, plain, baseline).is_met
    assert not early.is_complete or early.metrics == plain
    assert early.samples <= n


def test_the_first_rejection_runs_one_batch_more_as_the_loader_gave_it() -> None:
    labels = np.arange(40) % 2
    evaluator, adapter = evaluator_on(labels), TableAdapter()
    thin = [3, 21, 22, 24, 25, 27, 28, 29, 38, 39]
    margins = np.where(np.isin(np.arange(40), thin), 1.0, 9.0)
    baseline = evaluator.baseline(adapter, scores_of(np.ones(40, bool), labels, margins)).metrics
    hopeless = failing(AccuracyCriterion(), baseline)
    wrong = scores_of(np.zeros(40, bool), labels, margins)
    cut = evaluator.evaluate(adapter, wrong, hopeless=hopeless)
    assert adapter.visited[40:50] == thin
    assert adapter.visited[50:] == list(range(20, 30))  # which holds seven of them
    assert (cut.samples, cut.is_complete) == (20, False)
    assert not evaluator.notices
    assert evaluator.evaluate(adapter, wrong, hopeless=hopeless).samples == 20  # every rejection is held against it


def test_a_rejection_in_margin_order_does_not_count_where_outputs_depend_on_the_batch() -> None:
    labels = np.arange(40) % 2
    evaluator, adapter = evaluator_on(labels), BatchScaledAdapter()
    # In the loader's batches the large scores hide the difference of the small ones, which then tie and are right as class 0; among themselves they are wrong.
    small = np.arange(40) % 4 == 0
    base = np.eye(2)[labels] * np.where(small, 1.0, 9.0)[:, None]
    candidate = np.where(small[:, None], [[0.0, 1.0]], base)
    baseline = evaluator.baseline(TableAdapter(), base).metrics
    plain = evaluator.evaluate(adapter, candidate)
    assert plain.metrics == baseline
    again = evaluator.evaluate(adapter, candidate, hopeless=failing(AccuracyCriterion(), baseline))
    assert again.is_complete
    assert again.metrics == plain.metrics
    assert evaluator.notices


def test_without_room_in_memory_the_data_are_read_again_in_their_order() -> None:
    labels = np.arange(50) % 2
    loader = ArrayLoader(np.arange(50)[:, None], labels, 8)
    evaluator, adapter = MetricEvaluator(loader, "topk", cache_bytes=100), TableAdapter()
    baseline = evaluator.baseline(adapter, np.eye(2)[labels]).metrics
    result = evaluator.evaluate(adapter, np.eye(2)[1 - labels], hopeless=failing(AccuracyCriterion(), baseline))
    assert adapter.visited[50:] == list(range(8))
    assert (result.samples, result.is_complete) == (8, False)
    assert evaluator.evaluate(adapter, np.eye(2)[labels]).metrics == {"topk": 1.0}


def test_data_that_change_between_passes_are_refused() -> None:
    class Shuffled:
        def __init__(self) -> None:
            self.generator = np.random.default_rng(0)

        def __iter__(self) -> Any:
            order = self.generator.permutation(30)
            return iter(ArrayLoader(order[:, None], np.zeros(30, int), 10))

    evaluator, adapter = MetricEvaluator(Shuffled(), "topk", cache_bytes=0), TableAdapter()
    evaluator.baseline(adapter, np.eye(2)[np.zeros(30, int)])
    with pytest.raises(DataError, match=r"changed between two readings \(batch 0 differs\).*shuffling"):
        evaluator.evaluate(adapter, np.eye(2)[np.zeros(30, int)])
    cached, adapter = MetricEvaluator(Shuffled(), "topk"), TableAdapter()
    cached.baseline(adapter, np.eye(2)[np.zeros(30, int)])
    assert cached.evaluate(adapter, np.eye(2)[np.zeros(30, int)]).metrics == {"topk": 1.0}


def test_dict_inputs_of_different_lengths_are_visited_in_batches_of_one_shape() -> None:
    labels = np.arange(40) % 2
    lengths = {0: 5, 1: 9, 2: 5, 3: 9}

    def batches() -> Any:
        for number in range(4):
            rows = np.arange(10 * number, 10 * number + 10)
            table = np.repeat(rows[:, None], lengths[number], axis=1)
            yield {"x": table, "mask": np.ones_like(table), "labels": labels[rows]}

    seen: list[tuple[int, ...]] = []

    class Shapes(TableAdapter):
        def run(self, built: np.ndarray, inputs: Any) -> tuple[np.ndarray, ...]:
            assert set(inputs) == {"x", "mask"}
            seen.append(inputs["x"].shape)
            return super().run(built, inputs)

    evaluator, adapter = MetricEvaluator(batches, "topk"), Shapes()
    base = np.eye(2)[labels] * np.random.default_rng(5).random((40, 1))
    evaluator.baseline(adapter, base)
    result = evaluator.evaluate(adapter, base, hopeless=never)
    assert sorted(seen[4:8]) == [(10, 5), (10, 5), (10, 9), (10, 9)]
    assert sorted(adapter.visited[40:80]) == list(range(40))
    assert adapter.visited[40:80] != list(range(40))
    assert result.metrics == {"topk": 1.0}
    margins = base.max(axis=1)[np.asarray(adapter.visited[40:80])].reshape(4, 10).mean(axis=1)
    assert (np.diff(margins) >= 0).all()


def test_lists_of_batches_with_a_ragged_end_and_labels_as_objects_work() -> None:
    boxes = [{"boxes": np.zeros((count, 4)), "count": count} for count in range(7)]
    batches = [(np.arange(4)[:, None], boxes[:4]), (np.arange(4, 7)[:, None], boxes[4:])]

    def counted(outputs: np.ndarray, labels: list[dict[str, Any]]) -> float:
        return float(np.mean([label["count"] == output for label, output in zip(labels, outputs, strict=True)]))

    evaluator, adapter = MetricEvaluator(batches, counted), TableAdapter()
    assert evaluator.baseline(adapter, np.arange(7)).metrics == {"counted": 1.0}
    assert evaluator.evaluate(adapter, np.arange(7) % 4, hopeless=never).metrics == {"counted": 4 / 7}


def test_a_torch_dataloader_gives_what_arrays_give() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    data = pytest.importorskip("torch.utils.data")
    labels = np.random.default_rng(0).integers(0, 3, 25)
    base = np.random.default_rng(1).normal(size=(25, 3))
    dataset = data.TensorDataset(torch.arange(25)[:, None], torch.from_numpy(labels))
    evaluator, adapter = MetricEvaluator(data.DataLoader(dataset, batch_size=4), "topk"), TableAdapter()
    expected = sklearn_metrics.accuracy_score(labels, base.argmax(axis=1))
    assert evaluator.baseline(adapter, base).metrics == {"topk": expected}
    assert evaluator.evaluate(adapter, base, hopeless=never).metrics == {"topk": expected}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_tensorflow_dataset_gives_what_arrays_give() -> None:
    tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")
    labels = np.random.default_rng(0).integers(0, 3, 25)
    base = np.random.default_rng(1).normal(size=(25, 3))
    dataset = tf.data.Dataset.from_tensor_slices((np.arange(25)[:, None], labels)).batch(4)
    evaluator, adapter = MetricEvaluator(dataset, "topk", cache_bytes=0), TableAdapter()
    expected = sklearn_metrics.accuracy_score(labels, base.argmax(axis=1))
    assert evaluator.baseline(adapter, base).metrics == {"topk": expected}
    assert evaluator.evaluate(adapter, base, hopeless=never).metrics == {"topk": expected}


def test_wrong_data_are_named() -> None:
    adapter = TableAdapter()
    with pytest.raises(DataError, match="one-shot"):
        MetricEvaluator(iter([(np.zeros((1, 1)), np.zeros(1))]), "topk")
    with pytest.raises(DataError, match="evaluation data are empty"):
        MetricEvaluator([], "topk").baseline(adapter, np.eye(2))
    with pytest.raises(DataError, match="2 samples in its inputs and 3 in its labels"):
        MetricEvaluator([(np.zeros((2, 1)), np.zeros(3))], "topk").baseline(adapter, np.eye(2))
    with pytest.raises(DataError, match="needs labels"):
        MetricEvaluator([np.zeros((2, 1))], "topk").baseline(adapter, np.eye(2))
    with pytest.raises(DataError, match="there is no baseline yet"):
        MetricEvaluator([np.zeros((2, 1))], "topk").evaluate(adapter, np.eye(2))

    class Scalar(TableAdapter):
        def run(self, built: np.ndarray, inputs: Any) -> tuple[np.ndarray, ...]:
            return (np.float32(1),)  # type: ignore[return-value]

    with pytest.raises(DataError, match=r"output 0 of the model has shape \(\) for a batch of 2"):
        MetricEvaluator([(np.zeros((2, 1)), np.zeros(2))], "topk").baseline(Scalar(), np.eye(2))


def test_progress_counts_samples() -> None:
    labels = np.arange(25) % 2
    evaluator, adapter = evaluator_on(labels), TableAdapter()
    calls: list[tuple[int, int]] = []
    evaluator.baseline(adapter, np.eye(2)[labels], progress=lambda done, size: calls.append((done, size)))
    evaluator.evaluate(adapter, np.eye(2)[labels], progress=lambda done, size: calls.append((done, size)))
    assert calls == [(10, 0), (20, 0), (25, 0), (10, 25), (20, 25), (25, 25)]


# ------------------------------------------------------------------------------------------------ the baseline on disk


def test_a_restored_baseline_gives_the_same_rejections_and_certificate(tmp_path: Path) -> None:
    generator = np.random.default_rng(8)
    labels = generator.integers(0, 3, 60)
    base = generator.normal(size=(60, 3)) + 3 * np.eye(3)[labels]
    candidate = generator.normal(size=(60, 3)) + np.eye(3)[labels]
    first, adapter = evaluator_on(labels, ["topk", "f1"], batch=5), TableAdapter()
    baseline = first.baseline(adapter, base)
    first.save_baseline(tmp_path / "run" / "baseline.npz")
    second = evaluator_on(labels, ["topk", "f1"], batch=5)
    assert second.restore_baseline(tmp_path / "run" / "baseline.npz")
    assert second.baseline_evaluation == baseline
    assert second.size == 60
    rule = failing(AccuracyCriterion(tolerable_loss=0.01), baseline.metrics)
    one, two = (TableAdapter(), TableAdapter())
    early = first.evaluate(one, candidate, hopeless=rule)
    assert not early.is_complete
    assert second.evaluate(two, candidate, hopeless=rule).bounds == early.bounds
    assert one.visited == two.visited
    final = first.evaluate(one, candidate)
    assert first.certify(final) == second.certify(final)


def test_a_baseline_of_other_data_other_metrics_or_a_damaged_file_is_not_used(tmp_path: Path) -> None:
    labels = np.arange(20) % 2
    path = tmp_path / "baseline.npz"
    evaluator, adapter = evaluator_on(labels), TableAdapter()
    assert not evaluator.restore_baseline(path)
    with pytest.raises(DataError, match="there is no baseline yet"):
        evaluator.save_baseline(path)
    evaluator.baseline(adapter, np.eye(2)[labels])
    evaluator.save_baseline(path)
    assert not evaluator_on(labels, "accuracy").restore_baseline(path)
    assert not FunctionEvaluator(lambda model: 1.0).restore_baseline(path)
    for other in (1 - labels, labels[:10]):
        with pytest.raises(DataError, match="changed between two readings"):
            evaluator_on(other).restore_baseline(path)
    path.write_bytes(path.read_bytes()[:200])
    assert not evaluator_on(labels).restore_baseline(path)
    np.savez(path, meta=np.array({"pickled": object()}, dtype=object))
    assert not evaluator_on(labels).restore_baseline(path)


# ------------------------------------------------------------------------------------------------ eval_func


def test_a_function_returns_a_number_or_a_dict_of_numbers() -> None:
    adapter = TableAdapter()
    for returned, expected in (
        (0.5, {"accuracy": 0.5}),
        (np.float32(0.5), {"accuracy": 0.5}),
        (np.array(0.5), {"accuracy": 0.5}),
        (1, {"accuracy": 1.0}),
        ({"f1": np.float64(0.25), "loss": 2}, {"f1": 0.25, "loss": 2.0}),
    ):
        received: list[object] = []
        evaluator = FunctionEvaluator(lambda model, value=returned, log=received: log.append(model) or value)
        result = evaluator.baseline(adapter, np.eye(2))
        assert dict(result.metrics) == expected
        assert (result.passes, result.samples, result.is_complete, result.values) == (1.0, 0, True, None)
        assert received[0] is not None


def test_a_function_may_return_a_tensor_without_axes() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for value in (torch.tensor(0.5), torch.tensor(0.5, requires_grad=True), torch.tensor(0.5, dtype=torch.bfloat16)):
        result = FunctionEvaluator(lambda model, value=value: value).evaluate(TableAdapter(), np.eye(2))
        assert result.metrics == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, r"None \(NoneType\).*did you forget the return statement"),
        (True, r"True \(bool\)"),
        (np.bool_(True), "bool"),
        ("0.9", r"'0.9' \(str\)"),
        ((0.9, 0.1), r"\(0.9, 0.1\) \(tuple\)"),
        (np.zeros(3), r"a ndarray of shape \(3,\)"),
        ({}, "a dict of metric names"),
        ({"f1": None}, r"eval_func for 'f1' returned None"),
        ({1: 0.5}, "a dict of metric names"),
    ],
)
def test_what_is_no_number_is_refused_with_what_came_back(returned: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        FunctionEvaluator(lambda model: returned).baseline(TableAdapter(), np.eye(2))


def test_nan_passes_and_exceptions_of_the_function_propagate_untouched() -> None:
    evaluator = FunctionEvaluator(lambda model: math.nan)
    assert math.isnan(evaluator.evaluate(TableAdapter(), np.eye(2)).metrics["accuracy"])
    error = RuntimeError("out of rice")

    def raising(model: object) -> float:
        raise error

    with pytest.raises(RuntimeError) as caught:
        FunctionEvaluator(raising).evaluate(TableAdapter(), np.eye(2), hopeless=never)
    assert caught.value is error


def test_a_function_must_return_the_same_metrics_every_time() -> None:
    returned = iter([{"f1": 0.5}, {"f1": 0.5, "loss": 1.0}])
    evaluator = FunctionEvaluator(lambda model: next(returned))
    evaluator.baseline(TableAdapter(), np.eye(2))
    with pytest.raises(DataError, match=r"\['f1', 'loss'\], but \['f1'\] for the float model"):
        evaluator.evaluate(TableAdapter(), np.eye(2))


def test_the_baseline_of_a_function_survives_a_restart(tmp_path: Path) -> None:
    values = iter([0.1 + 0.2, 0.25])
    first = FunctionEvaluator(lambda model: next(values))
    baseline = first.baseline(TableAdapter(), np.eye(2))
    first.save_baseline(tmp_path / "baseline.npz")
    second = FunctionEvaluator(lambda model: 0.0)
    assert second.restore_baseline(tmp_path / "baseline.npz")
    assert second.baseline_evaluation == baseline


# ------------------------------------------------------------------------------------------------ directions


def test_a_criterion_takes_the_direction_that_a_metric_knows() -> None:
    rule = directed(AccuracyCriterion(tolerable_loss=0.02), {"mse": False, "topk": True})
    assert rule.constraints({"mse": 1.0, "topk": 1.0}) == {
        "mse": AccuracyCriterion(higher_is_better=False, tolerable_loss=0.02),
        "topk": AccuracyCriterion(tolerable_loss=0.02),
    }
    named = AccuracyCriterion(metrics=FrozenMap({"mse": AccuracyCriterion(tolerable_loss=0.1)}))
    rules = directed(named, {"mse": False, "topk": True}).metrics
    assert rules == {"mse": AccuracyCriterion(higher_is_better=False, tolerable_loss=0.1)}
    assert directed(named, {}) is named


def test_unknown_metrics_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="unknown metric 'top5'"):
        MetricEvaluator([], "top5")
