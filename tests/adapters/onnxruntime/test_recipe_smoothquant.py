"""SmoothQuant: outlier channels behind a norm move into the weights, without a change of the function."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import graphs
import numpy as np
from graphs import Tuned, graph_of
from onnx import helper

from neural_tune.numerics import preservation
from neural_tune.values import Candidate
from neural_tune_onnxruntime import model as models
from neural_tune_onnxruntime.recipes import edges, variants

SMOOTHED = ("smoothquant",)
FEATURES = 16


def normed(spread=0.0, *, residual=False, decomposed=False, seed=3):
    """A norm read by two products; `spread` gives its scale log-normal outliers, taken back in the weights."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(0, spread, FEATURES)).astype(np.float32)
    found = {
        "g": (1 + 0.1 * rng.standard_normal(FEATURES)).astype(np.float32) * scale,
        "b": 0.1 * rng.standard_normal(FEATURES).astype(np.float32) * scale,
        "w1": rng.standard_normal((FEATURES, 24)).astype(np.float32) / scale.reshape(-1, 1),
        "w2": rng.standard_normal((FEATURES, 8)).astype(np.float32) / scale.reshape(-1, 1),
        "eps": np.array(1e-5, np.float32),
    }
    if decomposed:
        nodes = [
            helper.make_node("ReduceMean", ["x"], ["m"], "mean", axes=[-1]),
            helper.make_node("Sub", ["x", "m"], ["d"], "centre"),
            helper.make_node("Mul", ["d", "d"], ["dd"], "square"),
            helper.make_node("ReduceMean", ["dd"], ["v"], "variance", axes=[-1]),
            helper.make_node("Add", ["v", "eps"], ["ve"], "epsilon"),
            helper.make_node("Sqrt", ["ve"], ["s"], "root"),
            helper.make_node("Div", ["d", "s"], ["u"], "unit"),
            helper.make_node("Mul", ["u", "g"], ["ug"], "gain"),
            helper.make_node("Add", ["ug", "b"], ["n"], "shift"),
        ]
    else:
        nodes = [helper.make_node("LayerNormalization", ["x", "g", "b"], ["n"], "norm", axis=-1)]
    nodes += [
        helper.make_node("MatMul", ["n", "w1"], ["y"], "query"),
        helper.make_node("MatMul", ["n", "w2"], ["z"], "key"),
    ]
    if residual:
        nodes.append(helper.make_node("Add", ["n", "x"], ["r"], "skip"))
    return graph_of(nodes, found, {"x": ["n", 6, FEATURES]}, ("y", "z", "r") if residual else ("y", "z"))


def error(tuned, recipes=()):
    full = tuned.space.preferred()
    expected, found = tuned.run(Candidate()), tuned.run(Candidate.of(full.ops, (), recipes))
    return sum(float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("decomposed", [False, True])
def test_outlier_channels_vanish_and_the_function_stays(decomposed, tmp_path):
    model, clean = normed(2.0, decomposed=decomposed), normed(0.0, decomposed=decomposed)
    feeds = graphs.batches(model, 4, 8)
    sabotaged, reference = Tuned(model, feeds, tmp_path / "a"), Tuned(clean, feeds, tmp_path / "b")
    assert sabotaged.capability.recipes == ("smoothquant",)
    assert error(sabotaged) > 4 * error(reference)
    assert error(sabotaged, SMOOTHED) <= 2 * error(reference)
    variant = variants.prepare(sabotaged.hold, SMOOTHED, sabotaged.statistics)
    assert variants.difference(sabotaged.hold, variant.model, sabotaged.statistics.inputs) <= preservation.TOLERANCE


def test_all_readers_are_rescaled_together(tmp_path):
    model = normed(2.0)
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    variant = variants.prepare(tuned.hold, SMOOTHED, tuned.statistics).model
    old, new = tuned.hold.store, variant.store
    ops = {op.name: op for op in variant.graph.ops}
    factors = old.array("g") / new.array(ops["norm"].inputs[1])
    np.testing.assert_allclose(old.array("b") / new.array(ops["norm"].inputs[2]), factors, rtol=1e-5)
    for name, before in (("query", "w1"), ("key", "w2")):
        after = new.array(ops[name].inputs[1]) / old.array(before)
        np.testing.assert_allclose(after, np.broadcast_to(factors.reshape(-1, 1), after.shape), rtol=1e-5)


def test_a_norm_that_feeds_a_residual_addition_is_refused_with_the_reason():
    found = list(edges.norm_edges(models.load(normed(residual=True), processor=graphs.VNNI)))
    assert [type(item).__name__ for item in found] == ["Refusal"]
    assert "'skip' (Add) joins it with another activation (a residual addition)" in found[0].reason
