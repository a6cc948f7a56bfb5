"""The caller's model, opened for reading: a graph of its own to normalise, tensors read where they lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import external_data_helper, helper, numpy_helper

from neural_tune.errors import AdapterError

# Constants up to this size stay in the graph: shape inference must see them. So do integers (shapes, axes, indices) up to the second.
INLINE_BYTES = 1024
INLINE_INTEGER_BYTES = 64 * 1024
# Types of which a byte holds several values -> bits per value. numpy has none of them, so their bytes are passed on as they are.
PACKED_BITS = {
    getattr(onnx.TensorProto, name): bits
    for name, bits in (("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4), ("INT2", 2), ("UINT2", 2))
    if hasattr(onnx.TensorProto, name)
}
_INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)


@dataclass(slots=True)
class Draft:
    """A model being normalised. The graph is ours; initializers are kept apart and are never changed in place.

    Attributes:
        model: The model without initializers.
        tensors: Initializer name -> tensor of the caller (shared, read only).
        arrays: Initializer name -> values that normalisation computed; they win over `tensors`.
        base: Folder of the file, for external data; None for a model that was given as an object.
        notes: Findings a person should see.
    """

    model: onnx.ModelProto
    tensors: dict[str, onnx.TensorProto]
    base: Path | None
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def constant_names(self) -> frozenset[str]:
        """Names of all initializers."""
        return frozenset(self.tensors) | frozenset(self.arrays)

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return next((item.version for item in self.model.opset_import if item.domain in ("", "ai.onnx")), 1)

    def array(self, name: str) -> NDArray[Any]:
        """Return the values of an initializer; large external ones are mapped, not read."""
        return self.arrays[name] if name in self.arrays else read_tensor(self.tensors[name], self.base)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the dimensions of an initializer without reading it."""
        return self.arrays[name].shape if name in self.arrays else tuple(self.tensors[name].dims)

    def elem_type(self, name: str) -> int:
        """Return the element type of an initializer without reading it."""
        if name in self.arrays:
            return helper.np_dtype_to_tensor_dtype(self.arrays[name].dtype)
        return self.tensors[name].data_type

    def nbytes(self, name: str) -> int:
        """Return the size of an initializer in bytes, 0 for strings."""
        kind = self.elem_type(name)
        if kind == onnx.TensorProto.STRING:
            return 0
        if kind in PACKED_BITS:
            return packed_size(kind, self.shape(name))
        return prod(self.shape(name)) * helper.tensor_dtype_to_np_dtype(kind).itemsize

    def is_small(self, name: str) -> bool:
        """Return whether an initializer may stay inside the graph."""
        limit = INLINE_INTEGER_BYTES if self.elem_type(name) in _INTEGERS else INLINE_BYTES
        return self.nbytes(name) <= limit

    def inline(self, name: str) -> onnx.TensorProto:
        """Return an initializer as a tensor that holds its values."""
        kind = self.elem_type(name)
        if kind == onnx.TensorProto.STRING:
            return self.tensors[name]
        # Raw bytes in one place: the caller's tensor may hold float_data, or lie in another file.
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=self.shape(name))
        values = self.packed(name) if kind in PACKED_BITS else self.array(name)
        tensor.raw_data = np.ascontiguousarray(values).tobytes()
        return tensor

    def packed(self, name: str) -> NDArray[np.uint8]:
        """Return the bytes of an initializer of a type that packs several values into one."""
        tensor = self.tensors[name]
        if external_data_helper.uses_external_data(tensor):
            return np.asarray(
                _mapped(tensor, self.base, np.dtype(np.uint8), (packed_size(tensor.data_type, tuple(tensor.dims)),))
            )
        if tensor.raw_data:
            return np.frombuffer(tensor.raw_data, np.uint8)
        return np.asarray(tensor.int32_data, np.int64).astype(np.uint8)

    def fresh(self, stem: str) -> str:
        """Return a constant's name that nothing uses yet."""
        taken = self.constant_names | {name for node in self.model.graph.node for name in (*node.input, *node.output)}
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        return name


def open_model(model: str | Path | onnx.ModelProto) -> Draft:
    """Return a draft of `model`.

    Raises:
        AdapterError: the file is missing or is no ONNX model, or it points at data outside its folder.
    """
    if isinstance(model, onnx.ModelProto):
        return _draft(model, None)
    path = Path(model)
    if not path.is_file():
        message = f"found no file {str(path)!r}, expected an .onnx model"
        raise AdapterError(message)
    try:
        loaded = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError) as error:
        message = f"{str(path)!r} is no ONNX model ({error})"
        raise AdapterError(message) from error
    if not loaded.graph.node and not loaded.graph.output:
        message = f"{str(path)!r} holds no graph; expected an ONNX model"
        raise AdapterError(message)
    return _draft(loaded, path.resolve().parent)


def read_tensor(tensor: onnx.TensorProto, base: Path | None) -> NDArray[Any]:
    """Return the values of `tensor`; external data is memory-mapped.

    Raises:
        AdapterError: external data is missing, too short, or outside of `base`.
    """
    if not external_data_helper.uses_external_data(tensor):
        return numpy_helper.to_array(tensor)
    return _mapped(tensor, base, helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims))


def packed_size(kind: int, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor of a packed type."""
    return (prod(shape) * PACKED_BITS[kind] + 7) // 8


def _mapped(tensor: onnx.TensorProto, base: Path | None, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if base is None:
        message = (
            f"initializer {tensor.name!r} lies in another file: pass the path of the model, or load it with its data"
        )
        raise AdapterError(message)
    entries = {item.key: item.value for item in tensor.external_data}
    path = (base / entries.get("location", "")).resolve()
    if not path.is_relative_to(base) or not path.is_file():
        message = (
            f"initializer {tensor.name!r}: found no data file {entries.get('location')!r} below the model's folder"
        )
        raise AdapterError(message)
    offset = int(entries.get("offset", 0))
    needed = prod(shape) * dtype.itemsize
    if path.stat().st_size < offset + needed:
        message = f"initializer {tensor.name!r}: {path.name} is shorter than the {offset + needed} bytes it must have"
        raise AdapterError(message)
    if not needed:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)


def _check_names(graph: onnx.GraphProto) -> None:
    """Refuse names that are no text, which protobuf hands out as bytes.

    Raises:
        AdapterError: there is one.
    """
    names = [text for node in graph.node for text in (node.name, node.op_type, node.domain, *node.input, *node.output)]
    names += [item.name for item in (*graph.initializer, *graph.input, *graph.output, *graph.value_info)]
    wrong = next((name for name in names if not isinstance(name, str)), None)
    if wrong is not None:
        message = f"the model holds the name {wrong!r}, expected text in UTF-8: the file is damaged, export it again"
        raise AdapterError(message)


def _check_tensor(tensor: onnx.TensorProto) -> None:
    """Refuse an initializer whose type, shape and bytes do not fit together: a damaged file.

    Raises:
        AdapterError: they do not.
    """
    known = set(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}
    if tensor.data_type not in known or any(size < 0 for size in tensor.dims):
        message = f"initializer {tensor.name!r} has type {tensor.data_type} and shape {list(tensor.dims)}: the file is damaged, export it again"
        raise AdapterError(message)
    if external_data_helper.uses_external_data(tensor) or tensor.data_type == onnx.TensorProto.STRING:
        return
    if tensor.data_type in PACKED_BITS:
        needed = packed_size(tensor.data_type, tuple(tensor.dims))
    else:
        needed = prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    if len(tensor.raw_data) != needed and (tensor.raw_data or (not any(len(values) for values in fields) and needed)):
        message = f"initializer {tensor.name!r} holds {len(tensor.raw_data)} bytes, expected {needed} for shape {list(tensor.dims)}: the file is damaged, export it again"
        raise AdapterError(message)


def _draft(model: onnx.ModelProto, base: Path | None) -> Draft:
    """Copy everything but the initializers, whose bytes are only ever read."""
    draft = onnx.ModelProto(ir_version=model.ir_version, producer_name=model.producer_name)
    draft.opset_import.extend(model.opset_import)
    draft.functions.extend(model.functions)
    draft.metadata_props.extend(model.metadata_props)
    source, graph = model.graph, draft.graph
    graph.name = source.name or "graph"
    _check_names(source)
    for item in source.initializer:
        _check_tensor(item)
    tensors = {item.name: item for item in source.initializer}
    graph.node.extend(source.node)
    # An initializer that is also an input could be overridden by the caller of the session, so the runtime would fold nothing.
    graph.input.extend(value for value in source.input if value.name not in tensors)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    graph.sparse_initializer.extend(source.sparse_initializer)
    return Draft(draft, tensors, base)
