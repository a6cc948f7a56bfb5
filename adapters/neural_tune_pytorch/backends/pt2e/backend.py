"""The `Backend` protocol for PT2E: the parts of this package, put together."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from torch import fx

from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.protocols import AdapterOptions, BuildReport, Toggles
from neural_tune.values import Candidate, Capability, FrozenMap, LatencyProfile
from neural_tune_pytorch import archive
from neural_tune_pytorch.backend import Built, Feed, Source
from neural_tune_pytorch.backends.pt2e import build as building
from neural_tune_pytorch.backends.pt2e import capability, capture, lowering, observe, plan, save
from neural_tune_pytorch.backends.pt2e.capture import Captured
from neural_tune_pytorch.backends.pt2e.lowering import Compiled, Reference
from neural_tune_pytorch.backends.pt2e.plan import Plan
from neural_tune_pytorch.backends.pt2e.toggles import ToggleModel
from neural_tune_pytorch.statistics import Statistics

Runs: TypeAlias = Compiled | Reference
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
        return built_of(captured, plan.plan(captured, candidate, statistics), threads)

    def restore(self, artifact: Path, metadata: Mapping[str, Any], threads: int | None) -> Built:
        """Load a .pt2 file; one that was compiled in this process already is not compiled again."""
        calling, report = archive.calling_of(metadata), archive.report_of(metadata)
        network = _network(artifact, metadata, threads)

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

    def profile(
        self, captured: Captured, candidate: Candidate, statistics: Statistics | None, feed: Feed, threads: int
    ) -> LatencyProfile:
        """Raise AdapterError: there is no profile, and the engine works without one."""
        del captured, candidate, statistics, feed, threads
        raise AdapterError("the pt2e backend has no latency profile: Inductor fuses ops beyond recognition")


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
        """Return the network; the float one is compiled once per model and number of threads."""
        captured = self._captured
        if not captured.compiles:
            return Reference(self._graph)
        if self._planned.configs:
            return Compiled(self._graph, pads=captured.has_free_rows)
        key = ("float", self._threads)
        if key not in captured.cache:
            captured.cache[key] = Compiled(self._graph, pads=captured.has_free_rows)
        return captured.cache[key]  # type: ignore[no-any-return]

    def _report(self) -> BuildReport:
        found = _counted(self._plain_report(), self._network, self._planned.kernels)
        if self._captured.compiles:
            return found
        # Not kept in the file: it is a wish of the user's and no defect of the artifact, which a guard would call it.
        return replace(found, notes=(*found.notes, _UNCOMPILED))

    def _plain_report(self) -> BuildReport:
        ops = plan.outcomes(self._captured, self._planned)
        counts = FrozenMap({"int8_kernels_expected": float(self._planned.kernels)})
        return BuildReport(ops=ops, counts=counts)

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


class _Recent:
    """The last few compiled networks by content of their file, so that one artifact is compiled once however often it is loaded."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[str, int | None], Runs] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int | None]) -> Runs | None:
        """Return the network under `key`."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: tuple[str, int | None], network: Runs) -> None:
        """Keep a network; the one that was used longest ago goes."""
        with self._lock:
            self._kept[key] = network
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)


_RECENT = _Recent(3)


def _network(artifact: Path, metadata: Mapping[str, Any], threads: int | None) -> Runs:
    key = (hashlib.sha256(artifact.read_bytes()).hexdigest(), threads)
    known = _RECENT.get(key)
    if known is not None:
        return known
    graph: fx.GraphModule = save.read(artifact)
    network: Runs = Reference(graph)
    if metadata.get("compile", True):
        network = Compiled(graph, pads=bool(metadata.get("free_rows", False)))
    _RECENT.put(key, network)
    return network


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
