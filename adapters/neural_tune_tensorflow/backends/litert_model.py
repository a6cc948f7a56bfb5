"""A float `.tflite` file as a list of named ops: what the flatbuffer says, in the form the rest of the backend reads.

A tensor of a converted file carries the names of every node that was fused into it, joined by ";". The op is called after the node
that owns its weight, because that is the name a person gave ("stem/convolution"); where that is not unique, after its output tensor.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.tools import flatbuffer_utils
from ai_edge_quantizer.utils import tfl_flatbuffer_utils

from neural_tune.errors import AdapterError, CapabilityError
from neural_tune_tensorflow.backend import Port

_TYPE_NAMES: dict[int, str] = {
    code: name for name, code in vars(flatbuffer_utils.TensorType).items() if not name.startswith("_")
}
_OPERATORS: dict[int, str] = {
    code: name for name, code in vars(flatbuffer_utils.BuiltinOperator).items() if not name.startswith("_")
}
# Position of the constant operand that quantization is about, for the ops that have one.
WEIGHT_POSITION = {
    "CONV_2D": 1,
    "DEPTHWISE_CONV_2D": 1,
    "FULLY_CONNECTED": 1,
    "TRANSPOSE_CONV": 1,
    "BATCH_MATMUL": 1,
    "EMBEDDING_LOOKUP": 1,
}
_QUANTIZED = frozenset({"INT4", "INT8", "UINT8", "INT16", "INT2"})
INSERTED = frozenset({"QUANTIZE", "DEQUANTIZE"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LiteTensor:
    """One tensor of the main subgraph.

    Attributes:
        name: Its name in the file.
        dtype: LiteRT's name of the type, such as "FLOAT32".
        shape: The stored shape; free axes are 1 here.
        signature: The shape with -1 for free axes.
        is_constant: True when the file holds its values.
        scales: Number of scales; 0 for a tensor that is not quantized.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    is_constant: bool
    scales: int

    @property
    def is_quantized(self) -> bool:
        """True for integers with a scale."""
        return self.scales > 0 and self.dtype in _QUANTIZED


@dataclass(frozen=True, slots=True, kw_only=True)
class LiteOp:
    """One op of the main subgraph.

    Attributes:
        name: Unique name for people and candidates.
        type: LiteRT's name, such as "CONV_2D".
        scope: What the quantizer matches its recipes against.
        inputs: Its operands, in order; None for one that is left out.
        outputs: Its results.
    """

    name: str
    type: str
    scope: str
    inputs: tuple[LiteTensor | None, ...]
    outputs: tuple[LiteTensor, ...]

    @property
    def activations(self) -> tuple[LiteTensor, ...]:
        """Float operands that are computed."""
        return tuple(item for item in self.inputs if item and not item.is_constant and item.dtype == "FLOAT32")

    @property
    def weight(self) -> LiteTensor | None:
        """The constant float operand that is quantized; None where there is none."""
        position = WEIGHT_POSITION.get(self.type)
        if position is None or position >= len(self.inputs):
            return None
        operand = self.inputs[position]
        return operand if operand is not None and operand.is_constant else None

    @property
    def parameters(self) -> int:
        """Number of constant float elements among the operands."""
        return sum(
            int(np.prod(item.shape)) for item in self.inputs if item and item.is_constant and item.dtype == "FLOAT32"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an input or output lies.

    Attributes:
        port: Its name in the signature (or of its tensor, where there is no signature), type and shape.
        index: Index of its tensor in the main subgraph.
    """

    port: Port
    index: int


@dataclass(frozen=True, eq=False)
class LiteModel:
    """The adapter's hold on a float `.tflite` file.

    Attributes:
        content: The flatbuffer.
        ops: The ops of the main subgraph, in execution order.
        inputs: What it takes.
        outputs: What it gives.
        notes: What a person should know.
    """

    content: bytes = field(repr=False)
    ops: tuple[LiteOp, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, LiteOp]:
        """Op name -> op."""
        return {op.name: op for op in self.ops}

    def fingerprint(self) -> str:
        """Return a hash of the file."""
        return hashlib.sha256(self.content).hexdigest()

    def observed(self) -> tuple[str, ...]:
        """Return the names of all computed float tensors: what calibration looks at."""
        names = dict.fromkeys(port.tensor for port in self.inputs if port.dtype == np.float32)
        for op in self.ops:
            names.update(dict.fromkeys(tensor.name for tensor in op.outputs if tensor.dtype == "FLOAT32"))
        return tuple(names)


def load(source: str | Path | bytes) -> LiteModel:
    """Return the ops of a float `.tflite` file (a path or its bytes).

    Raises:
        AdapterError: it cannot be read, or it is quantized already.
    """
    content = _content(source)
    parsed = _parse(content)
    if _name_tensors(parsed):
        content = bytes(flatbuffer_utils.convert_object_to_bytearray(parsed))
        parsed = _parse(content)
    ops = ops_of(parsed)
    if any(tensor and tensor.is_quantized for op in ops for tensor in (*op.inputs, *op.outputs)):
        raise AdapterError("the .tflite file is quantized already: start from the float file")
    inputs, outputs = ports_of(parsed)
    notes = []
    if len(parsed.subgraphs) > 1:
        notes.append(f"{len(parsed.subgraphs) - 1} further subgraphs (control flow, other signatures) stay in float")
    ports = [tuple(place.port for place in side) for side in (inputs, outputs)]
    return LiteModel(content, ops, ports[0], ports[1], tuple(notes))


def ops_of(parsed: Any) -> tuple[LiteOp, ...]:
    """Return the ops of the main subgraph of a parsed flatbuffer, under unique names."""
    graph = parsed.subgraphs[main_subgraph(parsed)]
    tensors = [_tensor(item, parsed.buffers) for item in graph.tensors]
    drafts = [
        LiteOp(
            name="",
            type=_type_of(parsed.operatorCodes[op.opcodeIndex]),
            scope=tfl_flatbuffer_utils.get_op_scope(op, graph.tensors),
            inputs=tuple(tensors[index] if index >= 0 else None for index in _indices(op.inputs)),
            outputs=tuple(tensors[index] for index in _indices(op.outputs)),
        )
        for op in graph.operators
    ]
    names = _unique(_names(drafts))
    return tuple(
        LiteOp(name=name, type=op.type, scope=op.scope, inputs=op.inputs, outputs=op.outputs)
        for name, op in zip(names, drafts, strict=True)
    )


def ports_of(parsed: Any) -> tuple[tuple[Place, ...], tuple[Place, ...]]:
    """Return inputs and outputs, under the names of the first signature where there is one."""
    graph = parsed.subgraphs[main_subgraph(parsed)]
    signatures = parsed.signatureDefs or []
    names: dict[int, str] = {}
    for side in (signatures[0].inputs, signatures[0].outputs) if signatures else ():
        names.update({item.tensorIndex: _text(item.name) for item in side or ()})
    return (
        tuple(_place(graph, index, names) for index in _ordered(graph.inputs, signatures, "inputs")),
        tuple(_place(graph, index, names) for index in _ordered(graph.outputs, signatures, "outputs")),
    )


def main_subgraph(parsed: Any) -> int:
    """Return the index of the subgraph that the first signature names; 0 without one."""
    return int(parsed.signatureDefs[0].subgraphIndex) if parsed.signatureDefs else 0


def parse(content: bytes) -> Any:
    """Return the object tree of a flatbuffer; see `load` for the errors."""
    return _parse(content)


def _content(source: str | Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        message = f"the .tflite file {str(source)!r} cannot be read: {error}"
        raise AdapterError(message) from error


def _parse(content: bytes) -> Any:
    # The format's own mark: a torn or foreign file would otherwise crash deep inside the reader, or not at all.
    if content[4:8] != b"TFL3":
        raise AdapterError("found no TFL3 mark: expected the bytes of a .tflite file")
    try:
        parsed = tfl_flatbuffer_utils.read_model(memoryview(content))
    except Exception as error:
        message = f"the .tflite file is broken: {error}"
        raise AdapterError(message) from error
    if not parsed.subgraphs or not parsed.subgraphs[0].operators:
        raise AdapterError("the .tflite file holds no op")
    return parsed


def _name_tensors(parsed: Any) -> bool:
    """Give every tensor of the main subgraph a name of its own: recipes and statistics go by it. Return whether one changed."""
    graph = parsed.subgraphs[main_subgraph(parsed)]
    found = Counter(_text(tensor.name) for tensor in graph.tensors)
    if "" not in found and all(count == 1 for count in found.values()):
        return False
    for index, tensor in enumerate(graph.tensors):
        name = _text(tensor.name)
        if not name or found[name] > 1:
            tensor.name = f"{name or 'tensor'}#{index}".encode()
    return True


def _tensor(tensor: Any, buffers: Any) -> LiteTensor:
    shape = _indices(tensor.shape)
    signature = _indices(tensor.shapeSignature) or shape
    data = buffers[tensor.buffer].data
    quantization = tensor.quantization
    scale = None if quantization is None else quantization.scale
    return LiteTensor(
        name=_text(tensor.name),
        dtype=_TYPE_NAMES.get(tensor.type, str(tensor.type)),
        shape=shape,
        signature=signature,
        is_constant=data is not None and len(data) > 0,
        scales=0 if scale is None else len(scale),
    )


def _names(ops: Iterable[LiteOp]) -> list[str]:
    ops = list(ops)
    weights = Counter(op.weight.name for op in ops if op.weight is not None)
    names = []
    for op in ops:
        weight = op.weight
        # A weight that two ops share, or that the converter made up, names nobody.
        own = weight is not None and weights[weight.name] == 1 and not weight.name.startswith(("arith.", "tfl."))
        text = weight.name if own and weight is not None else op.outputs[0].name if op.outputs else op.type
        names.append(next((part for part in text.split(";") if part), text))
    return names


def _unique(names: list[str]) -> list[str]:
    total, seen = Counter(names), Counter[str]()
    taken = set(names)
    found = []
    for name in names:
        seen[name] += 1
        chosen = name
        number = seen[name]
        while total[name] > 1 and number > 1 and (chosen == name or chosen in taken):
            chosen = f"{name}#{number}"
            number += 1
        taken.add(chosen)
        found.append(chosen)
    return found


def _type_of(code: Any) -> str:
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
    return _OPERATORS.get(builtin, str(builtin))


def _place(graph: Any, index: int, names: Mapping[int, str]) -> Place:
    tensor = graph.tensors[index]
    signature = _indices(tensor.shapeSignature) or _indices(tensor.shape)
    kind = _TYPE_NAMES.get(tensor.type, "").lower()
    if kind not in ("float32", "float64", "float16", "int8", "uint8", "int16", "int32", "int64", "bool"):
        message = f"input or output {_text(tensor.name)!r} has type {kind!r}, which has no numpy form"
        raise CapabilityError(message)
    port = Port(
        name=names.get(index) or _text(tensor.name),
        tensor=_text(tensor.name),
        dtype=np.dtype(kind),
        shape=tuple(None if length < 0 else length for length in signature),
    )
    return Place(port=port, index=index)


def _ordered(indices: Any, signatures: Any, side: str) -> list[int]:
    """Return the tensor indices in the order of the signature, and of the subgraph where that says nothing."""
    found = list(_indices(indices))
    if not signatures:
        return found
    named = [int(item.tensorIndex) for item in getattr(signatures[0], side) or ()]
    return named if sorted(set(named)) == sorted(set(found)) else found


def _indices(values: Any) -> tuple[int, ...]:
    return () if values is None else tuple(int(value) for value in values)


def _text(name: Any) -> str:
    return str(name.decode("utf-8", "replace") if isinstance(name, bytes) else name or "")
