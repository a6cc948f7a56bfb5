"""Numbers and names as a person reads them. Plain text, ASCII, no control characters."""

from __future__ import annotations

import math
from collections.abc import Mapping

from neural_tune.values import AccuracyCriterion, Objectives, OpConfig


def clean(text: str) -> str:
    """Return `text` without control characters: names come from model files, which may hold anything, escape sequences too."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def duration(seconds: float) -> str:
    """Return seconds as "0.3 s", "12 s", "3 min 20 s" or "2 h 5 min"."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Return bytes as "512 B", "39.8 kB", "1.2 MB" or "2.3 GB", in powers of 1000."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}" if count < 999.5 * factor else f"{count / factor:.0f} {unit}"
    return f"{count:.0f} B"


def amount(count: int) -> str:
    """Return a count with thousands separators, or as a power of ten where nobody would count the digits."""
    if count < 10**9:
        return f"{count:,}"
    exponent = len(str(count)) - 1
    return f"{count // 10 ** (exponent - 1) / 10:.1f}e{exponent}"


def plural(count: int, noun: str) -> str:
    """Return "1 trial", "2 trials"."""
    return f"{amount(count)} {noun}{'' if count == 1 else 's'}"


def precision(config: OpConfig) -> str:
    """Return what `OpConfig.describe` says, and the quantized output where there is one."""
    return config.describe() + (f", output {config.output.describe()}" if config.output else "")


def metric(value: float) -> str:
    """Return a metric's value with four digits after the point, or four significant ones where it is large or tiny."""
    return f"{value:.4f}" if 0.001 <= abs(value) < 100 or value == 0 else f"{value:.4g}"


def loss(name: str, value: float, criterion: AccuracyCriterion) -> str:
    """Return a loss in the unit of its criterion: "0.11 %" relative, "0.0011" absolute."""
    own = criterion.metrics.get(name, criterion)
    return f"{value:.2%}".replace("%", " %") if own.criterion == "relative" else metric(value)


def objective(name: str, value: float) -> str:
    """Return an objective's value with its unit."""
    if name == "latency":
        return f"{value:.3g} ms"
    if name == "throughput":
        return f"{value:,.0f}/s"
    return size(value) if name in ("size", "memory") else f"{value:.4g}"


_GAINS = {"latency": "as fast", "throughput": "as fast", "size": "smaller", "memory": "less memory"}


def gain(objectives: Objectives, values: Mapping[str, float], baseline: Mapping[str, float]) -> str:
    """Return "1.92x as fast" or the like for the first objective, or nothing where it was not measured."""
    first = objectives.items[0]
    if first.name not in values or first.name not in baseline:
        return ""
    times = first.gain(values[first.name], baseline[first.name])
    return f"{times:.2f}x {_GAINS.get(first.name, f'better {clean(first.name)}')}"
