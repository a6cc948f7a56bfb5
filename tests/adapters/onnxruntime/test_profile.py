"""The latency profile: every node of an optimized graph is traced to an op or a border, and sums predict real run times."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import random
import tempfile

import graphs
import numpy as np
import onnx
from graphs import ADAPTER, Tuned
from onnx import helper

from neural_tune.errors import DataError
from neural_tune.measure import compare_speed
from neural_tune.protocols import AdapterOptions, ProfilesLatency
from neural_tune.space import TuningSpace
from neural_tune.values import FLOAT_CANDIDATE, Candidate, Role
from neural_tune_onnxruntime import profile
from neural_tune_onnxruntime.attribution import attribute
from neural_tune_onnxruntime.inputs import to_feed


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(profile, "_SECONDS", 0.03)


@pytest.fixture(params=sorted(graphs.NETS))
def tuned(request, tmp_path):
    model = graphs.NETS[request.param]()
    return Tuned(model, graphs.batches(model), tmp_path)


def half(tuned):
    return profile._mixed(tuned.hold, tuned.space.preferred())[0]


def recordings_of(tuned, candidates):
    feed = to_feed(tuned.feeds[0], tuned.build().inputs)
    return profile.record(tuned.hold, candidates, tuned.statistics, feed, 1)


def test_the_adapter_has_the_ability():
    assert isinstance(ADAPTER, ProfilesLatency)


def test_node_time_is_traced_to_known_ops(tuned):
    recordings = recordings_of(tuned, [FLOAT_CANDIDATE, tuned.space.preferred(), half(tuned)])
    for item, spent in zip(recordings, profile.spend(tuned.hold, recordings), strict=True):
        assert spent.share_known >= 0.9, item.candidate
        assert set(spent.ops) <= {op.name for op in tuned.capability.ops}
        assert not item.candidate.is_float or not (spent.enter or spent.leave)


def test_each_node_counts_once_and_each_anchor_has_a_kernel(tuned):
    for candidate in (FLOAT_CANDIDATE, tuned.space.preferred(), half(tuned)):
        (_, item) = recordings_of(tuned, [FLOAT_CANDIDATE, candidate])
        spent = attribute(tuned.hold, item.optimized, dict.fromkeys(item.node_ms, 1.0))
        booked = sum(map(sum, (spent.ops.values(), spent.enter.values(), spent.leave.values())))
        assert booked + spent.unknown == len(item.node_ms)
        assert spent.unknown == 0
        for op in tuned.capability.ops:
            if op.role is Role.ANCHOR:
                assert spent.ops[op.name] >= 1, op.name


def test_borders_are_found_where_the_candidate_has_them(tmp_path):
    model = graphs.conv_net()
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    full = tuned.space.preferred()
    (_, item) = recordings_of(tuned, [FLOAT_CANDIDATE, Candidate.of({"conv3": full.ops["conv3"]})])
    spent = attribute(tuned.hold, item.optimized, dict.fromkeys(item.node_ms, 1.0))
    assert set(spent.enter) == {"p2"}
    assert set(spent.leave) == {"r3"}


def test_the_profile_covers_ops_and_borders_in_sensible_sizes(tuned):
    found = ADAPTER.profile(tuned.hold, tuned.space.preferred(), tuned.statistics, tuned.feeds[0], 1)
    anchors = {op.name for op in tuned.capability.ops if op.role is Role.ANCHOR}
    assert anchors <= set(found.float_ms)
    assert anchors <= set(found.int8_ms)
    every = [*found.float_ms.values(), *found.int8_ms.values(), *found.border_ms.values(), *found.leave_ms.values()]
    assert all(np.isfinite(value) and 0 <= value < 1e3 for value in every)
    assert found.batch_size == 5
    assert found.threads == 1
    assert found.predict(tuned.capability, ()) > 0


def test_no_file_is_left_behind(tuned, tmp_path, monkeypatch):
    here, scratch = tmp_path / "here", tmp_path / "scratch"
    here.mkdir()
    scratch.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    ADAPTER.profile(tuned.hold, tuned.space.preferred(), tuned.statistics, tuned.feeds[0], 1)
    assert list(here.iterdir()) == []
    assert list(scratch.iterdir()) == []


def test_a_model_of_one_op_can_be_profiled(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "only")]
    model = graphs.graph_of(nodes, graphs.weights(w=(16, 8)), {"x": ["n", 16]})
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    found = ADAPTER.profile(tuned.hold, tuned.space.preferred(), tuned.statistics, tuned.feeds[0], 1)
    assert found.float_ms["only"] > 0
    assert found.border_ms["x"] > 0
    assert found.leave_ms["y"] == 0  # the product comes out in float


def test_what_a_table_in_int8_hands_out_is_its_own_time_and_no_border_that_int8_readers_spare(tmp_path):
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], "embed"),
        helper.make_node("MatMul", ["rows", "w"], ["y"], "product"),
    ]
    source = graphs.graph_of(nodes, graphs.weights(table=(512, 64), w=(64, 8)), {})
    source.graph.input.append(helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n", 16]))
    held = ADAPTER.load(source, AdapterOptions(approach="dynamic", has_data=False))
    full = TuningSpace.of(ADAPTER.query(held)).preferred()
    assert set(full.ops) == {"embed", "product"}
    ids = np.arange(128, dtype=np.int64).reshape(8, 16)
    recordings = profile.record(held, [FLOAT_CANDIDATE, full], None, {"ids": ids}, 1)
    rows = next(n.name for n in recordings[1].optimized.ops if n.type == "DequantizeLinear")
    assert recordings[1].node_ms[rows] > 0
    spent = profile.spend(held, recordings)[1]
    assert not spent.leave
    codes = sum(ms for name, ms in recordings[1].node_ms.items() if name != rows and "product" not in name)
    assert spent.ops["embed"] / sum(spent.ops.values()) > codes / sum(recordings[1].node_ms.values())
    found = ADAPTER.profile(held, full, None, ids, 1)
    assert (found.border_ms["ids"], found.border_ms["rows"]) == (0.0, 0.0)
    assert (found.leave_ms["rows"], found.leave_ms["y"]) == (0.0, 0.0)


def test_inputs_are_checked_as_everywhere(tuned):
    with pytest.raises(DataError):
        ADAPTER.profile(tuned.hold, tuned.space.preferred(), tuned.statistics, np.zeros((2, 2), np.int64), 1)


@pytest.mark.slow
@pytest.mark.shared_data
def test_predictions_hold_on_a_real_network(shared_data, tmp_path, monkeypatch):
    """Within 35 % of the measured ratio to float, on a machine that may be busy; benchmarks/onnxruntime/bench_predict.py asks for 20 %."""
    monkeypatch.setattr(profile, "_SECONDS", 0.4)
    with np.load(shared_data / "cifar10.npz", allow_pickle=False) as data:
        x = (data["x_calib"][:40].astype(np.float32) / 255 - 0.45) / 0.225
    x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    tuned = Tuned(shared_data / "resnet20_cifar10.onnx", [{"input": x}], tmp_path)
    full, feed, rng = tuned.space.preferred(), {"input": x[:1]}, random.Random(5)
    found = ADAPTER.profile(tuned.hold, full, tuned.statistics, feed, 1)
    reference = tuned.build(FLOAT_CANDIDATE)
    for _ in range(3):
        candidate = Candidate.of({name: config for name, config in full.ops.items() if rng.random() < 0.6})
        built = tuned.build(candidate)
        measured = compare_speed(
            lambda: reference.session.run(None, feed),
            lambda built=built: built.session.run(None, feed),
            batch_size=1,
            threads=1,
            seconds=1.0,
        )
        predicted = found.predict(tuned.capability, ()) / found.predict(tuned.capability, candidate.ops)
        assert predicted == pytest.approx(measured.ratio, rel=0.35)
