"""A candidate made into a `.tflite` file: which ops really run in integers, the quantizer's recipe for them, and what the file says after.

ai-edge-quantizer writes the integers; which ops, which ranges and which weights is decided here. A recipe is matched against the
names of output tensors, so every op gets its own line (ops of one config share one regular expression).
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_quantizer import quantizer

from neural_tune.calibration import Statistics
from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.protocols import OpOutcome
from neural_tune.values import Candidate, Capability, DType, Granularity, Mode, Observer, OpConfig, QuantSpec, Role
from neural_tune.values.insight import Int8Regions
from neural_tune_tensorflow.backends import litert_kernels, litert_model
from neural_tune_tensorflow.backends.litert_kernels import Kernel
from neural_tune_tensorflow.backends.litert_model import INSERTED, LiteModel, LiteOp

_ALGORITHM = "min_max_uniform_quantize"
_CARRIED = OpConfig(mode=Mode.STATIC, activation=QuantSpec(dtype=DType.INT8, symmetric=False))
# The codes of a model output are laid over a wider range than calibration saw: a logit above it would be cut to the largest code, and
# two classes that are cut tie. An eighth of the span on either side costs 0.3 bits of one tensor.
OUTPUT_HEADROOM = 0.125
# What stands between logits and a result and keeps their order: logits that are cut tie behind it as well.
_ENDINGS = frozenset({"SOFTMAX", "LOG_SOFTMAX", "LOGISTIC"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a candidate comes to on this model.

    Attributes:
        configs: Op name -> config that is applied; pass-through ops that carry int8 included.
        refused: Op name -> why an op that was asked for stays float.
    """

    configs: Mapping[str, OpConfig]
    refused: Mapping[str, str] = field(default_factory=dict)


class _Quantizer(quantizer.Quantizer):
    """The tool without its check for empty ranges: ours are never empty, and it starts an interpreter of the float model each time."""

    def _ensure_model_qsv_sufficient(self, calibration_result: Any) -> None:
        pass


def plan(model: LiteModel, capability: Capability, candidate: Candidate, statistics: Statistics | None) -> Plan:
    """Return which ops run in integers: companions only where they join int8 neighbours, and nothing around an infinite tensor.

    Raises:
        CapabilityError: the candidate names an op or a precision that does not exist here.
        AdapterError: a static op without statistics.
    """
    kernels = {op.name: litert_kernels.kernel_of(op) for op in model.ops}
    _check(candidate, kernels)
    static = {name for name, config in candidate.ops.items() if config.mode is Mode.STATIC}
    if static and statistics is None:
        message = f"op {min(static)!r} is to be quantized statically, but there are no statistics: calibrate first"
        raise AdapterError(message)
    infinite = statistics.infinite if statistics is not None else frozenset()
    unbounded = {op.name for op in model.ops if infinite & {tensor.name for tensor in (*op.activations, *op.outputs)}}
    joined = Int8Regions.of(capability, static - unbounded).ops - unbounded
    configs, refused = {}, {}
    for op in model.ops:
        config = candidate.config_of(op.name)
        if config.mode is Mode.STATIC and op.name in unbounded:
            refused[op.name] = "a tensor around it takes infinite values"
        elif config.mode is Mode.STATIC and op.name not in joined:
            refused[op.name] = "joins int8 neighbours only, and none is within reach"
        elif not config.is_float:
            configs[op.name] = config
        elif op.name in joined and kernels[op.name].role is Role.PASS_THROUGH:
            configs[op.name] = _CARRIED
    return Plan(configs=configs, refused=refused)


def quantize(model: LiteModel, planned: Plan, candidate: Candidate, statistics: Statistics | None) -> bytes:
    """Return the flatbuffer in which exactly the ops of `planned` are quantized.

    Raises:
        AdapterError: the quantizer breaks.
    """
    if not planned.configs:
        return model.content
    recipe = _recipe(model, planned)
    ranges = _ranges(model, planned, candidate, statistics) if statistics is not None else None
    try:
        # Its progress bar goes to stderr whatever the flag says.
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tool = _Quantizer(model.content, recipe)
            result = tool.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    except (ValueError, RuntimeError, KeyError, IndexError, TypeError, NotImplementedError) as error:
        message = f"ai-edge-quantizer refuses the candidate: {str(error).splitlines()[0] if str(error) else error!r}"
        raise AdapterError(message) from error
    if result.quantized_model is None:
        raise AdapterError("ai-edge-quantizer returned no model")
    return bytes(result.quantized_model)


def outcomes(model: LiteModel, planned: Plan, content: bytes) -> tuple[OpOutcome, ...]:
    """Return what became of every op, read from the types of its operands in the file that was written.

    Raises:
        AdapterError: the file is not the same model op by op, or an op that was to stay float is quantized.
    """
    found = precisions(model, content)
    result = []
    for op in model.ops:
        asked = planned.configs.get(op.name)
        mode = found[op.name]
        if asked is None and mode is not Mode.FLOAT:
            message = (
                f"op {op.name!r} was to stay float, but runs {mode.value} in the file that ai-edge-quantizer wrote"
            )
            raise AdapterError(message)
        result.append(_outcome(op, asked, mode, planned.refused.get(op.name, "")))
    return tuple(result)


def precisions(model: LiteModel, content: bytes) -> dict[str, Mode]:
    """Return op name -> how it really runs in `content`, a file quantized from `model`, from the types of its operands.

    Raises:
        AdapterError: its ops are not those of `model` in their order, with conversions between them.
    """
    written = iter(litert_model.ops_of(litert_model.parse(content)))
    weights: dict[str, bool] = {}
    found: dict[str, Mode] = {}
    for op in model.ops:
        now = next(written, None)
        while now is not None and now.type != op.type and now.type in INSERTED:
            # A DEQUANTIZE of a constant is how a weight-only weight reaches a float kernel.
            source = now.inputs[0]
            weights[now.outputs[0].name] = source is not None and source.is_constant
            now = next(written, None)
        if now is None or now.type != op.type:
            message = (
                f"the quantized file has {now.type if now else 'nothing'} where the model has {op.type} ({op.name!r})"
            )
            raise AdapterError(message)
        found[op.name] = _mode_of(now, weights)
    return found


def _mode_of(op: LiteOp, decoded: Mapping[str, bool]) -> Mode:
    operands = [item for item in op.inputs if item is not None]
    if any(item.is_quantized for item in op.outputs):
        return Mode.STATIC
    if any(item.is_quantized and item.is_constant for item in operands):
        return Mode.DYNAMIC
    if any(decoded.get(item.name, False) for item in operands):
        return Mode.WEIGHT_ONLY
    return Mode.FLOAT


def _outcome(op: LiteOp, asked: OpConfig | None, mode: Mode, refused: str) -> OpOutcome:
    if asked is None or mode is Mode.FLOAT:
        reason = refused or ("not asked for" if asked is None else "ai-edge-quantizer left it in float")
        return OpOutcome(name=op.name, type=op.type, precision="float", reason=reason)
    if asked is _CARRIED:
        return OpOutcome(
            name=op.name, type=op.type, precision=asked.describe(), reason="carries the codes of its neighbours"
        )
    reason = "" if mode is asked.mode else f"asked for {asked.mode.value}, runs {mode.value}"
    return OpOutcome(name=op.name, type=op.type, precision=asked.describe(), reason=reason)


def _check(candidate: Candidate, kernels: Mapping[str, Kernel]) -> None:
    for name, config in candidate.ops.items():
        if name not in kernels:
            message = f"the candidate names op {name!r}, which the model does not have"
            raise CapabilityError(message)
        reason = litert_kernels.refusal(kernels[name], config)
        if reason:
            message = f"op {name!r} cannot run as {config.describe()!r}: {reason}"
            raise CapabilityError(message)
    if candidate.recipes:
        message = f"recipes {list(candidate.recipes)}: the litert backend offers none"
        raise CapabilityError(message)


def _recipe(model: LiteModel, planned: Plan) -> list[dict[str, Any]]:
    by_settings: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for op in model.ops:
        config = planned.configs.get(op.name)
        if config is None:
            continue
        settings = _settings(config)
        by_settings.setdefault(repr(settings), (settings, []))[1].append(re.escape(op.scope))
    lines: list[dict[str, Any]] = [
        {"regex": f"^(?:{'|'.join(scopes)})$", "operation": "*", "algorithm_key": _ALGORITHM, "op_config": settings}
        for settings, scopes in by_settings.values()
    ]
    # The tool sees an op of its own behind every result, in the scope of the op that writes it: float it has to stay.
    lines += [{"regex": ".*", "operation": end, "algorithm_key": "no_quantize"} for end in ("INPUT", "OUTPUT")]
    return lines


def _settings(config: OpConfig) -> dict[str, Any]:
    """Return `config` in the words of ai-edge-quantizer's recipe."""
    weight = config.weight or QuantSpec(dtype=DType.INT8)
    words: dict[str, Any] = {
        "weight_tensor_config": {
            "num_bits": 4 if weight.dtype is DType.INT4 else 8,
            "symmetric": True,
            "granularity": "CHANNELWISE" if weight.granularity is Granularity.PER_CHANNEL else "TENSORWISE",
            "dtype": "INT",
        },
        "compute_precision": "FLOAT" if config.mode is Mode.WEIGHT_ONLY else "INTEGER",
        "explicit_dequantize": config.mode is Mode.WEIGHT_ONLY,
    }
    if config.mode is Mode.STATIC:
        words["activation_tensor_config"] = {
            "num_bits": 8,
            "symmetric": False,
            "granularity": "TENSORWISE",
            "dtype": "INT",
        }
    return words


def _ranges(model: LiteModel, planned: Plan, candidate: Candidate, statistics: Statistics) -> dict[str, dict[str, Any]]:
    """Return tensor -> bounds for every tensor that a static op reads or writes.

    A range belongs to the tensor: the user's or the strategy's choice for it goes first, then the observer of its first reader, then that
    of its producer.
    """
    wanted: dict[str, tuple[Observer, float | None]] = {}
    ranks: dict[str, int] = {}
    for side in ("activations", "outputs"):
        for op in model.ops:
            config = planned.configs.get(op.name)
            if config is None or config.mode is not Mode.STATIC or config.activation is None:
                continue
            for tensor in getattr(op, side):
                ranks[tensor.name] = len(tensor.shape)
                # What only carries codes has no wish of its own.
                if config is not _CARRIED:
                    wanted.setdefault(tensor.name, (config.activation.observer, config.activation.percentile))
    wanted.update(
        {choice.tensor: (choice.observer, choice.percentile) for choice in candidate.ranges if choice.tensor in ranks}
    )
    results = _results(model)
    found = {}
    for name, rank in ranks.items():
        if name not in statistics.tensors:
            continue
        observer, percentile = wanted.get(name, (Observer.MINMAX, None))
        low, high = statistics.range_of(name, observer, percentile, symmetric=False, levels=256)
        if name in results:
            low, high = _widened(low, high)
        found[name] = {bound: np.full((1,) * rank, value, np.float32) for bound, value in (("min", low), ("max", high))}
    return found


def _results(model: LiteModel) -> set[str]:
    """Return the tensors that hold the model's results: its outputs, and what only moves or a softmax stand between."""
    found = {port.tensor for port in model.outputs}
    for op in reversed(model.ops):
        is_ending = op.type in _ENDINGS or litert_kernels.kernel_of(op).role is Role.PASS_THROUGH
        if is_ending and any(tensor.name in found for tensor in op.outputs):
            found.update(tensor.name for tensor in op.activations)
    return found


def _widened(low: float, high: float) -> tuple[float, float]:
    """Return the range with `OUTPUT_HEADROOM` of its span on the sides that are open (a bound of zero is one by design)."""
    margin = OUTPUT_HEADROOM * (high - low)
    return low - margin if low < 0 else low, high + margin if high > 0 else high
