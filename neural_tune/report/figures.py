"""The plots of the report page, as plotly figures in plain JSON data: {"data": [...], "layout": {...}}.

plotly itself is not needed to make them; the page brings plotly.js along. Colours are names of the page's palette ("@good", "@muted" ...), which the
page replaces by those of its light or dark theme.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from neural_tune import words
from neural_tune.protocols import ObservedTensor
from neural_tune.report.record import RunRecord
from neural_tune.values import AccuracyCriterion, Insight, TrialResult, TrialStatus

Figure: TypeAlias = dict[str, Any]

GOOD, BAD, MUTED, ACCENT, FLOAT, SECOND = "@good", "@bad", "@muted", "@accent", "@float", "@second"
_UNITS = {"latency": "ms per batch", "throughput": "samples/s", "size": "bytes", "memory": "bytes"}
# Bars beyond this many are left out of the sensitivity plot; the table of ops has them all.
_MOST_BARS = 40
_WORDS = {
    "accepted": ("accepted", GOOD, "circle"),
    "missed": ("missed the criterion", BAD, "circle"),
    "rejected": ("rejected early: at best this", BAD, "triangle-down-open"),
}


def accuracy_against_objective(record: RunRecord) -> Figure | None:
    """Return accepted trials and float by the first objective, with the front and the criterion's line; None before there is one."""
    objective = record.config.objectives.items[0].name
    base = record.baseline
    accepted = [result for result in record.trials if objective in result.objectives and not result.reused]
    if base is None or not accepted or objective not in base.objectives:
        return None
    metric = next(iter(base.metrics))
    front = sorted(
        (result for result in record.history.front if objective in result.objectives),
        key=lambda result: result.objectives[objective],
    )
    data = [
        _points("accepted", accepted, [r.objectives[objective] for r in accepted], metric, GOOD, "circle"),
        _float_point([base.objectives[objective]], [base.metrics[metric]], _UNITS.get(objective, ""), metric),
    ]
    if len(front) > 1:
        data.insert(0, _line([r.objectives[objective] for r in front], [r.metrics[metric] for r in front]))
    layout = _layout(f"{_plain(objective)} ({_UNITS.get(objective, 'your unit')})", _plain(metric))
    return {"data": data, "layout": _with_criterion(layout, record.config.criterion, metric, base.metrics[metric])}


def accuracy_against_ops(record: RunRecord) -> Figure | None:
    """Return every trial by the number of ops it quantizes, with the criterion's line; None before there is a trial."""
    base = record.baseline
    shown = [result for result in record.trials if result.status is not TrialStatus.FAILED and not result.reused]
    if base is None or not shown:
        return None
    metric = next(iter(base.metrics))
    data = []
    for kind, (name, color, symbol) in _WORDS.items():
        members = [result for result in shown if _kind(result) == kind]
        if members:
            counts = [len(result.trial.candidate.ops) for result in members]
            data.append(_points(name, members, counts, metric, color, symbol))
    data.append(_float_point([0], [base.metrics[metric]], "", metric))
    layout = _layout("ops that the candidate quantizes", _plain(metric))
    return {"data": data, "layout": _with_criterion(layout, record.config.criterion, metric, base.metrics[metric])}


def effort(record: RunRecord) -> Figure | None:
    """Return the seconds of every trial by stage; None before there is one."""
    if not record.trials:
        return None
    stages = list(dict.fromkeys(stage for result in record.trials for stage in result.durations))
    colors = dict(zip(stages, (ACCENT, FLOAT, SECOND, MUTED, GOOD, BAD), strict=False))
    numbers = [f"trial {result.trial.number}" for result in record.trials]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": stage,
            "y": numbers,
            "x": [result.durations.get(stage, 0.0) for result in record.trials],
            "marker": {"color": colors.get(stage, MUTED)},
            "hovertemplate": f"%{{y}}: {stage} %{{x:.3g}} s<extra></extra>",
        }
        for stage in stages
    ]
    layout = _layout("seconds", "")
    layout |= {"barmode": "stack", "height": 140 + 26 * len(numbers)}
    layout["yaxis"] |= {"autorange": "reversed", "type": "category"}
    return {"data": data, "layout": layout}


def sensitivity(insight: Insight | None, precision: Mapping[str, str]) -> Figure | None:
    """Return how far each group alone moves the outputs, the worst first; None without probes.

    Args:
        insight: What the probes found.
        precision: Op -> what became of it, for the colour; an op that is missing is taken as quantized.
    """
    found = dict((insight.divergence_with_recipes or insight.divergence) if insight else {})
    worst = sorted(found, key=lambda name: -found[name])[:_MOST_BARS]
    if not worst:
        return None
    finite = [value if math.isfinite(value) else None for value in (found[name] for name in worst)]
    colors = [MUTED if precision.get(name) == "float" else ACCENT for name in worst]
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [_plain(name) for name in worst],
        "x": finite,
        "marker": {"color": colors},
        "hovertemplate": "%{y}<br>moves the outputs by %{x:.2g} of their variance<extra></extra>",
    }
    layout = _layout("share of the outputs' variance (log)", "", has_legend=False)
    layout["height"] = 120 + 20 * len(worst)
    layout["xaxis"] |= {"type": "log", "exponentformat": "power"}
    layout["yaxis"] |= {"autorange": "reversed", "type": "category"}
    return {"data": [bars], "layout": layout}


def latency_gain(insight: Insight | None) -> Figure | None:
    """Return what int8 gains per op in milliseconds, most first; None without a profile."""
    profile = insight.latency if insight else None
    if profile is None:
        return None
    gains = {op: profile.float_ms[op] - after for op, after in profile.int8_ms.items() if op in profile.float_ms}
    most = sorted((op for op in gains if gains[op]), key=lambda op: -abs(gains[op]))[:_MOST_BARS]
    if not most:
        return None
    most.sort(key=lambda op: -gains[op])
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [_plain(op) for op in most],
        "x": [gains[op] for op in most],
        "marker": {"color": [GOOD if gains[op] > 0 else BAD for op in most]},
        "hovertemplate": "%{y}<br>%{x:.3g} ms<extra></extra>",
    }
    unit = f"ms gained (batch {profile.batch_size}, {words.plural(profile.threads, 'thread')})"
    layout = _layout(unit, "", has_legend=False)
    layout["height"] = 120 + 20 * len(most)
    layout["yaxis"] |= {"autorange": "reversed", "type": "category"}
    return {"data": [bars], "layout": layout}


def histogram(seen: ObservedTensor) -> Figure:
    """Return the distribution of a tensor in calibration and the range that has codes."""
    centers = [seen.start + (place + 0.5) * seen.width for place in range(len(seen.counts))]
    bars = {
        "type": "bar",
        "x": centers,
        "y": list(seen.counts),
        "width": seen.width,
        "marker": {"color": ACCENT},
        "hovertemplate": "%{x:.4g}: %{y} values<extra></extra>",
    }
    layout = _layout("value", "values seen (log)", has_legend=False)
    layout |= {"bargap": 0, "height": 320}
    layout["yaxis"] |= {"type": "log", "exponentformat": "power"}
    layout["shapes"] = [
        {
            "type": "line",
            "xref": "x",
            "yref": "paper",
            "x0": edge,
            "x1": edge,
            "y0": 0,
            "y1": 1,
            "line": {"color": BAD, "width": 2},
        }
        for edge in (seen.low, seen.high)
    ]
    layout["annotations"] = [
        {
            "x": edge,
            "xref": "x",
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
            "showarrow": False,
            "text": f"{edge:.3g}",
        }
        for edge in (seen.low, seen.high)
    ]
    return {"data": [bars], "layout": layout}


def limit(criterion: AccuracyCriterion, metric: str, baseline: float) -> float | None:
    """Return the worst value of `metric` that is still accepted; None where the criterion leaves it free."""
    if criterion.metrics and metric not in criterion.metrics:
        return None
    rule = criterion.metrics.get(metric, criterion)
    loss = rule.tolerable_loss * (abs(baseline) if rule.criterion == "relative" else 1.0)
    return baseline - loss if rule.higher_is_better else baseline + loss


def _kind(result: TrialResult) -> str:
    if result.status is TrialStatus.REJECTED:
        return "rejected"
    return "accepted" if result.is_accepted else "missed"


def _points(name: str, results: Iterable[TrialResult], x: list[Any], metric: str, color: str, symbol: str) -> Figure:
    members = list(results)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": x,
        "y": [_finite((result.metrics or result.bounds).get(metric)) for result in members],
        "marker": {"color": color, "size": 11, "symbol": symbol},
        "text": [f"trial {result.trial.number}: {_plain(result.trial.origin.reason)}" for result in members],
        "hovertemplate": "%{text}<br>%{x}<br>" + _plain(metric) + " %{y:.5g}<extra></extra>",
    }


def _finite(value: float | None) -> float | None:
    """Return `value`, None where it has no place in a plot: JSON has no NaN, and one diverged trial must not cost the whole page."""
    return value if value is not None and math.isfinite(value) else None


def _float_point(x: list[float], y: list[float], unit: str, metric: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "float",
        "x": x,
        "y": y,
        "marker": {"color": FLOAT, "size": 12, "symbol": "diamond"},
        "hovertemplate": f"float<br>%{{x}} {unit}<br>{_plain(metric)} %{{y}}<extra></extra>",
    }


def _line(x: list[float], y: list[float]) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "front",
        "x": x,
        "y": y,
        "line": {"color": MUTED, "dash": "dot"},
        "hoverinfo": "skip",
    }


def _with_criterion(layout: Figure, criterion: AccuracyCriterion, metric: str, baseline: float) -> Figure:
    worst = limit(criterion, metric, baseline)
    if worst is None or not math.isfinite(worst):
        return layout
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": worst, "y1": worst}
    layout["shapes"] = [{**line, "line": {"color": BAD, "width": 1, "dash": "dash"}}]
    layout["annotations"] = [
        {
            "xref": "paper",
            "x": 1,
            "xanchor": "right",
            "yref": "y",
            "y": worst,
            "yanchor": "top",
            "showarrow": False,
            "text": f"criterion {worst:.4g}",
        }
    ]
    return layout


def _layout(x: str, y: str, *, has_legend: bool = True) -> Figure:
    return {
        "xaxis": {"title": {"text": x}, "automargin": True},
        "yaxis": {"title": {"text": y}, "automargin": True},
        "margin": {"t": 24, "r": 16, "b": 80 if has_legend else 48, "l": 48},
        "height": 380,
        "hovermode": "closest",
        "showlegend": has_legend,
        # Below the title of the axis, in a plot of any height.
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
    }


def _plain(text: str) -> str:
    """Return a name as text that plotly, which reads a little HTML, shows as it is."""
    return html.escape(words.clean(text), quote=False)
