"""The adapter's hold on a float model: normalised graph, weight store, runtime sessions."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from neural_tune.calibration.spool import Spool
from neural_tune.errors import AdapterError
from neural_tune.values import Role
from neural_tune_onnxruntime import session, shapes
from neural_tune_onnxruntime.dispatch import tiled_weights
from neural_tune_onnxruntime.graph import FLOAT32, Graph, Op, captured_names
from neural_tune_onnxruntime.kernels import Kernel, kernel_of
from neural_tune_onnxruntime.normalise import OPSET, normalise
from neural_tune_onnxruntime.processor import Processor
from neural_tune_onnxruntime.source import open_model
from neural_tune_onnxruntime.weights import Operand, WeightStore


@dataclass(slots=True, eq=False)
class Variants:
    """What recipes made of a model, remembered with it; made under the lock, read without.

    Attributes:
        made: Names of recipes -> what `recipes.prepare` returned.
        lock: Held while something is made.
    """

    made: dict[tuple[str, ...], Any] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OnnxModel:
    """A float model in the one form that everything else works on.

    Attributes:
        proto: The normalised float graph; its large initializers point into the store. Never changed.
        graph: The index over it.
        kernels: Op name -> what the runtime can do with it.
        store: The weights.
        opset: Version of the standard operator set.
        processor: What decides the fast number formats.
        mark: A piece of text that no name of the graph holds; it sets off the names that candidates add.
        notes: Findings of normalisation.
        variants: What recipes made of this model.
        quant_format: Format of the int8 graph, "QDQ" or "QOperator".
        provider: The execution provider that runs it.
        approach: "static", "dynamic", "weight_only" or "auto": what `capability` offers.
        has_data: False where it is known that no calibration data is given.
        accuracy_level: Of products with blocks of 4 or 8 bits: 4 rounds activations to int8 per block, 0 computes in float.
        spool: Calibration inputs that a build may look at; None where there are none.
        remembered: What follows from all of the above and costs time, by name; `replace` makes a model that remembers nothing.
    """

    proto: onnx.ModelProto
    graph: Graph
    kernels: Mapping[str, Kernel]
    store: WeightStore
    opset: int
    processor: Processor
    mark: str
    notes: tuple[str, ...]
    variants: Variants = field(default_factory=Variants)
    quant_format: str = "QDQ"
    provider: str = "CPUExecutionProvider"
    approach: str = "static"
    has_data: bool = True
    accuracy_level: int = 4
    spool: Spool | None = None
    remembered: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(value.name for value in self.proto.graph.input)

    @property
    def takes_axis(self) -> bool:
        """True when the opset lets Q/DQ nodes have an axis, which per_channel needs."""
        return self.opset >= OPSET

    def fingerprint(self) -> str:
        """Return a hash of graph and weights that is the same in every process."""
        total = hashlib.sha256()
        graph = self.proto.graph
        for item in sorted(self.proto.opset_import, key=lambda item: item.domain):
            total.update(f"{item.domain}={item.version};".encode())
        for message in (*graph.input, *graph.output, *graph.node):
            total.update(message.SerializeToString(deterministic=True))
        total.update(self.store.digest().encode())
        return total.hexdigest()

    def observed_tensors(self) -> tuple[str, ...]:
        """Return every float tensor that some candidate may quantize statically: what calibration must observe."""
        if self.approach in ("dynamic", "weight_only"):
            return ()
        found: dict[str, None] = {}
        for op in self.graph.ops:
            kernel = self.kernels[op.name]
            if not (kernel.is_quantizable or kernel.role is Role.PASS_THROUGH):
                continue
            found.update(dict.fromkeys(op.inputs[position] for position in kernel.data))
            found[op.outputs[0]] = None
        return tuple(found)

    def finite_inputs(self) -> frozenset[str]:
        """Return the inputs that a convolution or product reads: an infinity there is broken data, and anywhere else it may be a mask."""
        read: set[str] = set()
        for op in reversed(self.graph.ops):
            kernel = self.kernels[op.name]
            passes = kernel.role is Role.PASS_THROUGH and kernel.shares_scale and not read.isdisjoint(op.outputs)
            if kernel.role is Role.ANCHOR or passes:
                read.update(op.inputs[position] for position in kernel.data)
        return frozenset(read.intersection(self.input_names))

    def float_outputs(self) -> tuple[str, ...]:
        """Return the names of the float32 outputs."""
        names = (value.name for value in self.proto.graph.output)
        return tuple(name for name in names if self.graph.elem_types.get(name) == FLOAT32)

    def session_for_outputs(
        self,
        tensors: Sequence[str],
        threads: int | None = None,
        *,
        nodes: Sequence[onnx.NodeProto] = (),
        constants: Sequence[onnx.TensorProto] = (),
    ) -> session.Session:
        """Return a session of the float graph whose outputs are exactly `tensors`, run node by node.

        Without optimization every tensor exists under its own name, with the very values that the runtime's own calibration sees.

        Args:
            tensors: Names of inputs, of node outputs, or of outputs of `nodes`.
            threads: Threads of the runtime.
            nodes: Nodes to append behind the graph, for a look at something that it does not compute itself.
            constants: What these nodes read besides activations.

        Raises:
            AdapterError: a tensor is not in the graph.
        """
        graph = self.proto.graph
        known = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
        every = (*graph.node, *nodes)
        made = {name for node in every for name in node.output} | set(self.input_names)
        unknown = [name for name in tensors if name not in made]
        if unknown:
            message = f"found no tensor {unknown} in the graph; expected names of inputs or node outputs"
            raise AdapterError(message)
        part = onnx.ModelProto(ir_version=self.proto.ir_version)
        part.opset_import.extend(self.proto.opset_import)
        part.graph.name = graph.name
        part.graph.input.extend(graph.input)
        part.graph.output.extend(known.get(name, onnx.ValueInfoProto(name=name)) for name in tensors)
        needed = set(tensors)
        kept = []
        for node in reversed(every):
            if any(name in needed for name in node.output):
                kept.append(node)
                needed.update(node.input)
                needed.update(captured_names(node))
        part.graph.node.extend(reversed(kept))
        part.graph.value_info.extend(value for value in graph.value_info if value.name in needed - set(tensors))
        part.graph.initializer.extend(tensor for name, tensor in self.store.tensors.items() if name in needed)
        part.graph.initializer.extend(constants)
        chosen = session.options(threads, optimize=False, folder=self.store.folder)
        return session.start(part.SerializeToString(), chosen)


def load(
    source: str | Path | onnx.ModelProto, outputs: tuple[str, ...] = (), processor: Processor | None = None
) -> OnnxModel:
    """Return the normalised model; the caller's object or file is only read.

    Raises:
        AdapterError: it is no ONNX model, or data is missing.
        CapabilityError: an output name does not exist.
    """
    draft = open_model(source)
    normalise(draft, outputs)
    store = WeightStore.of(draft)
    whole = onnx.ModelProto()
    whole.CopyFrom(draft.model)
    whole.graph.initializer.extend(store.tensors.values())
    proto, notes = shapes.infer(whole, store.folder)
    graph = Graph.of(proto)
    kernels = {op.name: _with_finite_bias(op, kernel_of(op, graph, draft.opset), store) for op in graph.ops}
    processor = processor or Processor.detect()
    store.operands = operands_of(graph, kernels)
    store.shifted = tiled_weights(graph, kernels, processor)
    _check_weights(store)
    return OnnxModel(
        proto=proto,
        graph=graph,
        kernels=kernels,
        store=store,
        opset=draft.opset,
        processor=processor,
        mark=_mark(proto),
        notes=(*draft.notes, *notes),
    )


def _with_finite_bias(op: Op, kernel: Kernel, store: WeightStore) -> Kernel:
    """Return `kernel`, or that of an op that stays float where a bias of infinity (it shuts a class off) has no int32 code."""
    if kernel.bias is None or np.isfinite(store.array(op.inputs[kernel.bias])).all():
        return kernel
    return Kernel(role=Role.NEVER, why=f"its bias {op.inputs[kernel.bias]!r} holds an infinity, which has no code")


def _check_weights(store: WeightStore) -> None:
    """Refuse a broken checkpoint here: calibration would see NaN everywhere, and could not say where it comes from.

    Raises:
        AdapterError: a float constant holds NaN (a single value may be meant), or a weight an infinity.
    """
    weights = {name for name, _ in store.operands}
    for name, tensor in store.tensors.items():
        if tensor.data_type != FLOAT32 or (np.prod(tensor.dims) <= 1 and name not in weights):
            continue
        values = store.array(name)
        low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))  # NaN wins over everything
        if np.isnan(low) or (name in weights and not np.isfinite([low, high]).all()):
            what = "NaN" if np.isnan(low) else "an infinity"
            message = f"initializer {name!r} holds {what} among its {values.size} values: the checkpoint is broken, export it again"
            raise AdapterError(message)


def operands_of(graph: Graph, kernels: Mapping[str, Kernel]) -> tuple[Operand, ...]:
    """Return the constants that may be quantized, with their channel axes."""
    weights = [
        (op.inputs[kernel.weight], kernel.axis)
        for op, kernel in zip(graph.ops, kernels.values(), strict=True)
        if kernel.weight is not None
    ]
    return tuple(dict.fromkeys(weights))


def _mark(proto: onnx.ModelProto) -> str:
    """Return "__" or, where names of the graph hold that already, the first of "__nt__", "__nt2__" ... that is free."""
    graph = proto.graph
    names = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
    text = "\n".join((*names, *(item.name for item in graph.initializer), *(value.name for value in graph.input)))
    tries = itertools.chain(("__", "__nt__"), (f"__nt{number}__" for number in itertools.count(2)))
    return next(mark for mark in tries if mark not in text)
