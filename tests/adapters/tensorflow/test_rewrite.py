"""Ranges belong to tensors, switches equal builds, profiles add up, threads are the session's own, saved files are what was run."""

from __future__ import annotations

import os
import time
from typing import Any

import models
import numpy as np
import pytest
from models import ADAPTER, full, graph_of, hold_of

from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.protocols import ProbesSensitivity, ProfilesLatency, Trains
from neural_tune.values import Candidate, Mode, Observer, OpConfig, TensorRange
from neural_tune_tensorflow.backends import onednn
from neural_tune_tensorflow.fixed_ranges import FixedRanges
from neural_tune_tensorflow.runtime import tf

GENERATOR = np.random.default_rng(31)


@pytest.fixture(scope="module")
def batch() -> Any:
    return GENERATOR.normal(size=(8, 8, 8, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def ready(batch, tmp_path_factory) -> Any:
    hold = hold_of(models.small_cnn())
    return hold, ADAPTER.calibrate(hold, [batch], tmp_path_factory.mktemp("statistics"))


def test_the_adapter_offers_the_abilities() -> None:
    assert isinstance(ADAPTER, ProbesSensitivity)
    assert isinstance(ADAPTER, ProfilesLatency)
    assert isinstance(ADAPTER, Trains)


def test_a_switched_op_equals_the_built_candidate(ready, batch) -> None:
    hold, statistics = ready
    candidate = full(hold)
    toggles = ADAPTER.toggles(hold, candidate, statistics, 1)
    (reference,) = ADAPTER.run(ADAPTER.build(hold, Candidate(), None, 1), batch)
    np.testing.assert_allclose(toggles.run(frozenset(), batch)[0], reference, atol=1e-5)
    for names in [{name} for name in candidate.ops] + [set(candidate.ops)]:
        built = ADAPTER.build(hold, Candidate.of({name: candidate.ops[name] for name in names}), statistics, 1)
        (wanted,) = ADAPTER.run(built, batch)
        (found,) = toggles.run(frozenset(names), batch)
        # Equal up to a rounding that falls on the other side: float sums are not integer sums.
        assert np.abs(found - wanted).mean() < 0.02 * np.abs(wanted - reference).mean() + 1e-5, names


def test_one_bad_range_belongs_to_the_tensor_and_leaves_with_its_ops(tmp_path) -> None:
    """With one bad range both neighbours must go (or the range be repaired): the writer or the reader alone do not help."""
    first, second = (GENERATOR.normal(size=(16, 16)).astype(np.float32) for _ in range(2))
    hold = hold_of(graph_of(lambda x: tf.nn.relu(x @ first) @ second, {"x": (None, 16)}))
    rows = GENERATOR.normal(size=(64, 16)).astype(np.float32)
    candidate = full(hold)
    writer, reader = candidate.ops
    tensor = hold.units.by_name[writer].tail
    source = hold.units.by_name[writer].source
    bad = FixedRanges({source: (-4.0, 4.0), tensor: (0.0, 0.3), hold.units.by_name[reader].tail: (-9.0, 9.0)})
    (expected,) = ADAPTER.run(ADAPTER.build(hold, Candidate(), None, 1), rows)

    def error(*names: str) -> float:
        chosen = Candidate.of({name: candidate.ops[name] for name in names})
        (found,) = ADAPTER.run(ADAPTER.build(hold, chosen, bad, 1), rows)
        return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))

    assert error(writer, reader) > 0.5
    assert error(reader) > 0.5
    assert error(writer) < 0.05  # a product hands float to a float reader: the bad range is not used


def test_a_range_choice_overrides_the_observers_around_the_tensor(ready) -> None:
    hold, statistics = ready
    candidate = full(hold)
    tensor = hold.units.by_name[next(name for name in candidate.ops if "conv2" in name)].source
    plain = onednn.planned_of(hold, candidate, statistics)
    chosen = Candidate.of(candidate.ops, [TensorRange(tensor=tensor, observer=Observer.PERCENTILE, percentile=80.0)])
    clipped = onednn.planned_of(hold, chosen, statistics)
    assert clipped.codes[tensor].high < plain.codes[tensor].high
    assert all(clipped.codes[name] == plain.codes[name] for name in plain.codes if name != tensor)
    with pytest.raises(CapabilityError, match="no such tensor"):
        onednn.planned_of(
            hold, Candidate.of(candidate.ops, [TensorRange(tensor="no such tensor", observer=Observer.KL)]), statistics
        )


def test_what_cannot_run_is_refused_by_name(ready) -> None:
    hold, statistics = ready
    name = next(iter(full(hold).ops))
    with pytest.raises(CapabilityError, match=name):
        ADAPTER.build(hold, Candidate.of({name: OpConfig(mode=Mode.DYNAMIC)}), statistics, 1)
    with pytest.raises(CapabilityError, match="does not have"):
        ADAPTER.build(hold, Candidate.of({"nowhere": full(hold).ops[name]}), statistics, 1)
    with pytest.raises(CapabilityError, match="backend 'tpu'"):
        hold_of(models.small_cnn(), backend="tpu")
    with pytest.raises(CapabilityError, match="not offered"):
        hold_of(models.small_cnn(), backend="onnx")


def test_the_report_can_show_what_calibration_saw(ready) -> None:
    hold, statistics = ready
    shown = ADAPTER.ranges(hold, full(hold), statistics)
    assert {"image"} < {item.tensor for item in shown}
    for item in shown:
        assert item.low <= 0.0 < item.high
        assert sum(item.counts) == statistics.of(item.tensor).histogram.count
        # minmax covers all that was seen, but for the lower end of what cannot be negative
        assert item.high == pytest.approx(max(item.maximum, -item.minimum if item.low < 0 else item.maximum), rel=1e-6)


def test_the_profile_covers_the_run_and_knows_the_borders(ready, batch) -> None:
    hold, statistics = ready
    candidate = full(hold)
    profile = ADAPTER.profile(hold, candidate, statistics, batch, 1)
    capability = ADAPTER.query(hold)
    assert set(candidate.ops) <= set(profile.int8_ms)
    assert all(value >= 0.0 for value in (*profile.float_ms.values(), *profile.int8_ms.values()))
    assert profile.predict(capability, ()) > 0.0
    one = frozenset([next(iter(candidate.ops))])
    assert profile.predict(capability, one) > 0.0


def test_sessions_of_one_process_keep_their_own_threads() -> None:
    weight = GENERATOR.normal(size=(1024, 1024)).astype(np.float32)
    hold = hold_of(graph_of(lambda x: tf.sin((x @ weight) @ weight) @ weight, {"x": (None, 1024)}))
    rows = {"x": GENERATOR.normal(size=(512, 1024)).astype(np.float32)}
    shares = {}
    for threads in (1, 2):
        built = ADAPTER.build(hold, Candidate(), None, threads)
        built.run(rows)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(4):
            built.run(rows)
        shares[threads] = (time.process_time() - cpu) / (time.perf_counter() - wall)
    # On a busy machine two threads get less than two processors, but one thread never gets more than one.
    assert shares[1] < 1.15
    if len(os.sched_getaffinity(0)) > 1 and os.getloadavg()[0] < 1.5:
        assert shares[2] > shares[1] * 1.2


def test_outputs_that_a_pb_file_cannot_tell_go_into_a_saved_model(tmp_path) -> None:
    def build(x: Any) -> Any:
        y = tf.nn.relu(x @ np.eye(6, dtype=np.float32))
        return y, y * 2.0

    graph_def = graph_of(build, {"x": (None, 6)}, ("inner", "outer"))
    hold = hold_of(graph_def)
    rows = GENERATOR.normal(size=(3, 6)).astype(np.float32)
    built = ADAPTER.build(hold, Candidate(), None, 1)
    restored = ADAPTER.restore(ADAPTER.save(built, tmp_path), 1)
    assert [port.name for port in restored.outputs] == ["inner", "outer"]
    for one, other in zip(ADAPTER.run(built, rows), ADAPTER.run(restored, rows), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_nan_in_the_statistics_is_named(tmp_path) -> None:
    hold = hold_of(graph_of(lambda x: tf.math.log(x) @ np.ones((6, 6), np.float32), {"x": (None, 6)}))
    with pytest.raises(Exception, match="NaN"):
        ADAPTER.calibrate(hold, [-np.ones((2, 6), np.float32)], tmp_path)
    statistics = ADAPTER.calibrate(hold, [np.zeros((2, 6), np.float32)], tmp_path)
    report = ADAPTER.report(ADAPTER.build(hold, full(hold), statistics, 1))
    assert next(op.reason for op in report.ops if op.type == "MatMul").startswith("tensor 'Log' takes infinite values")
    with pytest.raises(AdapterError):
        ADAPTER.restore(tmp_path / "nowhere")
