"""The `Backend` protocol for PT2E: the parts of this package, put together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from neural_tune.calibration import Statistics
from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.protocols import AdapterOptions, BuildReport, ObservedTensor, Toggles
from neural_tune.values import FLOAT_CANDIDATE, Candidate, Capability, FrozenMap, LatencyProfile
from neural_tune_pytorch import archive
from neural_tune_pytorch.backend import Built, Feed, Source
from neural_tune_pytorch.backends.pt2e import axes, capability, capture, lowering, memory, observe, plan, ranges, save
from neural_tune_pytorch.backends.pt2e import build as building
from neural_tune_pytorch.backends.pt2e import profile as profiling
from neural_tune_pytorch.backends.pt2e.capture import Captured
from neural_tune_pytorch.backends.pt2e.lowering import Compiled, Reference
from neural_tune_pytorch.backends.pt2e.plan import Plan
from neural_tune_pytorch.backends.pt2e.recent import Recent
from neural_tune_pytorch.backends.pt2e.toggles import ToggleModel
from neural_tune_pytorch.recipes import variants

Runs: TypeAlias = Compiled | Reference
_RECENT: Recent[Runs] = Recent(3)
_UNCOMPILED = "compile=False: the Q/DQ graph runs node by node, which says nothing about speed"


class Pt2eBackend:
    """torch.export and Inductor; see `neural_tune_pytorch.backend.Backend`."""

    name = "pt2e"

    def unusable(self, options: AdapterOptions) -> str:
        """Return why nothing can be compiled here; "" where it can, or where the user asked for the Q/DQ graph."""
        return lowering.probe().problem if options.extra.get("compile", True) else ""

    def capture(self, source: Source, options: AdapterOptions) -> Captured:
        """Return the exported, normalised graph. Raises CapabilityError where torch.export refuses the module."""
        return capture.capture(source, options)

    def identity(self, captured: Captured) -> str:
        """Return the code of the graph and what decides the choices."""
        return (
            f"{captured.graph.code}{captured.has_free_batch}{captured.options.approach}{capability.reduces(captured)}"
        )

    def query(self, captured: Captured) -> Capability:
        """Return the choices of every op."""
        return capability.query(captured)

    def observe(self, captured: Captured, batches: Iterable[Feed]) -> Statistics:
        """Return the statistics of every tensor that a candidate may quantize."""
        return observe.observe(captured, batches)

    def build(
        self, captured: Captured, candidate: Candidate, statistics: Statistics | None, threads: int | None
    ) -> Built:
        """Return the Q/DQ graph of a candidate; it is compiled when it is first called."""
        _refuse_bits(captured.options)
        return built_of(*variants.planned(captured, candidate, statistics), threads)

    def simulate(
        self, captured: Captured, candidate: Candidate, statistics: Statistics | None, threads: int | None
    ) -> Built:
        """Return the Q/DQ graph of a candidate, to be run node by node."""
        return self.build(captured.uncompiled(), candidate, statistics, threads)

    def restore(self, artifact: Path, metadata: Mapping[str, Any], threads: int | None) -> Built:
        """Load a .pt2 file; one that was compiled in this process already is not compiled again."""
        said, report = archive.calling_of(metadata), archive.report_of(metadata)
        network = _RECENT.get(hashlib.sha256(artifact.read_bytes()).hexdigest(), lambda: _network(artifact, metadata))
        # What the graph in the file has fixed is what counts, also in files of before this was written down.
        calling = axes.with_fixed_axes(said, network.graph.graph)

        def write(directory: Path) -> Path:
            return save.write(artifact.read_bytes(), directory)

        return Built(
            network=network,
            calling=calling,
            report=lambda: _counted(report, network, int(metadata.get("kernels", 0))),
            write=write,
            size=lambda: artifact.stat().st_size,
            threads=threads,
        )

    def toggles(
        self, captured: Captured, candidate: Candidate, statistics: Statistics | None, threads: int | None
    ) -> Toggles:
        """Return one graph in which every edge of the candidate can be switched."""
        return ToggleModel(captured, candidate, statistics, threads)

    def ranges(self, captured: Captured, candidate: Candidate, statistics: Statistics) -> tuple[ObservedTensor, ...]:
        """Return what calibration saw of the tensors that static ops read."""
        return ranges.observed(captured, candidate, statistics)

    def profile(
        self, captured: Captured, candidate: Candidate, statistics: Statistics | None, feed: Feed, threads: int
    ) -> LatencyProfile:
        """Return the times per op of float and full int8, from the code that Inductor generated for each.

        Raises:
            AdapterError: nothing is compiled (`options={"compile": False}`), or a network breaks.
        """
        floats = self.build(captured, FLOAT_CANDIDATE, None, threads).network
        changed, planned = variants.planned(captured, candidate, statistics)
        int8 = built_of(changed, planned, threads).network
        if not (isinstance(floats, Compiled) and isinstance(int8, Compiled)):
            raise AdapterError("compile=False: a graph that runs node by node has no latency worth a profile")
        return profiling.profile((captured, floats), (changed, int8), planned, feed, threads)


def built_of(captured: Captured, planned: Plan, threads: int | None) -> Built:
    """Return a plan as a network: everything that `build` does once the edges and their codes are known (training finds them its own way)."""
    return _Building(captured, planned, threads).built()


def _refuse_bits(options: AdapterOptions) -> None:
    bits = options.extra.get("bits", 8)
    if bits != 8:
        raise CapabilityError(f"bits={bits!r}: int8 kernels have 8 bits; only backend 'fx' simulates fewer")


class _Building:
    """A candidate on its way: the graph at once, the file when it is asked for."""

    def __init__(self, captured: Captured, planned: Plan, threads: int | None) -> None:
        self._captured = captured
        self._planned = planned
        self._threads = threads
        self._graph = building.write(captured, planned)
        self._network = self._start()
        self._content_size: int | None = None

    def built(self) -> Built:
        """Return what the adapter hands out."""
        return Built(
            network=self._network,
            calling=self._captured.calling,
            report=self._report,
            write=self._write,
            size=self._size,
            threads=self._threads,
        )

    def _start(self) -> Runs:
        """Return the network; the float one is the same for every build of a model."""
        captured = self._captured
        if not captured.compiles:
            return Reference(self._graph)
        if self._planned.configs:
            return Compiled(self._graph, pads=captured.has_free_rows)
        if "float" not in captured.cache:
            captured.cache["float"] = Compiled(self._graph, pads=captured.has_free_rows)
        return captured.cache["float"]  # type: ignore[no-any-return]

    def _report(self) -> BuildReport:
        found = _counted(self._plain_report(), self._network, self._planned.kernels)
        if self._captured.compiles:
            return found
        # Not kept in the file: it is a wish of the user's and no defect of the artifact, which a guard would call it.
        return replace(found, notes=(*found.notes, _UNCOMPILED))

    def _plain_report(self) -> BuildReport:
        ops = plan.outcomes(self._captured, self._planned)
        counts = FrozenMap({"int8_kernels_expected": float(self._planned.kernels)})
        return BuildReport(ops=ops, counts=counts, notes=self._captured.changes)

    def _content(self) -> bytes:
        captured = self._captured
        text = archive.metadata(
            Pt2eBackend.name,
            captured.calling,
            self._plain_report(),
            kernels=self._planned.kernels,
            compile=captured.compiles,
            free_rows=captured.has_free_rows,
        )
        return save.to_bytes(self._graph, captured.example, free_batch=captured.has_free_batch, metadata=text)

    def _write(self, directory: Path) -> Path:
        content = self._content()
        self._content_size = len(content)
        return save.write(content, directory)

    def _size(self) -> int:
        if self._content_size is None:
            self._content_size = len(self._content())
        return self._content_size


def _network(artifact: Path, metadata: Mapping[str, Any]) -> Runs:
    graph = save.read(artifact)
    memory.with_own_inputs(graph)
    if metadata.get("compile", True):
        return Compiled(graph, pads=bool(metadata.get("free_rows", False)))
    return Reference(graph)


def _counted(report: BuildReport, network: Runs, expected: int) -> BuildReport:
    """Return the report with the int8 kernels that were really compiled, and a note where they are not the expected ones."""
    kernels = network.kernels
    if kernels is None:
        return report
    counts = {**report.counts, "onednn_qconv": float(kernels.convolutions), "onednn_qlinear": float(kernels.linears)}
    notes = report.notes
    if kernels.total != expected:
        notes = (
            *notes,
            f"{expected} int8 kernels were expected, the compiled code calls {kernels.total}: some ops run in float or were compiled differently",
        )
    return BuildReport(ops=report.ops, counts=FrozenMap({**counts, "int8_kernels": float(kernels.total)}), notes=notes)
