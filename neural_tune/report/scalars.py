"""The numbers of a run by name, as experiment trackers want them."""

from __future__ import annotations

from neural_tune.result import TuneResult
from neural_tune.values import Baseline, TrialResult


def of_baseline(baseline: Baseline) -> dict[str, float]:
    """Return "float/metric/topk" and the like."""
    found = {f"float/metric/{name}": value for name, value in baseline.metrics.items()}
    return found | {f"float/objective/{name}": value for name, value in baseline.objectives.items()}


def of_trial(result: TrialResult) -> dict[str, float]:
    """Return "metric/topk", "objective/latency", "accepted" (0 or 1), "ops", "passes" and "seconds" of a trial."""
    found = {f"metric/{name}": value for name, value in result.metrics.items()}
    found |= {f"objective/{name}": value for name, value in result.objectives.items()}
    return found | {
        "accepted": float(result.is_accepted),
        "ops": float(len(result.trial.candidate.ops)),
        "passes": result.passes,
        "seconds": sum(result.durations.values()),
    }


def of_result(result: TuneResult) -> dict[str, float]:
    """Return "result/metric/topk", "result/drop/topk", "result/speedup", "result/size_ratio", "result/passes" and "result/accepted"."""
    found = {"result/accepted": float(result.accepted), "result/passes": result.passes}
    for entry in result.certificate.metrics if result.certificate else ():
        found |= {f"result/metric/{entry.name}": entry.value, f"result/drop/{entry.name}": entry.drop}
    if result.speedup is not None:
        found["result/speedup"] = result.speedup
    if result.size_float and result.size_ratio is not None:
        found["result/size_ratio"] = result.size_ratio
    return found
