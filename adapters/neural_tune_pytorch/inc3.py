"""INC 3's calls for PyTorch: `prepare`, `convert`, `autotune` and their configurations, on our engine.

    quant_config = StaticQuantConfig()
    quant_config.set_local("fc1", StaticQuantConfig(w_dtype="fp32", act_dtype="fp32"))
    prepared = prepare(model, quant_config, example_inputs)
    for batch in calibration: prepared(batch)
    q_model = convert(prepared)

Two deliberate differences: `autotune` raises `CriterionNotMetError` where nothing meets the criterion instead of handing out a failing model, and
the caller's model is never changed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from neural_tune import (
    AccuracyCriterion,
    ConfigError,
    CriterionNotMetError,
    DataError,
    PerformanceConfig,
    PostTrainingQuantConfig,
    TuneResult,
    TuningCriterion,
    fit,
)
from neural_tune.artifact import write_uncertified
from neural_tune.config import parse_rules
from neural_tune.protocols import AdapterOptions
from neural_tune.space import TuningSpace
from neural_tune.values import FrozenMap
from neural_tune_pytorch.adapter import PyTorchAdapter
from neural_tune_pytorch.calling import parameters_of

# What `prepare` keeps of the batches that pass through it.
_MOST_BYTES = 1 << 30
_FLOATS = ("fp32", "float32", "float")


@dataclass(eq=False)
class _QuantConfig:
    """What the two configurations share. `set_local` is INC 3's way to say something about one op."""

    w_dtype: str = "int8"
    w_sym: bool = True
    w_granularity: str = "per_channel"
    w_algo: str = "minmax"
    act_dtype: str = "uint8"
    act_sym: bool = False
    act_granularity: str = "per_tensor"
    act_algo: str = "minmax"
    excluded_precisions: Sequence[str] = ()
    _local: list[tuple[str | type[nn.Module], _QuantConfig]] = field(default_factory=list, init=False, repr=False)

    approach = ""

    def set_local(self, op: str | type[nn.Module], config: _QuantConfig) -> _QuantConfig:
        """Give the ops of that name (or regular expression), or of that module class, a configuration of their own; return self.

        Raises:
            ConfigError: `op` is neither a name nor a module class.
        """
        if not isinstance(op, str) and not (isinstance(op, type) and issubclass(op, nn.Module)):
            raise ConfigError(f"set_local: found {op!r}, expected the name of an op or a torch.nn class")
        self._local.append((op, config))
        return self

    @property
    def is_float(self) -> bool:
        """Whether this configuration keeps an op in float."""
        return self.w_dtype in _FLOATS or self.act_dtype in _FLOATS

    def wishes(self) -> Any:
        """Return this configuration as a wish of `PostTrainingQuantConfig`.

        Raises:
            ConfigError: it asks for what has no kernel.
        """
        if self.is_float:
            return "float"
        only = {"w_sym": True, "w_algo": "minmax", "act_granularity": "per_tensor"}
        for name, value in only.items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"{name}: found {getattr(self, name)!r}, expected {value!r}: no int8 kernel takes anything else"
                )
        return {
            "activation": {
                "dtype": [self.act_dtype],
                "scheme": ["sym" if self.act_sym else "asym"],
                "algorithm": [self.act_algo],
            },
            "weight": {"dtype": [self.w_dtype], "granularity": [self.w_granularity]},
        }

    def names_and_types(self) -> tuple[dict[str, Any], list[tuple[type[nn.Module], Any]]]:
        """Return the wishes per op name, and per module class."""
        names = {op: config.wishes() for op, config in self._local if isinstance(op, str)}
        types = [(op, config.wishes()) for op, config in self._local if not isinstance(op, str)]
        return names, types

    def rules_for(self, model: nn.Module) -> dict[str, Any]:
        """Return op_name_dict for `model`: a module class stands for all modules of that class in it."""
        names, types = self.names_and_types()
        found: dict[str, Any] = {}
        for kind, wish in types:
            found |= {_quoted(name): wish for name, module in model.named_modules() if isinstance(module, kind)}
        return {**found, **names}


@dataclass(eq=False)
class StaticQuantConfig(_QuantConfig):
    """Static quantization: ranges of activations come from calibration. Defaults are what int8 kernels on x86 take.

    Attributes:
        w_dtype: "int8", or "fp32" to keep an op in float.
        w_sym: Symmetric weights, the only kind with kernels.
        w_granularity: "per_channel" or "per_tensor".
        w_algo: "minmax".
        act_dtype: "uint8" or "int8", or "fp32".
        act_sym: Whether zero_point is the middle of the codes.
        act_granularity: "per_tensor".
        act_algo: "minmax", "percentile", "kl" or "mse".
        excluded_precisions: Accepted for compatibility, no effect.
    """

    approach = "static"


@dataclass(eq=False)
class DynamicQuantConfig(_QuantConfig):
    """Dynamic quantization: ranges of activations are found at run time. Fields as in `StaticQuantConfig`."""

    approach = "dynamic"


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningConfig:
    """What `autotune` may try.

    Attributes:
        config_set: Configurations, tried in this order; each one opens a search over its ops.
        tolerable_loss: Relative loss against float that is accepted.
        timeout: Seconds for each search; 0 stops at the first acceptable model.
        max_trials: The most candidates per configuration.
        workspace: Folder for run directories.
        backend: Backend of the adapter.
        options: Options of the adapter, such as {"compile": False}.
        performance: How speed is measured.
    """

    config_set: Sequence[_QuantConfig] = ()
    tolerable_loss: float = 0.01
    timeout: float = 0
    max_trials: int = 100
    workspace: str = "nt_workspace"
    backend: str = "default"
    options: Mapping[str, Any] = field(default_factory=dict)
    performance: PerformanceConfig = field(default_factory=PerformanceConfig)


class Prepared(nn.Module):
    """Answers like the model it was made of, and remembers what passes through it, to calibrate on in `convert`."""

    def __init__(self, model: nn.Module, config: _QuantConfig, example: Any) -> None:
        super().__init__()
        self.model = model
        self.quant_config = config
        self.example = example
        self.batches: list[Any] = []
        self._bytes = 0

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """Return what the model returns.

        Raises:
            DataError: more than 1 GiB of inputs went through: a few hundred samples are enough.
        """
        kept = _kept(self._batch(arguments, keywords))
        self._bytes += _size(kept)
        if self._bytes > _MOST_BYTES:
            raise DataError(
                f"calibration: more than {_MOST_BYTES >> 20} MiB of inputs passed through; a few hundred samples are enough"
            )
        self.batches.append(kept)
        with torch.no_grad():
            return self.model(*arguments, **keywords)

    def _batch(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
        """Return what was passed as one batch: several inputs by name, so that the second one is not taken for labels."""
        if len(arguments) == 1 and not keywords:
            return arguments[0]
        names = [item.name for item in parameters_of(self.model)]
        if len(arguments) > len(names) and not keywords:  # forward(*inputs)
            return arguments
        given = {**dict(zip(names, arguments, strict=False)), **keywords}
        return {name: value for name, value in given.items() if value is not None}


def prepare(model: nn.Module, quant_config: _QuantConfig, example_inputs: Any = None) -> Prepared:
    """Return a module that answers like `model` in eval mode and watches its inputs; run calibration data through it, then `convert`.

    Args:
        model: The float model; it is copied.
        quant_config: How to quantize.
        example_inputs: One batch, as the model takes it; None takes the first one that passes through.

    Raises:
        ConfigError: `quant_config` is not one of the configurations of this module.
    """
    from neural_tune_pytorch.model import copy_of  # noqa: PLC0415 - one implementation of copying

    if not isinstance(quant_config, _QuantConfig) or not quant_config.approach:
        raise ConfigError(
            f"quant_config: found a {type(quant_config).__name__}, expected StaticQuantConfig or DynamicQuantConfig"
        )
    return Prepared(copy_of(model).eval(), quant_config, example_inputs)


def convert(
    prepared: Prepared,
    *,
    backend: str = "default",
    threads: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Return the integer model: every op in the configuration's choice, without a search and without an evaluation.

    Args:
        prepared: From `prepare`, after calibration data ran through it.
        backend: Backend of the adapter.
        threads: Threads to run with; None takes torch's own setting.
        options: Options of the adapter, such as {"compile": False}.

    Raises:
        ConfigError: nothing can be quantized under the configuration.
        DataError: a static configuration, and nothing passed through `prepared`.
        CapabilityError: torch cannot capture the model.
    """
    adapter, config = PyTorchAdapter(), prepared.quant_config
    if config.approach == "static" and not prepared.batches:
        raise DataError("convert: nothing passed through the prepared model; call it with calibration data first")
    example = prepared.example if prepared.example is not None else next(iter(prepared.batches), None)
    held = adapter.load(
        prepared.model,
        AdapterOptions(approach=config.approach, backend=backend, example=example, extra=FrozenMap(options or {})),
    )
    rules = parse_rules(op_name=config.rules_for(prepared.model), model_wise=config.wishes())
    space = TuningSpace.of(adapter.query(held), rules, {})
    if not space.groups:
        raise ConfigError(
            f"convert: no op can be quantized under this configuration: {'; '.join(sorted(space.fixed.values())[:3])}"
        )
    scratch = Path(tempfile.mkdtemp(prefix="neural_tune-"))
    try:
        statistics = adapter.calibrate(held, prepared.batches, scratch) if config.approach == "static" else None
        native: nn.Module = adapter.native(adapter.build(held, space.preferred(), statistics, threads))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return native


def save(model: nn.Module, directory: str | os.PathLike[str]) -> Path:
    """Write what `convert` returned so that `neural_tune.load(directory)` gives it back; return the artifact's path.

    Raises:
        ConfigError: the model did not come from `convert`, or `directory` is a file.
    """
    built = getattr(model, "_built", None)
    if built is None:
        raise ConfigError(f"save: found a {type(model).__name__}, expected what convert returned")
    return write_uncertified(PyTorchAdapter(), built, directory, "made by convert; no accuracy was measured")


def autotune(
    model: nn.Module,
    tune_config: TuningConfig,
    eval_fn: Callable[[nn.Module], Any],
    run_fn: Callable[[nn.Module], Any] | None = None,
    example_inputs: Any = None,
    *,
    reporter: Any = None,
) -> nn.Module:
    """Return the best model of the first configuration of which one meets the criterion.

    Its `tuning` attribute holds the `TuneResult` with the evidence.

    Args:
        model: The float model; it is never changed.
        tune_config: What may be tried, and the criterion.
        eval_fn: Takes a model, returns a number, higher is better.
        run_fn: Runs calibration data through the model it gets; needed by static configurations.
        example_inputs: One batch, as the model takes it.
        reporter: As in `neural_tune.fit`.

    Raises:
        CriterionNotMetError: no configuration gives a model that meets the criterion; its message says how near they came.
        ConfigError: there is no configuration, or a static one without `run_fn`.
    """
    if not tune_config.config_set:
        raise ConfigError("autotune: config_set is empty, expected StaticQuantConfig or DynamicQuantConfig objects")
    missed: list[str] = []
    for config in tune_config.config_set:
        result = _tuned(model, config, tune_config, eval_fn, run_fn, example_inputs, reporter)
        if result.accepted:
            found: nn.Module = result.model
            found.tuning = result  # evidence, no submodule
            return found
        missed.append(f"{config.approach}: {result.reason}")
    raise CriterionNotMetError("autotune: no configuration meets the criterion. " + "; ".join(missed))


def _tuned(
    model: nn.Module,
    config: _QuantConfig,
    tune_config: TuningConfig,
    eval_fn: Callable[[nn.Module], Any],
    run_fn: Callable[[nn.Module], Any] | None,
    example_inputs: Any,
    reporter: Any,
) -> TuneResult:
    batches: Iterable[Any] = [] if example_inputs is None else [example_inputs]
    if config.approach == "static":
        if run_fn is None:
            raise ConfigError(
                "autotune: a static configuration needs run_fn, which runs calibration data through the model it gets"
            )
        watched = prepare(model, config, example_inputs)
        run_fn(watched)
        batches = watched.batches
    conf = PostTrainingQuantConfig(
        approach=config.approach,
        op_name_dict=config.rules_for(model),
        model_wise=config.wishes(),
        calibration_sampling_size=max(1, sum(_length(batch) for batch in batches)),
        accuracy_criterion=AccuracyCriterion(tolerable_loss=tune_config.tolerable_loss),
        tuning_criterion=TuningCriterion(timeout=tune_config.timeout, max_trials=tune_config.max_trials),
        workspace=tune_config.workspace,
        backend=tune_config.backend,
        options=tune_config.options,
        performance=tune_config.performance,
    )
    is_static = config.approach == "static"
    return fit(
        model,
        conf,
        calib_dataloader=batches if is_static else None,
        eval_dataloader=None if is_static else batches,
        eval_func=eval_fn,
        framework="pytorch",
        reporter=reporter,
    )


def _kept(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {name: _kept(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_kept(item) for item in value)
    return np.array(value) if isinstance(value, np.ndarray) else value


def _size(value: Any) -> int:
    if isinstance(value, torch.Tensor | np.ndarray):
        return int(value.nbytes)
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else ()
    return sum(_size(item) for item in items)


def _length(value: Any) -> int:
    if isinstance(value, Mapping):
        value = next(iter(value.values()))
    if isinstance(value, tuple | list):
        value = value[0]
    return len(value)


def _quoted(name: str) -> str:
    """Return the module's ops as a regular expression: the module itself, and repeated calls of it."""
    return "".join(f"\\{char}" if char in ".^$*+?{}[]|()" else char for char in name) + r"(#\d+)?"
