"""What makes a run the same run: a resumed one is held to it, part by part.

The model, the first calibration batch, the evaluation, the space and everything else that decides a trial must be the same; only the budget (max_trials,
timeout, max_passes) and the executor may change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np

from neural_tune.config import TuneConfig
from neural_tune.errors import ConfigError
from neural_tune.evaluation import CalibrationStream, FunctionEvaluator
from neural_tune.protocols import AnyAdapter
from neural_tune.space import TuningSpace
from neural_tune.task import Task
from neural_tune.values import StopRule, digest, to_jsonable


def identity_of(task: Task, adapter: AnyAdapter, model: Any, space: TuningSpace) -> dict[str, str]:
    """Return what must not change between a run and its resumption, each part as a hash of its own."""
    config = task.config
    free = replace(portable(config), stop=StopRule(), executor="local", workers=1, notices=())
    return {
        "model": adapter.fingerprint(model),
        "runtime": " ".join(versions(space).values()),
        "space": digest((space.groups, space.fixed)),
        "evaluation": task.evaluator.identity(),
        "configuration": digest(free),
    }


def check_same(records: list[dict[str, Any]], identity: Mapping[str, str], task: Task, names: tuple[str, ...]) -> None:
    """Refuse to go on with something else. The evaluator itself compares every evaluation batch with the earlier run's.

    Raises:
        ConfigError: a part changed; the message names it.
    """
    begun = [record for record in records if record["kind"] == "run"]
    if not begun:
        raise ConfigError("resume: the journal has no opening record; start a new run")
    changed = [name for name, value in identity.items() if begun[0]["identity"].get(name) != value]
    # An opaque function may have been mended since; what it says of the float model decides then.
    if "evaluation" in changed and isinstance(task.evaluator, FunctionEvaluator):
        changed.remove("evaluation")
    if "configuration" in changed:
        changed[changed.index("configuration")] = f"configuration ({_changed_fields(begun[0]['config'], task.config)})"
    calibrated = [record["digest"] for record in records if record["kind"] == "calibration"]
    first = _first_batch(task, names) if calibrated else ""
    # A loader that shuffles shows another first batch every time: then nothing can be said, and nothing is.
    if first and first != calibrated[-1] and first == _first_batch(task, names):
        changed.append("calibration data")
    if changed:
        raise ConfigError(
            f"resume: the {' and the '.join(changed)} changed since that run; only max_trials, timeout, max_passes and the executor may. "
            "Start a new run, or pass what the run was started with"
        )


def _changed_fields(earlier: Mapping[str, Any], config: TuneConfig) -> str:
    now = to_jsonable(portable(config))
    fields = {name for name in {*earlier, *now} if earlier.get(name) != now.get(name)}
    return ", ".join(sorted(fields - {"stop", "executor", "workers", "notices"}))


def _first_batch(task: Task, names: tuple[str, ...]) -> str:
    """Return a hash of the first calibration batch; "" when looking at it would use it up."""
    if task.calibration is None or isinstance(task.calibration, Iterator):
        return ""
    return CalibrationStream(task.calibration, 1, names).peek()


def portable(config: TuneConfig) -> TuneConfig:
    """Return the configuration without what belongs to this machine only."""
    return replace(config, workspace="")


def versions(space: TuningSpace) -> dict[str, str]:
    """Return what the numbers of a run depend on besides its inputs: the versions of what computes, and the processor's instructions."""
    capability = space.capability
    return {
        "neural_tune": version("neural-tune"),
        capability.framework: capability.runtime_version,
        "numpy": np.__version__,
        "instruction_set": capability.instruction_set,
    }
