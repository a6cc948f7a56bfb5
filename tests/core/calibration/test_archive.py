"""Statistics on disk: whole or absent, never half."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pytest

from neural_tune.calibration import Statistics, load, save
from neural_tune.values import Observer

OBSERVERS = (Observer.MINMAX, Observer.PERCENTILE, Observer.KL, Observer.MSE)


def test_what_is_saved_comes_back_the_same(stats, tmp_path):
    save(stats, tmp_path / "statistics", key="model")
    loaded = load(tmp_path / "statistics", key="model")
    assert loaded is not None
    assert loaded.batches == 4
    assert loaded.infinite == {"mask"}
    assert list(loaded.tensors) == list(stats.tensors)
    for name, expected in stats.tensors.items():
        found = loaded.of(name)
        for item in ("minimum", "maximum", "zeros"):
            assert getattr(found, item) == getattr(expected, item)
        assert (found.histogram.exponent, found.histogram.start) == (
            expected.histogram.exponent,
            expected.histogram.start,
        )
        assert np.array_equal(found.histogram.counts, expected.histogram.counts)
        for observer in OBSERVERS:
            ranges = [item.range_of(name, observer, symmetric=False, levels=256) for item in (stats, loaded)]
            assert ranges[0] == ranges[1]


def test_no_statistics_at_all_can_be_kept_too(tmp_path):
    save(Statistics({}, 1), tmp_path, key="model")
    loaded = load(tmp_path, key="model")
    assert loaded is not None
    assert not loaded.tensors


def test_saving_again_replaces_what_was_there_and_leaves_no_litter(stats, tmp_path):
    save(stats, tmp_path, key="model")
    save(Statistics({"only": stats.of("input")}, 7), tmp_path, key="model")
    loaded = load(tmp_path, key="model")
    assert loaded is not None
    assert (list(loaded.tensors), loaded.batches) == (["only"], 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["statistics.json", "statistics.npz"]


def test_an_absent_folder_is_no_statistics(tmp_path):
    assert load(tmp_path / "nowhere", key="model") is None


def test_statistics_of_another_model_are_not_used(stats, tmp_path):
    save(stats, tmp_path, key="one model")
    assert load(tmp_path, key="another model") is None


@pytest.mark.parametrize("name", ["statistics.json", "statistics.npz"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_torn_file_is_no_statistics(stats, tmp_path, name, kept):
    save(stats, tmp_path, key="model")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * kept)])
    assert load(tmp_path, key="model") is None


def test_a_crash_between_the_two_files_is_no_statistics(stats, tmp_path):
    save(stats, tmp_path / "old", key="model")
    save(Statistics({"only": stats.of("input")}, 7), tmp_path / "new", key="model")
    (tmp_path / "new" / "statistics.npz").replace(tmp_path / "old" / "statistics.npz")
    assert load(tmp_path / "old", key="model") is None


def test_a_crash_while_writing_keeps_the_old_statistics(stats, tmp_path, monkeypatch):
    save(stats, tmp_path, key="model")

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        save(Statistics({}, 9), tmp_path, key="model")
    monkeypatch.undo()
    loaded = load(tmp_path, key="model")
    assert loaded is not None
    assert loaded.batches == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["statistics.json", "statistics.npz"]


def test_another_version_is_no_statistics(stats, tmp_path):
    save(stats, tmp_path, key="model")
    index = json.loads((tmp_path / "statistics.json").read_text())
    (tmp_path / "statistics.json").write_text(json.dumps({**index, "version": 999}))
    assert load(tmp_path, key="model") is None


def test_a_pickle_in_the_archive_is_never_loaded(stats, tmp_path):
    save(stats, tmp_path, key="model")
    np.savez(tmp_path / "statistics.npz", bounds=np.array([object()], dtype=object))
    index = json.loads((tmp_path / "statistics.json").read_text())
    digest = hashlib.sha256((tmp_path / "statistics.npz").read_bytes()).hexdigest()
    (tmp_path / "statistics.json").write_text(json.dumps({**index, "sha256": digest}))
    assert load(tmp_path, key="model") is None
