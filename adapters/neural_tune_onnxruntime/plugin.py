"""What the engine knows about this adapter before it is loaded. Imports neither onnx nor onnxruntime."""

from __future__ import annotations

from pathlib import Path

from neural_tune.plugins import AdapterPlugin
from neural_tune.protocols import AnyAdapter


def accepts(model: object) -> bool:
    """Return whether `model` is a path to an .onnx file, an `onnx.ModelProto` or an `onnxruntime.InferenceSession`."""
    if isinstance(model, str | Path):
        return Path(model).suffix.lower() == ".onnx"
    # By name, along the ancestry: importing onnx only to say no to a torch module would cost half a second.
    names = {f"{kind.__module__.split('.')[0]}.{kind.__qualname__}" for kind in type(model).__mro__}
    return bool(names & {"onnx.ModelProto", "onnxruntime.InferenceSession"})


def load() -> AnyAdapter:
    """Return the adapter; imports onnx and onnxruntime."""
    from neural_tune_onnxruntime.adapter import OnnxRuntimeAdapter  # noqa: PLC0415 - heavy, loaded at first use

    return OnnxRuntimeAdapter()


PLUGIN = AdapterPlugin(
    name="onnxruntime",
    summary="ONNX models on ONNX Runtime (CPU): static, dynamic and weight-only int8 and int4",
    requires=("onnx", "onnxruntime"),
    install="neural-tune[onnxruntime]",
    accepts=accepts,
    load=load,
)
