from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from neural_tune import measure


def test_four_times_the_time_measures_as_about_four_times_slower() -> None:
    # Sleeping is the one kind of work whose true ratio does not depend on what else the machine does.
    result = measure.compare_speed(
        lambda: time.sleep(0.02), lambda: time.sleep(0.005), batch_size=1, threads=1, warmup=1, repeats=40, seconds=1.5
    )
    assert 3.0 < result.ratio < 4.5
    assert result.low <= result.ratio <= result.high
    assert result.rounds >= 10


def test_the_same_time_measures_as_equal() -> None:
    result = measure.compare_speed(
        lambda: time.sleep(0.01), lambda: time.sleep(0.01), batch_size=1, threads=1, repeats=40, seconds=1.0
    )
    assert 0.85 < result.ratio < 1.15


def test_both_sides_run_equally_often_and_take_turns_in_going_first() -> None:
    calls: list[str] = []
    measure.compare_speed(
        lambda: calls.append("f"), lambda: calls.append("q"), batch_size=1, threads=1, warmup=1, repeats=10, seconds=9.0
    )
    assert calls.count("f") == calls.count("q") == 11
    assert "".join(calls[2:]) == "fqqf" * 5


def test_size_on_disk_adds_up_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 10)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"x" * 5)
    assert measure.size_on_disk(tmp_path) == 15
    assert measure.size_on_disk(tmp_path / "a") == 10


def test_the_peak_of_a_fresh_process_is_its_own_and_not_that_of_its_parent() -> None:
    script = (
        "import subprocess, sys; block = bytearray(400 << 20); block[::4096] = b'x' * len(block[::4096])\n"
        "code = 'from neural_tune.memory_probe import peak_bytes; print(peak_bytes())'\n"
        "print(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 1 << 20 < int(done.stdout) < 300 << 20


def test_equal_models_are_hardly_ever_told_apart_by_looking_again_and_again() -> None:
    early = 0
    for seed in range(300):
        noise = np.random.default_rng(seed).normal(0.0, 0.02, (100, 2))
        rows = [(float(one), float(other)) for one, other in np.exp(noise)]
        # Hardly ever is the interval narrow enough by itself so early; with a 95 % interval against 1, 37 of these would end.
        early += any(measure._is_settled(rows[:count]) for count in range(30, 80, 10))
    assert early <= 20
    faster = [(1.5 * one, other) for one, other in rows]
    assert measure._is_settled(faster)
