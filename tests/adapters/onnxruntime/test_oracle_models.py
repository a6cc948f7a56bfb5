"""Bit-equal to the runtime's own tool on real pretrained networks."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import random

import graphs
import numpy as np
from graphs import Tuned

from neural_tune.values import Candidate

OP_TYPES = ("Conv", "Relu", "Add", "Slice", "Pad", "GlobalAveragePool", "Flatten", "Gemm")
FLOAT_OUTPUTS = {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]}
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def images(path, key):
    with np.load(path / "cifar10.npz", allow_pickle=False) as data:
        x = (data[key].astype(np.float32) / 255 - MEAN) / DEVIATION
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def words(path, key):
    with np.load(path / "kws_mfcc.npz", allow_pickle=False) as data:
        x = (data[key].astype(np.float32) - 83) * np.float32(0.5847029089927673)
    return np.ascontiguousarray(x[..., None].transpose(0, 3, 1, 2))


def raw(path, key):
    with np.load(path / "cifar10.npz", allow_pickle=False) as data:
        return np.ascontiguousarray(data[key].astype(np.float32).transpose(0, 3, 1, 2))


MODELS = {
    "resnet20_cifar10": ("cifar10", images, 0.91),
    "resnet8_cifar10": ("cifar10", raw, 0.87),
    "dscnn_kws": ("kws_mfcc", words, 0.91),
}


@pytest.fixture(params=sorted(MODELS))
def case(request, shared_data, tmp_path):
    data, read, floor = MODELS[request.param]
    x = read(shared_data, "x_calib")[:60]
    feeds = [{"input": x[i : i + 20]} for i in range(0, 60, 20)]
    path = shared_data / f"{request.param}.onnx"
    with np.load(shared_data / f"{data}.npz", allow_pickle=False) as file:
        labels = file["y_val"]
    tuned = Tuned(path, feeds, tmp_path)
    return tuned, tuned.float_model(tmp_path), tmp_path, (read(shared_data, "x_val"), labels, floor)


@pytest.mark.shared_data
def test_full_int8_equals_the_stock_tool_and_keeps_the_accuracy(case):
    tuned, model, folder, (x, labels, floor) = case
    path = graphs.stock(model, tuned.feeds, folder, op_types=OP_TYPES, exclude=tuned.floats(), **FLOAT_OUTPUTS)
    found = tuned.run(feed={"input": x})[0]
    np.testing.assert_array_equal(found, graphs.run(path, {"input": x})[0])
    assert float((found.argmax(1) == labels).mean()) >= floor


@pytest.mark.shared_data
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_random_stretch_of_int8_ops_equals_the_stock_tool(case, seed):
    """Int8 from one op to another, float before and after: the stock tool means the same by that, but for mixed readers.

    (A float op *between* int8 ops means something else there: the runtime quantizes it unasked.)
    """
    tuned, model, folder, (x, _, _) = case
    full = tuned.space.preferred()
    names = [op.name for op in tuned.capability.ops if op.name in full.ops]
    first, last = sorted(random.Random(seed).sample(range(len(names) + 1), 2))
    candidate = without_mixed_readers(tuned, Candidate.of({name: full.ops[name] for name in names[first:last]}))
    assert candidate.ops
    kept = tuned.floats(candidate)
    path = graphs.stock(model, tuned.feeds, folder, op_types=OP_TYPES, exclude=kept, **FLOAT_OUTPUTS)
    expected = graphs.run(path, {"input": x[:100]})[0]
    assert np.abs(expected - graphs.run(model, {"input": x[:100]})[0]).max() > 0
    np.testing.assert_array_equal(tuned.run(candidate, {"input": x[:100]})[0], expected)


def without_mixed_readers(tuned, candidate):
    """Drop int8 readers of tensors that float ops make and float ops read, until there are none."""
    graph = tuned.hold.graph
    while True:
        floats = set(tuned.floats(candidate))
        mixed = {
            reader.name
            for tensor, readers in graph.consumers.items()
            if tensor not in graph.constants
            and (graph.producers.get(tensor) is None or graph.producers[tensor].name in floats)
            and any(reader.name in floats for reader in readers)
            for reader in readers
            if reader.name in candidate.ops and reader.name not in floats
        }
        if not mixed:
            return candidate
        candidate = Candidate.of({name: config for name, config in candidate.ops.items() if name not in mixed})
