"""The toy adapter keeps the adapter protocol, computes in integers, and int8 costs it accuracy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neural_tune.errors import AdapterError, CapabilityError, ConfigError, DataError
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.testing import TOY_PLUGIN, AdapterConformance, ToyAdapter, ToyModel, ToyTask, sabotage, toy_task
from neural_tune.values import FLOAT, FLOAT_CANDIDATE, Candidate, DType, FrozenMap, Observer, TensorRange

FEATURES = 16


@pytest.fixture(scope="module")
def task() -> ToyTask:
    return toy_task(0)


class TestToyConformance(AdapterConformance):
    @pytest.fixture
    def adapter(self):
        return ToyAdapter()

    @pytest.fixture
    def model(self, task):
        return task.model.copy()

    @pytest.fixture
    def calibration(self, task):
        return task.batches(32)

    @pytest.fixture
    def plugin(self):
        return TOY_PLUGIN

    @pytest.fixture
    def float_outputs(self, task, inputs):
        return (task.model(inputs),)


class TestToyFileConformance(TestToyConformance):
    @pytest.fixture
    def model(self, task, tmp_path_factory):
        return task.model.save(tmp_path_factory.mktemp("float") / "model.toy.npz")


def _build(task, model, tmp_path, change=None, *, adapter=None, candidate=None):
    """Calibrate and build: full int8, or `candidate`, or what `change` makes of full int8."""
    adapter = adapter or ToyAdapter()
    hold = adapter.load(model, AdapterOptions())
    space = TuningSpace.of(adapter.query(hold))
    statistics = adapter.calibrate(hold, task.batches(), tmp_path)
    candidate = candidate or space.preferred()
    return adapter.build(hold, change(space, candidate) if change else candidate, statistics, 1)


def test_task_is_the_same_for_every_call_and_worth_quantizing(task):
    again = toy_task(0)
    assert all(np.array_equal(one, other) for one, other in zip(task.model.weights, again.model.weights, strict=True))
    assert not np.array_equal(task.inputs, toy_task(1).inputs)
    assert 0.85 < task.accuracy(task.model) < 1.0


def test_int8_costs_a_little_accuracy_and_four_times_the_size(task, tmp_path):
    adapter = ToyAdapter()
    built = _build(task, task.model, tmp_path)
    float_accuracy = task.accuracy(task.model)
    assert float_accuracy - 0.05 < task.accuracy(built) <= float_accuracy + 0.02
    assert not np.array_equal(built(task.inputs), task.model(task.inputs))
    hold = adapter.load(task.model, AdapterOptions())
    assert adapter.size(adapter.build(hold, FLOAT_CANDIDATE, None, 1)) > 2 * adapter.size(built)


@pytest.mark.parametrize("op", ["dense2", "dense3", "dense4"])
def test_sabotage_keeps_the_function_and_breaks_int8_for_that_op_alone(task, tmp_path, op):
    broken = sabotage(task.model, op)
    assert np.array_equal(broken(task.inputs), task.model(task.inputs))
    baseline = task.accuracy(task.model)
    assert task.accuracy(_build(task, broken, tmp_path)) < baseline - 0.05
    for other in broken.dense_names:
        accuracy = task.accuracy(
            _build(
                task,
                broken,
                tmp_path,
                lambda space, full, other=other: Candidate.of({other: full.config_of(other)}),
            )
        )
        assert (accuracy < baseline - 0.05) == (other == op), (other, accuracy)


def test_sabotage_refuses_the_first_layer(task):
    with pytest.raises(ConfigError, match="expected one of dense2, dense3, dense4"):
        sabotage(task.model, "dense1")


def test_integer_layers_agree_with_exact_arithmetic_on_python_integers(tmp_path):
    """Two layers by hand: quantize, multiply and add Python integers, requantize with fractions."""
    from fractions import Fraction

    generator = np.random.default_rng(3)
    model = ToyModel(
        [generator.normal(size=(4, 3)).astype(np.float32), generator.normal(size=(3, 2)).astype(np.float32)],
        [generator.normal(size=3).astype(np.float32), generator.normal(size=2).astype(np.float32)],
    )
    samples = generator.normal(size=(50, 4)).astype(np.float32)
    adapter = ToyAdapter()
    hold = adapter.load(model, AdapterOptions())
    space = TuningSpace.of(adapter.query(hold))
    built = adapter.build(hold, space.preferred(), adapter.calibrate(hold, [samples], tmp_path), 1)
    first, second = built.layers
    for sample, found in zip(samples, built(samples), strict=True):
        integers = [
            min(max(int(np.rint(value / np.float32(first.grid.scale))) + first.grid.zero_point, 0), 255)
            for value in sample
        ]
        hidden = []
        for column in range(3):
            total = int(first.bias[column]) + sum(
                (integer - first.grid.zero_point) * int(first.weight[row, column])
                for row, integer in enumerate(integers)
            )
            real = total * Fraction(first.grid.scale) * Fraction(float(first.weight_scale[column]))
            hidden.append(min(max(round(real / Fraction(second.grid.scale)), 0), 255 - second.grid.zero_point))
        for column in range(2):
            total = int(second.bias[column]) + sum(
                step * int(second.weight[row, column]) for row, step in enumerate(hidden)
            )
            exact = total * Fraction(second.grid.scale) * Fraction(float(second.weight_scale[column]))
            assert found[column] == pytest.approx(float(exact), rel=1e-6)


def test_percentile_clips_what_minmax_keeps(task, tmp_path):
    spiked = task.calibration.copy()
    spiked[0, 0] = 1000.0
    adapter = ToyAdapter()
    hold = adapter.load(task.model, AdapterOptions())
    space = TuningSpace.of(adapter.query(hold))
    statistics = adapter.calibrate(hold, [spiked], tmp_path)
    low, high = statistics.range_of("x", Observer.MINMAX, symmetric=False, levels=256)
    assert (low, high) == (pytest.approx(task.calibration.min()), 1000.0)
    clipped = statistics.range_of("x", Observer.PERCENTILE, 99.9, symmetric=True, levels=256)[1]
    exact = np.quantile(np.abs(spiked), 0.999, method="higher")
    assert exact <= clipped <= exact + 1024 / 2048  # one bin of the histogram, which has widened to 1024
    config = next(c for c in space.groups[0].choices if not c.is_float and c.activation.observer is Observer.PERCENTILE)
    by_config = adapter.build(hold, Candidate.of({"dense1": config}), statistics, 1)
    choice = TensorRange(tensor="x", observer=Observer.PERCENTILE)
    by_range = adapter.build(hold, Candidate.of({"dense1": space.groups[0].choices[0]}, [choice]), statistics, 1)
    assert np.array_equal(by_config(task.inputs), by_range(task.inputs))


def test_statistics_do_not_depend_on_the_batch_size(task, tmp_path):
    adapter = ToyAdapter()
    hold = adapter.load(task.model, AdapterOptions())
    whole = adapter.calibrate(hold, [task.calibration], tmp_path / "a")
    parts = adapter.calibrate(hold, task.batches(7), tmp_path / "b")
    for name, tensor in whole.tensors.items():
        other = parts.tensors[name]
        assert tensor.maximum == pytest.approx(other.maximum, rel=1e-5)
        assert (
            np.abs(np.cumsum(tensor.histogram.counts) - np.cumsum(other.histogram.counts)).max() <= 2
        )  # BLAS rounds by batch size
        assert tensor.histogram.counts.sum() == other.histogram.counts.sum()


def test_statistics_of_another_model_are_none(task, tmp_path):
    adapter = ToyAdapter()
    adapter.calibrate(adapter.load(task.model, AdapterOptions()), task.batches(), tmp_path)
    assert adapter.load_statistics(adapter.load(toy_task(1).model, AdapterOptions()), tmp_path) is None


def test_signed_activations_are_extra_and_build(task, tmp_path):
    adapter = ToyAdapter()
    hold = adapter.load(task.model, AdapterOptions(reduce_range=True))
    op = adapter.query(hold).ops[0]
    assert all(config.activation.dtype is DType.INT8 for config in op.extra)
    statistics = adapter.calibrate(hold, task.batches(), tmp_path)
    built = adapter.build(hold, Candidate.of({op.name: op.extra[0]}), statistics, 1)
    assert np.abs(built.layers[0].weight).max() <= 63
    assert task.accuracy(built) > task.accuracy(task.model) - 0.05


def test_faults_raise_at_build_poison_outputs_and_spare_the_float_op(task, tmp_path):
    with pytest.raises(AdapterError, match="dense2 was told to fail"):
        _build(task, task.model, tmp_path, adapter=ToyAdapter({"dense2": "raise"}))
    poisoned = _build(task, task.model, tmp_path, adapter=ToyAdapter({"dense2": "nan"}))
    assert np.isnan(poisoned(task.inputs)).all()
    spared = _build(
        task,
        task.model,
        tmp_path,
        lambda space, full: full.with_ops({"dense2": FLOAT}),
        adapter=ToyAdapter({"dense2": "nan"}),
    )
    assert np.isfinite(spared(task.inputs)).all()


def test_segv_fault_kills_the_process_at_run(tmp_path):
    code = f"""
import pathlib
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.testing import ToyAdapter, toy_task
task, adapter = toy_task(), ToyAdapter({{"dense2": "segv"}})
hold = adapter.load(task.model, AdapterOptions())
statistics = adapter.calibrate(hold, task.batches(), pathlib.Path({str(tmp_path)!r}))
built = adapter.build(hold, TuningSpace.of(adapter.query(hold)).preferred(), statistics, 1)
print("built", flush=True)
built(task.inputs)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-11, "built\n"), done.stderr


def test_faults_by_option_and_wrong_faults(task):
    hold = ToyAdapter().load(task.model, AdapterOptions(extra=FrozenMap({"faults": {"dense1": "nan"}})))
    assert hold.faults == {"dense1": "nan"}
    for wrong in ({"dense9": "nan"}, {"dense1": "explode"}):
        with pytest.raises(ConfigError, match="toy faults"):
            ToyAdapter(wrong).load(task.model, AdapterOptions())


def test_guard_sees_outputs_that_are_not_finite(task, tmp_path):
    adapter = ToyAdapter({"dense1": "nan"})
    artifact = adapter.save(_build(task, task.model, tmp_path, adapter=adapter), tmp_path)
    assert adapter.guard(artifact, task.inputs[:8]) == ("outputs are not finite",)


def test_what_the_toy_lacks_is_a_capability_error(task, tmp_path):
    adapter = ToyAdapter()
    for options in (AdapterOptions(approach="dynamic"), AdapterOptions(device="gpu")):
        with pytest.raises(CapabilityError):
            adapter.load(task.model, options)
    hold = adapter.load(task.model, AdapterOptions())
    statistics = adapter.calibrate(hold, task.batches(), tmp_path)
    config = TuningSpace.of(adapter.query(hold)).groups[0].choices[0]
    wrong = (
        Candidate.of({"dense9": config}),
        Candidate.of({"relu1": config}),
        Candidate.of({"dense1": config}, recipes=["smooth"]),
        Candidate.of({"dense1": config}, [TensorRange(tensor="nowhere", observer=Observer.MINMAX)]),
        Candidate.of({"dense1": config}, [TensorRange(tensor="x", observer=Observer.KL)]),
    )
    for candidate in wrong:
        with pytest.raises(CapabilityError):
            adapter.build(hold, candidate, statistics, 1)


def test_files_that_are_no_model_are_errors(tmp_path):
    path = tmp_path / "broken.toy.npz"
    path.write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(DataError, match="no toy model"):
        ToyAdapter().load(path, AdapterOptions())
    with pytest.raises(AdapterError, match="expected a ToyModel or a path"):
        ToyAdapter().load(object(), AdapterOptions())
    with pytest.raises(ConfigError, match=r"ends in \.toy\.npz"):
        ToyModel([], []).save(Path("model.bin"))
