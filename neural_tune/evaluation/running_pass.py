"""A pass over evaluation data that is under way, and what its metrics can still reach."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from neural_tune.evaluation.metric import Metric
from neural_tune.evaluation.metrics import best_possible
from neural_tune.evaluation.samples import Batch
from neural_tune.protocols import Array, Outputs


@dataclass(slots=True)
class RunningPass:
    """One pass under way.

    Attributes:
        size: Samples of the set; 0 while unknown (the baseline).
        outputs: Outputs per batch, in the order of the visit.
        rows: Sample numbers per batch.
        labels: Labels per batch.
        values: Per-sample values per additive metric, per batch.
        done: Samples visited.
    """

    size: int
    outputs: list[Outputs] = field(default_factory=list)
    rows: list[Array] = field(default_factory=list)
    labels: list[object] = field(default_factory=list)
    values: dict[str, list[Array]] = field(default_factory=dict)
    done: int = 0

    def add(self, batch: Batch, outputs: Outputs, values: Mapping[str, Array]) -> None:
        """Take in one batch: what the model gave, and the values of metrics per sample."""
        self.outputs.append(outputs)
        self.rows.append(batch.rows)
        self.labels.append(batch.labels)
        for name, array in values.items():
            self.values.setdefault(name, []).append(array)
        self.done += len(batch.rows)

    def bounds(self, metrics: Sequence[Metric]) -> dict[str, float]:
        """Return the best value that each metric can still reach."""
        seen = {name: math.fsum(float(part.sum()) for part in parts) for name, parts in self.values.items()}
        return {
            metric.name: best_possible(metric, seen.get(metric.name, 0.0), self.done, self.size) for metric in metrics
        }

    def order(self) -> Array:
        """Return the permutation that brings what was visited into data order."""
        return np.argsort(np.concatenate(self.rows), kind="stable")
