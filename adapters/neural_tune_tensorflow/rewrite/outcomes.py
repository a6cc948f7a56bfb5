"""What became of every op of a candidate, and why."""

from __future__ import annotations

from typing import Any

from neural_tune.protocols import OpOutcome
from neural_tune_tensorflow import capability
from neural_tune_tensorflow.graph import Graph
from neural_tune_tensorflow.model import OnednnModel
from neural_tune_tensorflow.rewrite.casts import CAST
from neural_tune_tensorflow.rewrite.plan import Plan

FLOAT_REASON = "float in this candidate"


def report(model: OnednnModel, plan: Plan, graph: Graph) -> tuple[tuple[OpOutcome, ...], dict[str, float]]:
    """Return the outcome of every op, and counts."""
    ops = tuple(_outcome(model, plan, op) for op in capability.query(model).ops)
    kinds = [node.op for node in graph]
    counts = {
        "int8_ops": sum(not op.is_float for op in ops),
        "float_ops": sum(op.is_float for op in ops),
        "quantize_nodes": kinds.count("QuantizeV2"),
        "dequantize_nodes": kinds.count("Dequantize"),
    }
    return ops, {name: float(value) for name, value in counts.items()}


def _outcome(model: OnednnModel, plan: Plan, op: Any) -> OpOutcome:
    config = plan.configs.get(op.name)
    if config is not None and config.weight is not None:
        code = plan.codes[model.units.by_name[op.name].source]
        weight = config.weight.describe()
        asked = config.activation.dtype.value if config.activation is not None else ""
        got = "int8" if code.is_signed else "uint8"
        reason = "" if asked == got else f"its input is quantized as {got}: that is what all who share it can use"
        return OpOutcome(
            name=op.name, type=op.type, precision=f"static: {code.describe()}, weight {weight}", reason=reason
        )
    if op.name in plan.casts:
        return OpOutcome(name=op.name, type=op.type, precision=CAST.describe())
    sums = {name: unit for unit, item in plan.sums.items() for name in (item.add, item.tail)}
    owner = model.units.owner.get(op.name) or sums.get(op.name)
    if owner in plan.casts:
        return OpOutcome(name=op.name, type=op.type, precision=CAST.describe(), reason=f"part of {owner!r}")
    if owner in plan.configs:
        return OpOutcome(name=op.name, type=op.type, precision="static: fused", reason=f"part of {owner!r}")
    if op.name in plan.carried:
        code = plan.codes[op.name]
        return OpOutcome(
            name=op.name, type=op.type, precision=f"static: {code.describe()}", reason="carries the codes of its input"
        )
    return OpOutcome(name=op.name, type=op.type, precision="float", reason=_why(plan, op))


def _why(plan: Plan, op: Any) -> str:
    if op.name in plan.refused:
        return plan.refused[op.name]
    if op.is_quantizable:
        return FLOAT_REASON
    return "its neighbours are float" if op.why == "follows its neighbours" else str(op.why)
