"""One streaming pass over calibration data: what every float tensor of a `.tflite` model takes as values."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from neural_tune import calibration
from neural_tune.calibration import Collector, Statistics
from neural_tune.protocols import Inputs
from neural_tune_tensorflow.backends import litert_model
from neural_tune_tensorflow.backends.litert_model import LiteModel
from neural_tune_tensorflow.backends.litert_runtime import LiteSession
from neural_tune_tensorflow.inputs import check_numbers, to_feed


def calibrate(model: LiteModel, batches: Iterable[Inputs], directory: Path) -> Statistics:
    """Read `batches` once and return the statistics of every computed float tensor; they are written below `directory` too.

    Raises:
        DataError: no batch, inputs that do not fit, or values that are not finite.
    """
    session = LiteSession(model.content, keep_all=True)
    indices = _indices(model)
    collector = Collector()
    for number, batch in enumerate(batches, start=1):
        feed = to_feed(batch, model.inputs)
        check_numbers(feed, f"calibration batch {number}")
        for name, values in zip(indices, session.watch(feed, list(indices.values())), strict=True):
            collector.see(name, values)
        collector.end_batch()
    found = collector.statistics()
    calibration.save(found, directory, key=model.fingerprint())
    return found


def _indices(model: LiteModel) -> dict[str, int]:
    parsed = litert_model.parse(model.content)
    graph = parsed.subgraphs[litert_model.main_subgraph(parsed)]
    numbers = {tensor.name.decode("utf-8", "replace"): number for number, tensor in enumerate(graph.tensors)}
    return {name: numbers[name] for name in model.observed()}
