"""Batch-norm folding is part of normalisation: it is always on, and leaves the function. (Conv: see test_normalise.)"""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import graphs
import numpy as np
from graphs import ADAPTER, graph_of
from onnx import helper

from neural_tune.values import FLOAT_CANDIDATE
from neural_tune_onnxruntime import model as models


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize(("bias", "factors"), [(False, {}), (True, {}), (True, {"alpha": 0.5, "beta": 3.0})])
def test_batch_norm_is_folded_into_a_gemm(turned, bias, factors):
    rng = np.random.default_rng(0)
    found = graphs.weights(3, w=(5, 7) if turned else (7, 5), **({"c": (5,)} if bias else {}))
    found |= {name: rng.random(5).astype(np.float32) + 0.5 for name in ("gamma", "beta", "mean", "variance")}
    nodes = [
        helper.make_node("Gemm", ["x", "w", *(["c"] if bias else [])], ["h"], "fc", transB=turned, **factors),
        helper.make_node("BatchNormalization", ["h", "gamma", "beta", "mean", "variance"], ["n"], "norm"),
        helper.make_node("Relu", ["n"], ["y"], "relu"),
    ]
    model = graph_of(nodes, found, {"x": ["n", 7]})
    hold = models.load(model, processor=graphs.VNNI)
    assert [op.type for op in hold.graph.ops] == ["Gemm", "Relu"]
    feed = graphs.batches(model, 1, 6)[0]
    built = ADAPTER.build(hold, FLOAT_CANDIDATE, None, 1)
    np.testing.assert_allclose(ADAPTER.run(built, feed)[0], graphs.run(model, feed)[0], rtol=1e-5, atol=1e-6)
