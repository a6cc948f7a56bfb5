"""What a saved model says about itself: a small JSON text inside the file, readable without torch."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neural_tune.errors import AdapterError
from neural_tune.protocols import BuildReport
from neural_tune.values import FrozenMap, from_jsonable, to_jsonable
from neural_tune_pytorch.calling import Calling

METADATA = "neural_tune.json"
_FORMAT = 1
_MOST_BYTES = 64 << 20


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


def empty_report() -> BuildReport:
    """Return the report of a model about which nothing is known."""
    return BuildReport(ops=(), counts=FrozenMap())
