"""SavedModel and .pb files, written and read as plain protocol buffers.

A frozen graph needs no variables, no tracing and no checkpoint: a SavedModel of it is one message, whose size is known before it is
written. `tf.saved_model.load` takes it, with the original signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow.core.framework import tensor_shape_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from neural_tune.errors import AdapterError
from neural_tune_tensorflow.backend import Port
from neural_tune_tensorflow.runtime import VERSION, GraphDef, tf

SAVED_MODEL_FILE = "saved_model.pb"
PB_FILE = "model.pb"
_FOLDER = "saved_model"
_METHOD = "tensorflow/serving/predict"
# How the native model hands out its outputs; kept beside the signature, where plain loaders do not look.
_STRUCTURE_TAG = "neural_tune_structure:"
_LIMIT = (1 << 31) - 1


def saved_model(
    graph_def: Any, inputs: Sequence[Port], outputs: Sequence[Port], signature: str, structure: str = "single"
) -> Any:
    """Return the SavedModel message of a frozen graph."""
    message = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    meta = message.meta_graphs.add()
    meta.meta_info_def.tags.append("serve")
    meta.meta_info_def.tensorflow_version = VERSION
    meta.meta_info_def.stripped_default_attrs = False
    meta.graph_def.CopyFrom(graph_def)
    definition = meta.signature_def[signature]
    definition.method_name = _METHOD
    for ports, table in ((inputs, definition.inputs), (outputs, definition.outputs)):
        for port in ports:
            table[port.name].CopyFrom(_tensor_info(port))
    order = meta.collection_def["neural_tune"].bytes_list
    order.value.extend(
        item.encode()
        for item in (f"{_STRUCTURE_TAG}{structure}", *(port.name for port in inputs), *(port.name for port in outputs))
    )
    return message


def write_saved_model(message: Any, directory: Path) -> Path:
    """Write a SavedModel as a folder of its own below `directory`, and return that folder."""
    folder = directory / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SAVED_MODEL_FILE).write_bytes(_serialized(message))
    return folder


def write_pb(graph_def: Any, directory: Path) -> Path:
    """Write a frozen graph as a .pb file below `directory`, and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / PB_FILE
    path.write_bytes(_serialized(graph_def))
    return path


def read_saved_model(folder: Path) -> tuple[Any, tuple[Port, ...], tuple[Port, ...], str, str]:
    """Return graph, inputs, outputs, structure and signature of what `write_saved_model` wrote.

    Raises:
        AdapterError: the file is missing, torn, or was not written here.
    """
    message = saved_model_pb2.SavedModel()
    try:
        message.ParseFromString((folder / SAVED_MODEL_FILE).read_bytes())
    except Exception as error:
        text = f"the SavedModel {str(folder)!r} cannot be read: {error}"
        raise AdapterError(text) from error
    if len(message.meta_graphs) != 1 or len(message.meta_graphs[0].signature_def) != 1:
        text = f"the SavedModel {str(folder)!r} was not written by neural_tune: load it with tf.saved_model.load"
        raise AdapterError(text)
    meta = message.meta_graphs[0]
    ((signature, definition),) = meta.signature_def.items()
    marks = [value.decode() for value in meta.collection_def["neural_tune"].bytes_list.value]
    structure, names = "dict", [*sorted(definition.inputs), *sorted(definition.outputs)]
    if marks and marks[0].startswith(_STRUCTURE_TAG):
        structure, names = marks[0].removeprefix(_STRUCTURE_TAG), marks[1:]
    split = len(definition.inputs)
    inputs = tuple(_read_port(name, definition.inputs[name]) for name in names[:split])
    outputs = tuple(_read_port(name, definition.outputs[name]) for name in names[split:])
    return meta.graph_def, inputs, outputs, structure, signature


def read_pb(path: Path) -> Any:
    """Return the GraphDef of a .pb file.

    Raises:
        AdapterError: it is missing or torn.
    """
    graph_def = GraphDef()
    try:
        graph_def.ParseFromString(path.read_bytes())
    except Exception as error:
        text = f"the graph {str(path)!r} cannot be read: {error}"
        raise AdapterError(text) from error
    return graph_def


def _serialized(message: Any) -> bytes:
    if message.ByteSize() > _LIMIT:
        raise AdapterError(f"the graph takes {message.ByteSize()} bytes; TensorFlow reads no graph above 2 GB")
    return bytes(message.SerializeToString(deterministic=True))


def _tensor_info(port: Port) -> Any:
    shape = tensor_shape_pb2.TensorShapeProto(unknown_rank=port.shape is None)
    for size in port.shape or ():
        shape.dim.add(size=-1 if size is None else size)
    kind = tf.as_dtype(port.dtype).as_datatype_enum
    name = port.tensor if ":" in port.tensor else f"{port.tensor}:0"
    return meta_graph_pb2.TensorInfo(name=name, dtype=kind, tensor_shape=shape)


def _read_port(name: str, info: Any) -> Port:
    dims = [item.size for item in info.tensor_shape.dim]
    shape = None if info.tensor_shape.unknown_rank else tuple(None if size < 0 else size for size in dims)
    dtype = np.dtype(tf.as_dtype(info.dtype).as_numpy_dtype)
    return Port(name=name, tensor=info.name, dtype=dtype, shape=shape)
