"""What the installed TensorFlow can compute in 8 bits: asked of its registry, then tried on small products with a known result.

An unsupported wheel or processor then means float with a reason, and not a failure inside a user's model.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from neural_tune_tensorflow.graph import Graph
from neural_tune_tensorflow.runtime import tf
from neural_tune_tensorflow.session import FixedSession

_LOG = logging.getLogger(__name__)

FUSED = {
    "Conv2D": "_FusedQuantizedConv2D",
    "DepthwiseConv2dNative": "_FusedQuantizedDepthwiseConv2D",
    "MatMul": "_QuantizedMatMul",
}


@cache
def missing() -> dict[str, str]:
    """Return op type -> why it has no int8 kernel here; empty on a stock wheel for x86."""
    found: dict[str, str] = {}
    for kind, fused in FUSED.items():
        why = "" if _is_registered(fused) else f"this TensorFlow ({tf.__version__}) has no kernel {fused}"
        try:
            why = why or _self_test(kind)
        except Exception as error:  # noqa: BLE001 - whatever breaks here must not break a user's model later
            why = f"{fused} fails its self-test: {str(error).splitlines()[0][:200]}"
        if why:
            _LOG.warning("%s stays float: %s", kind, why)
            found[kind] = why
    return found


@cache
def why_no_bf16() -> str:
    """Return why products are not computed in bfloat16 here; "" where they are.

    TensorFlow runs bfloat16 on every processor, if need be by way of float32, which only costs time. So the processor must have the instructions, and a
    trial must end up in a oneDNN kernel.
    """
    if not _flags() & {"amx_bf16", "avx512_bf16"}:
        return f"bf16: this processor ({instruction_set()}) has no instructions for it (amx_bf16, avx512_bf16)"
    half = tf.bfloat16.as_numpy_dtype
    graph = Graph({}, ["y"], ["x"])
    graph.add("Placeholder", "x", [], dtype=tf.bfloat16)
    graph.constant("w", np.ones((64, 32), half), tf.bfloat16)
    graph.add("MatMul", "y", ["x", "w"], T=tf.bfloat16, transpose_a=False, transpose_b=False)
    metadata = FixedSession(graph.graph_def(), threads=1).trace({"x": np.ones((8, 64), half)}, ["y"])
    ran = [item.timeline_label for device in metadata.step_stats.dev_stats for item in device.node_stats]
    if any(" = _Mkl" in label for label in ran):
        return ""
    return f"bf16: this TensorFlow ({tf.__version__}) has no oneDNN kernel for it (TF_ENABLE_ONEDNN_OPTS=0?)"


@cache
def instruction_set() -> str:
    """Return what decides the fast kernels, such as "x86 avx512_vnni"."""
    flags = _flags()
    if not flags:
        return "unknown"
    known = ("amx_int8", "avx512_vnni", "avx_vnni", "avx512bw", "avx2")
    return next((f"x86 {name}" for name in known if name in flags), "x86")


@cache
def _flags() -> frozenset[str]:
    """Return the features of the processor; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def _is_registered(op: str) -> bool:
    from tensorflow.python.framework import kernels  # noqa: PLC0415 - has no public name

    return any(item.device_type == "CPU" for item in kernels.get_registered_kernels_for_op(op).kernel)


def _self_test(kind: str) -> str:
    """Run one small product whose exact result is known; return what is wrong with it."""
    from neural_tune_tensorflow.rewrite import emit  # noqa: PLC0415 - emit asks for nothing here, but reads this module's table

    generator = np.random.default_rng(7)
    shape, size = {
        "Conv2D": ((3, 3, 8, 16), (1, 5, 5, 8)),
        "DepthwiseConv2dNative": ((3, 3, 8, 1), (1, 5, 5, 8)),
        "MatMul": ((8, 16), (4, 8)),
    }[kind]
    codes = generator.integers(0, 255, size).astype(np.uint8)
    weight = generator.integers(-127, 127, shape).astype(np.int8)
    graph = Graph({}, ["y"], [])
    graph.constant("x", codes, tf.quint8)
    emit.self_test_product(graph, kind, weight)
    found = FixedSession(graph.graph_def(), threads=1).fetch({}, ["y"])[0].astype(np.int64)
    expected = _exact(kind, codes.astype(np.int64), weight.astype(np.int64))
    if np.abs(found - expected).max() > 1:
        return f"{FUSED[kind]} computes something else on this machine (off by {np.abs(found - expected).max()} steps)"
    return ""


def _exact(kind: str, codes: Any, weight: Any) -> Any:
    """Return the codes of relu(codes * weight / 65536) by plain integer loops."""
    if kind == "MatMul":
        total = codes @ weight
    else:
        padded = np.pad(codes, ((0, 0), (1, 1), (1, 1), (0, 0)))
        total = np.zeros((1, 5, 5, weight.shape[3] if kind == "Conv2D" else weight.shape[2]), np.int64)
        for row in range(3):
            for column in range(3):
                window = padded[:, row : row + 5, column : column + 5]
                part = weight[row, column]
                total += window @ part if kind == "Conv2D" else window * part[:, 0]
    return np.clip(np.round(total / 256.0), 0, 255).astype(np.int64)
