"""An attention block as torch writes it, by both of its exporters."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')
pytest.importorskip("torch", reason='the exporters belong to torch: pip install "neural-tune[pytorch]"')
pytest.importorskip("onnxscript", reason="torch exports through onnxscript: pip install onnxscript")

import logging
import warnings
from dataclasses import replace

import graphs
import numpy as np
import onnx
import torch
from graphs import ADAPTER, Tuned

from neural_tune_onnxruntime import guard


class Block(torch.nn.Module):
    """Embedding, attention over four heads, a perceptron with gelu; a norm before each, a sum behind."""

    def __init__(self, width=32, heads=4):
        super().__init__()
        self.heads = heads
        self.embedding = torch.nn.Embedding(50, width)
        self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.up, self.down = torch.nn.Linear(width, 64), torch.nn.Linear(64, width)

    def forward(self, ids):
        x = self.embedding(ids)
        batch, length, width = x.shape
        split = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm2(x))))


@pytest.fixture(scope="module", params=["legacy", pytest.param("dynamo", marks=pytest.mark.slow)])
def tuned(request, tmp_path_factory):
    torch.manual_seed(0)
    block, ids = Block().eval(), torch.randint(0, 50, (2, 7))
    folder = tmp_path_factory.mktemp(request.param)
    path = folder / "block.onnx"
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each exporter calls the other one deprecated
        if request.param == "dynamo":
            shapes = {"ids": {0: "batch", 1: "length"}}
            torch.onnx.export(
                block, (ids,), str(path), input_names=["ids"], dynamic_shapes=shapes, dynamo=True, verbose=False
            )
        else:
            axes = {"ids": {0: "batch", 1: "length"}}
            torch.onnx.export(block, (ids,), str(path), input_names=["ids"], dynamic_axes=axes, dynamo=False)
    logging.disable(before)
    feeds = [{"ids": np.random.default_rng(seed).integers(0, 50, (3, 9))} for seed in range(4)]
    return Tuned(path, feeds, folder), path, folder


def error(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_all_linear_layers_are_int8_and_attention_is_not(tuned):
    found, path, folder = tuned
    outcomes = found.build().report.ops
    products = [op for op in outcomes if op.type in ("MatMul", "Gemm")]
    assert len(products) == 6
    assert sum(not op.is_float for op in products) == 4
    assert all("both operands are activations" in op.reason for op in products if op.is_float)
    assert all(op.reason for op in outcomes if op.is_float)
    (expected,) = graphs.run(path, found.feeds[0])
    assert error(found.run()[0], expected) < 0.02
    saved = ADAPTER.save(found.build(), folder / "full")
    assert guard.examine(saved, found.feeds[0]) == ()


def test_a_user_may_ask_for_int8_attention(tuned):
    found, path, folder = tuned
    asked = {
        op.name: op.extra[0]
        for op in found.capability.ops
        if op.type == "MatMul" and len(op.choices) == 1 and op.extra and op.extra[0].mode == "static"
    }
    assert len(asked) == 2
    candidate = found.space.preferred().with_ops(asked)
    (expected,) = graphs.run(path, found.feeds[0])
    assert error(found.run(candidate)[0], expected) < 0.05
    fused = guard.count_fusions(ADAPTER.save(found.build(candidate), folder / "asked"))
    assert (fused.integer_kernels, fused.lost) == (6, 0)


def test_integer_operators_compute_the_same(tuned):
    found, _, folder = tuned
    hold = replace(found.hold, quant_format="QOperator")
    built = ADAPTER.build(hold, found.space.preferred(), found.statistics, 1)
    kinds = [node.op_type for node in onnx.load(str(ADAPTER.save(built, folder / "integer"))).graph.node]
    assert kinds.count("MatMulIntegerToFloat") + kinds.count("QLinearMatMul") + kinds.count("QGemm") == 4
    np.testing.assert_array_equal(ADAPTER.run(built, found.feeds[0])[0], found.run()[0])


def test_length_stays_free(tuned):
    found, path, _ = tuned
    feed = {"ids": np.random.default_rng(9).integers(0, 50, (1, 21))}
    (expected,) = graphs.run(path, feed)
    assert found.run(feed=feed)[0].shape == expected.shape
