"""A stranger's distribution: built, installed, discovered, held to the kits and used; and what happens to bad ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[1] / "plugin_example"


def _python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=300,
        cwd=site,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing in it but the installed example."""
    for package in ("pip", "hatchling"):
        pytest.importorskip(package, reason=f"building needs {package}: pip install --group test")
    source = tmp_path_factory.mktemp("source") / "example"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", target, source], check=True, capture_output=True)
    return target


def test_both_plugins_are_discovered_and_loaded_at_first_use_only(site):
    code = """
import sys
from neural_tune import plugins
adapter, strategy = plugins.adapters()["example"], plugins.strategies()["one_by_one"]
print(adapter.summary, strategy.summary, sep=" | ")
print(sorted(name for name in sys.modules if name.startswith("nt_plugin_example")))
print(plugins.strategy("one_by_one", 0, backwards=True).backwards, "basic" in plugins.strategies())
from nt_plugin_example.model import ExampleModel
print(plugins.adapter_for(ExampleModel([], [])).name, plugins.adapter_for("x.bin", "example").name)
"""
    done = _python(site, "-c", code)
    assert done.stdout.splitlines() == [
        "models of the example framework | full int8, then one group at a time in float",
        "['nt_plugin_example', 'nt_plugin_example.plugin']",
        "True True",
        "example example",
    ], done.stderr


def test_both_plugins_pass_the_conformance_kits(site):
    conformance = EXAMPLE / "tests" / "conformance.py"
    done = _python(
        site, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(site), "-p", "no:cacheprovider", str(conformance)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


def test_fit_tunes_a_strangers_model_with_a_strangers_strategy(site, tmp_path):
    code = f"""
from neural_tune import PostTrainingQuantConfig, TuningCriterion, fit
from neural_tune.testing import sabotage, toy_task
from nt_plugin_example.model import ExampleModel
task = toy_task()
broken = sabotage(task.model, "dense3")
model = ExampleModel(broken.weights, broken.biases)
result = fit(
    model,
    PostTrainingQuantConfig(
        tuning_criterion=TuningCriterion(strategy="one_by_one", objective="size"), workspace={str(tmp_path)!r}
    ),
    calib_dataloader=task.batches(),
    eval_func=task.accuracy,
    reporter="quiet",
)
print(result.status, len(result.trials), sorted(result.best.trial.candidate.ops))
print(task.accuracy(result.model) == result.best.metrics["accuracy"])
"""
    done = _python(site, "-c", code)
    assert done.stdout.splitlines() == ["accepted 4 ['dense1', 'dense2', 'dense4']", "True"], done.stdout + done.stderr


def _distribution(site: Path, name: str, group: str, entry: str, module: str) -> None:
    """Craft an installed distribution by hand: a module, and a dist-info folder with an entry point."""
    site.mkdir(exist_ok=True)
    package = name.replace("-", "_")
    (site / f"{package}.py").write_text(module, encoding="utf-8")
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry} = {package}:PLUGIN\n", encoding="utf-8")


STRATEGY = """
from neural_tune.plugins import StrategyPlugin
PLUGIN = StrategyPlugin(name="twin", summary="", create=lambda **options: None)
"""


def _discovery_error(site: Path, function: str) -> str:
    code = f"""
from neural_tune import plugins
from neural_tune.errors import PluginError
try:
    print(sorted(plugins.{function}()))
except PluginError as error:
    print("PluginError:", error)
"""
    done = _python(site, "-c", code)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_name_that_is_registered_twice_is_an_error_that_names_both_owners(tmp_path):
    site = tmp_path / "site"
    _distribution(site, "first-owner", "neural_tune.strategies", "twin", STRATEGY)
    assert "twin" in _discovery_error(site, "strategies")
    _distribution(site, "second-owner", "neural_tune.strategies", "twin", STRATEGY)
    message = _discovery_error(site, "strategies")
    assert message.startswith(
        "PluginError: neural_tune.strategies: 'twin' is registered twice, by first-owner (first_owner:PLUGIN)"
    )
    assert "second-owner (second_owner:PLUGIN); uninstall one" in message


def test_a_stranger_cannot_replace_a_first_party_plugin(tmp_path):
    site = tmp_path / "site"
    _distribution(site, "impostor", "neural_tune.strategies", "basic", STRATEGY.replace('"twin"', '"basic"'))
    message = _discovery_error(site, "strategies")
    assert "'basic' is registered twice" in message
    assert "impostor" in message
    assert "neural-tune" in message


@pytest.mark.parametrize(
    ("group", "function", "expected"),
    [
        ("neural_tune.strategies", "strategies", "StrategyPlugin"),
        ("neural_tune.adapters", "adapters", "AdapterPlugin"),
    ],
)
def test_an_entry_point_of_the_wrong_type_is_an_error_that_names_its_owner(tmp_path, group, function, expected):
    site = tmp_path / "site"
    _distribution(site, "wrong-type", group, "odd", "class PLUGIN: pass\n")
    assert _discovery_error(site, function) == (
        f"PluginError: entry point 'odd' of wrong-type in {group}: found a type, expected a neural_tune.plugins.{expected}\n"
    )


def test_a_strategy_in_the_adapters_group_is_an_error(tmp_path):
    site = tmp_path / "site"
    _distribution(site, "wrong-group", "neural_tune.adapters", "twin", STRATEGY)
    assert "found a StrategyPlugin, expected a neural_tune.plugins.AdapterPlugin" in _discovery_error(site, "adapters")


def test_an_entry_point_that_describes_another_name_is_an_error(tmp_path):
    site = tmp_path / "site"
    _distribution(site, "misnamed", "neural_tune.strategies", "other", STRATEGY)
    assert _discovery_error(site, "strategies") == (
        "PluginError: entry point 'other' of misnamed in neural_tune.strategies describes 'twin'; make the names equal\n"
    )


def test_an_entry_point_that_cannot_be_imported_names_its_owner(tmp_path):
    site = tmp_path / "site"
    _distribution(site, "broken-one", "neural_tune.strategies", "broken", "import no_such_module_anywhere\n")
    message = _discovery_error(site, "strategies")
    assert message.startswith(
        "PluginError: entry point 'broken' of broken-one in neural_tune.strategies cannot be loaded"
    )
    assert "no_such_module_anywhere" in message
