"""The float model's evaluation, on disk and as what a final evaluation is compared with: the same for every evaluator."""

from __future__ import annotations

import io
import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neural_tune import atomic_file
from neural_tune.errors import DataError
from neural_tune.evaluation.certificate import Certificate, Resampled, certify
from neural_tune.evaluation.result import Evaluation
from neural_tune.protocols import Array
from neural_tune.values import AccuracyCriterion, FrozenMap

logger = logging.getLogger(__name__)

_FORMAT = 1


class RemembersBaseline:
    """Keeps the baseline for an evaluator, which says in `_kind`, `_identity`, `_extra_arrays` and `_take` what else belongs into its file.

    Attributes:
        size: Samples of the evaluation set; 0 before the baseline, and always for an opaque function.
        directions: Metric -> higher is better, where the evaluator knows it.
        baseline_evaluation: The float model's; None before there is one.
    """

    def __init__(self, directions: Mapping[str, bool]) -> None:
        self.size = 0
        self.directions: Mapping[str, bool] = dict(directions)
        self.baseline_evaluation: Evaluation | None = None

    def certify(self, final: Evaluation, *, criterion: AccuracyCriterion | None = None, seed: int = 0) -> Certificate:
        """Return the certificate of `final`, which must be complete. Raises DataError before a baseline."""
        baseline = self._known_baseline()
        directions = dict(self.directions)
        for name in baseline.metrics:
            rule = criterion.metrics.get(name, criterion) if criterion is not None else None
            directions.setdefault(name, rule.higher_is_better if rule is not None else True)
        return certify(baseline, final, directions, resampled=self._resampled(final), seed=seed)

    def _resampled(self, final: Evaluation) -> Mapping[str, Resampled]:  # noqa: ARG002 - nothing to resample in general
        return {}

    def _known_baseline(self) -> Evaluation:
        if self.baseline_evaluation is None:
            raise DataError("there is no baseline yet: evaluate the float model first")
        return self.baseline_evaluation

    def save_baseline(self, path: Path) -> None:
        """Write the baseline as an npz file without pickle; the file appears whole or not at all."""
        baseline = self._known_baseline()
        meta = {
            "format": _FORMAT,
            "metrics": {name: float(value).hex() for name, value in baseline.metrics.items()},
            "samples": baseline.samples,
            "passes": baseline.passes,
            "seconds": baseline.seconds,
            **self._identity(),
        }
        arrays = {"meta": np.array(json.dumps(meta)), **self._extra_arrays()}
        arrays |= {f"value:{name}": array for name, array in (baseline.values or {}).items()}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type] # numpy's stub takes every keyword for allow_pickle
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_file.write(path, buffer.getvalue())

    def restore_baseline(self, path: Path) -> bool:
        """Bring the baseline back from `path`; False when the file is absent, damaged, or of other metrics.

        Raises:
            DataError: the evaluation data are not those of the saved baseline.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            meta = json.loads(str(arrays.pop("meta")))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            logger.info("no usable baseline in %s: %s", path, error)
            return False
        if meta.get("format") != _FORMAT or any(meta.get(key) != value for key, value in self._kind().items()):
            return False
        self._take(meta, arrays)
        values = {name.removeprefix("value:"): array for name, array in arrays.items() if name.startswith("value:")}
        self.baseline_evaluation = Evaluation(
            metrics=FrozenMap({name: float.fromhex(value) for name, value in meta["metrics"].items()}),
            samples=meta["samples"],
            passes=meta["passes"],
            seconds=meta["seconds"],
            values=values or None,
        )
        return True

    def _kind(self) -> dict[str, Any]:
        """Return what must be the same in a file for it to be usable."""
        return {"evaluator": type(self).__name__}

    def _identity(self) -> dict[str, Any]:
        return self._kind()

    def _extra_arrays(self) -> dict[str, Array]:
        return {}

    def _take(self, meta: dict[str, Any], arrays: dict[str, Array]) -> None:
        """Restore what `_identity` and `_extra_arrays` saved."""
