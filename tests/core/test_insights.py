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
    assert insight.forwards == 2  # float and full int8


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
