from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neural_tune.evaluation import FunctionEvaluator, MetricEvaluator
from neural_tune.evaluation.identity import described

DATA = (np.zeros((4, 1)), np.zeros(4, int))

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import functools
import user_code
from neural_tune.evaluation import FunctionEvaluator, MetricEvaluator
specs = [{"topk": {"k": 3}}, {"f1": "macro"}, user_code.score, "user_code:score", user_code.Judge(), user_code.wrapped]
names = [dict.fromkeys(["callable"], spec) if callable(spec) else spec for spec in specs]
for spec in names:
    print(MetricEvaluator([], spec).identity())
for function in (user_code.score, user_code.wrapped, user_code.Judge(), functools.partial(user_code.score, labels={"b", "a"})):
    print(FunctionEvaluator(function).identity())
"""

USER_CODE = """
import functools

def loud(function):
    @functools.wraps(function)
    def called(*arguments):
        return function(*arguments)
    return called

def score(outputs, labels=("x", frozenset({"a", "b", "c"}))):
    if labels in {"alpha", "beta", "gamma"}:
        return max(item for item in outputs)
    return 0.5

@loud
def wrapped(outputs, labels):
    return 1.0

class Judge:
    def __call__(self, outputs, labels):
        return 0.25
"""


def identities(folder: Path, code: str, seed: int) -> list[str]:
    folder.mkdir()
    (folder / "user_code.py").write_text(code)
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()


def test_another_process_gives_the_same_identity_and_changed_code_another_one(tmp_path: Path) -> None:
    first = identities(tmp_path / "a", USER_CODE, 1)
    assert len(first) == 10
    assert identities(tmp_path / "b", "\n\n# moved\n" + USER_CODE, 2) == first
    changed = USER_CODE.replace("0.5", "0.75").replace("1.0", "2.0").replace("0.25", "0.125")
    others = identities(tmp_path / "c", changed, 1)
    assert [one == other for one, other in zip(first, others, strict=True)] == [True, True] + [False] * 8


def identity(spec: object) -> str:
    return MetricEvaluator(DATA, spec).identity()


def test_every_option_of_a_metric_is_in_its_identity_and_equal_specs_agree() -> None:
    assert identity("topk") == identity({"topk": 1}) == identity({"topk": {"k": 1, "output": 0}})
    different = [
        "topk",
        {"topk": 2},
        {"topk": {"name": "t"}},
        {"topk": {"output": 1}},
        {"topk": {"labels": "y"}},
        "mse",
    ]
    assert len({identity(spec) for spec in different}) == len(different)
    assert identity(["topk", "mse"]) != identity(["mse", "topk"])


def test_functions_with_one_bytecode_and_different_names_or_constants_differ() -> None:
    functions: list[Callable[..., Any]] = [
        lambda o, y: np.mean(o),
        lambda o, y: np.max(o),
        lambda o, y: np.mean(o) * 2,
        lambda o, y: np.mean(o) * 2.0,
        lambda o, y, scale=2: np.mean(o) * scale,
        lambda o, y, scale=3: np.mean(o) * scale,
        lambda o, y: sum(float(v) for v in o),
        lambda o, y: sum(float(v) + 1 for v in o),
        functools.partial(np.quantile, q=0.5),
        functools.partial(np.quantile, q=0.9),
    ]
    assert len({described(function) for function in functions}) == len(functions)
    assert len({FunctionEvaluator(function).identity() for function in functions}) == len(functions)
    stated = [identity({"callable": functions[0], "name": "m", "higher_is_better": h}) for h in (True, False)]
    assert len({*stated, identity({"callable": functions[0], "name": "m"})}) == 3


def test_calling_a_function_does_not_change_its_identity() -> None:
    calls = 0
    seen: list[int] = []

    def counted(model: object, log: list[int] = seen) -> float:
        nonlocal calls
        calls += 1
        log.append(calls)
        return sum(value * 0.5 for value in log)

    before = described(counted)
    for _ in range(3000):  # CPython specializes hot bytecode in place
        seen.clear()
        counted(None)
    assert described(counted) == before


def test_a_function_that_calls_itself_has_an_identity() -> None:
    def total(items: Any) -> float:
        return float(items) if not isinstance(items, list) else sum(total(item) for item in items)

    assert described(total).count("total") == 1


def test_a_baseline_of_another_option_or_another_callable_is_not_restored(tmp_path: Path) -> None:
    class Adapter:
        def run(self, built: np.ndarray, inputs: Any) -> tuple[np.ndarray, ...]:
            return (np.tile(built, (len(inputs), 1)),)

    pytest.importorskip("sklearn", reason="scikit-learn is not installed")

    def saved(spec: object) -> Path:
        evaluator = MetricEvaluator(DATA, spec)
        evaluator.baseline(Adapter(), np.array([3.0, 2.0, 1.0, 0.0]))  # type: ignore[arg-type]
        evaluator.save_baseline(tmp_path / "baseline.npz")
        return tmp_path / "baseline.npz"

    path = saved({"topk": {"k": 3}})
    assert MetricEvaluator(DATA, {"topk": 3}).restore_baseline(path)
    assert not MetricEvaluator(DATA, {"topk": 2}).restore_baseline(path)
    path = saved({"callable": lambda o, y: 1.0, "name": "m"})
    assert not MetricEvaluator(DATA, {"callable": lambda o, y: 2.0, "name": "m"}).restore_baseline(path)
