"""The public calls: `fit` and `load`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from neural_tune import plugins
from neural_tune.config import (
    ObjectiveFunction,
    PostTrainingQuantConfig,
    QuantizationAwareTrainingConfig,
    TuneConfig,
)
from neural_tune.engine import tune
from neural_tune.errors import ConfigError
from neural_tune.evaluation import Evaluator, FunctionEvaluator, MetricEvaluator, as_loader, directed
from neural_tune.protocols import AnyAdapter, Reporter
from neural_tune.qat import TrainFunction
from neural_tune.report import ClosableReporter, make_reporter
from neural_tune.report.several import Several
from neural_tune.result import RESULT_VERSION, TuneResult
from neural_tune.task import Task


def fit(
    model: object,
    conf: PostTrainingQuantConfig | QuantizationAwareTrainingConfig | TuneConfig,
    calib_dataloader: Iterable[Any] | None = None,
    eval_func: Callable[[Any], Any] | None = None,
    eval_dataloader: Iterable[Any] | None = None,
    eval_metric: Any = None,
    *,
    train_func: TrainFunction | None = None,
    framework: str | AnyAdapter = "",
    reporter: Reporter | str | Sequence[Reporter | str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    job_name: str = "",
    objective_functions: Mapping[str, ObjectiveFunction] | None = None,
) -> TuneResult:
    """Return the best low-precision form of `model` that meets the accuracy criterion, with the evidence.

    The caller's model is never changed.

    Args:
        model: A model object of an installed framework, or a path to one.
        conf: The configuration.
        calib_dataloader: Iterable of batches, `(inputs, labels)` or `inputs`, read once; or one array, or a tuple `(x, y)` of arrays.
        eval_func: Takes the native model, returns a number or a dict of numbers. Or give the two arguments below.
        eval_dataloader: Iterable of batches `(inputs, labels)`, iterated anew for each pass; or a tuple `(x, y)` of arrays.
        eval_metric: Name of a built-in metric ("topk", "f1" ...), {name: options}, "module:callable", a callable
            `(outputs, labels) -> float`, or a list of these.
        train_func: For `QuantizationAwareTrainingConfig`: trains the model it is given, which has fake_quant inside, in place. Called
            once per trial whose post-training form is not accurate enough; without calibration data, once per trial.
        framework: Name of the adapter, or an adapter object of your own; empty lets the model decide.
        reporter: "console" (the default), "json", "quiet", an object with `on_event`, or a list of these.
        resume: Directory of an earlier run to go on with.
        job_name: Name of the job in the workspace; empty takes the model's.
        objective_functions: Objectives of your own by name, `native model -> float`.

    Returns:
        The result; look at `status` (or `accepted`) before using `model`.

    Raises:
        ConfigError: the configuration or the arguments contradict each other.
        DataError: calibration or evaluation data cannot be used.
        CapabilityError: the framework cannot do what is asked for.
        PluginError: no adapter for the model, or the framework is not installed.
        Exception: whatever `eval_func` or `train_func` raises, untouched.
    """
    own, shown = _reporter(reporter)
    try:
        return tune(
            task_of(
                model,
                conf,
                calib_dataloader,
                eval_func,
                eval_dataloader,
                eval_metric,
                train_func=train_func,
                framework=framework,
                reporter=shown,
                resume=resume,
                job_name=job_name,
                objective_functions=objective_functions,
            )
        )
    finally:
        if own is not None:  # a progress bar must not outlive what a user's function raised
            own.close()


def task_of(
    model: object,
    conf: PostTrainingQuantConfig | QuantizationAwareTrainingConfig | TuneConfig,
    calib_dataloader: Iterable[Any] | None = None,
    eval_func: Callable[[Any], Any] | None = None,
    eval_dataloader: Iterable[Any] | None = None,
    eval_metric: Any = None,
    *,
    reporter: Reporter,
    train_func: TrainFunction | None = None,
    framework: str | AnyAdapter = "",
    resume: str | os.PathLike[str] | None = None,
    job_name: str = "",
    objective_functions: Mapping[str, ObjectiveFunction] | None = None,
) -> Task:
    """Return what `fit` hands to the engine; the arguments are those of `fit`.

    Raises:
        ConfigError: the configuration or the arguments contradict each other.
        DataError: a dataloader is none.
    """
    config = conf if isinstance(conf, TuneConfig) else _config_of(conf)
    functions = dict(objective_functions or {})
    if not isinstance(conf, TuneConfig):
        functions |= conf.objective_functions
    _check_objectives(config, functions)
    evaluator, loader = _evaluator(eval_func, eval_dataloader, eval_metric)
    if isinstance(evaluator, MetricEvaluator):
        config = _with_directions(config, evaluator.settle(config.criterion))
    return Task(
        model=model,
        config=config,
        evaluator=evaluator,
        reporter=reporter,
        calibration=None if calib_dataloader is None else as_loader(calib_dataloader, once=True),
        evaluation_loader=loader,
        framework=framework,
        job=job_name or getattr(conf, "model_name", ""),
        resume=resume,
        objective_functions=functions,
        train_func=train_func,
    )


def load(directory: str | os.PathLike[str], *, threads: int | None = None, framework: str | AnyAdapter = "") -> Any:
    """Return the native model that `TuneResult.save` wrote into `directory`.

    Args:
        directory: The folder given to `save`, or a run's folder in the workspace.
        threads: Threads of the runtime; None takes the runtime's default.
        framework: An adapter object of your own; by default the adapter that result.json names.

    Raises:
        ConfigError: the folder was not written by neural_tune, or holds no model.
        PluginError: the framework of the model is not installed.
    """
    root = Path(directory)
    try:
        stored = json.loads((root / "result.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"load: no readable result.json in {root}, expected a folder written by TuneResult.save"
        ) from error
    if stored.get("version") != RESULT_VERSION or not stored.get("artifact"):
        raise ConfigError(
            f"load: {root} holds a result of version {stored.get('version')!r} with artifact {stored.get('artifact')!r}, "
            f"expected version {RESULT_VERSION} with a model"
        )
    name = Path(stored["artifact"]).name  # a file name only: no path from a file escapes the folder
    artifact = next((path for path in (root / name, root / "model" / name) if path.exists()), None)
    if artifact is None:
        raise ConfigError(f"load: {root} has no {name}, which its result.json names")
    adapter = plugins.adapter_for(artifact, framework or stored["framework"])
    return adapter.native(adapter.restore(artifact, threads))


def _config_of(conf: object) -> TuneConfig:
    if isinstance(conf, PostTrainingQuantConfig | QuantizationAwareTrainingConfig):
        return conf.to_tune_config()
    raise ConfigError(
        f"conf: found a {type(conf).__name__}, expected PostTrainingQuantConfig, QuantizationAwareTrainingConfig or TuneConfig"
    )


def _reporter(asked: Reporter | str | Sequence[Reporter | str] | None) -> tuple[ClosableReporter | None, Reporter]:
    """Return the reporter that was made here and must be closed (None for the caller's own object), and the one to report to."""
    if asked is None or isinstance(asked, str):
        made = make_reporter(asked)
        return made, made
    if not isinstance(asked, list | tuple):
        return None, cast("Reporter", asked)
    several = Several([make_reporter(item) if isinstance(item, str) else item for item in asked])
    return several, several


def _evaluator(eval_func: Any, eval_dataloader: Any, eval_metric: Any) -> tuple[Evaluator, Iterable[Any] | None]:
    if eval_func is not None:
        if eval_metric is not None:
            raise ConfigError(
                "found both eval_func and eval_metric, expected one: they would be two definitions of accuracy"
            )
        if not callable(eval_func):
            raise ConfigError(
                f"eval_func: found a {type(eval_func).__name__}, expected a callable `model -> float or dict`"
            )
        return FunctionEvaluator(eval_func), None if eval_dataloader is None else as_loader(eval_dataloader)
    if eval_dataloader is None or eval_metric is None:
        raise ConfigError(
            "nothing defines accuracy: pass eval_func=, or eval_dataloader= together with eval_metric= (for instance eval_metric='topk')"
        )
    loader = as_loader(eval_dataloader)
    return MetricEvaluator(loader, eval_metric), loader


def _check_objectives(config: TuneConfig, functions: Mapping[str, ObjectiveFunction]) -> None:
    known = {"latency", "throughput", "size", "memory", *functions}
    unknown = [name for name in config.objectives.names if name not in known]
    if unknown:
        raise ConfigError(f"objective: found {unknown}, expected some of {sorted(known)}, or pass objective_functions=")


def _with_directions(config: TuneConfig, directions: Mapping[str, bool]) -> TuneConfig:
    """Give every built-in metric its own direction: an error metric is better when it is lower, whatever the default says."""
    criterion = config.criterion
    rules = criterion.constraints(dict.fromkeys(directions, 0.0))
    turned = sorted(name for name, rule in rules.items() if rule.higher_is_better != directions.get(name, True))
    if not turned:
        return config
    way = ", ".join(f"{name}: {'higher' if directions[name] else 'lower'} is better" for name in turned)
    notice = f"{way}; the criterion was read that way"
    return replace(config, criterion=directed(criterion, directions), notices=(*config.notices, notice))
