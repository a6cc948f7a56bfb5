"""What became of every op of a candidate, and why."""

from __future__ import annotations

from collections import Counter

import onnx

from neural_tune.protocols import BuildReport, OpOutcome
from neural_tune.values import FLOAT, DType, FrozenMap, Mode, OpConfig, Role
from neural_tune_onnxruntime import forms
from neural_tune_onnxruntime.graph import Op
from neural_tune_onnxruntime.model import OnnxModel
from neural_tune_onnxruntime.rewrite.regions import Regions

FLOAT_REASON = "float in this candidate"
# The runtime fuses these wherever it finds them between DequantizeLinear and QuantizeLinear, listed or not.
_FUSED_ANYWAY = frozenset(
    ("Add", "Mul", "Sigmoid", "LeakyRelu", "Concat", "GlobalAveragePool", "AveragePool", "Softmax", "MaxPool", "Resize")
)


def report(model: OnnxModel, regions: Regions, proto: onnx.ModelProto) -> BuildReport:
    """Return the outcome of every op and the counts that cost nothing."""
    ops = tuple(_outcome(op, model, regions) for op in model.graph.ops)
    kinds = [node.op_type for node in proto.graph.node]
    counts = {
        **_by_precision(model, regions),
        "float_ops": sum(op.is_float for op in ops),
        "quantize_nodes": kinds.count("QuantizeLinear"),
        "dequantize_nodes": kinds.count("DequantizeLinear"),
    }
    return BuildReport(
        ops=ops,
        counts=FrozenMap({name: float(value) for name, value in counts.items()}),
        notes=(*model.notes, *_warnings(model, regions)),
    )


def _by_precision(model: OnnxModel, regions: Regions) -> dict[str, int]:
    """Return "int8_ops" and, where there are any, "int16_ops", "int4_ops" ...; an op without a choice of its own counts by the codes it carries."""
    words = Counter(config.word for config in (_config(op, regions) for op in model.graph.ops) if not config.is_float)
    return {f"{word}_ops": words[word] for word in dict.fromkeys(("int8", *sorted(words)))}


def _config(op: Op, regions: Regions) -> OpConfig:
    """Return how an op runs: by its own choice, by the codes that it carries, or in float."""
    if op.name in regions.configs:
        return regions.configs[op.name]
    if op.name not in regions.folded and op.name not in regions.carried:
        return FLOAT
    owner = regions.folded.get(op.name)
    coded = regions.coded[op.outputs[0] if owner is None else regions.tails[owner]]
    return OpConfig(mode=Mode.STATIC, activation=coded.spec)


def _warnings(model: OnnxModel, regions: Regions) -> tuple[str, ...]:
    """Return what costs time and was asked for all the same."""
    types = {op.name: op.type for op in model.graph.ops}
    slow = sum(types[name] == "Conv" and config.mode is Mode.DYNAMIC for name, config in regions.configs.items())
    activations = (config.activation for config in regions.configs.values() if config.mode is Mode.STATIC)
    wide = sum(spec is not None and spec.dtype in (DType.INT16, DType.UINT16) for spec in activations)
    found = [f"{slow} convolutions are dynamic: {forms.SLOW_CONV}"] if slow else []
    return (*found, *([f"{wide} ops have 16-bit activations: {forms.FLOAT_16}"] if wide else []))


def _outcome(op: Op, model: OnnxModel, regions: Regions) -> OpOutcome:
    precision = _config(op, regions).describe()
    return OpOutcome(name=op.name, type=op.type, precision=precision, reason=_reason(op, model, regions))


def _reason(op: Op, model: OnnxModel, regions: Regions) -> str:
    if op.name in regions.configs:
        return regions.altered.get(op.name, "")
    if op.name in regions.folded:
        return f"part of {regions.folded[op.name]!r}"
    return "carries the codes of its input" if op.name in regions.carried else _why_float(op, model, regions)


def _why_float(op: Op, model: OnnxModel, regions: Regions) -> str:
    kernel = model.kernels[op.name]
    if op.name in regions.refused:
        return regions.refused[op.name]
    if kernel.role is Role.PASS_THROUGH:
        return "its neighbours are float"
    reason = FLOAT_REASON if kernel.is_quantizable and kernel.in_search else kernel.why
    if op.type in _FUSED_ANYWAY and _lies_between_codes(op, model, regions):
        return f"{reason}; between int8 neighbours the runtime fuses it all the same"
    return reason


def _lies_between_codes(op: Op, model: OnnxModel, regions: Regions) -> bool:
    """Return whether every input of `op` is read as codes and its one reader takes codes."""
    read = [regions.coded.get(tensor) for tensor in model.graph.activations(op)]
    if not all(coded is not None and coded.is_read_by(op) for coded in read):
        return False
    result = op.outputs[0]
    follower = model.graph.sole_consumer(result)
    if follower is not None and follower.type in ("Relu", "Clip"):
        result = follower.outputs[0]
    coded = regions.coded.get(result)
    readers = frozenset(reader.name for reader in model.graph.consumers.get(result, ()))
    return coded is not None and result not in model.graph.fixed and readers == coded.readers
