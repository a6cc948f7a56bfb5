"""Intel Neural Compressor 2.6 on ONNX Runtime, as a contestant. The setting is the name of its strategy.

The onnx of today has no `onnx.mapping`, which 2.6 reads two tables of; a stand-in with these two is put in place before it is imported. Without
it `fit` only logs the AttributeError and returns None.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx
import onnxruntime
from contract import Array, Arrays, Meter, Run, Stopwatch, Task, batches, child

_TYPES = [kind for kind in onnx.helper.get_all_tensor_dtypes() if kind not in (0, 21, 22, 23)]
TENSOR_TO_NUMPY = {kind: np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)) for kind in _TYPES}
onnx.mapping = SimpleNamespace(  # type: ignore[attr-defined]
    TENSOR_TYPE_TO_NP_TYPE=TENSOR_TO_NUMPY,
    NP_TYPE_TO_TENSOR_TYPE={TENSOR_TO_NUMPY[kind]: kind for kind in reversed(_TYPES)},
)


class Calibration:
    """What INC takes for a dataloader: batches of (inputs, label) and a `batch_size`."""

    batch_size = 50

    def __init__(self, task: Task) -> None:
        self._task = task

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """Yield the one input, or the tuple of inputs in the model's order, with a label that nobody reads."""
        for batch in batches(self._task.calibration, self.batch_size):
            inputs = tuple(batch.values())
            yield (inputs[0] if len(inputs) == 1 else inputs), 0


def main(task: Task, folder: Path, setting: str) -> dict[str, Any]:
    from neural_compressor import PostTrainingQuantConfig, quantization
    from neural_compressor.config import AccuracyCriterion, TuningCriterion

    records = Records()
    logging.getLogger("neural_compressor").addHandler(records)
    meter, watch = Meter(task, folder), Stopwatch()
    criterion = AccuracyCriterion(criterion="relative" if task.is_relative else "absolute", tolerable_loss=task.loss)
    tuned = quantization.fit(
        str(task.model),
        PostTrainingQuantConfig(
            accuracy_criterion=criterion,
            tuning_criterion=TuningCriterion(strategy=setting, max_trials=100, timeout=0),
            calibration_sampling_size=[len(next(iter(task.calibration.values())))],
            quant_level=1,  # the named strategy and nothing before it; "auto" would first try its conservative one
        ),
        calib_dataloader=Calibration(task),
        eval_func=lambda model: meter.score(runner(model)),
    )
    found: dict[str, Any] = {**watch.read(), "calls": meter.calls, "passes": meter.passes, "trials": meter.calls - 1}
    if tuned is None:
        return {**found, "status": "no model", "reason": f"fit returned None: {records.last()}"}
    target = folder / "tuned.onnx"
    onnx.save(tuned.model, str(target))
    return {
        **found,
        "status": "accepted",
        "reason": f"metrics of its evaluations: {[round(value, 4) for value in meter.metrics]}",
        "artifact": str(target),
        "runtime": "onnxruntime",
        "bytes": target.stat().st_size,
        "versions": versions(),
    }


def runner(model: Any) -> Run:
    """Return a function that runs what INC hands to `eval_func`: a ModelProto, or an object or path with one."""
    proto = getattr(model, "model", model)
    source = proto if isinstance(proto, str) else proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def run(batch: Arrays) -> Array:
        return np.asarray(session.run(None, dict(batch))[0])

    return run


class Records(logging.Handler):
    """Keeps the errors that INC logs instead of raising."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line."""
        self.lines.append(record.getMessage())

    def last(self) -> str:
        """Return the last lines."""
        return " | ".join(self.lines[-4:]) or "nothing was logged"


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("neural-compressor", "onnxruntime", "onnx", "numpy")}


if __name__ == "__main__":
    sys.exit(child(main))
