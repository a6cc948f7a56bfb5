"""A tuning job as a YAML file: model, data, metric and configuration in one place.

    model: {path: resnet20.onnx}
    quantization:
      approach: static
      calibration: {sampling_size: 100, dataloader: {batch_size: 20, dataset: {npz: {path: calib.npz, x: x}}}}
    evaluation:
      accuracy: {metric: {topk: 1}, dataloader: {batch_size: 50, dataset: {npz: {path: val.npz, x: x, y: y}}}}
    tuning: {strategy: auto, accuracy_criterion: {relative: 1%}}

Paths are relative to the job file. A job may name Python callables, so it is code: run only what you trust.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from neural_tune import yaml_document
from neural_tune.config import ObjectiveFunction, PerformanceConfig, TuneConfig, parse_objectives, parse_rules
from neural_tune.datasets import BatchLoader, Factory, dataset, factory, import_callable
from neural_tune.errors import ConfigError
from neural_tune.evaluation.metrics import metrics
from neural_tune.job_schema import FRAMEWORK_WORDS, Findings, check
from neural_tune.space import Rule
from neural_tune.transforms import transforms
from neural_tune.values import AccuracyCriterion, FrozenMap, Objectives, StopRule

Loader: TypeAlias = BatchLoader | Factory
_Section: TypeAlias = dict[str, Any]
T = TypeVar("T")
D = TypeVar("D")
_BATCH_SIZE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job that was read and found in order. No user code has run yet, apart from importing it.

    Attributes:
        file: The job file.
        name: Name of the job; empty takes the model's.
        model: Path of the model, or what makes it.
        framework: Name of the adapter; empty lets the model decide.
        config: The configuration.
        calibration: Calibration batches.
        evaluation: Evaluation batches.
        metric: What `fit` takes as eval_metric.
        function: What `fit` takes as eval_func.
        objective_functions: The user's objectives by name.
        resume: Directory of the run to go on with.
    """

    file: Path
    name: str
    model: Path | Factory
    framework: str
    config: TuneConfig
    calibration: Loader | None = None
    evaluation: Loader | None = None
    metric: Any = None
    function: Callable[[Any], Any] | None = None
    objective_functions: Mapping[str, ObjectiveFunction]
    resume: Path | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `neural_tune.fit`; factories are called here, and what they raise propagates."""
        return {
            "model": self.model() if isinstance(self.model, Factory) else str(self.model),
            "conf": self.config,
            "calib_dataloader": _opened(self.calibration),
            "eval_func": self.function,
            "eval_dataloader": _opened(self.evaluation),
            "eval_metric": self.metric,
            "framework": self.framework,
            "job_name": self.name,
            "objective_functions": self.objective_functions,
            "resume": self.resume,
        }


def read_job(file: Path, overrides: Sequence[str] = ()) -> Job:
    """Return the job in `file`.

    Args:
        file: A YAML file.
        overrides: Values to set on top, such as "tuning.exit_policy.max_trials=20"; values are YAML.

    Raises:
        ConfigError: the file cannot be read or says something wrong; every fault at once, each with its line and path.
        Exception: whatever a module that the job names raises when it is imported.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"job {file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    document = yaml_document.parse(text, file.name)
    for override in overrides:
        document = _overridden(document, override)
    findings = Findings(document)
    job = _Reader(findings, check(findings), file.parent).job(file)
    if findings.errors:
        raise ConfigError("\n".join(findings.errors))
    return job


def _overridden(document: yaml_document.Document, override: str) -> yaml_document.Document:
    keys, equals, text = override.partition("=")
    path = tuple(keys.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(f"--set {override}: expected section.key=value, such as tuning.exit_policy.max_trials=20")
    return document.with_value(path, yaml_document.scalar(text), f"--set {override}")


@dataclass(frozen=True, slots=True)
class _Reader:
    """Turns checked sections into values. Faults go to `findings`; what is faulty gets a stand-in, so that reading goes on."""

    findings: Findings
    data: _Section
    folder: Path

    def job(self, file: Path) -> Job:
        accuracy = self._section("evaluation", "accuracy")
        objectives, functions = self._objectives()
        return Job(
            file=file,
            name=self._section("model").get("name", ""),
            model=self._model(),
            framework=self._framework(),
            config=self._config(objectives),
            calibration=self._calibration(),
            evaluation=self._loader(("evaluation", "accuracy", "dataloader")),
            metric=self._metric(accuracy),
            function=self._function(accuracy),
            objective_functions=functions,
            resume=self._resume(),
        )

    def _section(self, *path: str) -> _Section:
        found: Any = self.data
        for part in path:
            found = found.get(part, {})
        return dict(found)

    def _try(self, path: tuple[str, ...], make: Callable[[], T], instead: D, *, joint: str = "") -> T | D:
        """Return what `make` gives; its ConfigError becomes one fault per line.

        A line that begins with a key of its own goes on with the path.
        """
        try:
            return make()
        except ConfigError as error:
            for line in str(error).splitlines():
                shown = yaml_document.shown(path)
                self.findings.error_text(path, f"{shown}{joint or _joint(line)}{line}")
            return instead

    def _model(self) -> Path | Factory:
        model, path = self._section("model"), ("model",)
        if "model" in self.data and ("path" in model) == ("factory" in model):
            found = "both path and factory" if "path" in model else "neither path nor factory"
            if "path" in model or not self._was_given("model", "path", "factory"):
                self.findings.error(path, f"found {found}, expected one of them")
        if "factory" in model:
            options = model["factory"]
            options = {"callable": options} if isinstance(options, str) else options
            made: Factory | Path = self._try((*path, "factory"), lambda: factory(options, self.folder), Path())
            return made
        file: Path = self.folder / model.get("path", "")
        if "path" in model and not file.exists():
            self.findings.error((*path, "path"), f"found {model['path']!r}, but there is no file {file}")
        return file

    def _was_given(self, section: str, *keys: str) -> bool:
        """Return whether the file has one of the keys, faulty or not; a fault is not reported a second time as missing."""
        return any(key in self._given(section) for key in keys)

    def _framework(self) -> str:
        name: str = self._section("model").get("framework", "")
        return FRAMEWORK_WORDS.get(name, name)

    def _calibration(self) -> Loader | None:
        approach = self._section("quantization").get("approach", "static")
        path = ("quantization", "calibration", "dataloader")
        loader = self._loader(path)
        if approach in ("static", "auto") and "dataloader" not in self._given(*path[:-1]):
            self.findings.error(path, f"missing: approach {approach} needs calibration data")
        return loader

    def _given(self, *path: str) -> Mapping[str, Any]:
        """Return a section as it was written, faulty or not; empty when it is none."""
        found = self.findings.document.data
        for part in path:
            found = found.get(part) if isinstance(found, Mapping) else None
        return found if isinstance(found, Mapping) else {}

    def _loader(self, path: tuple[str, ...]) -> Loader | None:
        options = self._section(*path)
        if "dataset" not in options:
            return None
        source = self._try((*path, "dataset"), lambda: dataset(options["dataset"], self.folder), None)
        steps = self._try((*path, "transform"), lambda: transforms(options.get("transform")), ())
        if isinstance(source, Factory):
            for key in ("batch_size", "transform", "last_batch"):
                if key in options:
                    message = "has no effect on a factory, which makes its own batches; use the factory's args"
                    self.findings.error((*path, key), message)
            return source
        if source is None:
            return None
        strange = sorted({name for step in steps for name in step.inputs} - set(source.input_names))
        if strange:
            message = f"found the inputs {strange}, expected some of {list(source.input_names)}"
            self.findings.error((*path, "transform"), message)
        drop_last = options.get("last_batch") == "discard"
        return BatchLoader(source, steps, options.get("batch_size", _BATCH_SIZE), drop_last=drop_last)

    def _metric(self, accuracy: _Section) -> Any:
        path = ("evaluation", "accuracy")
        given = [key for key in ("metric", "multi_metrics", "function") if key in self._given(*path)]
        if len(given) != 1 and self._given(*path):
            found = " and ".join(given) or "none of them"
            self.findings.error(path, f"found {found}, expected one of metric, multi_metrics and function")
        key = "multi_metrics" if "multi_metrics" in accuracy else "metric"
        if key not in accuracy:
            return None
        if "dataloader" not in self._given(*path):
            self.findings.error((*path, "dataloader"), f"missing: a {key} needs evaluation data")
        spec = accuracy[key]
        if key == "multi_metrics":
            spec = self._without_weights(dict(spec))
        return self._try((*path, key), lambda: list(metrics(self._with_callables(spec))), None, joint=": ")

    def _without_weights(self, spec: _Section) -> _Section:
        path = ("evaluation", "accuracy", "multi_metrics")
        if spec.pop("weight", None) is not None:
            hint = "every metric is held to its own criterion, see tuning.accuracy_criterion.metrics"
            self.findings.error((*path, "weight"), f"not supported: {hint}")
        if spec.pop("higher_is_better", None) is not None:
            self.findings.notices.append(f"{yaml_document.shown(path)}.higher_is_better has no effect: metrics know it")
        return spec

    def _with_callables(self, spec: Any) -> Any:
        """Replace "module:callable" by the callable, which may lie beside the job file."""
        if isinstance(spec, list):
            return [self._with_callables(item) for item in spec]
        if isinstance(spec, str) and ":" in spec:
            return {"callable": import_callable(spec, self.folder)}
        if isinstance(spec, Mapping) and any(":" in str(name) for name in spec):
            return [
                {**self._with_callables(str(name)), **(options or {})} if ":" in str(name) else {name: options}
                for name, options in spec.items()
            ]
        return spec

    def _function(self, accuracy: _Section) -> Any:
        if "function" not in accuracy:
            return None
        path = ("evaluation", "accuracy", "function")
        return self._try(path, lambda: import_callable(accuracy["function"], self.folder), None, joint=": ")

    def _objectives(self) -> tuple[Objectives, dict[str, ObjectiveFunction]]:
        tuning = self._section("tuning")
        if "objective" in tuning and "multi_objectives" in tuning:
            self.findings.error(("tuning",), "found both objective and multi_objectives, expected one of them")
        key = "multi_objectives" if "multi_objectives" in tuning else "objective"
        spec = tuning.get(key) or ["latency"]

        def parse() -> tuple[Objectives, dict[str, ObjectiveFunction]]:
            if isinstance(spec, Mapping):
                names = spec.get("objective", ["latency"])
                return parse_objectives({**spec, "objective": self._callables(names)})
            return parse_objectives(self._callables(spec))

        return self._try(("tuning", key), parse, (Objectives(), {}), joint=": ")

    def _callables(self, names: Iterable[str]) -> list[Any]:
        return [import_callable(name, self.folder) if ":" in name else name for name in names]

    def _config(self, objectives: Objectives) -> TuneConfig:
        model, quantization, tuning = self._section("model"), self._section("quantization"), self._section("tuning")
        strategy = dict(tuning.get("strategy", {}))
        executor, defaults = tuning.get("executor", {}), TuneConfig()
        accuracy = self._section("evaluation", "accuracy")
        config = TuneConfig(
            **{
                key: quantization[key]
                for key in ("approach", "backend", "quant_format", "reduce_range")
                if key in quantization
            },
            device=self.data.get("device", defaults.device),
            inputs=tuple(model.get("inputs", ())),
            outputs=tuple(model.get("outputs", ())),
            recipes=FrozenMap(_named(quantization.get("recipes", {}))),
            options=FrozenMap(_named(quantization.get("options", {}))),
            rules=self._rules(quantization),
            sampling_size=quantization.get("calibration", {}).get("sampling_size", defaults.sampling_size),
            criterion=self._criterion(tuning.get("accuracy_criterion", {})),
            objectives=objectives,
            stop=self._stop(tuning.get("exit_policy", {})),
            strategy=strategy.pop("name", defaults.strategy),
            strategy_options=FrozenMap(_named(strategy)),
            seed=tuning.get("random_seed", defaults.seed),
            workspace=self._workspace(tuning.get("workspace", {}), defaults.workspace),
            threads=accuracy.get("threads", accuracy.get("configs", {}).get("cores_per_instance")),
            performance=self._performance(),
            notices=tuple(self.findings.notices),
        )
        parallel = {"executor": executor.get("name", "process" if "workers" in executor else "local")}
        parallel["workers"] = executor.get("workers", 1)
        return self._try(("tuning", "executor"), lambda: replace(config, **parallel), config)

    def _workspace(self, workspace: _Section, default: str) -> str:
        return str(self.folder / workspace["path"]) if "path" in workspace else default

    def _resume(self) -> Path | None:
        resume = self._section("tuning").get("workspace", {}).get("resume")
        return self.folder / resume if resume else None

    def _rules(self, quantization: _Section) -> tuple[Rule, ...]:
        """Return the user's rules; each is read alone, so that a fault gets the line of its own."""
        root, rules = "quantization", list[Rule]()
        names = (f"{root}.model_wise", f"{root}.optype_wise", f"{root}.op_wise")
        if "model_wise" in quantization:
            wish = quantization["model_wise"]
            rules += self._rule((root, "model_wise"), lambda: parse_rules(model_wise=wish, names=names))
        for key, parameter in (("optype_wise", "op_type"), ("op_wise", "op_name")):
            for pattern, wish in quantization.get(key, {}).items():
                given: Any = {parameter: {str(pattern): wish}}
                rules += self._rule((root, key, str(pattern)), partial(parse_rules, **given, names=names))
        excluded = (names[0], names[1], f"{root}.exclude")
        for pattern in quantization.get("exclude", ()):
            make = partial(parse_rules, op_name={pattern: "float"}, names=excluded)
            rules += self._rule((root, "exclude"), make)
        return tuple(rules)

    def _rule(self, path: tuple[str, ...], make: Callable[[], tuple[Rule, ...]]) -> tuple[Rule, ...]:
        try:
            return make()
        except ConfigError as error:
            for line in str(error).splitlines():
                self.findings.error_text(path, line)
            return ()

    def _criterion(self, given: _Section) -> AccuracyCriterion:
        path = ("tuning", "accuracy_criterion")
        each = {
            name: self._one_criterion(inner, (*path, "metrics", name))
            for name, inner in given.get("metrics", {}).items()
        }
        return replace(self._one_criterion(given, path), metrics=FrozenMap(each))

    def _one_criterion(self, given: _Section, path: tuple[str, ...]) -> AccuracyCriterion:
        if "relative" in given and "absolute" in given:
            self.findings.error(path, "found both relative and absolute, expected one of them")
        kind: Any = "absolute" if "absolute" in given else "relative"
        default = AccuracyCriterion()
        return AccuracyCriterion(
            given.get("higher_is_better", default.higher_is_better), kind, given.get(kind, default.tolerable_loss)
        )

    def _stop(self, policy: _Section) -> StopRule:
        path = ("tuning", "exit_policy")
        return self._try(path, lambda: StopRule(**policy), StopRule())

    def _performance(self) -> PerformanceConfig:
        given = self._section("evaluation", "performance")
        options: _Section = {key: given[key] for key in ("warmup", "seconds", "batch_size", "threads") if key in given}
        if given.get("iteration", -1) != -1:
            options["repeats"] = given["iteration"]
        if "cores_per_instance" in given.get("configs", {}):
            options.setdefault("threads", given["configs"]["cores_per_instance"])
        path = ("evaluation", "performance")
        return self._try(path, lambda: PerformanceConfig(**options), PerformanceConfig(), joint=": ")


def _joint(line: str) -> str:
    return "." if re.match(r"[A-Za-z_][\w.\[\]]*: ", line) else ": "


def _opened(loader: Loader | None) -> Any:
    return loader() if isinstance(loader, Factory) else loader


def _named(options: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the mapping with text keys and hashable values, as values have to be."""
    return {str(key): _frozen(value) for key, value in options.items()}


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return FrozenMap({str(key): _frozen(item) for key, item in value.items()})
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
