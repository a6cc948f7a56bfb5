"""The wheel that a user gets: built from the sdist, installed away from the sources, and used to tune a real model.

No network: the build backend and the heavy dependencies come from the environment that runs the tests. The fresh
environment sees that environment's packages through one path entry, which Python does not search for further path
files, so an editable installation of the sources there stays out of sight.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = ("neural_tune_onnxruntime", "neural_tune_pytorch", "neural_tune_tensorflow")
PACKAGES = ("neural_tune", *ADAPTERS, "neural_tune_strategies")
pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `command` in `cwd` with an environment that says nothing about Python's paths."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "VIRTUAL_ENV"))
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that was built from it."""
    for package in ("build", "hatchling", "editables"):
        pytest.importorskip(package, reason=f"building needs {package}: pip install --group test")
    target = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", target, ROOT, cwd=target)
    (sdist,), (wheel,) = target.glob("*.tar.gz"), target.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def python(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment in which only the wheel is installed, beside the borrowed dependencies."""
    home = tmp_path_factory.mktemp("fresh environment")
    venv.create(home, with_pip=False, symlinks=True)
    interpreter = home / "bin" / "python"
    install = (
        sys.executable,
        "-m",
        "pip",
        "--python",
        interpreter,
        "install",
        "--no-deps",
        "--no-index",
        distributions[1],
    )
    run(*install, cwd=home)
    (packages,) = home.glob("lib/python*/site-packages")
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "borrowed.pth").write_text("".join(f"{folder}\n" for folder in sorted(borrowed)))
    return interpreter


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_wheel_holds_core_adapters_and_strategies_with_their_types(distributions: tuple[Path, Path]) -> None:
    names = set(names_in(distributions[1]))
    for package in PACKAGES:
        assert f"{package}/__init__.py" in names
        assert f"{package}/py.typed" in names
    assert "neural_tune/cli.py" in names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)


def test_every_source_module_is_in_the_wheel(distributions: tuple[Path, Path]) -> None:
    roots = (
        ROOT / "neural_tune",
        *(ROOT / "adapters" / name for name in ADAPTERS),
        ROOT / "strategies" / "neural_tune_strategies",
    )
    sources = {path.relative_to(root.parent).as_posix() for root in roots for path in root.rglob("*.py")}
    assert sources == {name for name in names_in(distributions[1]) if name.endswith(".py")}


def test_wheel_holds_no_tests_examples_or_caches(distributions: tuple[Path, Path]) -> None:
    names = names_in(distributions[1])
    assert not [
        name
        for name in names
        if name.split("/")[0] in {"tests", "docs", "examples", "benchmarks", "adapters", "strategies"}
    ]
    assert not [name for name in names if name.endswith((".pyc", ".onnx", ".npz")) or "__pycache__" in name]


def test_wheel_carries_the_licence(distributions: tuple[Path, Path]) -> None:
    licences = {name.rsplit("/", 1)[1] for name in names_in(distributions[1]) if ".dist-info/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE"}


def test_sdist_holds_what_is_needed_to_build_and_test(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[0]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for name in (
        "pyproject.toml",
        "Makefile",
        "constraints.txt",
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "tests/conftest.py",
    ):
        assert name in names
    assert "examples/keyword_spotting/job.yaml" in names
    assert not [name for name in names if name.startswith((".venv", "dist", "nt_workspace")) or "__pycache__" in name]


def test_wheel_registers_the_entry_points_of_pyproject(distributions: tuple[Path, Path]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    expected = {**project["entry-points"], "console_scripts": project["scripts"]}
    parser = ConfigParser()
    with zipfile.ZipFile(distributions[1]) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        parser.read_string(archive.read(name).decode())
    assert {group: dict(parser[group]) for group in parser.sections()} == expected


def test_installed_packages_are_the_wheels_not_the_sources(python: Path, tmp_path: Path) -> None:
    code = f"import {', '.join(PACKAGES)}\nprint(*({', '.join(f'{name}.__file__' for name in PACKAGES)}), sep='\\n')"
    found = run(python, "-c", code, cwd=tmp_path).stdout.splitlines()
    home = python.parents[1]
    assert [Path(path).is_relative_to(home) for path in found] == [True] * len(PACKAGES), found


def test_installed_command_lists_every_registered_plugin(python: Path, tmp_path: Path) -> None:
    listed = run(python.parent / "neural-tune", "list", cwd=tmp_path, COLUMNS="200").stdout
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    for name in (name for group in groups.values() for name in group):
        assert name in listed


def test_installed_wheel_tunes_the_example_to_an_accepted_model(python: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason='the example needs: pip install "neural-tune[onnxruntime]"')
    example = tmp_path / "keyword_spotting"
    shutil.copytree(ROOT / "examples" / "keyword_spotting", example, ignore=shutil.ignore_patterns("nt_workspace"))
    run(python.parent / "neural-tune", "run", example / "job.yaml", cwd=tmp_path)
    (written,) = tmp_path.rglob("result.json")
    result = json.loads(written.read_text())
    assert result["status"] == "accepted"
    assert result["size_ratio"] > 1.5
    assert any(op["precision"] != "float" for op in result["ops"])


KERAS = """\
import keras

keras.utils.set_random_seed(0)
layers = [keras.Input((12, 12, 3)), keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.Flatten(), keras.layers.Dense(5)]
model = keras.Sequential(layers)
model.save("net.keras")
model.export("net_saved", verbose=False)
"""
TORCH = """\
def make():
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(800, 5)).eval()
"""


@pytest.mark.parametrize(
    ("needs", "models"),
    [
        ("onnxruntime", [["model.onnx"]]),
        ("tensorflow", [["net.keras"], ["net_saved"]]),
        ("torchao", [["nets:make", "--shape", "input=1,3,12,12"]]),
    ],
)
def test_a_new_user_needs_a_model_and_two_commands(
    needs: str, models: list[list[str]], python: Path, tmp_path: Path
) -> None:
    pytest.importorskip(needs, reason=f"this adapter needs {needs}")
    shutil.copy(ROOT / "examples" / "keyword_spotting" / "model" / "dscnn_kws.onnx", tmp_path / "model.onnx")
    (tmp_path / "nets.py").write_text(TORCH)
    if needs == "tensorflow":
        run(python, "-c", KERAS, cwd=tmp_path, TF_CPP_MIN_LOG_LEVEL="3")
    for number, words in enumerate(models):
        job = f"job_{number}.yaml"
        command = python.parent / "neural-tune"
        run(command, "init", *words, "--output", job, cwd=tmp_path, TF_CPP_MIN_LOG_LEVEL="3")
        fast = ("--set", "evaluation.performance.seconds=0.2", "--set", f"model.name=try_{number}")
        run(command, "run", job, *fast, cwd=tmp_path, TF_CPP_MIN_LOG_LEVEL="3")
        (written,) = (tmp_path / "nt_workspace" / f"try_{number}").glob("*/result.json")
        assert json.loads(written.read_text())["status"] == "accepted"
