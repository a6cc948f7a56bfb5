"""A model beyond the 2 GB of a protobuf goes the whole way: load, query, calibrate, build, run, save, load with plain onnxruntime."""

from __future__ import annotations

import shutil
import tempfile
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import onnxruntime
import psutil
from onnx import TensorProto, helper

from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import Candidate
from neural_tune_onnxruntime import session
from neural_tune_onnxruntime.adapter import OnnxRuntimeAdapter

PROTOBUF_LIMIT = 2**31
SMALL = 1 << 20
NEEDED = 8 * 10**9
# Four square layers of 555 MB and a small last one: above 2 GB also when only the last one is int8.
WIDTHS = (11776, 11776, 11776, 11776, 11776, 256)
# Only so many rows of a weight are not zero, so that the file is cheap to write and float64 can tell the right answer.
ROWS = 64


def rows_of(layer):
    rng = np.random.default_rng(layer)
    return (rng.standard_normal((ROWS, WIDTHS[layer + 1])) * (2.0 / ROWS) ** 0.5).astype(np.float32)


def write_large_model(folder):
    """Write matmul -> relu -> ... -> matmul, its weights in a file with holes, and return the path and the bytes of weights."""
    nodes, tensors, last, offset = [], [], "x", 0
    with (folder / "weights.bin").open("wb") as file:
        for layer, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
            file.seek(offset)
            file.write(rows_of(layer).tobytes())
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[inputs, outputs])
            tensor.data_location = TensorProto.EXTERNAL
            size = inputs * outputs * 4
            for key, value in (("location", "weights.bin"), ("offset", offset), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            offset += size
            nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"product{layer}"], name=f"matmul{layer}"))
            last = f"product{layer}"
            if outputs == inputs:
                nodes.append(helper.make_node("Relu", [last], [f"relu{layer}"], name=f"relu{layer}"))
                last = f"relu{layer}"
        file.truncate(offset)
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTHS[0]])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["batch", WIDTHS[-1]])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = folder / "large.onnx"
    path.write_bytes(model.SerializeToString())
    return path, offset


def exact_outputs(x):
    """The float model in float64, from the rows that are not zero."""
    value = x.astype(np.float64)
    for layer in range(len(WIDTHS) - 1):
        value = value[:, :ROWS] @ rows_of(layer).astype(np.float64)
        if layer < len(WIDTHS) - 2:
            value = np.maximum(value, 0.0)
    return value


def error(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture
def spacious(tmp_path, monkeypatch):
    """A folder with room for everything that the adapter writes, temporary files included."""
    if shutil.disk_usage(tmp_path).free < NEEDED:
        pytest.skip(f"needs {NEEDED >> 30} GB of free disk")
    if psutil.virtual_memory().available < NEEDED:
        pytest.skip(f"needs {NEEDED >> 30} GB of free memory")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)  # pytest would keep these gigabytes for three runs


@pytest.mark.slow
def test_a_model_above_two_gigabytes_is_quantized_run_and_saved_and_no_protobuf_grows_large(spacious, monkeypatch):
    given = []
    start = session.start
    monkeypatch.setattr(session, "start", lambda model, *rest: given.append(model) or start(model, *rest))
    path, weight_bytes = write_large_model(spacious)
    assert weight_bytes > PROTOBUF_LIMIT
    x = np.random.default_rng(99).standard_normal((2, WIDTHS[0])).astype(np.float32)
    expected = exact_outputs(x)

    adapter = OnnxRuntimeAdapter()
    model = adapter.load(str(path), AdapterOptions())
    space = TuningSpace.of(adapter.query(model))
    anchors = [f"matmul{layer}" for layer in range(5)]
    assert [name for name in space.op_names if name in anchors] == anchors
    statistics = adapter.calibrate(model, [x], spacious / "statistics")

    # Every session of this size takes seconds to start, so each build proves two things.
    full = adapter.build(model, space.preferred(), statistics, 2)
    assert error(adapter.run(full, x)[0], expected) < 0.05
    del full

    last = anchors[-1]
    mixed = adapter.build(model, Candidate.of({last: space.preferred().config_of(last)}), statistics, 2)
    inside = adapter.run(mixed, x)[0]
    assert error(inside, expected) < 0.02
    promised = adapter.size(mixed)
    artifact = adapter.save(mixed, spacious / "mixed")
    del mixed
    assert artifact.stat().st_size < SMALL
    written = sum(item.stat().st_size for item in artifact.parent.iterdir())
    assert written > PROTOBUF_LIMIT
    assert written == pytest.approx(promised, rel=0.02)
    # The small last layer alone would make a protobuf of 12 MB: nothing but graphs went through protobuf.
    assert max(len(item) for item in given if isinstance(item, bytes)) < SMALL

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    plain = onnxruntime.InferenceSession(str(artifact), options, providers=["CPUExecutionProvider"])
    assert np.array_equal(plain.run(None, {"x": x})[0], inside)
