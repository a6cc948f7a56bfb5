"""Calibration: one streaming pass over the data on the canonical float graph, in memory that does not grow with the number of samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from neural_tune.calibration import Collector, Statistics
from neural_tune.errors import AdapterError
from neural_tune.protocols import Array, Inputs
from neural_tune_tensorflow.backend import Port
from neural_tune_tensorflow.inputs import check_numbers, to_feed
from neural_tune_tensorflow.model import OnednnModel
from neural_tune_tensorflow.session import FixedSession

# Bytes of activations that one run may hand out.
MEMORY_BUDGET = 1 << 28


def collect(model: OnednnModel, batches: Iterable[Inputs], memory_budget: int = MEMORY_BUDGET) -> Statistics:
    """Pull every batch once and return the statistics of every tensor that a candidate may quantize.

    Raises:
        DataError: no batch, one that does not fit the model or is not finite, or one that makes an activation NaN.
        AdapterError: TensorFlow breaks on a batch.
    """
    observed = model.observed() or tuple(port.tensor for port in model.outputs)
    floats = [name for name in observed if model.graph.dtypes[name].is_floating]
    collector = Collector()
    runner = _Runner(FixedSession(model.float_def, None), model.inputs, tuple(floats), memory_budget)
    for read, batch in enumerate(batches, start=1):
        feed = to_feed(batch, model.inputs)
        check_numbers(feed, f"calibration batch {read}")
        for name, values in runner.activations(feed):
            collector.see(name, values)
        collector.end_batch()
    return collector.statistics()


@dataclass(slots=True)
class _Runner:
    """Runs batches in parts so small that their activations stay within the budget."""

    session: FixedSession
    inputs: tuple[Port, ...]
    tensors: tuple[str, ...]
    budget: int
    bytes_per_row: float = 0.0
    is_whole: bool = False

    def activations(self, feed: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
        """Yield the activations of one batch, a tensor once per part."""
        for part in self._parts(feed):
            try:
                found = self._run(part)
            except AdapterError:
                # A model may look free and still insist on the whole batch (a constant shape inside): one try tells.
                if self.is_whole or part is feed:
                    raise
                self.is_whole = True
                yield from self.activations(feed)
                return
            total, rows = sum(values.nbytes for values in found), _rows(part)
            self.bytes_per_row = max(self.bytes_per_row, total / max(1, rows))
            for name in reversed(self.tensors):  # popping from the end frees each one as soon as it is folded
                yield name, found.pop()

    def _run(self, part: Mapping[str, Array]) -> list[Array]:
        return list(self.session.fetch({port.tensor: part[port.name] for port in self.inputs}, self.tensors))

    def _parts(self, feed: Mapping[str, Array]) -> Iterator[Mapping[str, Array]]:
        rows = _rows(feed)
        if not self._is_divisible() or rows <= 1:
            yield feed
            return
        begin = 0
        while begin < rows:
            # The first sample of all shows what one costs.
            size = max(1, int(self.budget / self.bytes_per_row)) if self.bytes_per_row else 1
            yield {name: values[begin : begin + size] for name, values in feed.items()}
            begin += size

    def _is_divisible(self) -> bool:
        """Return whether every input has a free first axis, so that samples may come in any number."""
        return not self.is_whole and all(
            port.shape is not None and len(port.shape) > 0 and port.shape[0] is None for port in self.inputs
        )


def _rows(feed: Mapping[str, Array]) -> int:
    lengths = {len(values) if values.ndim else 0 for values in feed.values()}
    return lengths.pop() if len(lengths) == 1 else 1
