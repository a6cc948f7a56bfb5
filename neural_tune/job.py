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

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from neural_tune import plugins, yaml_document
from neural_tune.callables import import_callable
from neural_tune.config import ObjectiveFunction, PerformanceConfig, TuneConfig, parse_objectives, parse_rules
from neural_tune.datasets import BatchLoader, Factory, dataset, factory
from neural_tune.errors import ConfigError, DataError, PluginError
from neural_tune.evaluation import METRICS, Metric
from neural_tune.evaluation.metrics import metrics
from neural_tune.job_schema import FRAMEWORK_WORDS, Findings, check, sampling_sizes
from neural_tune.options import close_to
from neural_tune.space import Rule
from neural_tune.transforms import transforms
from neural_tune.values import AccuracyCriterion, FrozenMap, Objectives, StopRule

Loader: TypeAlias = BatchLoader | Factory
_Section: TypeAlias = dict[str, Any]
T = TypeVar("T")
D = TypeVar("D")
_BATCH_SIZE = 32
_MODEL_KEYS = ("path", "factory", "framework", "name", "inputs", "outputs")
# NEURAL_TUNE__TUNING__RANDOM_SEED=7 sets tuning.random_seed; "${NAME}" or "${NAME:-otherwise}" in a text of the job is replaced.
_ENVIRONMENT = "NEURAL_TUNE__"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


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
        train: What `fit` takes as train_func.
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
    train: Callable[[Any], Any] | None = None
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
            "train_func": self.train,
        }


def read_job(
    file: Path,
    overrides: Sequence[str] = (),
    *,
    model: str = "",
    environment: Mapping[str, str] | None = None,
) -> Job:
    """Return the job in `file`.

    Args:
        file: A YAML file.
        overrides: Values to set on top, such as "tuning.exit_policy.max_trials=20"; values are YAML.
        model: Path of a model, or "module:callable", to take instead of the job's; paths are relative to the current folder.
        environment: Environment variables; None takes those of the process. NEURAL_TUNE__SECTION__KEY=VALUE sets a value as an override
            does (overrides come later and win), and "${NAME}" in a text stands for a variable.

    Raises:
        ConfigError: the file cannot be read or says something wrong; every fault at once, each with its line and path.
        Exception: whatever a module that the job names raises when it is imported.
    """
    _refuse_model(file)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"job {file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    environment = os.environ if environment is None else environment
    document = yaml_document.parse(text, file.name)
    errors: list[str] = []
    document = replace(document, data=_expanded(document, document.data, (), environment, errors))
    for name in sorted(name for name in environment if name.startswith(_ENVIRONMENT)):
        keys = name.removeprefix(_ENVIRONMENT).lower().replace("__", ".")
        document = _overridden(document, f"{keys}={environment[name]}", f"{name}={environment[name]}", errors)
    for override in overrides:
        document = _overridden(document, override, f"--set {override}", errors)
    if model:
        document = _with_model(document, model)
    findings = Findings(document)
    for fault in errors:
        findings.error_text((), fault, is_placed=True)
    job = _Reader(findings, check(findings), file.parent).job(file)
    # A text with a variable that is not set has one fault, whatever else is wrong with it.
    told = tuple(fault.partition(": found ${")[0] + ":" for fault in errors if ": found ${" in fault)
    faults = [fault for fault in findings.errors if fault in errors or not fault.startswith(told or ("\0",))]
    if faults:
        raise ConfigError("\n".join(faults))
    return job


def _refuse_model(file: Path) -> None:
    """Say what to do with a model that was given in place of a job."""
    accepting = [plugin.name for plugin in plugins.adapters().values() if plugin.accepts(str(file))]
    if accepting and file.exists():
        raise ConfigError(
            f"job {file}: found a model ({accepting[0]}), expected a job file: `neural-tune init {file}` writes one for it"
        )


def _overridden(
    document: yaml_document.Document, override: str, origin: str, errors: list[str]
) -> yaml_document.Document:
    """Return the document with a value set; what cannot be set is noted in `errors`."""
    keys, equals, text = override.partition("=")
    path = tuple(keys.strip().split("."))
    if not equals or not all(path):
        errors.append(f"{origin}: expected section.key=value, such as tuning.exit_policy.max_trials=20")
        return document
    try:
        return document.with_value(path, yaml_document.scalar(text, origin), origin)
    except ConfigError as error:
        errors += str(error).splitlines()
        return document


def _with_model(document: yaml_document.Document, model: str) -> yaml_document.Document:
    section = dict(_mapping(_mapping(document.data).get("model")))
    for key in ("path", "factory"):
        section.pop(key, None)
    is_factory = ":" in model and not Path(model).exists()
    key, value = ("factory", model) if is_factory else ("path", str(Path(model).absolute()))
    return document.with_value(("model",), {**section, key: value}, f"model {model}")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _expanded(
    document: yaml_document.Document,
    value: Any,
    path: yaml_document.Path,
    environment: Mapping[str, str],
    errors: list[str],
) -> Any:
    """Return `value` with the environment variables in its texts replaced."""
    if isinstance(value, Mapping):
        return {key: _expanded(document, item, (*path, str(key)), environment, errors) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(document, item, (*path, place), environment, errors) for place, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    for name, otherwise in _VARIABLE.findall(value):
        if name not in environment and not otherwise and f"${{{name}:-" not in value:
            errors.append(
                f"{document.where(path)}: {yaml_document.shown(path)}: found ${{{name}}}, but that environment variable is not set; "
                f"set it, or write ${{{name}:-otherwise}}"
            )
    return _VARIABLE.sub(lambda found: environment.get(found[1], found[2] or ""), value)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Turns checked sections into values. Faults go to `findings`; what is faulty gets a stand-in, so that reading goes on."""

    findings: Findings
    data: _Section
    folder: Path

    def job(self, file: Path) -> Job:
        accuracy = self._section("evaluation", "accuracy")
        objectives, functions = self._objectives()
        measured = self._metric(accuracy)
        # Before the configuration, which takes the notices along.
        calibration, evaluation = self._calibration(), self._evaluation(accuracy)
        return Job(
            file=file,
            name=self._section("model").get("name", ""),
            model=self._model(),
            framework=self._framework(),
            config=self._config(objectives, measured or []),
            calibration=calibration,
            evaluation=evaluation,
            metric=measured,
            function=self._function(accuracy),
            train=self._train(),
            objective_functions=functions,
            resume=self._resume(),
        )

    def _section(self, *path: str) -> _Section:
        found: Any = self.data
        for part in path:
            found = found.get(part, {})
        return dict(found)

    def _try(self, path: tuple[str, ...], make: Callable[[], T], instead: D, *, joint: str = "") -> T | D:
        """Return what `make` gives; its ConfigError (or PluginError) becomes one fault per line.

        A line that begins with a key of its own goes on with the path.
        """
        try:
            return make()
        except (ConfigError, PluginError, DataError) as error:
            for line in str(error).splitlines():
                shown = yaml_document.shown(path)
                self.findings.error_text(path, f"{shown}{joint or _joint(line)}{line}")
            return instead

    def _model(self) -> Path | Factory:
        model, path = self._section("model"), ("model",)
        if "model" in self.data and ("path" in model) == ("factory" in model):
            found = "both path and factory" if "path" in model else "neither path nor factory"
            # What is written wrongly was reported already: a faulty value, or a key with a typo.
            is_told = self._was_given("model", "path", "factory") or set(self._given("model")) - set(_MODEL_KEYS)
            if "path" in model or not is_told:
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
        name = FRAMEWORK_WORDS.get(name, name)
        if name:
            self._known(("model", "framework"), "adapter", name, plugins.adapters())
        return name

    def _known(self, path: tuple[str, ...], what: str, name: str, known: Mapping[str, Any]) -> None:
        if name not in known:
            there = ", ".join(known) or "none"
            self.findings.error(
                path, f"found {name!r}: no {what} named {name!r}{close_to(name, known)}; installed: {there}"
            )

    def _train(self) -> Callable[[Any], Any] | None:
        quantization = self._section("quantization")
        path, trains = ("quantization", "train"), quantization.get("approach") == "qat"
        if "train" not in self._given("quantization"):
            if trains:
                self.findings.error(
                    path, "missing: approach qat needs function: module:callable, which trains a model in place"
                )
            return None
        if not trains:
            found = quantization.get("approach", "static")
            self.findings.error(path, f"found it with approach {found}, expected it with approach qat only")
        spec = quantization.get("train", {}).get("function")
        if spec is None:
            return None
        return self._try((*path, "function"), lambda: import_callable(spec, self.folder), None, joint=": ")

    def _evaluation(self, accuracy: _Section) -> Loader | None:
        loader = self._loader(("evaluation", "accuracy", "dataloader"))
        shift = accuracy.get("postprocess", {}).get("transform", {}).get("LabelShift", 0)
        if not shift:
            return loader
        if isinstance(loader, BatchLoader):
            return loader.with_labels_shifted(-shift)
        self.findings.error(
            ("evaluation", "accuracy", "postprocess"), "has no effect on a factory; shift the labels there"
        )
        return loader

    def _calibration(self) -> Loader | None:
        approach = self._section("quantization").get("approach", "static")
        path = ("quantization", "calibration", "dataloader")
        sizes = sampling_sizes(self._given(*path[:-1]).get("sampling_size", 1))
        if len(sizes) > 1:
            where = yaml_document.shown((*path[:-1], "sampling_size"))
            self.findings.notices.append(
                f"{where}: calibration runs once, with {max(sizes)} samples, the most of {sizes}"
            )
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
        steps = self._try((*path, "transform"), lambda: transforms(options.get("transform"), self.folder), ())
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
            spec = self._of_multi_metrics(dict(spec))
        return self._try((*path, key), lambda: list(metrics(self._with_callables(spec))), None, joint=": ")

    def _of_multi_metrics(self, spec: _Section) -> _Section:
        """Return INC's table of metrics as ours: directions go to callables, which alone do not know them."""
        path = ("evaluation", "accuracy", "multi_metrics")
        if spec.pop("weight", None) is not None:
            hint = "every metric is held to its own criterion, see tuning.accuracy_criterion.metrics"
            self.findings.error((*path, "weight"), f"not supported: {hint}")
        directions = spec.pop("higher_is_better", None)
        if directions is None:
            return spec
        here = (*path, "higher_is_better")
        listed = directions if isinstance(directions, list) else [directions] * len(spec)
        if len(listed) != len(spec) or not all(isinstance(item, bool) for item in listed):
            self.findings.error(here, f"found {directions!r}, expected true or false for each of {', '.join(spec)}")
            return spec
        for (name, options), higher in zip(list(spec.items()), listed, strict=True):
            info = METRICS.get(_metric_name(name))
            if ":" in name:
                spec[name] = {"higher_is_better": higher, **(options or {})}
            elif info is not None and info.higher_is_better != higher:
                way = "higher" if info.higher_is_better else "lower"
                self.findings.error(here, f"found {str(higher).lower()} for {name}, of which {way} is better")
        return spec

    def _with_callables(self, spec: Any) -> Any:
        """Replace "module:callable" by the callable, which may lie beside the job file, and INC's names by ours."""
        if isinstance(spec, list):
            return [self._with_callables(item) for item in spec]
        if isinstance(spec, str):
            return {"callable": import_callable(spec, self.folder)} if ":" in spec else _metric_name(spec)
        if isinstance(spec, Mapping) and any(":" in str(name) for name in spec):
            return [
                {**self._with_callables(str(name)), **(options or {})}
                if ":" in str(name)
                else {_metric_name(name): options}
                for name, options in spec.items()
            ]
        if isinstance(spec, Mapping):
            return {_metric_name(name): options for name, options in spec.items()}
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

    def _config(self, objectives: Objectives, measured: Sequence[Metric]) -> TuneConfig:
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
            criterion=self._criterion(tuning.get("accuracy_criterion", {}), measured),
            objectives=objectives,
            stop=self._stop(tuning.get("exit_policy", {})),
            strategy=self._strategy_name(strategy.pop("name", defaults.strategy)),
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

    def _strategy_name(self, name: str) -> str:
        is_short = isinstance(self._given("tuning").get("strategy"), str)
        self._known(("tuning", "strategy", *(() if is_short else ("name",))), "strategy", name, plugins.strategies())
        return name

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
            wish = self._without_bits(quantization["model_wise"], (root, "model_wise"))
            rules += self._rule((root, "model_wise"), lambda: parse_rules(model_wise=wish, names=names))
        for key, parameter in (("optype_wise", "op_type"), ("op_wise", "op_name")):
            for pattern, wish in quantization.get(key, {}).items():
                given: Any = {parameter: {str(pattern): self._without_bits(wish, (root, key, str(pattern)))}}
                rules += self._rule((root, key, str(pattern)), partial(parse_rules, **given, names=names))
        excluded = (names[0], names[1], f"{root}.exclude")
        for pattern in quantization.get("exclude", ()):
            make = partial(parse_rules, op_name={pattern: "float"}, names=excluded)
            rules += self._rule((root, "exclude"), make)
        return tuple(rules)

    def _without_bits(self, wish: Any, path: tuple[str, ...]) -> Any:
        """Return a wish without the words of INC that have no meaning here; each is a notice."""
        if not isinstance(wish, Mapping):
            return wish
        kept: dict[Any, Any] = {}
        for part, spec in wish.items():
            kept[part] = spec
            if not isinstance(spec, Mapping):
                continue
            for word in ("bit", "compute_dtype"):
                if word in spec:
                    where = yaml_document.shown((*path, str(part), word))
                    self.findings.notices.append(
                        f"{where} has no effect: dtype and reduce_range say the width of a number"
                    )
            kept[part] = {key: value for key, value in spec.items() if key not in ("bit", "compute_dtype")}
        return kept

    def _rule(self, path: tuple[str, ...], make: Callable[[], tuple[Rule, ...]]) -> tuple[Rule, ...]:
        try:
            return make()
        except ConfigError as error:
            for line in str(error).splitlines():
                self.findings.error_text(path, line)
            return ()

    def _criterion(self, given: _Section, measured: Sequence[Metric]) -> AccuracyCriterion:
        """Return the criterion; a metric that states its direction has it where the criterion says nothing."""
        path = ("tuning", "accuracy_criterion")
        directions = {
            metric.name: metric.higher_is_better for metric in measured if metric.higher_is_better is not None
        }
        each = {
            name: self._one_criterion(inner, (*path, "metrics", name), directions.get(name))
            for name, inner in given.get("metrics", {}).items()
        }
        return replace(self._one_criterion(given, path), metrics=FrozenMap(each))

    def _one_criterion(
        self, given: _Section, path: tuple[str, ...], direction: bool | None = None
    ) -> AccuracyCriterion:
        if "relative" in given and "absolute" in given:
            self.findings.error(path, "found both relative and absolute, expected one of them")
        kind: Any = "absolute" if "absolute" in given else "relative"
        default = AccuracyCriterion()
        higher = default.higher_is_better if direction is None else direction
        return AccuracyCriterion(given.get("higher_is_better", higher), kind, given.get(kind, default.tolerable_loss))

    def _stop(self, policy: _Section) -> StopRule:
        path = ("tuning", "exit_policy")
        return self._try(path, lambda: StopRule(**policy), StopRule())

    def _performance(self) -> PerformanceConfig:
        given = self._section("evaluation", "performance")
        options: _Section = {key: given[key] for key in ("warmup", "seconds", "batch_size", "threads") if key in given}
        if "iteration" in given and "iterations" in given:
            self.findings.error(
                ("evaluation", "performance"), "found both iteration and iterations, expected one of them"
            )
        if given.get("iterations", given.get("iteration", -1)) != -1:
            options["repeats"] = given.get("iterations", given.get("iteration"))
        if "cores_per_instance" in given.get("configs", {}):
            options.setdefault("threads", given["configs"]["cores_per_instance"])
        path = ("evaluation", "performance")
        return self._try(path, lambda: PerformanceConfig(**options), PerformanceConfig(), joint=": ")


def _joint(line: str) -> str:
    return "." if re.match(r"[A-Za-z_][\w.\[\]]*: ", line) else ": "


def _metric_name(name: object) -> str:
    """Return our name of a metric, where INC's differs in capitals only."""
    word = str(name)
    return word.lower() if word not in METRICS and word.lower() in METRICS else word


def _opened(loader: Loader | None) -> Any:
    return loader() if isinstance(loader, Factory) else loader


def _named(options: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the mapping with text keys and hashable values, as values have to be."""
    return {str(key): _frozen(value) for key, value in options.items()}


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return FrozenMap({str(key): _frozen(item) for key, item in value.items()})
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
