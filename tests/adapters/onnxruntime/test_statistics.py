"""Statistics: ranges on demand, and a store that is whole or absent."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

from neural_tune.errors import AdapterError
from neural_tune.numerics import observers
from neural_tune.numerics.histogram import Histogram
from neural_tune.values import Observer
from neural_tune_onnxruntime import statistics
from neural_tune_onnxruntime.capability import OBSERVERS
from neural_tune_onnxruntime.statistics import ChannelStatistics, Statistics, TensorStatistics


def tensor(values, *, channels=None):
    return TensorStatistics(
        minimum=float(values.min()),
        maximum=float(values.max()),
        count=values.size,
        zeros=int(np.sum(values == 0)),
        mean=float(values.mean(dtype=np.float64)),
        histogram=Histogram.of(values),
        channels=channels,
    )


@pytest.fixture
def stats():
    rng = np.random.default_rng(0)
    channels = ChannelStatistics(axis=-1, absmax=np.array([1.5, 2.5, 0.0]), mean=np.array([0.1, -0.2, 0.0]))
    return Statistics(
        {
            "input": tensor(rng.normal(size=10_000).astype(np.float32)),
            "/layer/../odd name\n": tensor(np.maximum(rng.normal(size=3000), 0).astype(np.float32), channels=channels),
            "constant": tensor(np.full(9, -0.1, np.float32)),
        },
        batches=4,
    )


def test_a_tensor_that_was_never_observed_is_named():
    stats = Statistics({"seen": tensor(np.ones(3, np.float32))}, 1)
    with pytest.raises(AdapterError, match=r"'unseen' was never observed.*calibrate again"):
        stats.range_of("unseen", Observer.MINMAX, symmetric=False, levels=256)


def test_a_range_is_computed_once_per_question(stats, monkeypatch):
    calls = []
    find = observers.find_range
    monkeypatch.setattr(observers, "find_range", lambda *args, **kwargs: calls.append(args) or find(*args, **kwargs))
    first = stats.range_of("input", Observer.MSE, symmetric=False, levels=256)
    assert stats.range_of("input", Observer.MSE, symmetric=False, levels=256) == first
    assert len(calls) == 1
    assert stats.range_of("input", Observer.MSE, symmetric=True, levels=256) != first
    assert stats.range_of("input", Observer.PERCENTILE, 99.0, symmetric=False, levels=256) != first
    assert len(calls) == 3


def test_what_is_saved_comes_back_the_same(stats, tmp_path):
    statistics.save(stats, tmp_path / "statistics", key="model")
    loaded = statistics.load(tmp_path / "statistics", key="model")
    assert loaded is not None
    assert loaded.batches == 4
    assert list(loaded.tensors) == list(stats.tensors)
    for name, expected in stats.tensors.items():
        found = loaded.of(name)
        for item in ("minimum", "maximum", "count", "zeros", "mean"):
            assert getattr(found, item) == getattr(expected, item)
        assert (found.histogram.exponent, found.histogram.start) == (
            expected.histogram.exponent,
            expected.histogram.start,
        )
        assert np.array_equal(found.histogram.counts, expected.histogram.counts)
        assert (found.channels is None) == (expected.channels is None)
        if found.channels is not None and expected.channels is not None:
            assert found.channels.axis == expected.channels.axis
            assert np.array_equal(found.channels.absmax, expected.channels.absmax)
            assert np.array_equal(found.channels.mean, expected.channels.mean)
        for observer in OBSERVERS:
            ranges = [item.range_of(name, observer, symmetric=False, levels=256) for item in (stats, loaded)]
            assert ranges[0] == ranges[1]


def test_no_statistics_at_all_can_be_kept_too(tmp_path):
    statistics.save(Statistics({}, 1), tmp_path)
    loaded = statistics.load(tmp_path)
    assert loaded is not None
    assert not loaded.tensors


def test_saving_again_replaces_what_was_there_and_leaves_no_litter(stats, tmp_path):
    statistics.save(stats, tmp_path)
    statistics.save(Statistics({"only": stats.of("input")}, 7), tmp_path)
    loaded = statistics.load(tmp_path)
    assert loaded is not None
    assert (list(loaded.tensors), loaded.batches) == (["only"], 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["statistics.json", "statistics.npz"]


def test_an_absent_folder_is_no_statistics(tmp_path):
    assert statistics.load(tmp_path / "nowhere") is None


def test_statistics_of_another_model_are_not_used(stats, tmp_path):
    statistics.save(stats, tmp_path, key="one model")
    assert statistics.load(tmp_path, key="another model") is None


@pytest.mark.parametrize("name", ["statistics.json", "statistics.npz"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_torn_file_is_no_statistics(stats, tmp_path, name, kept):
    statistics.save(stats, tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * kept)])
    assert statistics.load(tmp_path) is None


def test_a_crash_between_the_two_files_is_no_statistics(stats, tmp_path):
    statistics.save(stats, tmp_path / "old")
    statistics.save(Statistics({"only": stats.of("input")}, 7), tmp_path / "new")
    (tmp_path / "new" / "statistics.npz").replace(tmp_path / "old" / "statistics.npz")
    assert statistics.load(tmp_path / "old") is None


def test_a_crash_while_writing_keeps_the_old_statistics(stats, tmp_path, monkeypatch):
    statistics.save(stats, tmp_path)

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(statistics.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        statistics.save(Statistics({}, 9), tmp_path)
    monkeypatch.undo()
    loaded = statistics.load(tmp_path)
    assert loaded is not None
    assert loaded.batches == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["statistics.json", "statistics.npz"]


def test_another_version_is_no_statistics(stats, tmp_path):
    statistics.save(stats, tmp_path)
    index = json.loads((tmp_path / "statistics.json").read_text())
    (tmp_path / "statistics.json").write_text(json.dumps({**index, "version": 999}))
    assert statistics.load(tmp_path) is None


def test_a_pickle_in_the_archive_is_never_loaded(stats, tmp_path):
    statistics.save(stats, tmp_path)
    np.savez(tmp_path / "statistics.npz", bounds=np.array([object()], dtype=object))
    index = json.loads((tmp_path / "statistics.json").read_text())
    digest = statistics.hashlib.sha256((tmp_path / "statistics.npz").read_bytes()).hexdigest()
    (tmp_path / "statistics.json").write_text(json.dumps({**index, "sha256": digest}))
    assert statistics.load(tmp_path) is None


def test_statistics_travel_to_another_process(stats):
    copy = pickle.loads(pickle.dumps(stats))
    assert copy.range_of("input", Observer.KL, symmetric=False, levels=256) == stats.range_of(
        "input", Observer.KL, symmetric=False, levels=256
    )
