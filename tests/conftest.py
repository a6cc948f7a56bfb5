"""Shared fixtures: where the real models and data are, and a seed that every test prints on failure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# pytest-xdist sets the width of the terminal for its workers; here nobody looks at a terminal, and tables take the room they need.
os.environ.pop("COLUMNS", None)

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pretrained models and data; the test skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real models are not here: no folder {SHARED_DATA.name} beside the project (../shared/data)")
    return SHARED_DATA
