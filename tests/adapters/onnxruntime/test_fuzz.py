"""Whatever is put in: a typed error, or a valid model that agrees with float. Never a crash, never a silent wrong answer."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import json
import signal
import subprocess
import sys
from pathlib import Path

import fuzzing
import numpy as np

CASES = 32 * len(fuzzing.KINDS)
# Cases per child, 3 s of processor time.
CHUNK = 8 * len(fuzzing.KINDS)
CHILD_SECONDS = 500


@pytest.fixture(scope="module")
def verdicts():
    """All cases, in child processes of 152: one that takes the interpreter down, or does not end, is a verdict too, and the next child goes on behind it."""
    found, first = {}, 0
    while first < CASES:
        begun, verdicts, end = run_child([fuzzing.__file__, str(first), str(min(CHUNK, CASES - first))])
        found |= verdicts
        if end:
            assert begun, f"the child does not even start: {end}"
            found[begun[-1]] = f"WRONG: {end}"
        first = begun[-1] + 1
    return found


def run_child(arguments):
    """The cases that a child began, their verdicts, and how it ended if not well.

    The child watches its own processor time, so a machine that stops it for minutes is no failure; the time limit here is for a child that cannot.
    """
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=CHILD_SECONDS,
            cwd=Path(fuzzing.__file__).parent,
        )
        output, end = (
            done.stdout,
            done.returncode and f"the interpreter ended with code {done.returncode}: {done.stderr[-500:]}",
        )
    except subprocess.TimeoutExpired as error:
        output, end = (error.stdout or b"").decode(), f"no end within {CHILD_SECONDS} s"
    lines = [json.loads(line) for line in output.splitlines()]
    return (
        [x["case"] for x in lines if "verdict" not in x],
        {x["case"]: x["verdict"] for x in lines if "verdict" in x},
        end,
    )


@pytest.mark.slow
@pytest.mark.timeout(4 * CHILD_SECONDS + 100)
@pytest.mark.parametrize("kind", fuzzing.KINDS)
def test_broken_and_odd_models_give_a_typed_error_or_agree_with_float(verdicts, kind):
    mine = {case: verdict for case, verdict in verdicts.items() if fuzzing.kind_of(case) == kind}
    assert len(mine) == 32
    assert {case: verdict for case, verdict in mine.items() if verdict.startswith("WRONG")} == {}


@pytest.mark.slow
def test_there_are_five_hundred_cases_and_both_ends_occur(verdicts):
    assert len(verdicts) == CASES >= 500
    healthy = [verdict for case, verdict in verdicts.items() if fuzzing.kind_of(case) == "healthy"]
    assert set(healthy) == {"ok"}
    refused = sum(verdict.startswith("refused") for verdict in verdicts.values())
    assert 0.2 * CASES < refused < 0.7 * CASES


def test_judge_notices_a_wrong_answer(tmp_path, monkeypatch):
    """A bias left out, as the runtime does with beta of a Gemm, is no rounding."""
    whole = fuzzing._int8_outputs

    def forgetful(path, feeds, folder, rng):
        return [values - values.mean(axis=0) for values in whole(path, feeds, folder, rng)]

    monkeypatch.setattr(fuzzing, "_int8_outputs", forgetful)
    assert fuzzing.judge(0, tmp_path).startswith("WRONG")


def test_same_case_is_the_same_model():
    first, second = (fuzzing.KINDS["healthy"](np.random.default_rng([2026, 0])) for _ in range(2))
    assert first.model.SerializeToString() == second.model.SerializeToString()


STUCK = """
import fuzzing, json, time
print(json.dumps({{"case": 7}}), flush=True)
fuzzing.guard({cpu_seconds}, {wall_seconds})
{endless}
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="only POSIX systems limit the processor time of a process")
@pytest.mark.parametrize(
    ("endless", "cpu_seconds", "wall_seconds", "words"),
    [("while True: pass", 0.2, 400, "code -27"), ("time.sleep(60)", 30, 1, "Timeout")],
)
def test_case_that_does_not_end_is_named(endless, cpu_seconds, wall_seconds, words):
    """In circles, where processor time tells, and in wait, where the clock does."""
    script = STUCK.format(endless=endless, cpu_seconds=cpu_seconds, wall_seconds=wall_seconds)
    begun, verdicts, end = run_child(["-c", script])
    assert (begun, verdicts) == ([7], {})
    assert words in end
