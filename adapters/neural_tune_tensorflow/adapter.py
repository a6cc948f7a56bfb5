"""TensorFlow as the engine sees it: a switchboard between the caller's model and the backend that runs it in integers.

Stateless. What a model is, is read in `source`; what runs it, is a backend (`backend.Backend`): oneDNN graphs on stock TensorFlow, or LiteRT.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.options import unknown_among
from neural_tune.protocols import (
    AdapterOptions,
    BuildReport,
    Inputs,
    InputSpec,
    ObservedTensor,
    Outputs,
    Toggles,
    Training,
)
from neural_tune.values import Candidate, Capability, LatencyProfile
from neural_tune_tensorflow import plugin, source
from neural_tune_tensorflow.backend import Built
from neural_tune_tensorflow.calling import NativeModel
from neural_tune_tensorflow.inputs import to_feed

# Loaded at first use: each brings libraries of its own.
_BACKENDS = {
    "onednn": "neural_tune_tensorflow.backends.onednn:OnednnBackend",
    "litert": "neural_tune_tensorflow.backends.litert:LitertBackend",
}
# What `options=` may hold.
OPTIONS = ("signature",)
_DEFAULTS = {"static": "onednn", "auto": "onednn", "qat": "onednn", "dynamic": "litert", "weight_only": "litert"}


class TensorFlowAdapter:
    """Implements `neural_tune.protocols.Adapter`, `ProbesSensitivity`, `ProfilesLatency`, `ShowsRanges` and `Trains` for TensorFlow and Keras 3."""

    name = "tensorflow"

    def accepts(self, model: object) -> bool:
        """Return whether `model` is a Keras model, a function, or a path to a file TensorFlow knows."""
        return plugin.accepts(model)

    def load(self, model: object, options: AdapterOptions) -> Any:
        """Return the hold on the model; the caller's object or file is only read.

        Raises:
            CapabilityError: an option asks for what this adapter does not have.
            AdapterError: the model cannot be read.
        """
        if options.device != "cpu":
            message = f"device {options.device!r}: the TensorFlow adapter quantizes for 'cpu'"
            raise CapabilityError(message)
        if options.reduce_range:
            raise CapabilityError("reduce_range: TensorFlow's int8 kernels use the full range; leave it out")
        if strange := unknown_among(options.extra, OPTIONS):
            raise CapabilityError(strange)
        is_lite = isinstance(model, str | Path) and Path(model).suffix.lower() == ".tflite"
        name = options.backend if options.backend != "default" else _DEFAULTS.get(options.approach, "onednn")
        name = "litert" if is_lite and options.backend == "default" else name
        if name == "onnx":
            message = (
                "backend 'onnx': not offered, adapters do not run each other's models; write the model with "
                "neural_tune_tensorflow.onnx_export.to_onnx(model, path) and tune that file"
            )
            raise CapabilityError(message)
        chosen = _backend(name)
        if is_lite and name == "onednn":
            raise CapabilityError("a .tflite file runs on backend 'litert' only")
        return chosen.load(Path(str(model)) if is_lite else source.read(model, options), options)

    def describe_inputs(self, model: Any) -> tuple[InputSpec, ...]:
        """Return names, types and shapes of the inputs, in order; an empty shape where even the rank is free."""
        return tuple(InputSpec(name=port.name, dtype=port.dtype.name, shape=port.shape or ()) for port in model.inputs)

    def fingerprint(self, model: Any) -> str:
        """Return a hash of graph and weights."""
        return str(_backend(model.backend).fingerprint(model))

    def query(self, model: Any) -> Capability:
        """Return what can be quantized on the installed runtime."""
        found: Capability = _backend(model.backend).query(model)
        return found

    def calibrate(self, model: Any, batches: Iterable[Inputs], directory: Path) -> Any:
        """Read `batches` once and return the statistics."""
        return _backend(model.backend).calibrate(model, batches, directory)

    def load_statistics(self, model: Any, directory: Path) -> Any | None:
        """Return what `calibrate` wrote below `directory`; None if it is not there or incomplete."""
        return _backend(model.backend).load_statistics(model, directory)

    def build(self, model: Any, candidate: Candidate, statistics: Any | None, threads: int | None) -> Built:
        """Return `candidate` ready to run."""
        built: Built = _backend(model.backend).build(model, candidate, statistics, threads)
        return built

    def run(self, built: Built, inputs: Inputs) -> Outputs:
        """Return the outputs for one batch.

        Raises:
            DataError: the inputs do not fit the model.
            AdapterError: the runtime breaks on them.
        """
        return built.run(to_feed(inputs, built.inputs))

    def native(self, built: Built) -> NativeModel:
        """Return a Keras-like callable."""
        return NativeModel(built)

    def report(self, built: Built) -> BuildReport:
        """Return what became of every op."""
        return built.report

    def size(self, built: Built) -> int:
        """Return the bytes that `save` takes on disk."""
        return built.size()

    def save(self, built: Built, directory: Path) -> Path:
        """Write a SavedModel folder, a .pb or a .tflite file below `directory` and return its path."""
        return built.write(directory)

    def restore(self, artifact: Path, threads: int | None = None) -> Built:
        """Return what `save` wrote, ready to run."""
        name = "litert" if artifact.suffix.lower() == ".tflite" else "onednn"
        built: Built = _backend(name).restore(artifact, threads)
        return built

    def toggles(self, model: Any, candidate: Candidate, statistics: Any, threads: int | None) -> Toggles:
        """Return one model in which any subset of the ops of `candidate` can be switched to int8."""
        found: Toggles = _ability(model.backend, "toggles")(model, candidate, statistics, threads)
        return found

    def profile(
        self, model: Any, candidate: Candidate, statistics: Any, inputs: Inputs, threads: int
    ) -> LatencyProfile:
        """Return the times per op, float and int8, and what it costs to cross between them."""
        found: LatencyProfile = _ability(model.backend, "profile")(model, candidate, statistics, inputs, threads)
        return found

    def ranges(self, model: Any, candidate: Candidate, statistics: Any) -> tuple[ObservedTensor, ...]:
        """Return every activation tensor that `candidate` quantizes, with what calibration saw of it; () where the backend cannot say."""
        show = getattr(_backend(model.backend), "ranges", None)
        found: tuple[ObservedTensor, ...] = () if show is None else show(model, candidate, statistics)
        return found

    def training(self, model: Any, candidate: Candidate, statistics: Any | None) -> Training:
        """Return a trainable copy of the Keras model with fake_quant where `candidate` quantizes."""
        if model.backend != "onednn":
            raise CapabilityError(f"quantization-aware training runs on backend 'onednn', found {model.backend!r}")
        training = importlib.import_module("neural_tune_tensorflow.qat").training
        found: Training = training(model, candidate, statistics)
        return found


def _backend(name: str) -> Any:
    if name not in _BACKENDS:
        message = f"backend {name!r}: expected 'default' or one of {', '.join(sorted(_BACKENDS))}"
        raise CapabilityError(message)
    module, kind = _BACKENDS[name].split(":")
    try:
        return getattr(importlib.import_module(module), kind)()
    except ImportError as error:
        message = f'backend {name!r} needs a package that is not installed ({error}): pip install "neural-tune[{name}]"'
        raise CapabilityError(message) from error


def _ability(backend: str, method: str) -> Any:
    found = getattr(_backend(backend), method, None)
    if found is None:
        raise AdapterError(f"backend {backend!r} has no {method}")
    return found
