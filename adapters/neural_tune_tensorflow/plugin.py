"""What the engine knows about this adapter before it is loaded. Imports neither tensorflow nor keras."""

from __future__ import annotations

from pathlib import Path

from neural_tune.plugins import AdapterPlugin
from neural_tune.protocols import AnyAdapter

_SUFFIXES = (".keras", ".pb", ".tflite", ".h5")


def accepts(model: object) -> bool:
    """Return whether `model` is a Keras model, a `tf.function`, or a path to a SavedModel folder, a .keras, .h5, .pb or .tflite file."""
    if isinstance(model, str | Path):
        return Path(model).suffix.lower() in _SUFFIXES or (Path(model) / "saved_model.pb").is_file()
    # By name, along the ancestry: importing tensorflow only to say no to an ONNX model would cost seconds.
    kinds = [(kind.__module__.split(".")[0], kind.__qualname__) for kind in type(model).__mro__]
    return any(
        (package in ("keras", "tf_keras") and name in ("Model", "Layer"))
        or (package == "tensorflow" and name in ("Function", "ConcreteFunction", "GraphDef", "AutoTrackable"))
        for package, name in kinds
    )


def load() -> AnyAdapter:
    """Return the adapter; imports tensorflow."""
    from neural_tune_tensorflow.adapter import TensorFlowAdapter  # noqa: PLC0415 - heavy, loaded at first use

    return TensorFlowAdapter()


PLUGIN = AdapterPlugin(
    name="tensorflow",
    summary="TensorFlow and Keras models on the CPU: oneDNN int8 graphs, LiteRT",
    requires=("tensorflow", "keras"),
    install="neural-tune[tensorflow]",
    accepts=accepts,
    load=load,
)
