"""The composite action and the hook of docs/ci.md, run by a small runner: what is documented is what works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from neural_tune.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "ci.md").read_text()
pytest.importorskip("onnxruntime", reason='needs: pip install "neural-tune[onnxruntime]"')


def documented(name: str) -> Any:
    """Return the YAML block that the page says is the file `name`."""
    found = re.search(rf"<!-- file: {re.escape(name)} -->\n```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert found, name
    return yaml.safe_load(found[1])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with a job and its lock."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "examples" / "keyword_spotting", folder, dirs_exist_ok=True)
    fast = ["--set", "evaluation.performance.seconds=0.2"]
    assert main(["run", str(folder / "job.yaml"), "--workspace", str(folder / "runs"), "--quiet", *fast]) == 0
    (run,) = (folder / "runs" / "keyword_spotting").iterdir()
    assert main(["lock", str(run), "--output", str(folder / "neural-tune.lock.json")]) == 0
    return folder


def expanded(text: str, inputs: dict[str, str]) -> str:
    return re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda found: inputs[found[1]], text)


def run_step(step: dict[str, Any], inputs: dict[str, str], folder: Path, summary: Path) -> int:
    """Run one step as GitHub's runner does: bash with -e and pipefail, inputs through the environment."""
    assert step["shell"] == "bash"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "GITHUB_STEP_SUMMARY": str(summary),
        **{name: expanded(value, inputs) for name, value in step.get("env", {}).items()},
    }
    assert "${{" not in step["run"], "an expression inside a script is an injection"
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    return subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True).returncode


@pytest.mark.parametrize(
    ("arguments", "code"), [("--no-latency", 0), ("--no-latency --set tuning.accuracy_criterion.relative=0", 1)]
)
def test_the_composite_action_checks_the_lock_and_writes_the_summary(
    arguments: str, code: int, project: Path, tmp_path: Path
) -> None:
    action = documented("action.yml")
    inputs = {name: spec["default"] for name, spec in action["inputs"].items()} | {"arguments": arguments}
    install, check = action["runs"]["steps"]
    assert "pip install" in install["run"]  # nothing is downloaded in a test
    assert run_step(check, inputs, project, tmp_path / "summary.md") == code
    assert ("NO REGRESSION" if code == 0 else "REGRESSED") in (tmp_path / "summary.md").read_text()
    assert (project / "neural-tune-junit.xml").is_file()


def test_the_workflow_uses_the_action_with_inputs_that_it_has() -> None:
    steps = documented("workflow.yml")["jobs"]["check"]["steps"]
    (use,) = [step for step in steps if step["uses"].endswith("neural-tune-check")]
    assert set(use["with"]) <= set(documented("action.yml")["inputs"])


def test_the_hook_checks_the_locks_that_changed(project: Path) -> None:
    (hook,) = documented(".pre-commit-config.yaml")["repos"][0]["hooks"]
    assert re.search(hook["files"], "models/neural-tune.lock.json")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [*hook["entry"].split(), "neural-tune.lock.json", "--json"]
    done = subprocess.run(command, cwd=project, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"] is True
