"""The benchmark of models in turns times the models that were judged, or says why not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason='the benchmark runs models in it: pip install "neural-tune[onnxruntime]"')
pytest.importorskip("onnx", reason='the benchmark reads models with it: pip install "neural-tune[onnxruntime]"')

SEARCH = Path(__file__).parents[3] / "benchmarks" / "search"


@pytest.fixture
def modules(monkeypatch):
    """The benchmark's own modules, which are scripts in a folder, as long as the test runs."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(SEARCH))
    import duel
    import judge

    yield duel, judge
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(SEARCH)):
            del sys.modules[name]


def test_a_model_written_by_a_later_run_is_not_timed(modules, tmp_path, monkeypatch):
    duel, judge = modules
    timed = []
    monkeypatch.setattr(duel, "prepare", lambda name: type("Task", (), {"batches": (1,)}))
    monkeypatch.setattr(duel, "runner", lambda model: model)
    monkeypatch.setattr(
        duel,
        "compare",
        lambda peer, ours, *_: timed.append((peer, ours)) or {"ratio": 2.0, "quartile_low": 1.9, "quartile_high": 2.1},
    )
    rows = []
    for name in ("ours", "peer"):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(name.encode())
        rows.append({"contestant": name, "artifact": str(path), "artifact_sha256": judge.digest(path)})
    assert list(duel.duel("t20", *rows)) == ["| t20 | ours | peer | 2.00 (1; 1.90-2.10) |"]
    assert timed == [(tmp_path / "peer.onnx", tmp_path / "ours.onnx")]
    (tmp_path / "peer.onnx").write_bytes(b"of a later run")
    assert [*duel.duel("t20", *rows)] == [
        "| t20 | ours | peer | not timed: the model of peer is that of another run; repeat run.py |"
    ]
    (tmp_path / "peer.onnx").unlink()
    assert "the model of peer is gone" in next(duel.duel("t20", *rows))
    assert "does not say which file" in next(duel.duel("t20", {**rows[0], "artifact_sha256": ""}, rows[1]))
    assert len(timed) == 1
