"""A saved model with the little that `neural_tune.load` needs to know, for models that no run certified."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from neural_tune.errors import ConfigError
from neural_tune.protocols import AnyAdapter
from neural_tune.result import RESULT_VERSION

NOT_CERTIFIED = "not certified"


def write_uncertified(adapter: AnyAdapter, built: Any, directory: str | os.PathLike[str], reason: str) -> Path:
    """Write `built` and a result.json that says that nobody measured it; return the artifact's path.

    Raises:
        ConfigError: `directory` is a file.
    """
    target = Path(directory)
    if target.exists() and not target.is_dir():
        raise ConfigError(f"save: found a file at {target}, expected a folder or nothing")
    target.mkdir(parents=True, exist_ok=True)
    artifact = adapter.save(built, target)
    stored = {
        "version": RESULT_VERSION,
        "status": NOT_CERTIFIED,
        "reason": reason,
        "framework": adapter.name,
        "artifact": artifact.name,
    }
    (target / "result.json").write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")
    return artifact
