"""What a model's outputs and the labels mean to a metric: classes, scores, probabilities, one value per sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from neural_tune.errors import DataError
from neural_tune.evaluation.data import as_sequence, is_sequence_of_arrays, to_numpy
from neural_tune.protocols import Array, Outputs

# Beyond this distance from [0, 1] a score is no probability that rounding or quantization moved a little.
_NEARLY = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which output and which labels a metric looks at.

    Attributes:
        metric: Name for messages.
        output: Position of the output.
        labels: Key or position within labels that are a mapping or a tuple; None where the labels are one array.
    """

    metric: str
    output: int = 0
    labels: str | int | None = None

    def pick(self, outputs: Outputs, labels: object) -> tuple[Array, Array]:
        """Return one output and its labels as arrays with n rows each; columns of width 1 are squeezed.

        Raises:
            DataError: there is no such output or label, or their lengths differ.
        """
        if labels is None:
            raise DataError(
                f"metric {self.metric!r} needs labels, but the batches have none; expected batches (inputs, labels)"
            )
        if not -len(outputs) <= self.output < len(outputs):
            raise DataError(
                f"metric {self.metric!r}: asked for output {self.output}, but the model has {len(outputs)} output(s)"
            )
        scores = _squeezed(np.asarray(outputs[self.output]))
        wanted = _squeezed(self._labels(labels))
        if scores.ndim == 0 or wanted.ndim == 0 or len(scores) != len(wanted):
            raise DataError(self.misfit(scores, wanted, "one label per sample, with the batch axis first"))
        return scores, wanted

    def _labels(self, labels: object) -> Array:
        if isinstance(labels, Mapping):
            key = next(iter(labels)) if self.labels is None and len(labels) == 1 else self.labels
            if key not in labels:
                raise DataError(
                    f"metric {self.metric!r}: the labels are a mapping with the keys {sorted(map(str, labels))}; "
                    f"found the option labels={self.labels!r}, expected one of the keys"
                )
            return to_numpy(labels[key])
        if is_sequence_of_arrays(labels):
            parts = as_sequence(labels)
            position = 0 if self.labels is None and len(parts) == 1 else self.labels
            if not isinstance(position, int) or not -len(parts) <= position < len(parts):
                raise DataError(
                    f"metric {self.metric!r}: the labels are {len(parts)} arrays; found the option labels={self.labels!r}, "
                    f"expected a position from 0 to {len(parts) - 1}"
                )
            return to_numpy(parts[position])
        return to_numpy(labels)

    def misfit(self, outputs: Array, labels: Array, expected: str) -> str:
        """Return the sentence that says which shapes were found and what was expected."""
        return (
            f"metric {self.metric!r}: found outputs of shape {outputs.shape} ({outputs.dtype}) and labels of shape {labels.shape} "
            f"({labels.dtype}), expected {expected}"
        )


def _squeezed(array: Array) -> Array:
    return array.reshape(len(array)) if array.ndim == 2 and array.shape[1] == 1 else array


def has_nan(array: Array) -> bool:
    """Return whether a float array holds a NaN."""
    return array.dtype.kind == "f" and bool(np.isnan(array).any())


def rows_with_nan(array: Array) -> Array:
    """Return, per sample, whether a NaN is in it, as bool (n,)."""
    if array.dtype.kind != "f":
        return np.zeros(len(array), bool)
    return np.asarray(np.isnan(array).reshape(len(array), -1).any(axis=1))


def class_labels(selection: Selection, scores: Array, labels: Array) -> Array:
    """Return labels as int64 class numbers; one-hot rows beside scores of the same shape become their class.

    Raises:
        DataError: labels are fractional, or several classes are on in one row.
    """
    if labels.dtype.kind == "f":
        if not (np.isfinite(labels).all() and (labels == np.round(labels)).all()):
            raise DataError(selection.misfit(scores, labels, "class numbers, but the labels are fractions"))
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "biu":
        raise DataError(selection.misfit(scores, labels, "integer class numbers"))
    if labels.ndim == 2 and labels.shape == scores.shape and scores.dtype.kind == "f":
        if not ((labels == 0) | (labels == 1)).all() or not (labels.sum(axis=1) == 1).all():
            raise DataError(
                selection.misfit(
                    scores, labels, "class numbers or one-hot rows; for multi-label data give module:callable"
                )
            )
        return np.asarray(labels.argmax(axis=1))
    return labels.astype(np.int64)


def score_table(selection: Selection, scores: Array, labels: Array) -> tuple[Array, Array]:
    """Return scores (n, C) and int64 labels (n,) in 0..C-1.

    Raises:
        DataError: the shapes or the labels do not fit.
    """
    labels = class_labels(selection, scores, labels)
    if scores.ndim != 2 or labels.ndim != 1:
        raise DataError(selection.misfit(scores, labels, "scores (n, classes) and class numbers (n,)"))
    if labels.size and not 0 <= labels.min() <= labels.max() < scores.shape[1]:
        raise DataError(
            f"metric {selection.metric!r}: found labels from {labels.min()} to {labels.max()}, but the model has {scores.shape[1]} classes "
            f"(0 to {scores.shape[1] - 1}); shift or map the labels to the model's classes"
        )
    return scores, labels


def class_axis(selection: Selection, scores: Array, labels: Array, axis: int | None) -> int | None:
    """Return the axis of `scores` that runs over classes; None when the scores are one value per label.

    Axis 1 (channels first) is preferred to the last one; `axis` overrides.

    Raises:
        DataError: no axis makes the shapes fit.
    """
    if scores.shape == labels.shape:
        return None
    for choice in (1, -1) if axis is None else (axis,):
        if -scores.ndim <= choice < scores.ndim and scores.ndim > 1:
            rest = tuple(np.delete(np.asarray(scores.shape), choice))
            if rest == labels.shape:
                return choice
    raise DataError(
        selection.misfit(scores, labels, "scores with one axis more than the labels (the classes), or the same shape")
    )


def predicted_classes(
    selection: Selection, scores: Array, labels: Array, *, axis: int | None, threshold: float | None
) -> Array:
    """Return the predicted class for every label: argmax over the class axis, a threshold on single scores, integers as they are.

    Raises:
        DataError: the shapes do not fit, or single scores are no probabilities and no threshold was given.
    """
    over = class_axis(selection, scores, labels, axis)
    if over is not None:
        return np.asarray(scores.argmax(axis=over))
    if scores.dtype.kind in "biu":
        return scores.astype(np.int64)
    return np.asarray((scores > cut_of(selection, scores, threshold)).astype(np.int64))


def cut_of(selection: Selection, scores: Array, threshold: float | None) -> float:
    """Return the threshold above which a single score means class 1: the one given, or 0.5 for probabilities.

    Raises:
        DataError: none was given and the scores do not lie in [0, 1].
    """
    if threshold is not None:
        return threshold
    if scores.size and (np.nanmin(scores) < -0.5 or np.nanmax(scores) > 1.5):
        raise DataError(
            f"metric {selection.metric!r}: found single scores from {np.nanmin(scores):.3g} to {np.nanmax(scores):.3g}, expected "
            "probabilities of class 1; give the option threshold (0 for logits)"
        )
    return 0.5


def probabilities(scores: Array) -> Array:
    """Return class probabilities (n, C), rows summing to 1, from probabilities or logits; float64.

    Scores within [0, 1] (up to quantization) are probabilities and are normalised; anything else goes through softmax.
    """
    table = np.clip(scores.astype(np.float64), np.finfo(np.float64).min / 4, np.finfo(np.float64).max / 4)
    if table.size and table.min() >= -_NEARLY and table.max() <= 1 + _NEARLY:
        weights = np.clip(table, 0.0, None) + 1e-300
    else:
        weights = np.exp(table - table.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def binary_scores(selection: Selection, scores: Array, labels: Array) -> Array | None:
    """Return one score per sample that grows with class 1, for (n,) and (n, 2) outputs; None for more classes.

    Raises:
        DataError: the outputs have another rank.
    """
    if scores.ndim == 1:
        return scores.astype(np.float64)
    if scores.ndim != 2:
        raise DataError(selection.misfit(scores, labels, "scores (n,), (n, 2) or (n, classes)"))
    return scores[:, 1].astype(np.float64) - scores[:, 0] if scores.shape[1] == 2 else None


def paired_values(selection: Selection, scores: Array, labels: Array) -> tuple[Array, Array]:
    """Return outputs and labels as float64 of one shape.

    Raises:
        DataError: the shapes differ.
    """
    if scores.shape != labels.shape:
        raise DataError(selection.misfit(scores, labels, "values and targets of one shape"))
    if scores.dtype.kind not in "biuf" or labels.dtype.kind not in "biuf":
        raise DataError(selection.misfit(scores, labels, "numbers"))
    return scores.astype(np.float64), labels.astype(np.float64)
