"""Small graphs with one pattern each, and the check that they share: node types, numbers, and every fused op in exact integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from integer_emulation import worst_step
from models import ADAPTER, full, graph_of, hold_of, ops_of, run_graph

from neural_tune.values import Candidate, FrozenMap
from neural_tune_tensorflow.backends import onednn
from neural_tune_tensorflow.runtime import tf

GENERATOR = np.random.default_rng(23)
CONV, SLIM, PRODUCT = "_FusedQuantizedConv2D", "_FusedQuantizedDepthwiseConv2D", "_QuantizedMatMul"
IMAGE, ROWS = (None, 8, 8, 8), (None, 16)


def normal(*shape: int) -> Any:
    return (GENERATOR.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)


K3, K1, SQUARE, DEPTH = normal(3, 3, 8, 8), normal(1, 1, 8, 8), normal(16, 16), normal(3, 3, 8, 1)
BIAS, LONG = normal(8), normal(16)


def conv(x: Any, kernel: Any = K3, stride: int = 1, padding: str = "SAME") -> Any:
    return tf.nn.conv2d(x, kernel, stride, padding)


def norm(x: Any) -> Any:
    ones = np.ones(8, np.float32)
    return tf.compat.v1.nn.fused_batch_norm(x, ones * 1.3, BIAS, mean=BIAS, variance=ones * 0.7, is_training=False)[0]


def pad(x: Any) -> Any:
    return tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])


@dataclass(frozen=True)
class Case:
    """A graph, and what becomes of it.

    Attributes:
        build: From the input to the result.
        holds: Op types of the int8 graph with their counts.
        lacks: Op types that must be gone.
        shape: Of the input.
        floats: Op types that stay float, with a word of the reason.
        recipes: Recipes that are switched on.
        fused: What the matrix products do besides the product, in order; None where that is not asked.
    """

    build: Callable[[Any], Any]
    holds: dict[str, int]
    lacks: tuple[str, ...] = ()
    shape: tuple[int | None, ...] = IMAGE
    floats: tuple[tuple[str, str], ...] = ()
    recipes: tuple[str, ...] = ()
    fused: tuple[str, ...] | None = None

    @property
    def is_float(self) -> bool:
        """True where nothing of the graph has an int8 form."""
        return not {CONV, SLIM, PRODUCT} & set(self.holds)


def check(case: Case, folder: Path) -> None:
    """Quantize a case in full and hold it to what it says: graph in, node types and numbers out."""
    graph_def = graph_of(case.build, {"x": case.shape})
    hold = hold_of(graph_def, outputs=("y",), recipes=FrozenMap(dict.fromkeys(case.recipes, True)))
    batch = GENERATOR.normal(size=[size or 2 for size in case.shape]).astype(np.float32)
    statistics = ADAPTER.calibrate(hold, [batch], folder)
    candidate = Candidate.of(full(hold).ops, (), case.recipes)
    graph = onednn.rewrite(hold, candidate, statistics)
    kinds = Counter(ops_of(graph))
    assert {kind: kinds[kind] for kind in case.holds} == case.holds, dict(kinds)
    assert not [kind for kind in case.lacks if kinds[kind]], dict(kinds)
    products = [node for node in graph if node.op == PRODUCT]
    if case.fused is not None:
        assert [" ".join(item.decode() for item in node.attr["fused_ops"].list.s) for node in products] == [*case.fused]
    built = ADAPTER.build(hold, candidate, statistics, 1)
    (found,) = ADAPTER.run(built, batch)
    (expected,) = run_graph(graph_def, {"x": batch})
    assert sqnr(expected, found) > (60.0 if case.is_float else 26.0), "a scale, a layout or a padding is wrong"
    if not case.is_float:
        assert worst_step(graph, {hold.inputs[0].tensor: batch}) <= 1.0
    outcomes = {op.type: op for op in ADAPTER.report(built).ops if op.is_float}
    for kind, reason in case.floats:
        assert reason in outcomes[kind].reason


def sqnr(expected: Any, found: Any) -> float:
    """Return the signal to noise ratio of `found` in dB; the mean is no signal."""
    centred = expected - expected.mean()
    return float(-10.0 * np.log10(max(np.sum((found - expected) ** 2), 1e-30) / np.sum(centred**2)))
