"""PyTorch as the engine sees it: one adapter over several ways of quantizing a module.

Stateless. `load` takes a private float copy of the module and lets a backend capture it: the one that the configuration names, or the first that can ("pt2e",
then "fx" for what torch.export refuses, then "eager", module by module).
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neural_tune import calibration
from neural_tune.calibration import Statistics, spool
from neural_tune.errors import AdapterError, CapabilityError, DataError
from neural_tune.options import unknown_among
from neural_tune.protocols import (
    AdapterOptions,
    BuildReport,
    Inputs,
    ObservedTensor,
    Outputs,
    Simulates,
    Toggles,
    Training,
)
from neural_tune.values import Candidate, Capability, LatencyProfile
from neural_tune_pytorch import archive, plugin
from neural_tune_pytorch import model as models
from neural_tune_pytorch.backend import Backend, Built, Feed, Source, TorchModel
from neural_tune_pytorch.calling import Calling
from neural_tune_pytorch.deployed import Deployed
from neural_tune_pytorch.inputs import check_numbers, shapes_of, to_arrays, to_feed
from neural_tune_pytorch.threads import inference

# Name -> where the backend lives; imported when it is asked for. The order is the one in which "auto" tries them.
BACKENDS = {
    "pt2e": ("neural_tune_pytorch.backends.pt2e.backend", "Pt2eBackend"),
    "fx": ("neural_tune_pytorch.backends.fx", "FxBackend"),
    "eager": ("neural_tune_pytorch.backends.eager", "EagerBackend"),
}
# What `options=` may hold.
OPTIONS = ("bits", "compile", "example_inputs")
_ANY = ("default", "auto")
_EAGER_FLOAT = "speed-up is against float in eager mode, which is how this backend runs; float that torch.compile has compiled can be faster"
_IPEX = (
    "backend 'ipex': Intel's extension was archived upstream in 2026 and has no release for this torch; its successor, "
    "PT2E with Inductor's x86 kernels, is used instead"
)


class PyTorchAdapter:
    """Implements `neural_tune.protocols.Adapter`, `CapturesByExample`, `NamesInputs`, `ProbesSensitivity`, `ProfilesLatency`, `ShowsRanges`, `Simulates` and `Trains` for PyTorch modules."""

    name = "pytorch"
    needs_example = True

    def accepts(self, model: object) -> bool:
        """Return whether `model` is a module, an exported program or a .pt2 path."""
        return plugin.accepts(model)

    def input_names(self, model: object) -> tuple[str, ...]:
        """Return the parameters of `forward`, those without a default first; () for files and for what has no signature."""
        return models.input_names(model)

    def load(self, model: object, options: AdapterOptions) -> TorchModel:
        """Return a private float copy of the module, captured by a backend; the caller's object stays as it is.

        Raises:
            CapabilityError: an option asks for what this adapter does not have, no backend can capture the module, or there is no example batch.
            AdapterError: the module breaks on the example.
        """
        _check_options(options)
        if strange := unknown_among(options.extra, OPTIONS):
            raise CapabilityError(strange)
        source = models.take(model, options)
        if options.inputs and set(options.inputs) != set(source.calling.names):
            found, needed = list(options.inputs), list(source.calling.names)
            raise CapabilityError(f"inputs: found {found}, but the first batch gives the model exactly {needed}")
        return _captured(source, options)

    def fingerprint(self, model: TorchModel) -> str:
        """Return a hash of weights, graph and calling convention."""
        if "fingerprint" not in model.cache:
            parts = (
                models.fingerprint(model.source.module),
                model.backend.name,
                model.backend.identity(model.captured),
            )
            text = "\n".join((*parts, repr(model.source.calling.names), repr(model.source.calling.outputs)))
            model.cache["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()
        return str(model.cache["fingerprint"])

    def query(self, model: TorchModel) -> Capability:
        """Return what can be quantized in `model` on the installed torch."""
        found = model.backend.query(model.captured)
        speed = (_EAGER_FLOAT,) if model.backend.name in ("fx", "eager") else ()
        return replace(found, notes=(*model.notes, *found.notes, *speed))

    def calibrate(self, model: TorchModel, batches: Iterable[Inputs], directory: Path) -> Statistics:
        """Read `batches` once and return the statistics of every tensor that a candidate may quantize."""
        feeds = _feeds(batches, model.source.calling)
        if not self._keeps_inputs(model):
            found = model.backend.observe(model.captured, feeds)
        else:
            recorder = spool.Recorder(directory)
            found = model.backend.observe(model.captured, _recorded(feeds, recorder, model.source.calling))
            found = replace(found, inputs=recorder.close())
        calibration.save(found, directory, key=self.fingerprint(model))
        return found

    def load_statistics(self, model: TorchModel, directory: Path) -> Statistics | None:
        """Return what `calibrate` wrote below `directory` for this model; None if it is not there or incomplete."""
        found = calibration.load(directory, key=self.fingerprint(model))
        if found is None or not self._keeps_inputs(model):
            return found
        kept = spool.load(directory)
        return None if kept is None else replace(found, inputs=kept)

    def _keeps_inputs(self, model: TorchModel) -> bool:
        """Return whether a recipe may want to look at the calibration inputs again."""
        return bool(self.query(model).recipes)

    def build(
        self, model: TorchModel, candidate: Candidate, statistics: Statistics | None, threads: int | None
    ) -> Built:
        """Return `candidate` as a network; compiling waits for its first call."""
        return model.backend.build(model.captured, candidate, statistics, threads)

    def simulate(
        self, model: TorchModel, candidate: Candidate, statistics: Statistics | None, threads: int | None
    ) -> Built:
        """Return `candidate` as a network that is never compiled: its numbers without its speed."""
        backend = model.backend
        make = backend.simulate if isinstance(backend, Simulates) else backend.build
        return make(model.captured, candidate, statistics, threads)

    def run(self, built: Built, inputs: Inputs) -> Outputs:
        """Return the outputs for one batch.

        Raises:
            DataError: the inputs do not fit the model.
            AdapterError: the network breaks on them, or cannot be compiled.
        """
        feed = to_feed(inputs, built.calling)
        try:
            with inference(built.threads):
                return to_arrays(built.network(*feed))
        except (AdapterError, DataError, CapabilityError):
            raise
        except Exception as error:
            message = f"the model breaks on inputs of shapes {shapes_of(feed)}: {type(error).__name__}: {models.first_line(error)}"
            raise AdapterError(message) from error

    def native(self, built: Built) -> Deployed:
        """Return a callable module in eval mode that is called and answers like the original."""
        return Deployed(built)

    def report(self, built: Built) -> BuildReport:
        """Return what became of every op, with the int8 kernels that were counted once the model has run."""
        return built.report()

    def kernel_counts(self, artifact: Path, threads: int | None) -> Mapping[str, float]:
        """Return the int8 kernels that the compiled form of a saved artifact calls; empty where it never ran in this process."""
        return self.restore(artifact, threads).report().counts

    def guard(self, artifact: Path, inputs: Inputs) -> tuple[str, ...]:
        """Return what a person must see: fewer int8 kernels than ops that should be in int8."""
        built = self.restore(artifact, 1)
        known = built.report().notes  # the build has told these already
        self.run(built, inputs)
        return tuple(note for note in built.report().notes if note not in known)

    def size(self, built: Built) -> int:
        """Return the bytes that `save` takes on disk."""
        return built.size()

    def save(self, built: Built, directory: Path) -> Path:
        """Write a self-contained artifact and return its path."""
        directory.mkdir(parents=True, exist_ok=True)
        return built.write(directory)

    def restore(self, artifact: Path, threads: int | None = None) -> Built:
        """Return what `save` wrote as a runnable network; needs no float model.

        Raises:
            AdapterError: the file is missing, torn or of somebody else.
        """
        metadata = archive.metadata_of(artifact)
        name = str(metadata.get("backend", ""))
        if name not in BACKENDS:
            raise AdapterError(
                f"{artifact.name}: found a file of backend {name!r}, expected one that neural_tune saved ({', '.join(BACKENDS)})"
            )
        with archive.data_only(artifact):
            return backend_named(name).restore(artifact, metadata, threads)

    def toggles(
        self, model: TorchModel, candidate: Candidate, statistics: Statistics | None, threads: int | None
    ) -> Toggles:
        """Return one model in which any subset of the ops of `candidate` can be switched to int8."""
        return model.backend.toggles(model.captured, candidate, statistics, threads)

    def ranges(self, model: TorchModel, candidate: Candidate, statistics: Statistics) -> tuple[ObservedTensor, ...]:
        """Return every activation tensor that `candidate` quantizes with a range of its own."""
        return model.backend.ranges(model.captured, candidate, statistics)

    def profile(
        self, model: TorchModel, candidate: Candidate, statistics: Statistics | None, inputs: Inputs, threads: int
    ) -> LatencyProfile:
        """Return the times per op, float and int8."""
        feed = to_feed(inputs, model.source.calling)
        return model.backend.profile(model.captured, candidate, statistics, feed, threads)

    def training(self, model: TorchModel, candidate: Candidate, statistics: Statistics | None) -> Training:
        """Return a trainable copy with fake_quant where `candidate` quantizes."""
        train: Any = importlib.import_module("neural_tune_pytorch.qat").training
        return train(model, candidate, statistics)  # type: ignore[no-any-return]


def _recorded(feeds: Iterable[Feed], recorder: spool.Recorder, calling: Calling) -> Iterator[Feed]:
    """Yield `feeds` unchanged; the first ones stay on disk, for recipes."""
    for batch in recorder.passing(dict(zip(calling.names, map(Tensor.numpy, feed), strict=True)) for feed in feeds):
        yield tuple(torch.from_numpy(batch[name]) for name in calling.names)


def backend_named(name: str) -> Backend:
    """Return a backend by name.

    Raises:
        CapabilityError: there is none of that name in this installation.
    """
    module, kind = BACKENDS[name]
    try:
        return getattr(importlib.import_module(module), kind)()  # type: ignore[no-any-return]
    except ImportError as error:
        raise CapabilityError(f"backend {name!r} is not available in this installation ({error})") from error


def _captured(source: Source, options: AdapterOptions) -> TorchModel:
    """Let the named backend, or the first that can, capture the model."""
    notes = [*source.notes]
    if options.backend == "ipex":
        notes.append(_IPEX)
    name = "pt2e" if options.backend == "ipex" else options.backend
    refusals: list[str] = []
    for candidate in BACKENDS if name in _ANY else (name,):
        try:
            backend = _usable(candidate, options) if name in _ANY else backend_named(candidate)
            captured = backend.capture(source, options)
        except CapabilityError as error:
            refusals.append(f"{candidate}: {error}")
            continue
        # What the backend knows about the inputs (axes it has fixed) holds for calibration, too.
        source = replace(source, calling=captured.calling)
        notes += [f"backend {candidate!r} is used, because {reason}" for reason in refusals]
        return TorchModel(source=source, backend=backend, captured=captured, options=options, notes=tuple(notes))
    raise CapabilityError("no backend can capture the model. " + "; ".join(refusals))


def _usable(name: str, options: AdapterOptions) -> Backend:
    backend = backend_named(name)
    if unusable := backend.unusable(options):
        raise CapabilityError(unusable)
    return backend


def _check_options(options: AdapterOptions) -> None:
    if options.backend not in (*_ANY, *BACKENDS, "ipex"):
        raise CapabilityError(f"backend {options.backend!r}: expected one of {', '.join(('auto', *BACKENDS, 'ipex'))}")
    if options.device != "cpu":
        raise CapabilityError(f"device {options.device!r}: the PyTorch adapter quantizes for 'cpu'")
    if options.outputs:
        raise CapabilityError(
            "outputs: a PyTorch module has no named outputs to choose from; wrap it so that it returns what you need"
        )
    if options.quant_format.lower() not in ("default", "qdq"):
        raise CapabilityError(
            f"quant_format {options.quant_format!r}: expected 'default', a graph with quantize/dequantize nodes"
        )


def _feeds(batches: Iterable[Inputs], calling: Calling) -> Iterator[Feed]:
    for number, batch in enumerate(batches, start=1):
        feed = to_feed(batch, calling)
        check_numbers(feed, calling, f"calibration batch {number}")
        yield feed
