"""Promise 9 of the design: `import neural_tune` and `neural-tune --help` load no framework and take under 0.3 s."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "tensorflow",
    "keras",
    "onnx",
    "onnxruntime",
    "sklearn",
    "torchmetrics",
    "scipy",
    "rich",
    "ray",
    "plotly",
)
LIST_HEAVY = f"import sys; print(*(name for name in {HEAVY!r} if name in sys.modules))"
BUDGET_SECONDS = 0.3
ROUNDS = 7


def run(code: str) -> str:
    """Return what `code` prints in a fresh interpreter that reads no environment variable and sees no working directory."""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(code: str) -> list[str]:
    return run(f"{code}\n{LIST_HEAVY}").splitlines()[-1].split()


def test_the_list_of_loaded_packages_notices_a_heavy_one() -> None:
    pytest.importorskip("rich", reason="the check is checked with rich, which every installation has")
    assert "rich" in loaded_by("import rich")


def test_import_loads_no_framework() -> None:
    assert loaded_by("import neural_tune") == []


def test_naming_the_public_interface_loads_no_framework() -> None:
    names = "AccuracyCriterion, PostTrainingQuantConfig, QuantizationAwareTrainingConfig, TuningCriterion, fit, load"
    assert loaded_by(f"from neural_tune import {names}") == []


def test_listing_plugins_loads_no_framework() -> None:
    code = "from neural_tune import plugins\nassert plugins.adapters()\nassert plugins.strategies()"
    assert loaded_by(code) == []


def test_help_loads_no_framework() -> None:
    code = (
        "import sys\nfrom neural_tune.cli import main\n"
        "try:\n    code = main(['--help'])\nexcept SystemExit as stop:\n    code = stop.code\n"
        "assert not code, code"
    )
    assert loaded_by(code) == []


def seconds(code: str) -> float:
    """Return the processor time of a child that runs `code`: other jobs on the machine hardly change it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    "statement",
    [
        "import neural_tune",
        "from neural_tune import PostTrainingQuantConfig, fit, load",
        "import contextlib\nfrom neural_tune.cli import main\nwith contextlib.suppress(SystemExit): main(['--help'])",
    ],
    ids=["import", "public names", "help"],
)
def test_start_up_adds_less_than_the_budget_to_numpy(statement: str) -> None:
    # The one test of the project that looks at a clock, because start-up time is a promise to the user. It asks for the
    # time that neural_tune adds to an interpreter with numpy, and takes the smallest of several alternating runs of each:
    # a busy machine makes single runs slower, never faster. It ends at the first round that shows the budget is held.
    bare, ours = [], []
    for _ in range(ROUNDS):
        bare.append(seconds("import numpy"))
        ours.append(seconds(f"import numpy\n{statement}"))
        if min(ours) - min(bare) < BUDGET_SECONDS:
            return
    pytest.fail(
        f"{statement!r} adds {min(ours) - min(bare):.2f} s to `import numpy`, expected under {BUDGET_SECONDS} s"
    )
