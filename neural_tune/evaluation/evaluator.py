"""How good is a model? The question that `FunctionEvaluator` and `MetricEvaluator` answer, as a contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from neural_tune.evaluation.certificate import Certificate
from neural_tune.evaluation.result import Evaluation
from neural_tune.protocols import AnyAdapter
from neural_tune.values import AccuracyCriterion

# The best metrics that are still possible -> whether even they fail the criterion.
Hopeless: TypeAlias = Callable[[Mapping[str, float]], bool]
# Samples done and in all; 0 in all while that is not known.
Progress: TypeAlias = Callable[[int, int], None]


class Evaluator(Protocol):
    """Says how good a built model is. One evaluator serves one run: the baseline first, then candidates, one at a time.

    Attributes:
        size: Samples of the evaluation set; 0 before the baseline, and always for an opaque function.
        directions: Metric -> higher is better, where the evaluator knows it.
    """

    size: int
    directions: Mapping[str, bool]

    def identity(self) -> str:
        """Return a text that says what is measured, the same in every process; a run must not go on with another one."""

    def baseline(self, adapter: AnyAdapter, built: Any, progress: Progress | None = None) -> Evaluation:
        """Evaluate the float model on everything and remember it."""

    def evaluate(
        self,
        adapter: AnyAdapter,
        built: Any,
        *,
        hopeless: Hopeless | None = None,
        progress: Progress | None = None,
        is_batch_bound: bool = False,
    ) -> Evaluation:
        """Evaluate a candidate; stop as soon as `hopeless(best metrics still possible)` is True.

        `is_batch_bound` says that its output for a sample may depend on the other samples of the batch.
        """

    def save_baseline(self, path: Path) -> None:
        """Write what `restore_baseline` needs; numbers and text only."""

    def restore_baseline(self, path: Path) -> bool:
        """Bring a saved baseline back; False when there is none that fits, and a new one is needed.

        Raises:
            DataError: the evaluation data are not those of the saved baseline.
        """

    def certify(self, final: Evaluation, *, criterion: AccuracyCriterion | None = None, seed: int = 0) -> Certificate:
        """Return the drop of a complete evaluation against the baseline, with intervals; `criterion` gives unknown directions."""
