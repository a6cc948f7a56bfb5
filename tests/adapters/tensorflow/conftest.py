"""Lets the tests of this folder import the builders beside them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorflow", reason='needs pip install "neural-tune[tensorflow]"')
sys.path.insert(0, str(Path(__file__).parent))
