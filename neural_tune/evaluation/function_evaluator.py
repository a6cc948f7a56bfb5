"""The user's function says how good a model is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from neural_tune.errors import DataError
from neural_tune.evaluation.evaluator import Hopeless, Progress
from neural_tune.evaluation.identity import described
from neural_tune.evaluation.metrics import as_number
from neural_tune.evaluation.remembered_baseline import RemembersBaseline
from neural_tune.evaluation.result import Evaluation
from neural_tune.protocols import AnyAdapter
from neural_tune.values import FrozenMap


class FunctionEvaluator(RemembersBaseline):
    """The user's function decides: it gets the framework's native model and returns a number or a dict of numbers.

    A plain number is the metric "accuracy". NaN is let through (no criterion accepts it); whatever the function raises propagates.
    """

    def __init__(self, eval_func: Callable[[Any], object]) -> None:
        """Take `eval_func(model)`."""
        super().__init__({})
        self._eval_func = eval_func

    def identity(self) -> str:
        """Return class, module, name and code of the function; not what it reads from elsewhere (see `identity.described`)."""
        return f"{type(self).__name__}: {described(self._eval_func)}"

    def baseline(self, adapter: AnyAdapter, built: Any, progress: Progress | None = None) -> Evaluation:
        """Call the function on the float model.

        Raises:
            DataError: it returned no number.
        """
        self.baseline_evaluation = self.evaluate(adapter, built, progress=progress)
        return self.baseline_evaluation

    def evaluate(
        self,
        adapter: AnyAdapter,
        built: Any,
        *,
        hopeless: Hopeless | None = None,  # noqa: ARG002 - an opaque function cannot be stopped half way
        progress: Progress | None = None,
        is_batch_bound: bool = False,  # noqa: ARG002 - the function makes its own batches
    ) -> Evaluation:
        """Call the function on a model; one call counts as one pass.

        Raises:
            DataError: it returned no number, or other metrics than for the float model.
        """
        start = time.perf_counter()
        returned = self._eval_func(adapter.native(built))
        seconds = time.perf_counter() - start
        found = numbers_of(returned)
        if self.baseline_evaluation is not None and set(found) != set(self.baseline_evaluation.metrics):
            raise DataError(
                f"eval_func returned the metrics {sorted(found)}, but {sorted(self.baseline_evaluation.metrics)} for the float model; "
                "expected the same names every time"
            )
        if progress is not None:
            progress(1, 1)
        return Evaluation(metrics=FrozenMap(found), samples=0, passes=1.0, seconds=seconds)


def numbers_of(returned: object) -> dict[str, float]:
    """Return the metrics in what an eval_func returned: a dict of numbers, or one number, which is called "accuracy".

    Raises:
        DataError: it is neither; the message says what came back.
    """
    if not isinstance(returned, Mapping):
        return {"accuracy": as_number(returned, "eval_func")}
    if not returned or not all(isinstance(name, str) for name in returned):
        raise DataError(
            f"eval_func returned {returned!r:.80}, expected a number, or a dict of metric names and numbers"
        )
    return {name: as_number(value, f"eval_func for {name!r}") for name, value in returned.items()}
