"""A candidate made runnable: regions, graph, session."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnxruntime

from neural_tune.calibration import Statistics
from neural_tune.errors import AdapterError
from neural_tune.numerics import qparams
from neural_tune.protocols import BuildReport
from neural_tune.values import Candidate, QuantSpec, TensorRange
from neural_tune_onnxruntime import session
from neural_tune_onnxruntime.inputs import InputInfo
from neural_tune_onnxruntime.model import OnnxModel
from neural_tune_onnxruntime.recipes import bias_correction, variants
from neural_tune_onnxruntime.rewrite import outcomes, qdq, qoperator, regions
from neural_tune_onnxruntime.save import saved_size
from neural_tune_onnxruntime.session import Session
from neural_tune_onnxruntime.settings import CPU, PROVIDER_KEY, QOPERATOR


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Built:
    """A model that runs.

    Attributes:
        session: The runtime's session.
        inputs: What it takes.
        size: Bytes on disk once saved.
        report: What became of every op.
        proto: The graph, over the weight store; None for a restored artifact.
        folder: The weight store's folder; None for a restored artifact.
        artifact: The file it was restored from.
        model: Keeps the weight store alive.
    """

    session: Session
    inputs: tuple[InputInfo, ...]
    size: int
    report: BuildReport
    proto: onnx.ModelProto | None = None
    folder: Path | None = None
    artifact: Path | None = None
    model: OnnxModel | None = None


def build(model: OnnxModel, candidate: Candidate, statistics: Statistics | None, threads: int | None) -> Built:
    """Return `candidate` as a ready session.

    Raises:
        AdapterError: there are no statistics for a tensor it needs, or the runtime refuses the graph.
        CapabilityError: the candidate asks for what the model or the runtime does not have.
    """
    model, planned, proto = written(model, candidate, statistics)
    started = start(proto, model, threads)
    return Built(
        session=started,
        inputs=tuple(InputInfo.of(value) for value in started.get_inputs()),
        size=saved_size(proto),
        report=outcomes.report(model, planned, proto),
        proto=proto,
        folder=model.store.folder,
        model=model,
    )


def written(
    model: OnnxModel, candidate: Candidate, statistics: Statistics | None
) -> tuple[OnnxModel, regions.Regions, onnx.ModelProto]:
    """Return the graph of `candidate` without a session, the model whose weight store it reads, and the plan behind it."""
    if candidate.recipes and candidate.ops:
        variant = variants.prepare(model, candidate.recipes, statistics)
        model, statistics = variant.model, variant.statistics
    model = looking_at(model, statistics)
    planned = regions.plan(model, candidate, ranges_of(statistics))
    if bias_correction.NAME in candidate.recipes and planned.configs and statistics is not None:
        model = bias_correction.corrected(model, planned.configs, statistics)
    proto = write(model, planned) if planned.configs else model.proto
    return model, planned, proto


def looking_at(model: OnnxModel, statistics: Statistics | None) -> OnnxModel:
    """Return `model` with the calibration inputs that clipping and GPTQ look at."""
    return model if statistics is None else replace(model, spool=statistics.inputs)


def write(model: OnnxModel, planned: regions.Regions) -> onnx.ModelProto:
    """Return the graph of `planned` in the format that the user asked for."""
    proto = qdq.write(model, planned)
    if model.quant_format == QOPERATOR:
        proto = qoperator.from_qdq(proto)
    if model.provider != CPU:
        proto.metadata_props.add(key=PROVIDER_KEY, value=model.provider)
    return proto


def start(proto: onnx.ModelProto, model: OnnxModel, threads: int | None) -> Session:
    """Return a session of a graph over the weight store of `model`."""
    chosen = session.options(threads, folder=model.store.folder)
    return session.start(proto.SerializeToString(), chosen, model.provider)


def restore(artifact: Path, threads: int | None) -> Built:
    """Return a saved artifact as a ready session; plain onnxruntime is enough for it.

    Raises:
        AdapterError: there is no such file, or the runtime refuses it.
    """
    if not artifact.is_file():
        message = f"found no file {str(artifact)!r}, expected an .onnx model that `save` wrote"
        raise AdapterError(message)
    started = session.start(artifact, session.options(threads))
    provider = started.get_modelmeta().custom_metadata_map.get(PROVIDER_KEY, CPU)
    if provider != CPU and provider in onnxruntime.get_available_providers():
        started = session.start(artifact, session.options(threads), provider)
    beside = artifact.with_name(f"{artifact.name}.data")
    return Built(
        session=started,
        inputs=tuple(InputInfo.of(value) for value in started.get_inputs()),
        size=artifact.stat().st_size + (beside.stat().st_size if beside.is_file() else 0),
        report=BuildReport(ops=()),
        artifact=artifact,
    )


def ranges_of(statistics: Statistics | None) -> regions.FindRange:
    """Return the function that lays a tensor of the statistics out over the codes of a spec; None for a tensor of infinities."""

    def find(tensor: str, spec: QuantSpec, choice: TensorRange | None) -> qparams.Parameters | None:
        if statistics is None:
            message = f"tensor {tensor!r} is to be quantized statically, but there are no statistics: calibrate first"
            raise AdapterError(message)
        if tensor in statistics.infinite:
            return None
        observer = choice.observer if choice is not None else spec.observer
        percentile = choice.percentile if choice is not None else spec.percentile
        low, high = statistics.range_of(
            tensor, observer, percentile, symmetric=spec.symmetric, levels=qparams.levels(spec)
        )
        return qparams.activation_parameters(low, high, spec)

    return find
