"""Every example in README.md and docs/ is executed, in a folder that looks like a clone to it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNNER = Path(__file__).with_name("run_page.py")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_SPEC = importlib.util.spec_from_file_location("run_page", RUNNER)
assert _SPEC is not None
assert _SPEC.loader is not None
run_page = importlib.util.module_from_spec(_SPEC)
sys.modules["run_page"] = run_page
_SPEC.loader.exec_module(run_page)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def has_examples(page: Path) -> bool:
    return any(block.mark == "run" for block in run_page.blocks(page.read_text(encoding="utf-8")))


def headings(text: str) -> set[str]:
    """Return the anchors of a page, made as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_every_example_says_whether_it_runs(page: Path) -> None:
    found = list(run_page.blocks(page.read_text(encoding="utf-8")))
    unmarked = [
        f"{page.name}:{block.line}" for block in found if block.language in run_page.LANGUAGES and not block.mark
    ]
    assert not unmarked, "put <!-- run -->, <!-- file: NAME --> or <!-- skip: REASON --> on the line before the block"
    assert not [block for block in found if block.mark in {"skip", "file"} and not block.argument]
    assert not [block for block in found if block.language not in {*run_page.LANGUAGES, "text", "toml", "makefile"}]


@every_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path) if path else page
        assert other.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            assert anchor in headings(other.read_text(encoding="utf-8")), (
                f"{page.name} links to {target}: no such heading"
            )


def test_every_page_is_reachable_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    missing = [
        page.name for page in PAGES if page.parent.name == "docs" and page.name != "index.md" and page.name not in index
    ]
    assert not missing


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the examples where a clone has them, and nothing of the sources."""
    caches = shutil.ignore_patterns("__pycache__", "nt_workspace", "*.egg-info")
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=caches)
    shutil.copytree(ROOT / "tests" / "plugin_example", tmp_path / "tests" / "plugin_example", ignore=caches)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if has_examples(page)], ids=lambda path: path.name)
@pytest.mark.slow
def test_examples_of_the_page_run(page: Path, clone: Path) -> None:
    pytest.importorskip("onnxruntime", reason='the examples need: pip install "neural-tune[onnxruntime]"')
    copy = clone / page.name
    shutil.copyfile(page, copy)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "120",
    }
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-W", "error", str(RUNNER), str(copy)]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-8000:]}"


def test_the_runner_notices_a_broken_example(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for block in ("```python\nassert 1 + 1 == 3\n```", "```console\n$ exit 3\n```"):
        page.write_text(f"Text.\n\n<!-- run -->\n{block}\n")
        done = subprocess.run(
            [sys.executable, str(RUNNER), str(page)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        assert "page.md" in done.stderr


def test_the_runner_shares_names_and_files_between_blocks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- run -->\n```python\nnumber = 41\n```\n\n<!-- file: folder/other.py -->\n```python\nONE = 1\n```\n\n"
        "<!-- run -->\n```python\nfrom folder.other import ONE\nassert number + ONE == 42\n```\n\n"
        "<!-- run: exit 3 -->\n```console\n$ exit 3\n```\n\n<!-- skip: never -->\n```python\nraise SystemExit(1)\n```\n"
    )
    done = subprocess.run(
        [sys.executable, str(RUNNER), str(page)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
