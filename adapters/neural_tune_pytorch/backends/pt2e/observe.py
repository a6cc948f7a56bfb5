"""Calibration: the float graph runs node by node, and every tensor that some candidate may quantize passes a collector."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from neural_tune.calibration import Collector, Statistics
from neural_tune.errors import AdapterError, DataError
from neural_tune_pytorch import model as models
from neural_tune_pytorch.backend import Feed
from neural_tune_pytorch.backends.pt2e.capture import Captured
from neural_tune_pytorch.backends.pt2e.plan import observed_tensors
from neural_tune_pytorch.inputs import shapes_of


def observe(captured: Captured, batches: Iterable[Feed], tensors: frozenset[str] = frozenset()) -> Statistics:
    """Read `batches` once and return the statistics of the superset of tensors.

    A superset means: whatever edge a plan can quantize has its tensor in it. Observing the fully quantized model only is not enough, since tensors appear where
    fusion breaks; `Statistics.of` raises for a tensor that is missing instead of taking a default.

    Args:
        captured: The float graph.
        batches: The calibration inputs.
        tensors: Only these, where some have been changed since; empty means the superset.

    Raises:
        DataError: there is no batch, a batch does not fit the model, or a tensor holds NaN.
    """
    collector = Collector()
    wanted = tensors or frozenset(observed_tensors(captured)) or frozenset(_outputs(captured))

    def see(name: str, values: Tensor) -> None:
        collector.see(name, values.contiguous().numpy())

    for feed in batches:
        watch(captured, feed, wanted, see)
        collector.end_batch()
    return collector.statistics()


def watch(captured: Captured, feed: Feed, tensors: frozenset[str], see: Callable[[str, Tensor], None]) -> None:
    """Run the float graph on one batch and show some of its tensors, by name, as they are written.

    Raises:
        DataError: the batch does not fit the model, or `see` takes offence at a value.
    """
    try:
        with torch.no_grad():
            _Watching(captured.graph, tensors, see).run(*feed)
    except (DataError, AdapterError):
        raise
    except Exception as error:
        raise DataError(
            f"the float model breaks on a calibration batch of shapes {shapes_of(feed)}: {models.first_line(error)}"
        ) from error


def _outputs(captured: Captured) -> list[str]:
    result = next(node for node in captured.graph.graph.nodes if node.op == "output")
    return [item.name for item in result.args[0] if isinstance(item, fx.Node)]


class _Watching(fx.Interpreter):
    """Shows the wanted tensors as they are written; values are dropped as soon as nothing reads them any more."""

    def __init__(self, graph: fx.GraphModule, wanted: frozenset[str], see: Callable[[str, Tensor], None]) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self._wanted = wanted
        self._see = see

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and look at what it writes."""
        value = super().run_node(n)
        if n.name in self._wanted and isinstance(value, Tensor) and value.is_floating_point():
            self._see(n.name, value.detach())
        return value
