"""A graph that ends TensorFlow's process is a failed trial with its reason, and not the end of the run."""

from __future__ import annotations

import models
import numpy as np
import pytest
from test_canonical import depthwise_explicit

from neural_tune.errors import AdapterError
from neural_tune.protocols import AdapterOptions
from neural_tune_tensorflow import guard
from neural_tune_tensorflow.backends import onednn


def test_an_abort_in_the_child_is_an_adapter_error_with_its_reason() -> None:
    graph_def = depthwise_explicit(bias=True)
    assert guard.risks(graph_def)
    with pytest.raises(AdapterError, match="TensorFlow ended the child process with signal"):
        guard.check(graph_def, "the candidate")


def test_a_candidate_that_aborts_tensorflow_is_refused_and_the_process_lives(tmp_path, monkeypatch) -> None:
    """The rewrite is made to write the float depthwise convolution that aborts; building it must fail in an orderly way."""
    hold = models.hold_of(models.small_cnn())
    batch = np.random.default_rng(1).normal(size=(2, 8, 8, 4)).astype(np.float32)
    statistics = models.ADAPTER.calibrate(hold, [batch], tmp_path)

    def aborting(*arguments):
        graph = emitted(*arguments).copy()
        for node in graph:
            if node.op == "DepthwiseConv2dNative":
                node.attr["padding"].s = b"EXPLICIT"
                node.attr["explicit_paddings"].list.i.extend([0, 0, 1, 1, 1, 1, 0, 0])
        return graph

    emitted = onednn.emit
    monkeypatch.setattr(onednn, "emit", aborting)
    candidate = models.full(hold)
    floats = {name: config for name, config in candidate.ops.items() if "depthwise" not in name}
    with pytest.raises(AdapterError, match="explicitly padded DepthwiseConv2dNative"):
        models.ADAPTER.build(hold, models.Candidate.of(floats), statistics, 1)


def test_ordinary_graphs_cost_no_child(monkeypatch) -> None:
    monkeypatch.setattr(guard, "try_in_child", lambda *_: pytest.fail("a child was started"))
    models.ADAPTER.load(models.small_cnn(), AdapterOptions())
