"""An op that a candidate keeps in float runs in float, whatever the runtime makes of its surroundings."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import graphs
import numpy as np
import onnxruntime
from graphs import ADAPTER, Tuned
from onnx import helper

from neural_tune.values import Candidate
from neural_tune_onnxruntime import session


def chain(kind):
    """Three ops of one kind in a row, each with a Relu behind it."""
    nodes, shapes, last = [], {}, "x"
    for i in (1, 2, 3):
        shapes |= {f"w{i}": (12, 12, 3, 3) if kind == "Conv" else (12, 12), f"b{i}": (12,)}
        extra = {"pads": [1, 1, 1, 1]} if kind == "Conv" else {"transB": i % 2}
        nodes.append(helper.make_node(kind, [last, f"w{i}", f"b{i}"], [f"c{i}"], f"op{i}", **extra))
        last = f"r{i}" if i < 3 else "y"
        nodes.append(helper.make_node("Relu", [f"c{i}"], [last], f"relu{i}"))
    shape = ["n", 12, 6, 6] if kind == "Conv" else ["n", 12]
    return graphs.graph_of(nodes, graphs.weights(5, **shapes), {"x": shape})


def test_a_float_op_before_a_pool_keeps_its_float_weights(tmp_path):
    model = graphs.conv_net()
    tuned = Tuned(model, graphs.batches(model), tmp_path)
    full = tuned.space.preferred()
    assert_literal(tuned, Candidate.of({name: full.ops[name] for name in ("conv1", "conv3")}))


@pytest.mark.parametrize("kind", ["Conv", "Gemm"])
def test_a_float_op_between_int8_ops_keeps_its_float_weights(kind, tmp_path):
    model = chain(kind)
    tuned = Tuned(model, graphs.batches(model, size=16), tmp_path)
    full = tuned.space.preferred()
    assert_literal(tuned, Candidate.of({name: full.ops[name] for name in ("op1", "op3")}))


def assert_literal(tuned, candidate):
    """The optimized candidate computes what its graph says; int8 weights in a float op would show as 1e-2."""
    built = tuned.build(candidate)
    literal = session.start(
        built.proto.SerializeToString(), session.options(1, optimize=False, folder=tuned.hold.store.folder)
    )
    found, expected = ADAPTER.run(built, tuned.feeds[0])[0], literal.run(None, tuned.feeds[0])[0]
    assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected)


def test_the_runtime_would_quantize_it_otherwise(tmp_path):
    """Tells when the guard is no longer needed: the stock model, which lacks it, differs from its own literal meaning."""
    model = chain("Conv")
    feeds = graphs.batches(model, size=16)
    path = graphs.stock(model, feeds, tmp_path, op_types=["Conv", "Relu"], exclude=["op2", "relu2"])
    kinds = _optimized_kinds(path, tmp_path)
    assert kinds.count("QLinearConv") == 3, kinds  # though op2 was excluded


def test_no_integer_kernel_is_left_where_float_was_asked(tmp_path):
    model = chain("Conv")
    tuned = Tuned(model, graphs.batches(model, size=16), tmp_path)
    full = tuned.space.preferred()
    built = tuned.build(Candidate.of({name: full.ops[name] for name in ("op1", "op3")}))
    kinds = _optimized_kinds(ADAPTER.save(built, tmp_path / "saved"), tmp_path)
    assert kinds.count("QLinearConv") == 2, kinds


def _optimized_kinds(path, folder):
    import onnx

    target = folder / "optimized.onnx"
    options = session.options(1)
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(str(path), options, providers=session.PROVIDERS)
    return [node.op_type for node in onnx.load(str(target)).graph.node]
