"""How the runtime is started: CPU, a chosen number of threads, initializers beside the graph."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import onnx
import onnxruntime
from onnx import helper
from onnxruntime.capi import onnxruntime_pybind11_state as binding

from neural_tune.errors import AdapterError

Session: TypeAlias = Any  # onnxruntime ships no types
_CPU = "CPUExecutionProvider"
PROVIDERS = [_CPU]
_FOLDER = "session.model_external_initializers_file_folder_path"
_NAMES = (
    "Fail",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProtobuf",
    "ModelLoadCanceled",
    "NoModel",
    "NoSuchFile",
    "NotImplemented",
    "EPFail",
    "RuntimeException",
    "EngineError",
)
# What the runtime raises when it refuses a model or an input. Everything else is a bug and propagates.
RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    *(getattr(binding, name) for name in _NAMES if hasattr(binding, name)),
)


def options(threads: int | None, *, optimize: bool = True, folder: Path | None = None) -> Any:
    """Return session options.

    Args:
        threads: Threads inside one operation; None takes the runtime's default, at most the processors this process may use.
        optimize: False runs the graph node by node as it is written.
        folder: Where the external initializers of a model lie that is given as bytes.
    """
    chosen = onnxruntime.SessionOptions()
    chosen.log_severity_level = 3
    chosen.intra_op_num_threads = _default_threads() if threads is None else threads
    levels = onnxruntime.GraphOptimizationLevel
    chosen.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if folder is not None:
        chosen.add_session_config_entry(_FOLDER, str(folder))
    return chosen


def start(model: bytes | Path, chosen: Any, provider: str = _CPU) -> Session:
    """Return a ready session.

    Args:
        model: The model, or its path.
        chosen: Session options.
        provider: The execution provider; what it does not take runs on the CPU.

    Raises:
        AdapterError: the runtime refuses the model.
    """
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, chosen, providers=list(dict.fromkeys((provider, *PROVIDERS))))
    except RUNTIME_ERRORS as error:
        message = f"ONNX Runtime {onnxruntime.__version__} refuses the model: {first_line(error)}"
        raise AdapterError(message) from error


def first_line(error: Exception) -> str:
    """Return the first line of a native error; the rest is a stack of C++ symbols."""
    return str(error).strip().split("\n", maxsplit=1)[0][:500]


@cache
def newest_ir_version() -> int:
    """Return the newest IR version that the installed runtime loads, by trying."""
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    return next(version for version in _candidates(onnx.IR_VERSION) if _loads(model, version))


def _candidates(newest: int) -> Iterable[int]:
    return range(newest, 0, -1)


def _loads(model: onnx.ModelProto, version: int) -> bool:
    model.ir_version = version
    try:
        start(model.SerializeToString(), options(1))
    except AdapterError:
        return False
    return True


def _default_threads() -> int:
    # 0 lets the runtime count the cores of the machine. In a container that owns fewer, it would start too many.
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
        if allowed < (os.cpu_count() or allowed):
            return allowed
    return 0
