"""Interleaved measurement: the contestants take turns, so that a slow minute of the machine hits all of them alike."""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Times:
    """Repeated measurements of one contestant, in seconds."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    @property
    def cpu_median(self) -> float:
        """Median of the processor time."""
        return statistics.median(self.cpu)

    @property
    def wall_median(self) -> float:
        """Median of the elapsed time."""
        return statistics.median(self.wall)


def interleaved(contestants: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 1) -> dict[str, Times]:
    """Call every contestant in turn, `repeats` times after `warm_up` rounds that do not count."""
    times = {name: Times() for name in contestants}
    for turn in range(warm_up + repeats):
        for name, call in contestants.items():
            gc.collect()
            cpu, wall = time.process_time(), time.perf_counter()
            result = call()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            del result  # its memory is given back outside the measured time
            if turn >= warm_up:
                times[name].cpu.append(cpu)
                times[name].wall.append(wall)
    return times


def machine() -> str:
    """Return the kind of machine in words: figures mean nothing without it."""
    cpu = platform.processor() or platform.machine()
    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "flags":
                flags = set(value.split())
                break
    found = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if name in flags]
    return f"{cpu} {platform.system()}, {', '.join(found) or 'instruction set unknown'}"
