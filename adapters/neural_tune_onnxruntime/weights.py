"""The weights, written once: float in one file, every quantized form that a candidate asks for in one file more.

A candidate is then a small graph that points into these files, and the runtime maps them. A file is complete before it gets
its name and is never changed afterwards, so processes that were forked may read, and even add forms, side by side.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import external_data_helper, helper

from neural_tune.numerics import qparams
from neural_tune.values import DType, Granularity, QuantSpec
from neural_tune_onnxruntime.source import INLINE_BYTES, PACKED_BITS, Draft, packed_size

FLOAT_FILE = "float.bin"
_ALIGNMENT = 64
_ONNX_TYPES = {
    DType.INT8: onnx.TensorProto.INT8,
    DType.UINT8: onnx.TensorProto.UINT8,
    DType.INT16: onnx.TensorProto.INT16,
    DType.UINT16: onnx.TensorProto.UINT16,
}
# A constant operand and its channel axis; None when it has none, so that it can be quantized per tensor only.
Operand: TypeAlias = tuple[str, int | None]


@dataclass(frozen=True, slots=True)
class Quantized:
    """One weight in one quantized form.

    Attributes:
        tensor: The codes, as a tensor that points into the store; to be copied, never changed.
        scale: Scales, one or one per channel.
        zero: Zero points, shaped as the scales.
        axis: Channel axis; None for per_tensor.
        dtype: Number format.
        dead: Which channels are all zero, so that their scale is free; shaped as the scales.
    """

    tensor: onnx.TensorProto
    scale: qparams.Floats
    zero: qparams.Codes
    axis: int | None
    dtype: DType
    dead: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Form:
    """What decides the codes of a weight: the fields of a `QuantSpec` that matter, the axis apart."""

    dtype: DType
    symmetric: bool
    per_channel: bool
    reduce_range: bool

    @property
    def is_balanced(self) -> bool:
        """True when the codes reach as far below zero as above, so that the code -128 is free."""
        return self.dtype is DType.INT8 and self.symmetric

    @property
    def file(self) -> str:
        parts = [self.dtype.value, "sym" if self.symmetric else "asym", "channel" if self.per_channel else "tensor"]
        return "-".join([*parts, *(["reduced"] if self.reduce_range else [])]) + ".bin"


@dataclass(slots=True, eq=False, weakref_slot=True)
class WeightStore:
    """The folder of weight files of one model; deleted with it.

    Attributes:
        folder: Where the files lie.
        tensors: Every initializer of the float model, small ones with their values, large ones pointing into `FLOAT_FILE`.
        operands: What may be quantized: all of it is, when the first candidate asks for a form.
        prefix: Begins the names of the files that this store writes.
        parent: The store whose folder this one shares and keeps alive; None for the one that owns it.
        shifted: Constants whose symmetric int8 codes get the zero point -1: the same values, for another kernel (see `dispatch`).
    """

    folder: Path
    tensors: Mapping[str, onnx.TensorProto]
    operands: tuple[Operand, ...] = ()
    prefix: str = ""
    parent: WeightStore | None = None
    shifted: frozenset[str] = frozenset()
    _forms: dict[_Form, dict[Operand, Quantized]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _kept: dict[str, Mapping[str, onnx.TensorProto]] = field(default_factory=dict)
    _kept_lock: threading.RLock = field(default_factory=threading.RLock)

    @classmethod
    def of(cls, draft: Draft) -> WeightStore:
        """Write the initializers of `draft` to a new temporary folder, one at a time."""
        folder = Path(tempfile.mkdtemp(prefix="neural_tune-"))
        tensors: dict[str, onnx.TensorProto] = {}
        with (folder / FLOAT_FILE).open("wb") as file:
            for name in sorted(draft.constant_names):
                if draft.is_small(name):
                    tensors[name] = draft.inline(name)
                elif draft.elem_type(name) in PACKED_BITS:
                    tensors[name] = onnx.TensorProto(name=name, data_type=draft.elem_type(name), dims=draft.shape(name))
                    point(tensors[name], FLOAT_FILE, *append(file, draft.packed(name)))
                else:
                    tensors[name] = _write_tensor(file, name, draft.array(name), FLOAT_FILE)
        store = cls(folder, tensors)
        weakref.finalize(store, _remove, folder, os.getpid())
        return store

    def derived(self, changes: Mapping[str, NDArray[Any]], label: str) -> WeightStore:
        """Return a store with some initializers replaced or added, in the same folder; this one stays as it is.

        Args:
            changes: Name -> values. Large ones go to a file of their own.
            label: Begins the names of the new store's files; no other store of the folder may have it.
        """
        tensors = dict(self.tensors)
        location = f"{label}.{FLOAT_FILE}"
        with (self.folder / location).open("wb") as file:
            for name, values in changes.items():
                if values.nbytes > INLINE_BYTES:
                    tensors[name] = _write_tensor(file, name, values, location)
                else:
                    tensors[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(values), name)
        return WeightStore(self.folder, tensors, self.operands, f"{label}.", self, self.shifted)

    def corrected(self, changes: Mapping[str, NDArray[Any]]) -> WeightStore:
        """Return a store with some constants replaced that are no operands, inside the graph; the quantized forms are shared."""
        tensors = {
            **self.tensors,
            **{name: onnx.numpy_helper.from_array(np.ascontiguousarray(v), name) for name, v in changes.items()},
        }
        shared = (self._forms, self._lock, self._kept, self._kept_lock)
        return WeightStore(self.folder, tensors, self.operands, self.prefix, self, self.shifted, *shared)

    def array(self, name: str) -> NDArray[Any]:
        """Return the float values of an initializer, mapped or inline."""
        return read(self.tensors[name], self.folder)

    def quantized(self, operand: Operand, spec: QuantSpec) -> Quantized:
        """Return a weight in the form that `spec` names; the first call for a form quantizes all operands."""
        name, axis = operand
        per_channel = spec.granularity is Granularity.PER_CHANNEL and axis is not None
        form = _Form(spec.dtype, spec.symmetric, per_channel, spec.reduce_range)
        with self._lock:
            if form not in self._forms:
                self._forms[form] = self._write(form, spec)
            return self._forms[form][name, axis if per_channel else None]

    def dequantized(self, operand: Operand, spec: QuantSpec) -> NDArray[np.float64]:
        """Return the real values of a weight in the form that `spec` names."""
        found = self.quantized(operand, spec)
        shape = [1] * len(found.tensor.dims)
        if found.axis is not None:
            shape[found.axis] = -1
        codes = read(found.tensor, self.folder).astype(np.float64) - found.zero.astype(np.float64).reshape(shape)
        return np.asarray(codes * found.scale.astype(np.float64).reshape(shape), np.float64)

    def kept(self, key: str, make: Callable[[], Mapping[str, NDArray[Any]]]) -> Mapping[str, onnx.TensorProto]:
        """Return what `make` returns as tensors that point into the store; made once per key, to be copied, never changed.

        Args:
            key: Names what is made; two stores of one folder may use the same.
            make: Returns name -> values, deterministically: a forked process may make the same.
        """
        with self._kept_lock:
            if key not in self._kept:
                location = f"{self.prefix}{hashlib.sha256(key.encode()).hexdigest()[:24]}.bin"
                path = self.folder / location
                draft = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
                with draft.open("wb") as file:
                    made = {name: _kept_tensor(file, name, values, location) for name, values in make().items()}
                draft.replace(path)
                self._kept[key] = made
            return self._kept[key]

    def requantized(self, operand: Operand, spec: QuantSpec, found: Quantized, scale: qparams.Floats) -> Quantized:
        """Return `found` with other scales and its codes inside the graph: the rare weight whose bias would overflow."""
        codes = qparams.quantize(self.array(operand[0]), scale, found.zero, found.axis, found.dtype)
        tensor = onnx.TensorProto(name=found.tensor.name, data_type=found.tensor.data_type, dims=codes.shape)
        tensor.raw_data = codes.tobytes()
        return Quantized(tensor, scale, found.zero, found.axis, spec.dtype, found.dead)

    def digest(self) -> str:
        """Return a hash of all float values, whatever the file layout."""
        total = hashlib.sha256()
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            total.update(f"{name}:{tensor.data_type}:{list(tensor.dims)};".encode())
            if tensor.data_type == onnx.TensorProto.STRING:
                total.update(tensor.SerializeToString(deterministic=True))
            else:
                total.update(np.ascontiguousarray(self.array(name)).reshape(-1).view(np.uint8).data)
        return total.hexdigest()

    def _write(self, form: _Form, spec: QuantSpec) -> dict[Operand, Quantized]:
        wanted = dict.fromkeys((name, axis if form.per_channel else None) for name, axis in self.operands)
        location = f"{self.prefix}{form.file}"
        path = self.folder / location
        written: dict[Operand, Quantized] = {}
        # A forked sibling may write the same form: each writes a file of its own, and the last rename wins with equal bytes.
        draft = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        with draft.open("wb") as file:
            for number, (name, axis) in enumerate(wanted):
                if form.per_channel and axis is None:
                    continue
                values = self.array(name)
                scale, zero = qparams.weight_parameters(values, axis, spec)
                if name in self.shifted and form.is_balanced:
                    zero = zero - zero.dtype.type(1)
                codes = qparams.quantize(values, scale, zero, axis, spec.dtype)
                tensor = _write_tensor(file, f"{name}__{form.file[:-4]}_{number}", codes, location)
                dead = qparams.dead_channels(codes, scale, zero, axis)
                written[name, axis] = Quantized(tensor, scale, zero, axis, spec.dtype, dead)
        draft.replace(path)
        return written


def read(tensor: onnx.TensorProto, folder: Path) -> NDArray[Any]:
    """Return the values of a tensor of the store; large ones are mapped, and of a packed type (int4) they are the bytes."""
    if not external_data_helper.uses_external_data(tensor):
        return onnx.numpy_helper.to_array(tensor)
    place = {item.key: item.value for item in tensor.external_data}
    dtype, shape = np.dtype(np.uint8), (0,)
    if tensor.data_type in PACKED_BITS:
        shape = (packed_size(tensor.data_type, tuple(tensor.dims)),)
    else:
        dtype, shape = helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)
    if not prod(shape):
        return np.zeros(shape, dtype)
    return np.memmap(folder / place["location"], dtype=dtype, mode="r", offset=int(place["offset"]), shape=shape)


def raw(tensor: onnx.TensorProto, folder: Path) -> bytes:
    """Return the bytes of an external tensor of the store."""
    return np.ascontiguousarray(read(tensor, folder)).tobytes()


def external_bytes(tensors: Iterable[onnx.TensorProto]) -> int:
    """Return how many bytes of `tensors` lie outside of the graph."""
    return sum(
        int(item.value)
        for tensor in tensors
        if external_data_helper.uses_external_data(tensor)
        for item in tensor.external_data
        if item.key == "length"
    )


def onnx_type(dtype: DType) -> int:
    """Return the ONNX element type of a number format."""
    return _ONNX_TYPES[dtype]


def append(file: IO[bytes], values: NDArray[Any]) -> tuple[int, int]:
    """Write `values` at the next aligned offset; return offset and length in bytes."""
    file.write(bytes(-file.tell() % _ALIGNMENT))
    offset = file.tell()
    contiguous = np.ascontiguousarray(values)
    file.write(contiguous.reshape(-1).view(np.uint8).data)
    return offset, contiguous.nbytes


def point(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Make `tensor` refer to bytes in the file `location`."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _write_tensor(file: IO[bytes], name: str, values: NDArray[Any], location: str) -> onnx.TensorProto:
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    tensor = onnx.TensorProto(name=name, data_type=kind, dims=values.shape)
    point(tensor, location, *append(file, values))
    return tensor


def _kept_tensor(file: IO[bytes], name: str, values: NDArray[Any], location: str) -> onnx.TensorProto:
    if values.nbytes > INLINE_BYTES:
        return _write_tensor(file, name, values, location)
    return onnx.numpy_helper.from_array(np.ascontiguousarray(values), name)


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child must not take the files away from its parent
        shutil.rmtree(folder, ignore_errors=True)
