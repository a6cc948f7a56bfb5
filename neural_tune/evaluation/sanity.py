"""Is there anything to tune? Checks on the float model before a search spends hours on it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from neural_tune.evaluation.data import members, to_numpy
from neural_tune.evaluation.metric import Metric
from neural_tune.evaluation.result import Evaluation
from neural_tune.protocols import AnyAdapter, Inputs

_RELATIVE = 1e-6
# An accuracy on fewer samples says too little to be called chance.
_ENOUGH = 50
_ACCURACY = "sklearn.metrics.accuracy_score"


def check_baseline(evaluation: Evaluation) -> list[str]:
    """Return what is wrong with the float model's metrics; nothing when all are finite numbers."""
    if not evaluation.metrics:
        return ["the evaluation of the float model returned no metric"]
    return [
        f"the float model's {name} is {value}, expected a finite number; check the model, the data and the metric"
        for name, value in evaluation.metrics.items()
        if not math.isfinite(value)
    ]


def near_chance(metric: Metric, value: float, labels: object) -> str:
    """Return a notice about an accuracy that is no better than answering the commonest class every time; "" for any other.

    "No better" is: less than two standard errors above. Only accuracies over one class number per sample are looked at.
    """
    leaves_out = "ignore_index" in metric.spec and "'ignore_index': None" not in metric.spec
    if metric.library != _ACCURACY or leaves_out:
        return ""
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or labels.size != len(labels):
        return ""
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) < 2 or len(labels) < _ENOUGH:
        return ""
    share = float(counts.max()) / len(labels)
    if value > share + 2.0 * math.sqrt(share * (1.0 - share) / len(labels)):
        return ""
    return (
        f"{metric.name} of the float model is {value:.4f}, and {share:.4f} is had by always answering the commonest class: "
        "check the preprocessing and the numbering of the labels"
    )


def check_outputs(adapter: AnyAdapter, built: Any, inputs: Inputs) -> list[str]:
    """Return what is wrong with a model's outputs on one batch; nothing when they are finite, varied and repeatable.

    The batch runs twice. Outputs that are the same for every sample of a batch with several different samples mean a dead model; two runs
    that differ by more than 1e-6 of the largest output mean that no comparison can be trusted.
    """
    first = [np.asarray(output) for output in adapter.run(built, inputs)]
    second = [np.asarray(output) for output in adapter.run(built, inputs)]
    problems = [] if first else ["the float model gave no output"]
    for position, (output, again) in enumerate(zip(first, second, strict=False)):
        problems += _check_finite(position, output)
        if not _is_repeatable(output, again):
            problems.append(
                f"two runs of the float model on one batch differ in output {position}: switch training mode, dropout and random ops off"
            )
    # A model may well have one output that is constant (a mask, a count); a dead one has no other.
    if first and all(_is_constant(output) for output in first) and _varies(inputs):
        count = len(first[0]) if first[0].ndim else 1
        problems.append(
            f"the outputs of the float model are the same for all {count} samples of a batch; check the inputs' scale and the weights"
        )
    return problems


def _varies(inputs: Inputs) -> bool:
    return any(not _is_constant(to_numpy(value)) for _, value in members(inputs))


def _check_finite(position: int, output: np.ndarray[Any, Any]) -> list[str]:
    if output.dtype.kind != "f" or np.isfinite(output).all():
        return []
    bad = int((~np.isfinite(output)).sum())
    return [
        f"output {position} of the float model holds {bad} values of {output.size} that are not finite; expected numbers"
    ]


def _is_repeatable(output: np.ndarray[Any, Any], again: np.ndarray[Any, Any]) -> bool:
    if output.shape != again.shape:
        return False
    if output.dtype.kind != "f":
        return bool((output == again).all())
    scale = float(np.abs(output[np.isfinite(output)]).max(initial=0.0))
    return bool(np.allclose(output, again, rtol=_RELATIVE, atol=_RELATIVE * scale, equal_nan=True))


def _is_constant(output: np.ndarray[Any, Any]) -> bool:
    return output.ndim > 0 and len(output) > 1 and bool((output == output[:1]).all())
