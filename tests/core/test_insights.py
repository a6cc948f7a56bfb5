from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neural_tune.config import PerformanceConfig, TuneConfig
from neural_tune.evaluation import FunctionEvaluator
from neural_tune.insights import divergence, gather
from neural_tune.protocols import AdapterOptions
from neural_tune.run_directory import RunDirectory
from neural_tune.space import TuningSpace
from neural_tune.testing import ToyAdapter, ToyModel, sabotage, toy_task
from neural_tune.trials import Workbench

TASK = toy_task()


def workbench(model: ToyModel, tmp_path: Path, adapter: Any = None) -> tuple[Workbench, TuningSpace]:
    adapter = adapter or ToyAdapter()
    held = adapter.load(model, AdapterOptions())
    bench = Workbench(
        adapter=adapter,
        model=held,
        statistics=adapter.calibrate(held, TASK.batches(), tmp_path / "statistics"),
        config=TuneConfig(performance=PerformanceConfig(repeats=10, seconds=0.05)),
        evaluator=FunctionEvaluator(TASK.accuracy),
        directory=RunDirectory(tmp_path),
        sample=TASK.calibration[:8],
        batch_size=8,
    )
    return bench, TuningSpace.of(adapter.query(held))


def quiet(done: int, total: int) -> None:
    assert 0 < done <= total


@pytest.mark.parametrize("bad", ["dense2", "dense3", "dense4"])
def test_a_planted_bad_op_ranks_first(tmp_path: Path, bad: str) -> None:
    bench, space = workbench(sabotage(TASK.model, bad, 4096.0), tmp_path)
    insight = gather(bench, space, frozenset({"divergence"}), TASK.batches()[:2], quiet)
    assert max(insight.divergence, key=insight.divergence.__getitem__) == bad
    assert insight.samples == 64


def test_divergence_of_single_groups_predicts_that_of_all(tmp_path: Path) -> None:
    bench, space = workbench(TASK.model, tmp_path)
    insight = gather(bench, space, frozenset({"divergence"}), TASK.batches()[:2], quiet)
    assert 0.3 < sum(insight.divergence.values()) / insight.full < 3.0


def test_toggles_and_built_candidates_agree(tmp_path: Path) -> None:
    class Toggling(ToyAdapter):
        def toggles(self, model: Any, candidate: Any, statistics: Any, threads: int | None) -> Any:
            adapter = self

            class Toggles:
                def run(self, int8_ops: frozenset[str], inputs: Any) -> Any:
                    ops = {name: config for name, config in candidate.ops.items() if name in int8_ops}
                    return adapter.run(adapter.build(model, type(candidate).of(ops), statistics), inputs)

            return Toggles()

    wants = frozenset({"divergence"})
    plain = gather(*workbench(TASK.model, tmp_path), wants, TASK.batches()[:2], quiet)
    toggled = gather(*workbench(TASK.model, tmp_path, Toggling()), wants, TASK.batches()[:2], quiet)
    assert plain.divergence == toggled.divergence


def test_an_adapter_that_simulates_builds_nothing_for_probes(tmp_path: Path) -> None:
    class Compiling(ToyAdapter):
        simulated = 0

        def simulate(self, model: Any, candidate: Any, statistics: Any, threads: int | None) -> Any:
            self.simulated += 1
            return ToyAdapter.build(self, model, candidate, statistics, threads)

        def build(self, model: Any, candidate: Any, statistics: Any, threads: int | None) -> Any:
            raise AssertionError("a probe compiled")

    adapter = Compiling()
    bench, space = workbench(TASK.model, tmp_path, adapter)
    found = gather(bench, space, frozenset({"divergence"}), TASK.batches()[:1], quiet)
    plain = gather(workbench(TASK.model, tmp_path)[0], space, frozenset({"divergence"}), TASK.batches()[:1], quiet)
    assert found.divergence == plain.divergence
    assert adapter.simulated > len(space.groups)


def test_a_group_that_cannot_be_built_diverges_infinitely(tmp_path: Path) -> None:
    bench, space = workbench(TASK.model, tmp_path, ToyAdapter(faults={"dense2": "raise"}))
    insight = gather(bench, space, frozenset({"divergence"}), TASK.batches()[:1], quiet)
    assert insight.divergence["dense2"] == np.inf
    assert insight.full == np.inf


def test_nothing_is_run_that_was_not_asked_for(tmp_path: Path) -> None:
    bench, space = workbench(TASK.model, tmp_path)
    insight = gather(bench, space, frozenset({"latency"}), TASK.batches()[:1], quiet)
    assert not insight.divergence
    assert insight.latency is None  # the toy cannot profile
    assert insight.forwards == 0
    assert insight.answered == {"latency"}


def test_divergence_is_the_error_over_the_variance_of_the_reference() -> None:
    reference = [(np.array([[1.0, 3.0]]),), (np.array([[5.0, 7.0]]),)]  # variance 5
    shifted = [(np.array([[2.0, 4.0]]),), (np.array([[6.0, 8.0]]),)]
    assert divergence(reference, reference) == 0.0
    assert divergence(reference, shifted) == pytest.approx(1.0 / 5.0)
    assert divergence(reference, [(np.array([[np.nan, 1.0]]),), (np.array([[1.0, 1.0]]),)]) == np.inf


def test_every_output_counts_the_same_whatever_its_magnitude() -> None:
    small, large = np.array([[1.0, 3.0]]), np.array([[1000.0, 3000.0]])
    found = divergence([(small, large)], [(small, large * 1.1)])
    assert found == pytest.approx(divergence([(large, small)], [(large, small * 1.1)]))


def test_mean_traces_are_those_of_the_loss() -> None:
    """Along a random direction of signs, twice the loss over the squared step is v^T H v, whose mean is the trace."""
    adapter, step = ToyAdapter(), 1e-3
    hold = adapter.load(TASK.model, AdapterOptions())
    batches = TASK.batches()[:2]
    traces = adapter.hessian_traces(hold, batches, 0)
    assert traces == adapter.hessian_traces(hold, batches, 1)
    inputs = np.concatenate(batches)

    def logits(model: ToyModel) -> Any:
        values = inputs.astype(np.float64)
        for place, (weight, bias) in enumerate(zip(model.weights, model.biases, strict=True)):
            values = values @ weight.astype(np.float64) + bias
            values = values if place == len(model.weights) - 1 else np.maximum(values, 0.0)
        return values

    reference, draw = logits(TASK.model), np.random.default_rng(0)
    for place, name in enumerate(TASK.model.dense_names):
        found = []
        for _ in range(60):
            moved = TASK.model.copy()
            moved.weights[place] = moved.weights[place] + step * draw.choice([-1.0, 1.0], moved.weights[place].shape)
            found.append(2.0 * np.mean((logits(moved) - reference) ** 2) / reference.var() / step**2)
        assert np.mean(found) / TASK.model.weights[place].size == pytest.approx(traces[name], rel=0.2)


def test_curvature_joins_traces_and_weight_errors_per_group(tmp_path: Path) -> None:
    bench, space = workbench(sabotage(TASK.model, "dense3", 4096.0), tmp_path)
    insight = gather(bench, space, frozenset({"curvature"}), TASK.batches()[:2], quiet)
    full = space.preferred()
    errors = bench.adapter.weight_errors(bench.model, full)
    traces = bench.adapter.hessian_traces(bench.model, TASK.batches()[:2], 0)
    assert insight.curvature == {name: pytest.approx(traces[name] * errors[name]) for name in TASK.model.dense_names}
    built = bench.adapter.build(bench.model, full, bench.statistics)
    for layer, weight in zip(built.layers, bench.model.model.weights, strict=True):
        assert errors[layer.name] == pytest.approx(
            float(np.square(layer.weight * layer.weight_scale - weight).sum()), rel=1e-5
        )


def test_findings_are_added_to_what_is_known(tmp_path: Path) -> None:
    bench, space = workbench(TASK.model, tmp_path)
    known = gather(bench, space, frozenset({"latency"}), TASK.batches()[:1], quiet)
    both = gather(bench, space, frozenset({"divergence"}), TASK.batches()[:1], quiet, known)
    assert both.answered == {"latency", "divergence"}
    assert both.forwards == 1 + len(space.groups) + 1
