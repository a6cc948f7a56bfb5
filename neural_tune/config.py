"""Configuration: INC 2.x's classes and field names on the outside, one frozen `TuneConfig` on the inside.

A user of Intel Neural Compressor 2.x keeps her configuration and changes the import. Fields that have no meaning here are accepted and
turned into a notice, never silently ignored. `dict[str, Any]` ends in this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neural_tune.errors import ConfigError
from neural_tune.space import Restriction, Rule, Scope, SpecRestriction
from neural_tune.values import (
    AccuracyCriterion,
    DType,
    FrozenMap,
    Granularity,
    Mode,
    Objective,
    Objectives,
    Observer,
    StopRule,
)

APPROACHES = ("static", "dynamic", "weight_only", "auto", "qat")
EXECUTORS = ("local", "process")
DEFAULT_STRATEGY = "auto"
DEFAULT_WORKSPACE = "nt_workspace"
_FLOAT_WORDS = frozenset({"fp32", "float", "float32"})
ObjectiveFunction = Callable[[Any], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PerformanceConfig:
    """How latency, throughput and memory are measured.

    Attributes:
        threads: Threads of the runtime while measuring.
        batch_size: Samples per batch; None takes the calibration batches as they come.
        warmup: Unmeasured runs before the first measured one.
        repeats: Most measured rounds; in each round float and candidate run alternately.
        seconds: Stop measuring after this time, once 10 rounds are done.
    """

    threads: int = 1
    batch_size: int | None = None
    warmup: int = 5
    repeats: int = 200
    seconds: float = 2.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("threads", "repeats"):
            _at_least(f"performance.{name}", getattr(self, name), 1)
        _at_least("performance.warmup", self.warmup, 0)
        if self.batch_size is not None:
            _at_least("performance.batch_size", self.batch_size, 1)
        if not self.seconds > 0:
            raise ConfigError(f"performance.seconds: found {self.seconds!r}, expected a number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneConfig:
    """Everything that decides a run, apart from the model, the data and the evaluation.

    Attributes:
        approach: "static", "dynamic", "weight_only", "auto" or "qat".
        backend: Backend of the framework; "default" lets the adapter choose.
        quant_format: Format of the quantized graph; "default" lets the adapter choose.
        device: "cpu".
        inputs: Names of the model inputs to use; empty takes all.
        outputs: Names of the model outputs to use; empty takes all.
        reduce_range: One bit less; None lets the adapter decide from the processor.
        recipes: Recipe name -> setting.
        rules: The user's restrictions of the tuning space, in order.
        sampling_size: Calibration samples, at least; batches are taken whole.
        criterion: When a candidate is accurate enough.
        objectives: What is optimised among those.
        stop: When the search ends.
        strategy: Name of the strategy.
        strategy_options: Its keyword options.
        seed: Seed of everything random.
        workspace: Folder for run directories.
        executor: "local" (in process) or "process" (a child process per trial: a native crash is a failed trial).
        workers: Trials at a time, for the process executor.
        threads: Threads of the runtime during evaluation; None takes the runtime's default.
        performance: How speed is measured.
        options: Adapter-specific options.
        notices: What the user should know about how the configuration was read.
    """

    approach: str = "static"
    backend: str = "default"
    quant_format: str = "default"
    device: str = "cpu"
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    reduce_range: bool | None = None
    recipes: FrozenMap[Any] = field(default_factory=FrozenMap)
    rules: tuple[Rule, ...] = ()
    sampling_size: int = 100
    criterion: AccuracyCriterion = field(default_factory=AccuracyCriterion)
    objectives: Objectives = field(default_factory=Objectives)
    stop: StopRule = field(default_factory=StopRule)
    strategy: str = DEFAULT_STRATEGY
    strategy_options: FrozenMap[Any] = field(default_factory=FrozenMap)
    seed: int = 0
    workspace: str = DEFAULT_WORKSPACE
    executor: str = "local"
    workers: int = 1
    threads: int | None = None
    performance: PerformanceConfig = field(default_factory=PerformanceConfig)
    options: FrozenMap[Any] = field(default_factory=FrozenMap)
    notices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        _one_of("approach", self.approach, APPROACHES)
        _one_of("executor", self.executor, EXECUTORS)
        _at_least("calibration_sampling_size", self.sampling_size, 1)
        _at_least("workers", self.workers, 1)
        if self.threads is not None:
            _at_least("threads", self.threads, 1)
        if self.workers > 1 and self.executor == "local":
            raise ConfigError(
                f"workers: found {self.workers} with executor 'local', expected 1; use executor 'process'"
            )


@dataclass(frozen=True, slots=True)
class TuningCriterion:
    """How the search runs; the fields of INC 2.x.

    Attributes:
        strategy: Name of the strategy.
        strategy_kwargs: Its keyword options.
        timeout: Seconds; 0 stops at the first acceptable model.
        max_trials: Most candidates to try.
        objective: A name ("latency", "throughput", "size", "memory", or INC's "performance", "modelsize", "footprint"), an `Objective`, a
            callable `model -> float` (lower is better), a list of these, or INC's dict
            {"objective": [...], "weight": [...], "higher_is_better": [...]}; "pareto": True in the dict keeps the front.
    """

    strategy: str = DEFAULT_STRATEGY
    strategy_kwargs: Mapping[str, Any] | None = None
    timeout: float = 0
    max_trials: int = 100
    objective: Any = "latency"


@dataclass(frozen=True, slots=True)
class _QuantConfig:
    """The fields that post-training quantization and quantization-aware training share."""

    device: str = "cpu"
    backend: str = "default"
    domain: str = "auto"
    recipes: Mapping[str, Any] = field(default_factory=dict)
    quant_format: str = "default"
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    op_type_dict: Mapping[str, Any] | None = None
    op_name_dict: Mapping[str, Any] | None = None
    model_wise: Mapping[str, Any] | None = None
    exclude: Sequence[str] = ()
    reduce_range: bool | None = None
    model_name: str = ""
    excluded_precisions: Sequence[str] = ()
    quant_level: int | str = "auto"
    accuracy_criterion: AccuracyCriterion = field(default_factory=AccuracyCriterion)
    tuning_criterion: TuningCriterion = field(default_factory=TuningCriterion)
    diagnosis: bool = False
    random_seed: int = 0
    workspace: str = DEFAULT_WORKSPACE
    executor: str = "local"
    workers: int = 1
    threads: int | None = None
    performance: PerformanceConfig = field(default_factory=PerformanceConfig)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def objective_functions(self) -> dict[str, ObjectiveFunction]:
        """The user's callables among the objectives, by name."""
        return parse_objectives(self.tuning_criterion.objective)[1]

    def _shared(self) -> dict[str, Any]:
        tuning = self.tuning_criterion
        return {
            "backend": self.backend,
            "quant_format": self.quant_format,
            "device": self.device,
            "inputs": tuple(self.inputs),
            "outputs": tuple(self.outputs),
            "reduce_range": self.reduce_range,
            "recipes": FrozenMap(self.recipes),
            "rules": parse_rules(self.model_wise, self.op_type_dict, self.op_name_dict, self.exclude),
            "criterion": self.accuracy_criterion,
            "objectives": parse_objectives(tuning.objective)[0],
            "stop": StopRule(max_trials=tuning.max_trials, timeout=tuning.timeout),
            "strategy": tuning.strategy,
            "strategy_options": FrozenMap(tuning.strategy_kwargs or {}),
            "seed": self.random_seed,
            "workspace": self.workspace,
            "executor": self.executor,
            "workers": self.workers,
            "threads": self.threads,
            "performance": self.performance,
            "options": FrozenMap(self.options),
            "notices": self._notices(),
        }

    def _notices(self) -> tuple[str, ...]:
        ignored = {
            "domain": self.domain != "auto",
            "quant_level": self.quant_level not in ("auto", 1),
            "excluded_precisions": bool(self.excluded_precisions),
            "diagnosis": self.diagnosis,
        }
        return tuple(
            f"{name}={getattr(self, name)!r} has no effect in neural_tune (see docs/migrating-from-inc.md)"
            for name, is_set in ignored.items()
            if is_set
        )


@dataclass(frozen=True, slots=True)
class PostTrainingQuantConfig(_QuantConfig):
    """Post-training quantization; INC 2.x's fields and a few of ours.

    Attributes:
        device: "cpu".
        backend: Backend of the framework; "default" lets the adapter choose.
        domain: Accepted for INC compatibility, no effect.
        recipes: Recipe name -> setting.
        quant_format: "default" or a format of the adapter, such as "QDQ".
        inputs: Names of the model inputs to use; empty takes all.
        outputs: Names of the model outputs to use; empty takes all.
        op_type_dict: Op type (or regular expression) -> wishes, such as {"Conv": {"weight": {"granularity": ["per_tensor"]}}}.
        op_name_dict: Op name (or regular expression, matched as a whole) -> wishes; "float" keeps the op in float.
        model_wise: Wishes for every op.
        exclude: Plain op names (or regular expressions) that stay in float.
        reduce_range: One bit less; None lets the adapter decide from the processor.
        model_name: Name of the job in the workspace; empty takes the model's.
        excluded_precisions: Accepted for INC compatibility, no effect.
        quant_level: Accepted for INC compatibility; the strategy that is named is the one that runs.
        accuracy_criterion: When a candidate is accurate enough.
        tuning_criterion: Strategy, budget and objective.
        diagnosis: Accepted for INC compatibility, no effect: every run writes its report.
        random_seed: Seed of everything random.
        workspace: Folder for run directories.
        executor: "local" or "process".
        workers: Trials at a time, for the process executor.
        threads: Threads of the runtime during evaluation; None takes the runtime's default.
        performance: How speed is measured.
        options: Adapter-specific options.
        approach: "static", "dynamic", "weight_only" or "auto".
        calibration_sampling_size: Calibration samples, at least (batches are taken whole); INC's one-element list is accepted.
        example_inputs: Accepted for INC compatibility; the first calibration batch is used.
    """

    approach: str = "static"
    calibration_sampling_size: int | Sequence[int] = 100
    example_inputs: Any = None

    def to_tune_config(self) -> TuneConfig:
        """Return the validated configuration of the run.

        Raises:
            ConfigError: a field is out of range or contradicts another.
        """
        return TuneConfig(
            approach=self.approach, sampling_size=_sampling_size(self.calibration_sampling_size), **self._shared()
        )


@dataclass(frozen=True, slots=True)
class QuantizationAwareTrainingConfig(_QuantConfig):
    """Quantization-aware training; needs an adapter that trains. Fields as in `PostTrainingQuantConfig`."""

    def to_tune_config(self) -> TuneConfig:
        """Return the validated configuration of the run.

        Raises:
            ConfigError: a field is out of range or contradicts another.
        """
        return TuneConfig(approach="qat", **self._shared())


def parse_rules(
    model_wise: Mapping[str, Any] | None = None,
    op_type: Mapping[str, Any] | None = None,
    op_name: Mapping[str, Any] | None = None,
    exclude: Sequence[str] = (),
    names: tuple[str, str, str] = ("model_wise", "op_type_dict", "op_name_dict"),
) -> tuple[Rule, ...]:
    """Return the rules that INC-style dictionaries and an exclude list stand for.

    Raises:
        ConfigError: an unknown key or value; all of them at once, each with its path.
    """
    if isinstance(exclude, str):
        raise ConfigError(f"exclude: found the string {exclude!r}, expected a list of op names")
    rules: list[Rule] = []
    errors: list[str] = []
    entries: list[tuple[Scope, str, Any, str]] = [(Scope.MODEL, ".*", model_wise, names[0])] if model_wise else []
    entries += [(Scope.OP_TYPE, pattern, wish, f"{names[1]}[{pattern!r}]") for pattern, wish in (op_type or {}).items()]
    entries += [(Scope.OP_NAME, pattern, wish, f"{names[2]}[{pattern!r}]") for pattern, wish in (op_name or {}).items()]
    entries += [(Scope.OP_NAME, pattern, "float", f"exclude[{pattern!r}]") for pattern in exclude]
    for scope, pattern, wish, path in entries:
        try:
            rules.append(Rule(scope=scope, pattern=pattern, restriction=_restriction(wish, path), source=path))
        except ConfigError as error:
            errors.append(str(error))
    if errors:
        raise ConfigError("\n".join(errors))
    return tuple(rules)


def parse_objectives(objective: Any) -> tuple[Objectives, dict[str, ObjectiveFunction]]:
    """Return the objectives and the callables among them, from any of the forms `TuningCriterion.objective` takes."""
    pareto = False
    if isinstance(objective, Objectives):
        return objective, {}
    if isinstance(objective, Mapping):
        unknown = sorted(set(objective) - {"objective", "weight", "higher_is_better", "pareto"})
        if unknown or "objective" not in objective:
            raise ConfigError(
                f"objective: found the keys {sorted(objective)}, expected 'objective' and maybe 'weight', 'higher_is_better', 'pareto'"
            )
        pareto = bool(objective.get("pareto", False))
        items = _listed(objective["objective"])
        weights = _listed(objective.get("weight", [1.0] * len(items)))
        directions = _listed(objective.get("higher_is_better", [None] * len(items)))
        if not len(items) == len(weights) == len(directions):
            raise ConfigError(
                f"objective: found {len(items)} objectives, {len(weights)} weights and {len(directions)} directions, expected as many of each"
            )
    else:
        items = _listed(objective)
        weights, directions = [1.0] * len(items), [None] * len(items)
    functions: dict[str, ObjectiveFunction] = {}
    parsed = []
    for item, weight, higher in zip(items, weights, directions, strict=True):
        if isinstance(item, Objective):
            parsed.append(item)
        elif isinstance(item, str):
            parsed.append(Objective(item, float(weight), higher))
        elif callable(item):
            name = getattr(item, "__name__", type(item).__name__)
            functions[name] = item
            parsed.append(Objective(name, float(weight), bool(higher)))
        else:
            raise ConfigError(f"objective: found {item!r}, expected a name, an Objective or a callable")
    return Objectives(tuple(parsed), pareto), functions


_SPEC_WORDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dtype": ("dtype", {dtype.value: dtype for dtype in DType}),
    "scheme": ("symmetric", {"sym": True, "asym": False}),
    "granularity": ("granularity", {item.value: item for item in Granularity}),
    # "rtn", round to nearest, is what a weight gets whose range is its minimum and maximum.
    "algorithm": ("observer", {"rtn": Observer.MINMAX, **{item.value: item for item in Observer}}),
    "observer": ("observer", {item.value: item for item in Observer}),
    "group_size": ("group_size", {str(2**power): 2**power for power in range(4, 9)}),
}


def _restriction(wish: Any, path: str) -> Restriction:
    if isinstance(wish, str) and wish.lower() in _FLOAT_WORDS:
        return Restriction(keep_float=True)
    if not isinstance(wish, Mapping):
        raise ConfigError(f"{path}: found {wish!r}, expected 'float' or a mapping with activation, weight or mode")
    unknown = sorted(set(wish) - {"activation", "weight", "mode"})
    if unknown:
        raise ConfigError(f"{path}: found the keys {unknown}, expected only activation, weight and mode")
    specs = {part: _spec_restriction(wish.get(part) or {}, f"{path}.{part}") for part in ("activation", "weight")}
    is_float = [part for part, (_, wants_float) in specs.items() if wants_float]
    speaks = bool(specs["activation"][0].dtype or specs["weight"][0].dtype)
    return Restriction(
        keep_float=True if is_float else False if speaks else None,
        mode=tuple(
            _word(item, {mode.value: mode for mode in Mode}, f"{path}.mode") for item in _listed(wish.get("mode", []))
        ),
        activation=specs["activation"][0],
        weight=specs["weight"][0],
    )


def _spec_restriction(wish: Any, path: str) -> tuple[SpecRestriction, bool]:
    """Return the restriction of one tensor and whether a float dtype was among the wishes (INC: that op stays float)."""
    if not isinstance(wish, Mapping):
        raise ConfigError(f"{path}: found {wish!r}, expected a mapping with {', '.join(_SPEC_WORDS)}")
    found: dict[str, tuple[Any, ...]] = {}
    wants_float = False
    for key, value in wish.items():
        if key not in _SPEC_WORDS:
            raise ConfigError(f"{path}.{key}: unknown key, expected one of {', '.join(_SPEC_WORDS)}")
        name, words = _SPEC_WORDS[key]
        items = _listed(value)
        if name == "dtype":
            wants_float = any(str(item).lower() in _FLOAT_WORDS for item in items)
            items = [item for item in items if str(item).lower() not in _FLOAT_WORDS]
        found[name] = tuple(_word(item, words, f"{path}.{key}") for item in items)
    return SpecRestriction(**found), wants_float


def _word(found: Any, words: Mapping[str, Any], path: str) -> Any:
    if str(found) not in words:
        raise ConfigError(f"{path}: found {found!r}, expected one of {', '.join(words)}")
    return words[str(found)]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _sampling_size(value: int | Sequence[int]) -> int:
    items = _listed(value)
    if len(items) != 1 or isinstance(items[0], bool) or not isinstance(items[0], int):
        raise ConfigError(f"calibration_sampling_size: found {value!r}, expected one integer (calibration runs once)")
    return items[0]


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}: found {value!r}, expected one of {', '.join(allowed)}")


def _at_least(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}: found {value!r}, expected an integer, {least} or more")
