"""Saved models are whole, valid, of the size that was promised, and run with plain onnxruntime."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import subprocess
import sys

import graphs
import numpy as np
import onnx
from graphs import ADAPTER, Tuned

from neural_tune.errors import AdapterError
from neural_tune.values import FLOAT_CANDIDATE
from neural_tune_onnxruntime import save


@pytest.fixture(params=sorted(graphs.NETS))
def tuned(request, tmp_path):
    source = graphs.NETS[request.param]()
    return Tuned(source, graphs.batches(source), tmp_path)


@pytest.mark.parametrize("candidate", ["int8", "float"])
def test_saved_model_is_one_valid_file_of_the_promised_size(tuned, candidate, tmp_path):
    built = tuned.build(None if candidate == "int8" else FLOAT_CANDIDATE)
    path = ADAPTER.save(built, tmp_path / "saved")
    assert [item.name for item in (tmp_path / "saved").iterdir()] == ["model.onnx"]
    onnx.checker.check_model(str(path), full_check=True)
    assert {item.domain for item in onnx.load(str(path)).opset_import} <= {""}
    assert abs(ADAPTER.size(built) - path.stat().st_size) <= 4
    np.testing.assert_array_equal(graphs.run(path, tuned.feeds[0])[0], ADAPTER.run(built, tuned.feeds[0])[0])


def test_saved_model_runs_in_a_process_that_knows_only_onnxruntime(tuned, tmp_path):
    path = ADAPTER.save(tuned.build(), tmp_path / "saved")
    np.save(tmp_path / "x.npy", tuned.feeds[0]["x"])
    code = (
        "import sys, numpy as np, onnxruntime as ort\n"
        f"s = ort.InferenceSession({str(path)!r}, providers=['CPUExecutionProvider'])\n"
        f"np.save({str(tmp_path / 'y.npy')!r}, s.run(None, {{'x': np.load({str(tmp_path / 'x.npy')!r})}})[0])\n"
        "assert not any(name.startswith('neural_tune') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), tuned.run()[0])


def test_large_models_get_a_data_file_beside_them_and_move_with_it(tuned, tmp_path):
    built = tuned.build()
    path = save.save(built.proto, built.folder, tmp_path / "saved", limit=100)
    assert sorted(item.name for item in (tmp_path / "saved").iterdir()) == ["model.onnx", "model.onnx.data"]
    moved = tmp_path / "moved"
    (tmp_path / "saved").rename(moved)
    restored = ADAPTER.restore(moved / path.name, 1)
    np.testing.assert_array_equal(ADAPTER.run(restored, tuned.feeds[0])[0], tuned.run()[0])
    total = sum(item.stat().st_size for item in moved.iterdir())
    assert ADAPTER.size(restored) == total
    again = ADAPTER.save(restored, tmp_path / "again")
    np.testing.assert_array_equal(graphs.run(again, tuned.feeds[0])[0], tuned.run()[0])


def test_saving_over_a_large_model_leaves_no_stale_data_file(tuned, tmp_path):
    built = tuned.build()
    save.save(built.proto, built.folder, tmp_path / "saved", limit=100)
    save.save(built.proto, built.folder, tmp_path / "saved")
    assert [item.name for item in (tmp_path / "saved").iterdir()] == ["model.onnx"]


def test_int8_is_about_a_quarter_of_float(tmp_path):
    nodes = [graphs.helper.make_node("MatMul", ["x", "w"], ["y"], "mm")]
    source = graphs.graph_of(nodes, graphs.weights(w=(256, 256)), {"x": ["n", 256]})
    tuned = Tuned(source, graphs.batches(source), tmp_path)
    ratio = ADAPTER.size(tuned.build(FLOAT_CANDIDATE)) / ADAPTER.size(tuned.build())
    assert 3.7 < ratio < 4.0


def test_restore_refuses_what_is_no_model(tmp_path):
    with pytest.raises(AdapterError, match="found no file"):
        ADAPTER.restore(tmp_path / "nothing.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"broken")
    with pytest.raises(AdapterError, match="refuses the model"):
        ADAPTER.restore(tmp_path / "broken.onnx")
