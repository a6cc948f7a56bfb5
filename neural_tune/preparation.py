"""Everything before the search: load, ask for the space, measure the float model, calibrate - or take it over from an earlier run.

A resumed run is held to what it was, see `neural_tune.run_identity`.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from neural_tune import events, insights, journal, plugins, run_identity
from neural_tune.config import TuneConfig
from neural_tune.errors import AdapterError, ConfigError, DataError, PluginError
from neural_tune.evaluation import (
    CalibrationStream,
    Evaluation,
    MetricEvaluator,
    as_loader,
    batch_length,
    check_baseline,
    check_outputs,
    owned,
    split_batch,
    to_numpy,
)
from neural_tune.journal import Journal
from neural_tune.protocols import AdapterOptions, AnyAdapter, CapturesByExample, Inputs, Strategy
from neural_tune.run_directory import RunDirectory
from neural_tune.space import TuningSpace
from neural_tune.task import Task
from neural_tune.trials import Workbench
from neural_tune.values import (
    FLOAT_CANDIDATE,
    PROBES,
    AccuracyCriterion,
    Baseline,
    FrozenMap,
    History,
    Insight,
    TrialResult,
    from_jsonable,
    to_jsonable,
)

# Samples for the probes. More rank hardly better (docs/strategies.md has the figures) and cost N forward passes each.
PROBE_SAMPLES = 32
# The probes wanted, what is known -> what is known then.
Probes: TypeAlias = Callable[[frozenset[str], Insight], Insight]


@dataclass(slots=True, kw_only=True)
class Run:
    """A run that is ready to search: the only mutable thing is the history, and only the engine's loop moves it on.

    Attributes:
        task: What was asked for.
        bench: What trials share.
        space: The tuning space.
        strategy: Proposes.
        journal: Remembers.
        directory: Where everything is written.
        history: What is known so far.
        probes: Runs probes, and returns what was known with what they found.
        notices: Things the user should know.
        problem: Why the search must not start; empty when all is well.
    """

    task: Task
    bench: Workbench
    space: TuningSpace
    strategy: Strategy
    journal: Journal
    directory: RunDirectory
    history: History
    probes: Probes
    notices: tuple[str, ...] = ()
    problem: str = ""

    def emit(self, event: events.Event) -> None:
        """Tell the reporter."""
        self.task.reporter.on_event(event)


class Halted(Exception):  # noqa: N818 - no error of its own: the engine turns it into a result
    """The run ended before its search; its directory and its open journal are handed over to be concluded."""

    def __init__(
        self, reason: str, framework: str, directory: RunDirectory, log: Journal, *, is_interrupted: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.framework = framework
        self.directory = directory
        self.journal = log
        self.is_interrupted = is_interrupted


def prepare(task: Task) -> Run:
    """Return a run that is ready to search (or carries the `problem` that forbids it).

    Raises:
        Halted: the adapter broke on the float model, or an interrupt arrived.
        NeuralTuneError: the configuration, the data or the model cannot be used at all.
    """
    config = task.config
    _check_training(task)
    adapter = plugins.adapter_for(task.model, task.framework)
    strategy = task.strategy or plugins.strategy(config.strategy, config.seed, **config.strategy_options)
    insights.check_ability(adapter, strategy.name, _wants(strategy, config))
    task, example = _with_example(task) if isinstance(adapter, CapturesByExample) else (task, None)
    asked = replace(adapter_options(config), example=example, has_data=task.calibration is not None)
    model = adapter.load(task.model, asked)
    space = TuningSpace.of(adapter.query(model), config.rules, config.recipes)
    if isinstance(task.evaluator, MetricEvaluator):
        task.evaluator.input_names = space.capability.inputs
    if not space.groups:
        raise ConfigError(_nothing_to_tune(space))
    strategy.forecast(space)  # one that cannot work on this space says so before anything is measured
    identity = run_identity.identity_of(task, adapter, model, space)
    records: list[dict[str, Any]] = []
    if task.resume is None:
        directory = RunDirectory.create(config.workspace, task.job or _model_name(task.model))
    else:
        directory = RunDirectory.existing(Path(task.resume))
        records = journal.read(directory.journal)
        run_identity.check_same(records, identity, task, space.capability.inputs)
    log = Journal(directory.journal)
    try:
        if not records:
            (directory.root / "job.yaml").write_text(
                json.dumps(to_jsonable(run_identity.portable(config)), indent=1) + "\n"
            )
            log.append(
                "run",
                identity=identity,
                config=to_jsonable(run_identity.portable(config)),
                versions=run_identity.versions(space),
            )
        notices = (*config.notices, *_notices(config), *space.notices, *space.capability.notes)
        results = _results(records)
        task.reporter.on_event(
            events.RunStarted(
                job=task.job or _model_name(task.model),
                run_directory=str(directory.root),
                space=space,
                strategy=strategy.name,
                resumed_trials=len(results),
                notices=notices,
            )
        )
        return _ready(task, adapter, model, space, strategy, log, directory, records, notices)
    except AdapterError as error:
        reason = f"the float model cannot be run or calibrated: {error}"
        raise Halted(reason, adapter.name, directory, log) from error
    except KeyboardInterrupt as interrupt:
        reason = f"interrupted by {str(interrupt) or 'Ctrl-C'} before the search"
        raise Halted(reason, adapter.name, directory, log, is_interrupted=True) from interrupt
    except BaseException:
        log.close()
        if task.resume is None and not _is_worth_resuming(directory):
            directory.discard()
        raise


def _is_worth_resuming(directory: RunDirectory) -> bool:
    """Return whether a run got as far as to know something that took time: a calibration or the baseline."""
    return any(record["kind"] != "run" for record in journal.read(directory.journal))


def _notices(config: TuneConfig) -> tuple[str, ...]:
    """Return what a user should know about a configuration that is valid, but probably not what she means."""
    if config.approach == "weight_only" and config.objectives.names[0] in ("latency", "throughput"):
        told = (
            "approach weight_only makes models smaller; with the objective 'latency' every op that does not get faster by it stays float: "
            "objective 'size' packs them all"
        )
        return (told,)
    return ()


def _check_training(task: Task) -> None:
    trains = task.config.approach == "qat"
    if trains and task.train_func is None:
        raise ConfigError(
            "approach 'qat' trains candidates: pass train_func=, a function that trains the model it is given in place"
        )
    if task.train_func is not None and not trains:
        raise ConfigError(
            f"found train_func with approach {task.config.approach!r}; expected QuantizationAwareTrainingConfig for training, or no train_func"
        )


def _ready(
    task: Task,
    adapter: AnyAdapter,
    model: Any,
    space: TuningSpace,
    strategy: Strategy,
    log: Journal,
    directory: RunDirectory,
    records: list[dict[str, Any]],
    notices: tuple[str, ...],
) -> Run:
    kept: list[Inputs] = []
    statistics, sample, more = _statistics(task, adapter, model, directory, space, log, kept)
    bench = Workbench(
        adapter=adapter,
        model=model,
        statistics=statistics,
        config=task.config,
        evaluator=task.evaluator,
        directory=directory,
        sample=sample,
        batch_size=batch_length(sample),
        objective_functions=task.objective_functions,
        train_func=task.train_func,
    )
    baseline, problems = _baseline(task, bench, log, directory, records)
    can_probe = (
        statistics is not None or task.config.approach != "qat"
    )  # without ranges nothing can be built before it is trained
    probes = _probes(task, bench, space, kept)
    insight = None if problems or not can_probe else _insight(_wants(strategy, task.config), probes, log, records)
    return Run(
        task=task,
        bench=bench,
        space=space,
        strategy=strategy,
        journal=log,
        directory=directory,
        history=History(
            baseline=baseline,
            criterion=task.config.criterion,
            objectives=task.config.objectives,
            results=_results(records),
            insight=insight,
        ),
        probes=probes,
        notices=(*notices, *more),
        problem="; ".join(problems),
    )


def _statistics(
    task: Task,
    adapter: AnyAdapter,
    model: Any,
    directory: RunDirectory,
    space: TuningSpace,
    log: Journal,
    kept: list[Inputs],
) -> tuple[Any, Inputs, tuple[str, ...]]:
    """Return calibration statistics, a batch of inputs for measuring, and notices. The data is read at most once.

    The first `PROBE_SAMPLES` samples that pass by are put into `kept`, for the probes.
    """
    config, names = task.config, space.capability.inputs
    loader = task.calibration
    if loader is None and config.approach in ("static", "auto"):
        raise ConfigError(f"approach {config.approach!r} needs calibration data: pass calib_dataloader=")
    source = loader if loader is not None else task.evaluation_loader
    if source is None:
        raise ConfigError("no data to measure speed with: pass calib_dataloader= (or eval_dataloader=)")
    stored = adapter.load_statistics(model, directory.statistics) if task.resume is not None else None
    if loader is None or stored is not None:
        return stored, _cut(_first_inputs(source, names), config.performance.batch_size), ()
    task.reporter.on_event(events.StageStarted(stage="calibration"))
    stream = CalibrationStream(loader, config.sampling_size, names)
    statistics = adapter.calibrate(model, _tee(stream, kept), directory.statistics)
    log.append("calibration", digest=stream.first_batch_digest, samples=stream.samples)
    return statistics, _cut(stream.first_inputs, config.performance.batch_size), tuple(stream.notices)


def _tee(stream: CalibrationStream, kept: list[Inputs]) -> Iterator[Inputs]:
    """Yield the batches of `stream`, keeping copies of the first ones: whole, until they hold `PROBE_SAMPLES`.

    They are never cut, since a model may take batches of one size only.
    """
    samples = 0
    for batch in stream:
        if samples < PROBE_SAMPLES:
            kept.append(_cut(batch, None))
            samples += batch_length(batch)
        yield batch


def learn(run: Run, wanted: frozenset[str]) -> None:
    """Run the probes that a strategy asks for during the search; their findings join the journal and the history.

    Raises:
        PluginError: it asks for probes that do not exist, or that it has the answer to.
    """
    known = run.history.insight or Insight()
    if not wanted or not wanted <= set(PROBES) or wanted & known.answered:
        raise PluginError(
            f"strategy {run.strategy.name!r} asked for the probes {sorted(wanted)}, expected some of {sorted(set(PROBES) - known.answered)}"
        )
    run.history = replace(run.history, insight=_learned(wanted, known, run.probes, run.journal))


def _wants(strategy: Strategy, config: TuneConfig) -> frozenset[str]:
    """Return the probes that a strategy wants before the search; times only where time is an objective."""
    timed = {"latency", "throughput"} & set(config.objectives.names)
    return frozenset(getattr(strategy, "wants", frozenset())) - (frozenset() if timed else {"latency"})


def _probes(task: Task, bench: Workbench, space: TuningSpace, kept: list[Inputs]) -> Probes:
    def run(wanted: frozenset[str], known: Insight) -> Insight:
        if not insights.has_work(bench.adapter, space, wanted):
            return replace(known, probes=(*known.probes, *sorted(wanted)))
        if not kept and task.calibration is not None:
            # Resumed since the calibration: the first samples are looked at once more.
            kept.extend(_tee(CalibrationStream(task.calibration, PROBE_SAMPLES, space.capability.inputs), []))
        task.reporter.on_event(events.StageStarted(stage="probes"))

        def progress(done: int, total: int) -> None:
            task.reporter.on_event(events.SamplesDone(stage="probes", trial=0, done=done, total=total))

        return insights.gather(bench, space, wanted, kept or [bench.sample], progress, known)

    return run


def _insight(wants: frozenset[str], probes: Probes, log: Journal, records: list[dict[str, Any]]) -> Insight:
    """Return what the probes say; from the journal when an earlier run of this directory asked them."""
    stored = [record for record in records if record["kind"] == "insight"]
    known = from_jsonable(Insight, stored[-1]["insight"]) if stored else Insight()
    missing = wants - known.answered
    return _learned(missing, known, probes, log) if missing else known


def _learned(wanted: frozenset[str], known: Insight, probes: Probes, log: Journal) -> Insight:
    insight = probes(wanted, known)
    log.append("insight", insight=to_jsonable(insight))
    return insight


def _baseline(
    task: Task, bench: Workbench, log: Journal, directory: RunDirectory, records: list[dict[str, Any]]
) -> tuple[Baseline, list[str]]:
    """Return the float baseline, from the journal when it is there, else measured; and what is wrong with it."""
    stored = [from_jsonable(Baseline, record["baseline"]) for record in records if record["kind"] == "baseline"]
    is_same = bool(records) and records[0]["identity"].get("evaluation") == task.evaluator.identity()
    if stored and is_same and task.evaluator.restore_baseline(directory.baseline):
        return stored[-1], []
    task.reporter.on_event(events.StageStarted(stage="baseline"))
    adapter, start = bench.adapter, time.perf_counter()
    built = adapter.build(bench.model, FLOAT_CANDIDATE, None, task.config.threads)
    build_seconds = time.perf_counter() - start
    problems = check_outputs(adapter, built, bench.sample)
    if problems:
        return Baseline(metrics=FrozenMap()), problems
    evaluation: Evaluation = task.evaluator.baseline(
        adapter,
        built,
        progress=lambda done, total: task.reporter.on_event(
            events.SamplesDone(stage="baseline", trial=0, done=done, total=total)
        ),
    )
    if stored and evaluation.metrics != stored[-1].metrics:
        raise ConfigError(
            f"resume: the evaluation says {dict(evaluation.metrics)} of the float model now, and said {dict(stored[-1].metrics)} then: "
            "earlier trials cannot be compared with later ones. Start a new run"
        )
    problems = check_baseline(evaluation) or _without_scale(task.config.criterion, evaluation)
    baseline = Baseline(
        metrics=evaluation.metrics,
        objectives=FrozenMap() if problems else bench.measure_float(),
        samples=evaluation.samples,
        passes=evaluation.passes,
        seconds=evaluation.seconds,
        build_seconds=build_seconds,
    )
    if not problems:
        task.config.criterion.constraints(
            baseline.metrics
        )  # a criterion for an unknown metric must not wait for trial 1
        task.evaluator.save_baseline(directory.baseline)
        log.append("baseline", baseline=to_jsonable(baseline))
    return baseline, problems


def _without_scale(criterion: AccuracyCriterion, evaluation: Evaluation) -> list[str]:
    """Return what a relative criterion cannot do with a float metric of 0: every loss would be infinite."""
    rules = criterion.constraints(evaluation.metrics)
    zeros = [name for name, rule in rules.items() if rule.criterion == "relative" and evaluation.metrics[name] == 0.0]
    return [f"{name} of the float model is 0, so a relative loss has no meaning: use an absolute one" for name in zeros]


def _results(records: list[dict[str, Any]]) -> tuple[TrialResult, ...]:
    return tuple(from_jsonable(TrialResult, record["result"]) for record in records if record["kind"] == "trial")


def _with_example(task: Task) -> tuple[Task, Any]:
    """Return the first batch of the calibration (or evaluation) data, and a task in which that data is whole; None without data."""
    loader = task.calibration if task.calibration is not None else task.evaluation_loader
    if loader is None:
        return task, None
    batches = iter(as_loader(loader, once=True))
    first = next(batches, None)
    if (
        isinstance(loader, Iterator) and first is not None
    ):  # calibration data may be a generator: what was taken is put back
        task = replace(task, calibration=itertools.chain((first,), batches))
    return task, first


def _first_inputs(loader: Iterable[Any], names: tuple[str, ...]) -> Inputs:
    batch = next(iter(loader), None)
    if batch is None:
        raise DataError("a dataloader is empty: expected at least one batch")
    return split_batch(batch, names)[0]


def _cut(inputs: Inputs, size: int | None) -> Inputs:
    """Return the first `size` samples of a batch (all of them when it is None), as numpy, sharing no memory with it."""
    if isinstance(inputs, Mapping):
        return {name: owned(to_numpy(member)[:size]) for name, member in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(owned(to_numpy(member)[:size]) for member in inputs)
    return owned(to_numpy(inputs)[:size])


def adapter_options(config: TuneConfig) -> AdapterOptions:
    """Return what `config` says to an adapter."""
    return AdapterOptions(
        approach=config.approach,
        backend=config.backend,
        quant_format=config.quant_format,
        device=config.device,
        inputs=config.inputs,
        outputs=config.outputs,
        reduce_range=config.reduce_range,
        recipes=config.recipes,
        extra=config.options,
    )


def _model_name(model: object) -> str:
    return Path(model).stem if isinstance(model, str | os.PathLike) else type(model).__name__


def _nothing_to_tune(space: TuningSpace) -> str:
    whys = {op.why for op in space.capability.ops if op.why} | {f"{op}: {why}" for op, why in space.fixed.items()}
    return "no op of the model can be quantized here: " + (
        "; ".join(sorted(whys)[:5]) or "the model has no suitable op"
    )
