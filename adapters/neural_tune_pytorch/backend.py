"""What every way of quantizing a PyTorch module has in common: the values they share and the protocol they implement.

`model.take` makes a `Source` of the caller's module (a private float32 copy in eval mode, with an example batch and its calling convention). A backend captures it
in its own form, offers choices, observes tensors, and builds networks: flat callables, tensors in the order of `Calling.inputs` in, a tuple of tensors out.
Everything around that (numpy, dicts, `ModelOutput`, threads, `.eval()`) is shared: `inputs`, `calling`, `deployed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn

from neural_tune.calibration import Statistics
from neural_tune.protocols import AdapterOptions, BuildReport, ObservedTensor, Toggles
from neural_tune.values import Candidate, Capability, LatencyProfile
from neural_tune_pytorch.calling import Calling

Feed: TypeAlias = tuple[Tensor, ...]
"""One batch: tensors of the right dtype on the CPU, in the order of `Calling.inputs`."""
Network: TypeAlias = Callable[..., tuple[Tensor, ...]]
"""Called as `network(*feed)`, under no_grad; returns the output tensors in the order of `Calling.outputs`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """A private copy of the caller's float model. Nobody changes it: copy it (`model.copy_of`) before anything that would.

    Attributes:
        module: Float32, eval mode, on the CPU, not compiled, not wrapped; the caller's own object is another one.
        calling: How it is called; the structure of its outputs is known.
        example: One batch.
        notes: What a person should know about how the model was taken.
    """

    module: nn.Module
    calling: Calling
    example: Feed
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TorchModel:
    """The adapter's hold on a float model: what `PyTorchAdapter.load` returns.

    Attributes:
        source: The float module.
        backend: The one that was chosen.
        captured: What its `capture` returned.
        options: What the configuration says.
        notes: Findings of loading, for the capability.
        cache: Things that are expensive and depend on the float model only (the compiled float network); not part of its value.
    """

    source: Source
    backend: Backend
    captured: Any
    options: AdapterOptions
    notes: tuple[str, ...] = ()
    cache: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Built:
    """A model that runs, from `build` or from `restore`.

    Attributes:
        network: The flat callable. It may do expensive things (compile) at its first call, never before.
        calling: How the original was called and what it returned.
        report: What became of every op; a function, because counting kernels may need the compiled form.
        write: Writes the artifact into a directory (which exists) and returns its path.
        size: Returns the bytes that `write` takes, without leaving anything behind.
        threads: Threads to run with; None takes torch's own setting.
    """

    network: Network
    calling: Calling
    report: Callable[[], BuildReport]
    write: Callable[[Path], Path]
    size: Callable[[], int]
    threads: int | None = None


class Backend(Protocol):
    """One way of quantizing. Stateless; every method raises `AdapterError` when torch refuses, `CapabilityError` for what does not exist."""

    name: str
    """As in `AdapterOptions.backend` and in the metadata of saved models: "pt2e", "fx", "eager"."""

    def unusable(self, options: AdapterOptions) -> str:
        """Return why nothing could run in integers here, whatever the model is; "" when all is well. "auto" then tries the next backend."""

    def capture(self, source: Source, options: AdapterOptions) -> Any:
        """Return the backend's own form of the float model.

        Raises:
            CapabilityError: this backend cannot take the model; the message names what stopped it. "auto" then tries the next backend.
        """

    def identity(self, captured: Any) -> str:
        """Return text that stands for the captured graph (not the weights), the same in every process."""

    def query(self, captured: Any) -> Capability:
        """Return what can be quantized; `framework` is "pytorch". The adapter adds the notes of loading."""

    def observe(self, captured: Any, batches: Iterable[Feed]) -> Statistics:
        """Read `batches` once, streaming, and return the statistics of every tensor that any candidate may quantize."""

    def build(self, captured: Any, candidate: Candidate, statistics: Statistics | None, threads: int | None) -> Built:
        """Return `candidate` as a network; `FLOAT_CANDIDATE` is the float model (compiled, where the backend compiles)."""

    def restore(self, artifact: Path, metadata: Mapping[str, Any], threads: int | None) -> Built:
        """Load what `Built.write` wrote, without the float model. `metadata` is what `archive.metadata_of` read from it."""

    def toggles(
        self, captured: Any, candidate: Candidate, statistics: Statistics | None, threads: int | None
    ) -> Toggles:
        """Return a toggle model; raise AdapterError where the backend has none (single candidates are built instead)."""

    def ranges(self, captured: Any, candidate: Candidate, statistics: Statistics) -> tuple[ObservedTensor, ...]:
        """Return what calibration saw of every tensor that `candidate` lays on a grid of its own."""

    def profile(
        self, captured: Any, candidate: Candidate, statistics: Statistics | None, feed: Feed, threads: int
    ) -> LatencyProfile:
        """Return the times per op; raise AdapterError where the backend cannot profile."""
