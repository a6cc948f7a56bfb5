"""What a saved model says about itself (a small JSON text inside the file, readable without torch), and that it is loaded as data, never as code."""

from __future__ import annotations

import json
import os
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from neural_tune.errors import AdapterError
from neural_tune.protocols import BuildReport
from neural_tune.values import from_jsonable, to_jsonable
from neural_tune_pytorch.calling import Calling

METADATA = "neural_tune.json"
_FORMAT = 1
_MOST_BYTES = 64 << 20
# torch.load then takes weights_only=True whatever it is called with.
_ONLY_WEIGHTS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
# Members that torch.export.load hands to an unpickler of its own.
_OBJECTS = ("opaque_obj_", "custom_obj_")
_LOCK = threading.RLock()


@contextmanager
def data_only(artifact: Path) -> Iterator[None]:
    """Let torch read the model file `artifact` inside the block without unpickling objects.

    Left alone, torch.export.load (2.13) tries `weights_only=True` on the sample inputs and, where that fails, unpickles whatever is there; so it does with weights
    that the file declares to be pickled.

    Raises:
        AdapterError: the file holds pickled objects.
    """
    held = [name for name in _members(artifact) if any(mark in name.lower() for mark in _OBJECTS)]
    if held:
        raise AdapterError(
            f"{artifact.name} holds pickled objects ({held[0]!r}), which may run code when they are loaded: export the model without custom objects"
        )
    with _LOCK:
        before = os.environ.get(_ONLY_WEIGHTS)
        os.environ[_ONLY_WEIGHTS] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_ONLY_WEIGHTS]
            else:
                os.environ[_ONLY_WEIGHTS] = before


def _members(artifact: Path) -> tuple[str, ...]:
    """Return the members of an archive as torch's own reader sees them; () for what it cannot read, as loading will say."""
    try:
        return tuple(map(str, torch._C.PyTorchFileReader(str(artifact)).get_all_records()))  # noqa: SLF001 - another reader may see another file
    except RuntimeError:
        return ()


def metadata(backend: str, calling: Calling, report: BuildReport, **more: Any) -> str:
    """Return the text that goes into the extra file `METADATA` of a saved model."""
    content = {
        "format": _FORMAT,
        "backend": backend,
        "calling": calling.to_json(),
        "report": to_jsonable(report),
        **more,
    }
    return json.dumps(content, sort_keys=True)


def metadata_of(artifact: Path) -> dict[str, Any]:
    """Return what `metadata` wrote; {} for a sound archive of somebody else.

    Raises:
        AdapterError: there is no such file, or it is torn.
    """
    if not artifact.is_file():
        raise AdapterError(f"found no file {str(artifact)!r}, expected a model that `save` wrote")
    try:
        with zipfile.ZipFile(artifact) as archive:
            found = [item for item in archive.infolist() if item.filename.endswith(f"extra/{METADATA}")]
            if not found:
                return {}
            if found[0].file_size > _MOST_BYTES:
                raise AdapterError(
                    f"{artifact.name}: its description takes {found[0].file_size} bytes, which no model needs"
                )
            content = json.loads(archive.read(found[0]))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise AdapterError(f"{artifact.name} is no readable model ({error}); it may be torn: save it again") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise AdapterError(
            f"{artifact.name}: found a description of another version than {_FORMAT}; update neural_tune"
        )
    return content


def calling_of(content: Mapping[str, Any]) -> Calling:
    """Return the calling convention in a description. Raises AdapterError where it is malformed."""
    return Calling.from_json(content.get("calling", {}))


def report_of(content: Mapping[str, Any]) -> BuildReport:
    """Return the report in a description."""
    return from_jsonable(BuildReport, content.get("report", {"ops": []}))
