"""Backend `litert`: a `.tflite` file, for phones and for the fastest dynamic transformer on a CPU.

The float model is converted once; every candidate after that is a recipe for ai-edge-quantizer (`litert_build`), which takes tens of
milliseconds. Ranges come from our own statistics, so that all observers and per-tensor choices work here as in the other backends.
"""

from __future__ import annotations

import contextlib
import io
import logging
import platform
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ai_edge_litert.tools import flatbuffer_utils

from neural_tune import calibration
from neural_tune.calibration import Statistics
from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.protocols import AdapterOptions, BuildReport, Inputs
from neural_tune.values import Candidate, Capability
from neural_tune_tensorflow.backend import Built, Port
from neural_tune_tensorflow.backends import litert_build, litert_calibrate, litert_kernels, litert_model
from neural_tune_tensorflow.backends.litert_model import LiteModel
from neural_tune_tensorflow.backends.litert_runtime import LiteSession
from neural_tune_tensorflow.backends.litert_toggles import LiteToggles

_LOG = logging.getLogger(__name__)
NAME = "litert"
ARTIFACT = "model.tflite"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LiteHold:
    """The backend's hold on a float model.

    Attributes:
        model: The float `.tflite` model.
        approach: "static", "dynamic", "weight_only" or "auto".
        inputs: What it takes.
        outputs: What it gives.
        structure: How several outputs are handed out.
    """

    model: LiteModel
    approach: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    structure: str
    backend: str = NAME


class LitertBackend:
    """Implements `neural_tune_tensorflow.backend.Backend` over LiteRT."""

    name = NAME

    def load(self, source: Any, options: AdapterOptions) -> LiteHold:
        """Return the hold on a `FloatGraph` (converted here) or on a float `.tflite` file.

        Raises:
            CapabilityError: the approach is none of this backend.
            AdapterError: the model cannot be read or converted.
        """
        if options.approach not in litert_kernels.APPROACHES:
            message = (
                f"approach {options.approach!r}: the litert backend offers {', '.join(litert_kernels.APPROACHES)}; "
                "train with backend 'onednn'"
            )
            raise CapabilityError(message)
        if isinstance(source, str | Path):
            model, structure = litert_model.load(source), ""
        else:
            model, structure = litert_model.load(convert(_canonical(source))), source.structure
        return LiteHold(
            model=model,
            approach=options.approach,
            inputs=model.inputs,
            outputs=model.outputs,
            structure=structure or _structure(model.outputs),
        )

    def fingerprint(self, hold: LiteHold) -> str:
        """Return a hash of the float `.tflite` file."""
        return hold.model.fingerprint()

    def query(self, hold: LiteHold) -> Capability:
        """Return the choices of every op under the approach of `hold`."""
        return Capability(
            framework="tensorflow",
            runtime_version=f"litert {version('ai-edge-litert')}, ai-edge-quantizer {version('ai-edge-quantizer')}",
            instruction_set=_instruction_set(),
            ops=tuple(litert_kernels.capability_of(op, hold.approach) for op in hold.model.ops),
            inputs=tuple(port.name for port in hold.inputs),
            notes=hold.model.notes,
        )

    def calibrate(self, hold: LiteHold, batches: Iterable[Inputs], directory: Path) -> Statistics:
        """Read `batches` once and return the statistics of every float tensor."""
        return litert_calibrate.calibrate(hold.model, batches, directory)

    def load_statistics(self, hold: LiteHold, directory: Path) -> Statistics | None:
        """Return what `calibrate` wrote below `directory` for this model; None if it is not there or incomplete."""
        return calibration.load(directory, key=hold.model.fingerprint())

    def build(self, hold: LiteHold, candidate: Candidate, found: Statistics | None, threads: int | None) -> Built:
        """Return `candidate` in an interpreter, its report read from the written file."""
        planned = litert_build.plan(hold.model, self.query(hold), candidate, found)
        content = litert_build.quantize(hold.model, planned, candidate, found)
        ops = litert_build.outcomes(hold.model, planned, content)
        return _built(content, threads, BuildReport(ops=ops), hold.structure)

    def restore(self, artifact: Path, threads: int | None) -> Built:
        """Return a saved `.tflite` file in an interpreter.

        Raises:
            AdapterError: there is no such file, or it is broken.
        """
        try:
            content = artifact.read_bytes()
        except OSError as error:
            message = f"the .tflite file {str(artifact)!r} cannot be read: {error}"
            raise AdapterError(message) from error
        return _built(content, threads, BuildReport(ops=()), "")

    def toggles(
        self, hold: LiteHold, candidate: Candidate, found: Statistics | None, threads: int | None
    ) -> LiteToggles:
        """Return a model in which any subset of the ops of `candidate` can be quantized; each subset is a file of its own."""
        return LiteToggles(candidate, lambda part: self.build(hold, part, found, threads).run, hold.inputs)


def _canonical(graph: Any) -> Any:
    """Return the graph in the form that the onednn backend works on: same names of ops, and no arithmetic on shapes.

    The Reshape that Keras puts around a 3-D Dense computes its shape from the input's; LiteRT's delegate leaves such tensors to slow kernels.
    """
    from neural_tune_tensorflow.canonical import canonical  # noqa: PLC0415 - needs tensorflow, which a .tflite file does not

    found = canonical(graph.graph_def, graph.inputs, graph.outputs)
    outputs = tuple(replace(port, tensor=name) for port, name in zip(graph.outputs, found.outputs, strict=True))
    inputs = tuple(replace(port, tensor=name) for port, name in zip(graph.inputs, found.inputs, strict=True))
    return replace(graph, graph_def=found.graph_def(), inputs=inputs, outputs=outputs)


def convert(graph: Any) -> bytes:
    """Return a `source.FloatGraph` as the bytes of a float `.tflite` file with the signature of the graph, in its order.

    Raises:
        AdapterError: the converter refuses the graph (an op that LiteRT does not have).
    """
    from neural_tune_tensorflow.runtime import tf  # noqa: PLC0415 - a saved .tflite file runs without tensorflow
    from neural_tune_tensorflow.source import write_saved_model  # noqa: PLC0415 - same

    with tempfile.TemporaryDirectory(prefix="neural_tune-") as folder:
        path = write_saved_model(graph, Path(folder))
        try:
            with _quiet():
                converter = tf.lite.TFLiteConverter.from_saved_model(str(path), signature_keys=[graph.signature])
                content = bytes(converter.convert())
        except Exception as error:
            message = f"the TensorFlow Lite converter refuses the model: {_first_line(error)}"
            raise AdapterError(message) from error
    return _in_order(content, [port.name for port in graph.inputs], [port.name for port in graph.outputs])


def _in_order(content: bytes, inputs: list[str], outputs: list[str]) -> bytes:
    """Return the file with the ports of its signature in the given order; the converter sorts them by name."""
    parsed = litert_model.parse(content)
    if not parsed.signatureDefs:
        return content
    signature = parsed.signatureDefs[0]
    changed = False
    for side, names in (("inputs", inputs), ("outputs", outputs)):
        places = {name.encode(): place for place, name in enumerate(names)}
        items = list(getattr(signature, side) or [])
        ordered = sorted(items, key=lambda item: places.get(bytes(item.name), len(places)))
        changed |= [item.name for item in ordered] != [item.name for item in items]
        setattr(signature, side, ordered)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(parsed)) if changed else content


def _built(content: bytes, threads: int | None, report: BuildReport, structure: str) -> Built:
    session = LiteSession(content, threads)

    def write(directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / ARTIFACT
        path.write_bytes(content)
        return path

    return Built(
        backend=NAME,
        inputs=session.inputs,
        outputs=session.outputs,
        run=session.run,
        size=lambda: len(content),
        write=write,
        report=report,
        structure=structure or _structure(session.outputs),
    )


def _structure(outputs: tuple[Port, ...]) -> str:
    return "single" if len(outputs) == 1 else "dict"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converter's progress out of the user's terminal; what it says is in the debug log."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            yield
    finally:
        if said.getvalue().strip():
            _LOG.debug("converter: %s", said.getvalue().strip())


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _instruction_set() -> str:
    """Return what decides the speed of LiteRT's kernels, such as "x86_64 avx512_vnni"."""
    machine = platform.machine()
    try:
        flags = set(Path("/proc/cpuinfo").read_text(errors="replace").split())
    except OSError:
        return machine
    best = next((name for name in ("amx_int8", "avx512_vnni", "avx_vnni", "avx2", "asimddp") if name in flags), "")
    return f"{machine} {best}".strip()
