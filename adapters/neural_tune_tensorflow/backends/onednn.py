"""The oneDNN backend: int8 graphs on stock TensorFlow.

TensorFlow's optimizer does not fuse QuantizeV2/Dequantize around float ops into integer kernels (it folds the weight side back to float), so the
fused ops are written into the graph here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from neural_tune import calibration
from neural_tune.calibration import Statistics
from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.protocols import AdapterOptions, BuildReport, Inputs, ObservedTensor, OpOutcome
from neural_tune.values import Candidate, Capability, FrozenMap, LatencyProfile
from neural_tune_tensorflow import calibrate, capability, guard, profile, ranges, save, source
from neural_tune_tensorflow.backend import Built, Port, Ranges
from neural_tune_tensorflow.graph import Graph
from neural_tune_tensorflow.model import OnednnModel, hold, renamed
from neural_tune_tensorflow.rewrite import outcomes
from neural_tune_tensorflow.rewrite.emit import emit
from neural_tune_tensorflow.rewrite.plan import SUM_FUSION, Plan, plan
from neural_tune_tensorflow.session import Runner
from neural_tune_tensorflow.source import FloatGraph
from neural_tune_tensorflow.toggles import ToggleModel


class OnednnBackend:
    """Implements `neural_tune_tensorflow.backend.Backend`."""

    name = "onednn"

    def load(self, source: FloatGraph, options: AdapterOptions) -> OnednnModel:
        """Return the model in canonical form.

        Raises:
            CapabilityError: an option asks for what this backend does not have.
        """
        if options.approach not in ("static", "auto", "qat"):
            message = f"approach {options.approach!r}: the onednn backend offers 'static' and 'qat'; 'dynamic' and 'weight_only' are for backend 'litert'"
            raise CapabilityError(message)
        if options.quant_format.lower() not in ("default", "fused"):
            message = f"quant_format {options.quant_format!r}: expected 'default', the fused int8 ops of TensorFlow"
            raise CapabilityError(message)
        found = hold(source, options.approach, sum_fusion=bool(options.recipes.get(SUM_FUSION)))
        guard.check(found.float_def, "the float model")
        return found

    def fingerprint(self, hold: OnednnModel) -> str:
        """Return a hash of graph and weights."""
        return hold.digest

    def query(self, hold: OnednnModel) -> Capability:
        """Return what can be quantized."""
        return capability.query(hold)

    def calibrate(self, hold: OnednnModel, batches: Iterable[Inputs], directory: Path) -> Statistics:
        """Read `batches` once and return the statistics of every tensor that a candidate may quantize."""
        found = calibrate.collect(hold, batches)
        calibration.save(found, directory, key=hold.digest)
        return found

    def load_statistics(self, hold: OnednnModel, directory: Path) -> Statistics | None:
        """Return what `calibrate` wrote below `directory` for this model; None if it is not there or incomplete."""
        return calibration.load(directory, key=hold.digest)

    def build(self, hold: OnednnModel, candidate: Candidate, statistics: Ranges | None, threads: int | None) -> Built:
        """Return `candidate` as a ready session."""
        planned = planned_of(hold, candidate, statistics)
        is_float = not planned.configs and not planned.casts
        graph = hold.graph if is_float else emit(hold.graph, hold.units, planned, hold.store)
        graph_def = hold.float_def if is_float else graph.graph_def()
        guard.check(graph_def, "the candidate")
        outputs = renamed(hold.outputs, graph.outputs)
        return _built(hold, graph, graph_def, outputs, outcomes.report(hold, planned, graph), threads)

    def toggles(
        self, hold: OnednnModel, candidate: Candidate, statistics: Ranges | None, threads: int | None
    ) -> ToggleModel:
        """Return one session in which any subset of the ops of `candidate` can be switched to int8."""
        return ToggleModel(hold, planned_of(hold, candidate, statistics), threads)

    def ranges(self, hold: OnednnModel, candidate: Candidate, statistics: Statistics) -> tuple[ObservedTensor, ...]:
        """Return every activation tensor that `candidate` quantizes, with what calibration saw of it."""
        return ranges.observed(hold, planned_of(hold, candidate, statistics), statistics)

    def profile(
        self, hold: OnednnModel, candidate: Candidate, statistics: Ranges | None, inputs: Inputs, threads: int
    ) -> LatencyProfile:
        """Return the times per op, float and int8, and what it costs to cross between them."""
        planned = planned_of(hold, candidate, statistics)
        floats = self.build(hold, Candidate(), None, threads)
        return profile.profile(hold, planned, floats, self.build(hold, candidate, statistics, threads), inputs, threads)

    def restore(self, artifact: Path, threads: int | None) -> Built:
        """Return a saved artifact as a ready session.

        Raises:
            AdapterError: it is missing or torn.
        """
        return restore(artifact, threads)


def planned_of(model: OnednnModel, candidate: Candidate, ranges: Ranges | None) -> Plan:
    """Return what a candidate means on a model.

    Raises:
        CapabilityError: it asks for what does not exist.
        AdapterError: a range is missing.
    """
    unknown = [name for name in candidate.recipes if name != SUM_FUSION]
    if unknown:
        raise CapabilityError(f"recipes {', '.join(unknown)}: the onednn backend has {SUM_FUSION!r} only")
    for name, config in candidate.ops.items():
        capability.check(name, config)
    return plan(model.graph, model.units, model.readers, candidate, ranges)


def rewrite(model: OnednnModel, candidate: Candidate, ranges: Ranges | None) -> Graph:
    """Return the graph of a candidate, without a session."""
    return emit(model.graph, model.units, planned_of(model, candidate, ranges), model.store)


def deploy(model: OnednnModel, trained: Any, candidate: Candidate, ranges: Ranges, threads: int | None) -> Built:
    """Return a trained Keras model, built like the one in `model`, in integers over trained ranges.

    Raises:
        AdapterError: the trained model has another graph than the one it was made from.
    """
    again = hold(source.from_keras(trained), model.approach)
    theirs, ours = list(again.units.by_name), list(model.units.by_name)
    if theirs != ours:
        message = (
            f"the trained model has the products {theirs[:3]}..., expected {ours[:3]}...: training changed its graph"
        )
        raise AdapterError(message)
    return OnednnBackend().build(again, candidate, ranges, threads)


def restore(artifact: Path, threads: int | None) -> Built:
    """Return what `save` wrote, ready to run; see `OnednnBackend.restore`."""
    if artifact.is_dir():
        graph_def, inputs, outputs, structure, signature = save.read_saved_model(artifact)
        form = "saved_model"
    elif artifact.is_file():
        graph_def, form, signature = save.read_pb(artifact), "pb", source.DEFAULT_SIGNATURE
        inferred = source.read(graph_def, AdapterOptions())
        inputs, outputs, structure = inferred.inputs, inferred.outputs, inferred.structure
    else:
        message = f"found no {str(artifact)!r}, expected a SavedModel folder or a .pb file that `save` wrote"
        raise AdapterError(message)
    guard.check(graph_def, f"the artifact {artifact.name!r}")
    shape = FloatGraph(
        graph_def=graph_def, inputs=inputs, outputs=outputs, structure=structure, signature=signature, form=form
    )
    return _runnable(shape, graph_def, outputs, BuildReport(ops=()), threads)


def _built(
    model: OnednnModel,
    graph: Graph,
    graph_def: Any,
    outputs: tuple[Port, ...],
    report: tuple[tuple[OpOutcome, ...], dict[str, float]],
    threads: int | None,
) -> Built:
    ops, counts = report
    finished = BuildReport(ops=ops, counts=FrozenMap(counts), notes=model.source.notes)
    shape = model.source
    if shape.form == "pb" and not _is_inferable(graph, model.inputs, outputs):
        shape = FloatGraph(
            graph_def=graph_def, inputs=shape.inputs, outputs=outputs, structure=shape.structure, form="saved_model"
        )
    return _runnable(shape, graph_def, outputs, finished, threads)


def _runnable(
    shape: FloatGraph, graph_def: Any, outputs: tuple[Port, ...], report: BuildReport, threads: int | None
) -> Built:
    is_pb = shape.form == "pb"

    def message() -> Any:
        return save.saved_model(graph_def, shape.inputs, outputs, shape.signature, shape.structure)

    return Built(
        backend="onednn",
        inputs=shape.inputs,
        outputs=outputs,
        run=Runner(graph_def, shape.inputs, outputs, threads),
        size=lambda: int(graph_def.ByteSize() if is_pb else message().ByteSize()),
        write=lambda folder: save.write_pb(graph_def, folder) if is_pb else save.write_saved_model(message(), folder),
        report=report,
        structure=shape.structure,
    )


def _is_inferable(graph: Graph, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> bool:
    """Return whether a .pb file alone tells inputs and outputs: its placeholders and its ends, in order and by name."""
    graph_def = graph.graph_def()
    placeholders = [node.name for node in graph_def.node if node.op in ("Placeholder", "PlaceholderWithDefault")]
    return placeholders == [port.name for port in inputs] and list(source.sinks(graph_def)) == [
        port.name for port in outputs
    ]
