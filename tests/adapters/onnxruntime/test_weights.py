"""The weight store: written once, quantized once per form, right codes, shared safely, gone with its model."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import gc
import os

import graphs
import numpy as np
from graphs import Tuned

from neural_tune.numerics import qparams
from neural_tune.values import DType, Granularity, QuantSpec
from neural_tune_onnxruntime import model
from neural_tune_onnxruntime.weights import FLOAT_FILE, WeightStore, read

PER_CHANNEL = QuantSpec(dtype=DType.INT8, granularity=Granularity.PER_CHANNEL)
PER_TENSOR = QuantSpec(dtype=DType.INT8)


def files(store: WeightStore):
    return sorted(path.name for path in store.folder.iterdir())


def test_float_values_come_back_as_they_were():
    source = graphs.conv_net()
    store = model.load(source).store
    values = {tensor.name: graphs.numpy_helper.to_array(tensor) for tensor in source.graph.initializer}
    for name, expected in values.items():
        np.testing.assert_array_equal(store.array(name), expected)
    assert files(store) == [FLOAT_FILE]


def test_a_form_is_written_once_for_all_weights_when_first_asked_for():
    store = model.load(graphs.conv_net()).store
    first = store.quantized(("w1", 0), PER_CHANNEL)
    assert files(store) == [FLOAT_FILE, "int8-sym-channel.bin"]
    stamp = (store.folder / "int8-sym-channel.bin").stat()
    store.quantized(("w4", 0), PER_CHANNEL)
    assert store.quantized(("w1", 0), PER_CHANNEL) is first
    assert (store.folder / "int8-sym-channel.bin").stat() == stamp
    store.quantized(("w1", 0), PER_TENSOR)
    assert files(store) == [FLOAT_FILE, "int8-sym-channel.bin", "int8-sym-tensor.bin"]


@pytest.mark.parametrize(
    "spec",
    [
        PER_CHANNEL,
        PER_TENSOR,
        QuantSpec(dtype=DType.UINT8, symmetric=False),
        QuantSpec(dtype=DType.UINT8, granularity=Granularity.PER_CHANNEL),
        QuantSpec(dtype=DType.INT8, reduce_range=True),
    ],
    ids=lambda spec: spec.describe(),
)
def test_codes_in_the_file_are_those_of_each_channel_by_itself(spec):
    store = model.load(graphs.conv_net()).store
    found = store.quantized(("w2", 0), spec)
    values, codes = store.array("w2"), read(found.tensor, store.folder)
    for channel in range(values.shape[0]):
        rows = values[channel : channel + 1] if found.axis is not None else values
        scale, zero = qparams.weight_parameters(rows, None, spec)
        expected = qparams.quantize(values[channel], scale, zero, None, spec.dtype)
        np.testing.assert_array_equal(codes[channel], expected)


def test_folder_is_removed_with_the_last_user_of_the_model(tmp_path):
    source = graphs.perceptron()
    tuned = Tuned(source, graphs.batches(source), tmp_path)
    built = tuned.build()
    folder = tuned.hold.store.folder
    del tuned
    gc.collect()
    assert folder.is_dir(), "a built model still has to be saved"
    path = graphs.ADAPTER.save(built, tmp_path / "saved")
    assert path.is_file()
    del built
    gc.collect()
    assert not folder.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_adds_a_form_beside_its_parent_and_leaves_the_folder():
    hold = model.load(graphs.conv_net())
    ready, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = hold.store.quantized(("w1", 0), PER_CHANNEL)
            os.write(write, read(found.tensor, hold.store.folder).tobytes())
            del found, hold
            gc.collect()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(ready, "rb") as pipe:
        theirs = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    assert hold.store.folder.is_dir()
    ours = hold.store.quantized(("w1", 0), PER_CHANNEL)
    assert read(ours.tensor, hold.store.folder).tobytes() == theirs


def test_building_a_candidate_writes_nothing(tmp_path):
    source = graphs.residual_net()
    tuned = Tuned(source, graphs.batches(source), tmp_path)
    tuned.build()
    before = {name: (tuned.hold.store.folder / name).stat() for name in files(tuned.hold.store)}
    tuned.build()
    assert {name: (tuned.hold.store.folder / name).stat() for name in files(tuned.hold.store)} == before
