"""ONNX Runtime as the engine sees it: static int8 through Q/DQ graphs of our own.

Stateless. The float model is normalised once (`model`), calibrated once (`calibrate`), and every candidate is a small graph over
shared weight files (`build`), which costs milliseconds where the runtime's own tool takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime

from neural_tune import calibration
from neural_tune.calibration import Statistics, spool
from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.protocols import AdapterOptions, BuildReport, Inputs, InputSpec, ObservedTensor, Outputs
from neural_tune.values import Candidate, Capability, LatencyProfile
from neural_tune_onnxruntime import build as building
from neural_tune_onnxruntime import calibrate as calibrating
from neural_tune_onnxruntime import (
    capability,
    guard,
    matrix,
    model,
    plugin,
    profile,
    ranges,
    save,
    session,
)
from neural_tune_onnxruntime.build import Built
from neural_tune_onnxruntime.inputs import Feed, InputInfo, check_numbers, to_feed
from neural_tune_onnxruntime.model import OnnxModel
from neural_tune_onnxruntime.session import Session
from neural_tune_onnxruntime.settings import CPU, Settings
from neural_tune_onnxruntime.toggles import ToggleModel

APPROACHES = ("static", "dynamic", "weight_only", "auto")
# Of MatMulNBits: what the kernel computes with.
ACCURACY_LEVELS = (0, 4)


class OnnxRuntimeAdapter:
    """Implements `neural_tune.protocols.Adapter`, `GuardsArtifact`, `ProbesSensitivity`, `ProfilesLatency` and `ShowsRanges` for ONNX models."""

    name = "onnxruntime"

    def accepts(self, model: object) -> bool:
        """Return whether `model` is an .onnx path, a `ModelProto` or a session."""
        return plugin.accepts(model)

    def load(self, source: object, options: AdapterOptions) -> OnnxModel:
        """Return the normalised model; the caller's object or file is only read.

        Raises:
            CapabilityError: an option asks for what this adapter does not have.
            AdapterError: the model cannot be read, or the runtime refuses it.
        """
        _check_options(options)
        asked = Settings.of(options)
        loaded = model.load(_readable(source), options.outputs, asked.processor)
        notes = (*loaded.notes, *asked.notes)
        loaded = replace(
            loaded,
            quant_format=asked.quant_format,
            provider=asked.provider,
            notes=notes,
            approach=options.approach,
            has_data=options.has_data is not False,
            accuracy_level=int(options.extra.get("accuracy_level", 4)),
        )
        if asked.provider != CPU and options.approach != "static":
            message = f"approach {options.approach!r} is for the CPU provider, found {asked.provider!r}: use 'static'"
            raise CapabilityError(message)
        if options.inputs and set(options.inputs) != set(loaded.input_names):
            message = f"inputs: found {list(options.inputs)}, but the model needs exactly {list(loaded.input_names)}"
            raise CapabilityError(message)
        return loaded

    def describe_inputs(self, model: OnnxModel) -> tuple[InputSpec, ...]:
        """Return names, types and shapes of the inputs, in order."""
        return tuple(info.spec for info in _inputs_of(model))

    def fingerprint(self, model: OnnxModel) -> str:
        """Return a hash of graph and weights."""
        return model.fingerprint()

    def query(self, model: OnnxModel) -> Capability:
        """Return what can be quantized in `model` on the installed runtime."""
        return capability.query(model)

    def calibrate(self, model: OnnxModel, batches: Iterable[Inputs], directory: Path) -> Statistics:
        """Read `batches` once and return the statistics of every tensor that a candidate may quantize."""
        # A model in which nothing can be quantized still gets its data checked, on its outputs.
        observed = model.observed_tensors() or model.float_outputs()
        recorder = spool.Recorder(directory)
        feeds = recorder.passing(_feeds(batches, _inputs_of(model), model.finite_inputs()))
        found = calibrating.collect(model.session_for_outputs, observed, feeds)
        kept = recorder.close()
        calibration.save(found, directory, key=model.fingerprint())
        return replace(found, inputs=kept)

    def load_statistics(self, model: OnnxModel, directory: Path) -> Statistics | None:
        """Return what `calibrate` wrote below `directory` for this model; None if it is not there or incomplete."""
        found, kept = calibration.load(directory, key=model.fingerprint()), spool.load(directory)
        return None if found is None or kept is None else replace(found, inputs=kept)

    def build(
        self, model: OnnxModel, candidate: Candidate, statistics: Statistics | None, threads: int | None
    ) -> Built:
        """Return `candidate` as a ready session."""
        return building.build(model, candidate, statistics, threads)

    def run(self, built: Built, inputs: Inputs) -> Outputs:
        """Return the outputs for one batch.

        Raises:
            DataError: the inputs do not fit the model.
            AdapterError: the runtime breaks on them.
        """
        return _run(built.session, to_feed(inputs, built.inputs))

    def native(self, built: Built) -> Session:
        """Return the `onnxruntime.InferenceSession`."""
        return built.session

    def report(self, built: Built) -> BuildReport:
        """Return what became of every op."""
        return built.report

    def size(self, built: Built) -> int:
        """Return the bytes that `save` takes on disk."""
        return built.size

    def save(self, built: Built, directory: Path) -> Path:
        """Write a self-contained .onnx file (above 2 GB with a data file beside it) and return its path."""
        if built.proto is not None and built.folder is not None:
            return save.save(built.proto, built.folder, directory)
        if built.artifact is None:
            raise AdapterError("found a built model without graph and without file: there is nothing to save")
        return save.copy(built.artifact, directory)

    def restore(self, artifact: Path, threads: int | None = None) -> Built:
        """Return what `save` wrote as a ready session."""
        return building.restore(artifact, threads)

    def guard(self, artifact: Path, inputs: Inputs) -> tuple[str, ...]:
        """Return what a person must see: outputs that depend on the optimization level, kernels that were not fused."""
        return guard.examine(artifact, inputs)

    def matrix(self, model: OnnxModel) -> tuple[tuple[str, ...], ...]:
        """Return which kernel each op type of `model` gets in each format, or why it stays float; the header first."""
        return matrix.tabulate(model)

    def ranges(self, model: OnnxModel, candidate: Candidate, statistics: Statistics) -> tuple[ObservedTensor, ...]:
        """Return what calibration saw of the tensors that `candidate` quantizes."""
        return ranges.observed(model, candidate, statistics)

    def toggles(
        self, model: OnnxModel, candidate: Candidate, statistics: Statistics | None, threads: int | None
    ) -> ToggleModel:
        """Return one session in which any subset of the ops of `candidate` can be switched to int8."""
        return ToggleModel(model, candidate, statistics, threads)

    def profile(
        self, model: OnnxModel, candidate: Candidate, statistics: Statistics | None, inputs: Inputs, threads: int
    ) -> LatencyProfile:
        """Return the times per op, float and int8, and what it costs to cross between them."""
        return profile.profile(model, candidate, statistics, inputs, threads)


def _check_options(options: AdapterOptions) -> None:
    if options.approach not in APPROACHES:
        message = f"approach {options.approach!r}: the ONNX Runtime adapter offers {', '.join(APPROACHES)} (it does not train)"
        raise CapabilityError(message)
    if options.quant_format.lower() == "qinteger" and options.approach not in ("dynamic", "weight_only"):
        message = f"quant_format 'QInteger' is the dynamic format, found approach {options.approach!r}: use approach 'dynamic', or 'QDQ'"
        raise CapabilityError(message)
    if options.extra.get("accuracy_level", 4) not in ACCURACY_LEVELS:
        message = f"accuracy_level {options.extra['accuracy_level']!r}: expected 4 (int8 activations inside the kernel) or 0 (float)"
        raise CapabilityError(message)
    if options.device != "cpu":
        message = f"device {options.device!r}: the ONNX Runtime adapter quantizes for 'cpu'"
        raise CapabilityError(message)


def _readable(source: object) -> str | Path | onnx.ModelProto:
    if isinstance(source, str | Path | onnx.ModelProto):
        return source
    if isinstance(source, onnxruntime.InferenceSession):
        path = getattr(source, "_model_path", None)
        if path:
            return Path(path)
        raise AdapterError(
            "a session that was made from bytes does not give its graph away: pass the path or the ModelProto"
        )
    message = f"found a {type(source).__name__}, expected the path of an .onnx file or an onnx.ModelProto"
    raise AdapterError(message)


def _inputs_of(model: OnnxModel) -> tuple[InputInfo, ...]:
    # From the graph: a session would optimize the whole model first, ten seconds for two gigabytes.
    return tuple(InputInfo.of_graph(value) for value in model.proto.graph.input)


def _feeds(batches: Iterable[Inputs], wanted: tuple[InputInfo, ...], finite: frozenset[str]) -> Iterator[Feed]:
    for number, batch in enumerate(batches, start=1):
        feed = to_feed(batch, wanted)
        check_numbers(feed, f"calibration batch {number}", finite)
        yield feed


def _run(started: Session, feed: Feed) -> Outputs:
    try:
        return tuple(started.run(None, feed))
    except session.RUNTIME_ERRORS as error:
        message = (
            f"the model breaks on inputs of shape {[list(v.shape) for v in feed.values()]}: {session.first_line(error)}"
        )
        raise AdapterError(message) from error
