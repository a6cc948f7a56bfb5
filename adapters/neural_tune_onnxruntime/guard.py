"""Looks for disagreement inside the runtime: a model must compute the same with and without graph optimization.

Q/DQ graphs have an exact meaning node by node. Optimization replaces groups of nodes by integer kernels, and has bugs: a per_channel
weight along the wrong axis gave a relative error of 0.81, silently. An integer kernel rounds once where the node-by-node graph rounds
twice, so a difference of a few quantization steps is by design; a bug shows as a difference of the size of the outputs.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from neural_tune.errors import AdapterError
from neural_tune.protocols import Array, Inputs
from neural_tune_onnxruntime import session
from neural_tune_onnxruntime.graph import Graph, Op
from neural_tune_onnxruntime.inputs import Feed, InputInfo, to_feed

# Relative L2 difference of an output. Rounding gave 0.0005 to 0.005 on four trained nets and 0.020 on a 60-op MobileNetV2 whose ranges
# are so bad that int8 itself moves its outputs by 0.44; the known fusion bugs give 0.5 to 0.8.
TOLERANCE = 0.15
_FLOAT_KERNELS = frozenset(("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"))
_INTEGER_KERNELS = frozenset(
    (
        *("QGemm", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger", "NhwcMaxPool"),
        *("DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """What the optimizer made of a Q/DQ graph.

    Attributes:
        unfused: Places where codes are made and at once dequantized again, or a quantized weight is dequantized at run time: pure loss.
        integer_kernels: Kernels that compute on codes.
        lost: Conv, Gemm and MatMul whose operands carry codes in the saved graph, and that run in float all the same.
    """

    unfused: int
    integer_kernels: int
    lost: int


def examine(artifact: Path, inputs: Inputs) -> tuple[str, ...]:
    """Return what a person must see about a saved model: findings, or () when there are none.

    Args:
        artifact: What `save` wrote.
        inputs: One batch of real inputs.

    Raises:
        AdapterError: the runtime refuses the model with or without optimization.
        DataError: the inputs do not fit.
    """
    return (*_compare_levels(artifact, inputs), *_explain(count_fusions(artifact)))


def count_fusions(artifact: Path) -> Fusion:
    """Return what the optimizer makes of a saved model, from the graph it hands out."""
    with tempfile.TemporaryDirectory(prefix="neural_tune-guard-") as scratch:
        path = Path(scratch) / "optimized.onnx"
        chosen = session.options(1)
        chosen.optimized_model_filepath = str(path)
        chosen.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.bin")
        session.start(artifact, chosen)
        optimized = Graph.of(onnx.load(str(path), load_external_data=False))
    saved = Graph.of(onnx.load(str(artifact), load_external_data=False))
    kinds = Counter(op.type.rpartition(".")[2] for op in optimized.ops)
    floats = sum(kinds[kind] for kind in _FLOAT_KERNELS)
    anchors = [op for op in saved.ops if op.type in _FLOAT_KERNELS]
    expected = sum(_carries_codes(op, saved) for op in anchors)
    return Fusion(
        unfused=sum(1 for _ in _wasted(optimized)),
        integer_kernels=sum(
            count for kind, count in kinds.items() if kind.startswith("QLinear") or kind in _INTEGER_KERNELS
        ),
        lost=max(0, floats - (len(anchors) - expected)),
    )


def difference(first: Array, second: Array) -> float:
    """Return the relative L2 difference of two outputs; infinite where one is not finite and the other is."""
    one, two = first.astype(np.float64), second.astype(np.float64)
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        return 0.0 if np.array_equal(one, two, equal_nan=True) else float("inf")
    scale = float(np.linalg.norm(two))
    distance = float(np.linalg.norm(one - two))
    return distance / scale if scale else distance


def _compare_levels(artifact: Path, inputs: Inputs) -> Iterator[str]:
    optimized = session.start(artifact, session.options(None))
    literal = session.start(artifact, session.options(None, optimize=False))
    feed = to_feed(inputs, [InputInfo.of(value) for value in optimized.get_inputs()])
    names = [value.name for value in optimized.get_outputs()]
    pairs = zip(names, _outputs(optimized, feed), _outputs(literal, feed), strict=True)
    for name, fast, exact in pairs:
        if not (isinstance(fast, np.ndarray) and fast.dtype.kind == "f"):
            continue
        if not np.isfinite(fast).all():
            yield f"output {name!r} holds NaN or infinite values"
        found = difference(fast, exact)
        if found > TOLERANCE:
            yield (
                f"output {name!r} depends on the optimization level: relative difference {found:.3f} between all optimizations and "
                f"none, expected at most {TOLERANCE}; the runtime may fuse this graph wrongly, compare with the float model"
            )


def _outputs(started: session.Session, feed: Feed) -> list[Array]:
    try:
        return list(started.run(None, feed))
    except session.RUNTIME_ERRORS as error:
        message = f"the saved model breaks at run time: {session.first_line(error)}"
        raise AdapterError(message) from error


def _explain(fusion: Fusion) -> Iterator[str]:
    if fusion.unfused:
        yield f"{fusion.unfused} unfused Q/DQ pairs: the runtime quantizes and at once dequantizes there, which only costs time"
    if fusion.lost:
        yield f"{fusion.lost} ops (Conv, Gemm or MatMul) carry codes in the graph but run in float: the runtime did not fuse them"


def _wasted(optimized: Graph) -> Iterator[Op]:
    for op in optimized.ops:
        if op.type != "DequantizeLinear":
            continue
        producer = optimized.producers.get(op.inputs[0])
        is_weight = op.inputs[0] in optimized.constants
        if is_weight or (producer is not None and producer.type == "QuantizeLinear"):
            yield op


def _carries_codes(op: Op, saved: Graph) -> bool:
    producers = [saved.producers.get(name) for name in op.inputs[:2]]
    return all(producer is not None and producer.type == "DequantizeLinear" for producer in producers)
