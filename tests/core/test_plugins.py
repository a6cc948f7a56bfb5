"""Choosing a plug-in: by name, by the model, and what is said when nothing (or too much) fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from neural_tune import plugins
from neural_tune.errors import PluginError
from neural_tune.plugins import StrategyPlugin
from neural_tune.testing import TOY_PLUGIN, ToyModel


@pytest.fixture
def registered(monkeypatch):
    """Register exactly the given adapters."""

    def register(*found):
        monkeypatch.setattr(plugins, "adapters", lambda: {plugin.name: plugin for plugin in found})

    return register


NEEDY = replace(TOY_PLUGIN, name="needy", requires=("numpy", "no_such_package"), install="needy[all]")
TWIN = replace(TOY_PLUGIN, name="twin")


def test_the_adapter_that_accepts_the_model_is_loaded(registered):
    registered(replace(TOY_PLUGIN, name="other", accepts=lambda model: False), TOY_PLUGIN)
    assert plugins.adapter_for(ToyModel([], [])).name == "toy"
    assert plugins.adapter_for("model.toy.npz").name == "toy"


def test_a_named_adapter_is_loaded_without_asking_whether_it_accepts(registered):
    registered(TOY_PLUGIN, TWIN)
    assert plugins.adapter_for(object(), "toy").name == "toy"


def test_a_model_that_nobody_accepts_names_its_type_and_the_installed_adapters(registered):
    registered(TOY_PLUGIN)
    with pytest.raises(
        PluginError, match=r"no adapter accepts a builtins\.dict; installed adapters: toy\. Pass a path"
    ):
        plugins.adapter_for({})
    with pytest.raises(PluginError, match=r"no adapter accepts 'model\.onnxx'"):
        plugins.adapter_for("model.onnxx")
    registered()
    with pytest.raises(PluginError, match="installed adapters: none"):
        plugins.adapter_for({})


def test_a_model_that_several_accept_names_them(registered):
    registered(TOY_PLUGIN, TWIN)
    with pytest.raises(PluginError, match=r"several adapters accept .*ToyModel: toy, twin\. Name one"):
        plugins.adapter_for(ToyModel([], []))


def test_an_unknown_framework_names_the_installed_ones(registered):
    registered(TOY_PLUGIN)
    with pytest.raises(PluginError, match="no adapter named 'mxnet'; installed: toy"):
        plugins.adapter_for(ToyModel([], []), "mxnet")


@pytest.mark.parametrize("framework", ["", "needy"])
def test_a_missing_package_names_the_pip_command(registered, framework):
    registered(NEEDY)
    assert NEEDY.missing == ("no_such_package",)
    with pytest.raises(PluginError, match=r"adapter 'needy' needs no_such_package.*pip install \"needy\[all\]\""):
        plugins.adapter_for("model.toy.npz", framework)


def test_an_adapter_without_its_framework_is_not_called_ready(registered):
    registered(TOY_PLUGIN, NEEDY)
    expected = r'installed adapters: toy; without their framework: needy \(pip install "needy\[all\]"\)\.'
    with pytest.raises(PluginError, match=expected):
        plugins.adapter_for({})
    with pytest.raises(
        PluginError, match=r"no adapter named 'nedy' \(did you mean 'needy'\?\); installed: toy; without"
    ):
        plugins.adapter_for({}, "nedy")


def test_an_unknown_strategy_names_the_installed_ones():
    with pytest.raises(PluginError, match=r"no strategy named 'lazy_eval'; installed: .*basic.*exhaustive.*random"):
        plugins.strategy("lazy_eval", 0)


def test_a_strategy_with_a_missing_package_names_the_pip_command(monkeypatch):
    plugin = StrategyPlugin(
        name="s", summary="", create=lambda **_: None, requires=("no_such_package",), install="neural-tune[x]"
    )
    monkeypatch.setattr(plugins, "strategies", lambda: {"s": plugin})
    with pytest.raises(PluginError, match=r"strategy 's' needs no_such_package.*pip install \"neural-tune\[x\]\""):
        plugins.strategy("s", 0)


def test_listing_loads_no_framework():
    import subprocess
    import sys

    code = (
        "import sys; from neural_tune import plugins; plugins.adapters(), plugins.strategies();"
        "print(sorted({'torch', 'tensorflow', 'onnx', 'onnxruntime', 'pytest', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_toy_kit_is_importable_without_pytest():
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "from neural_tune import testing\n"
        "print(testing.toy_task().model.dense_names[0])\n"
        "try:\n    testing.AdapterConformance\nexcept ImportError as error:\n    print('needs pytest')\n"
        "try:\n    testing.Nothing\nexcept AttributeError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "dense1",
        "needs pytest",
        "module 'neural_tune.testing' has no attribute 'Nothing'",
    ]
