"""A candidate as one self-contained .onnx file, and its size before it is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
from onnx import external_data_helper

from neural_tune.errors import AdapterError
from neural_tune_onnxruntime import weights

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
# Protobuf ends at 2 GB. Half a percent of it is left for the graph.
_MESSAGE_LIMIT = 2_136_000_000


def saved_size(proto: onnx.ModelProto) -> int:
    """Return the bytes that `save` writes for `proto`, from the graph alone."""
    return int(proto.ByteSize()) + sum(_growth(tensor) for tensor in proto.graph.initializer)


def save(proto: onnx.ModelProto, folder: Path, directory: Path, *, limit: int = _MESSAGE_LIMIT) -> Path:
    """Write `proto` with its weights below `directory` and return the path of the model.

    Args:
        proto: The graph; its large tensors lie in files in `folder`.
        folder: The weight store.
        directory: Created if it is missing.
        limit: Above so many bytes, tensors go to a data file beside the model.

    Raises:
        AdapterError: what was written does not pass onnx's own checker.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / MODEL_FILE
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    if saved_size(proto) <= limit:
        for tensor in result.graph.initializer:
            _embed(tensor, folder)
        (directory / DATA_FILE).unlink(missing_ok=True)
    else:
        _move_out(result, folder, directory / DATA_FILE)
    path.write_bytes(result.SerializeToString())
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        message = f"the saved model {path.name} does not pass onnx.checker: {error}"
        raise AdapterError(message) from error
    return path


def copy(artifact: Path, directory: Path) -> Path:
    """Copy a saved model, with the data file beside it if there is one, below `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / MODEL_FILE
    beside = artifact.with_name(f"{artifact.name}.data")
    for source, goal in ((artifact, target), (beside, directory / DATA_FILE)):
        if source.is_file() and source.resolve() != goal.resolve():
            shutil.copyfile(source, goal)
    return target


def _embed(tensor: onnx.TensorProto, folder: Path) -> None:
    if external_data_helper.uses_external_data(tensor):
        content = weights.raw(tensor, folder)
        _clear(tensor)
        tensor.raw_data = content


def _move_out(model: onnx.ModelProto, folder: Path, path: Path) -> None:
    """Write the tensors one at a time to `path`, so that no two of them are in memory together."""
    with path.open("wb") as file:
        for tensor in model.graph.initializer:
            if external_data_helper.uses_external_data(tensor):
                content = weights.read(tensor, folder)
                _clear(tensor)
                weights.point(tensor, path.name, *weights.append(file, content))


def _clear(tensor: onnx.TensorProto) -> None:
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def _growth(tensor: onnx.TensorProto) -> int:
    """Return by how many bytes `tensor` grows when its values move in."""
    if not external_data_helper.uses_external_data(tensor):
        return 0
    bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    content = weights.external_bytes([tensor])
    embedded = int(bare.ByteSize()) + 1 + _varint(content) + content
    pointing = int(tensor.ByteSize())
    return embedded + _varint(embedded) - pointing - _varint(pointing)


def _varint(value: int) -> int:
    return max(1, (value.bit_length() + 6) // 7)
