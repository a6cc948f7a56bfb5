"""Calibration: the float graph runs node by node, and every tensor that some candidate may quantize passes a collector."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from neural_tune.errors import AdapterError, DataError
from neural_tune_pytorch import model as models
from neural_tune_pytorch.backend import Feed
from neural_tune_pytorch.backends.pt2e.capture import Captured
from neural_tune_pytorch.backends.pt2e.plan import observed_tensors
from neural_tune_pytorch.inputs import shapes_of
from neural_tune_pytorch.statistics import Collector, Statistics


def observe(captured: Captured, batches: Iterable[Feed]) -> Statistics:
    """Read `batches` once and return the statistics of the superset of tensors.

    A superset means: whatever edge a plan can quantize has its tensor in it. Observing the fully quantized model only is not enough, since tensors appear where
    fusion breaks; `Statistics.of` raises for a tensor that is missing instead of taking a default.

    Raises:
        DataError: there is no batch, a batch does not fit the model, or a tensor holds NaN.
    """
    collector = Collector()
    wanted = frozenset(observed_tensors(captured)) or frozenset(_outputs(captured))
    for feed in batches:
        _run(captured, feed, collector, wanted)
        collector.end_batch()
    found = collector.statistics()
    if not found.batches:
        raise DataError("calibration data is empty: expected at least one batch")
    return found


def _run(captured: Captured, feed: Feed, collector: Collector, wanted: frozenset[str]) -> None:
    try:
        with torch.no_grad():
            _Observing(captured.graph, collector, wanted).run(*feed)
    except (DataError, AdapterError):
        raise
    except Exception as error:
        raise DataError(
            f"the float model breaks on a calibration batch of shapes {shapes_of(feed)}: {models.first_line(error)}"
        ) from error


def _outputs(captured: Captured) -> list[str]:
    result = next(node for node in captured.graph.graph.nodes if node.op == "output")
    return [item.name for item in result.args[0] if isinstance(item, fx.Node)]


class _Observing(fx.Interpreter):
    """Shows the wanted tensors to a collector; values are dropped as soon as nothing reads them any more."""

    def __init__(self, graph: fx.GraphModule, collector: Collector, wanted: frozenset[str]) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self._collector = collector
        self._wanted = wanted

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and look at what it writes."""
        value = super().run_node(n)
        if n.name in self._wanted and isinstance(value, Tensor) and value.is_floating_point():
            self._collector.see(n.name, value.detach().contiguous().numpy())
        return value
