"""The map of the core in docs/architecture.md names every module there is, and none that is not."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "neural_tune"


def test_the_map_names_every_module_of_the_core():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("## Where to look")[1].split("An adapter has")[0]
    named = set(re.findall(r"`(\w+\.py|\w+/)`", section))
    files = {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    folders = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert sorted((files | folders) - named) == [], "give the module a row in docs/architecture.md"
    assert sorted(named - files - folders - {"neural_tune/"}) == [], "docs/architecture.md names modules that are gone"
