"""The report of a run as one self-contained HTML page: no network, light and dark, readable without JavaScript but for the plots."""

from __future__ import annotations

import html
import importlib.util
import json
import shlex
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from neural_tune import atomic_file, words
from neural_tune.errors import PluginError
from neural_tune.report import figures
from neural_tune.report.record import Outcome, RunRecord, read
from neural_tune.values import TrialResult, TrialStatus

FILE = "report.html"
_STATUS = {
    "accepted": "accepted",
    "best_effort": "best effort: criterion not met",
    "failed": "failed",
    "running": "running",
}


def write(directory: str | Path) -> Path:
    """Write report.html into a run's folder, finished or not, and return its path.

    Raises:
        ConfigError: `directory` is no run's folder.
        PluginError: plotly, whose script goes into the page, is not installed.
    """
    record = read(directory)
    path = record.directory / FILE
    atomic_file.write(path, page(record).encode())
    return path


def page(record: RunRecord, *, follow: bool = False, version: str = "") -> str:
    """Return the page.

    Args:
        record: The run.
        follow: Whether the page asks its server for a newer one.
        version: What the server calls this state of the run.

    Raises:
        PluginError: plotly is not installed.
    """
    status = record.outcome.status if record.outcome else "running"
    plots = _plots(record)
    shown = {name: figure for name, (_, figure) in plots.items()}
    histograms = [{"title": _range_title(seen), "figure": figures.histogram(seen)} for seen in record.ranges]
    return Template(_resource("page.html")).substitute(
        title=_text(record.job),
        css=_resource("page.css"),
        follow="true" if follow and record.outcome is None else "false",
        version=_text(version),
        status=_text(status),
        status_words=_text(_STATUS.get(status, status)),
        body="\n".join(_sections(record, plots)),
        figures=_json(shown),
        histograms=_json(histograms),
        plotly=_plotly(),
        script=_resource("page.js"),
    )


def _plots(record: RunRecord) -> dict[str, tuple[str, figures.Figure]]:
    """Return id -> (title, figure) of the plots for which there is data."""
    precision = {op.name: op.precision for op in record.outcome.ops} if record.outcome else {}
    found = {
        "pareto": ("Accuracy against the objective", figures.accuracy_against_objective(record)),
        "trials": ("Every trial by how much it quantizes", figures.accuracy_against_ops(record)),
        "effort": ("What the search cost", figures.effort(record)),
        "sensitivity": (
            "Sensitivity: one group in low precision, all else float",
            figures.sensitivity(record.insight, precision),
        ),
        "gain": ("Latency gained per op (profile)", figures.latency_gain(record.insight)),
    }
    return {name: (title, figure) for name, (title, figure) in found.items() if figure is not None}


def _sections(record: RunRecord, plots: dict[str, tuple[str, figures.Figure]]) -> Iterable[str]:
    yield from _summary(record)
    yield "<h2>The search</h2>"
    yield _plot_row(plots, "pareto", "trials", "effort")
    yield _trial_table(record)
    if {"sensitivity", "gain"} & set(plots):
        insight = record.insight
        yield "<h2>What the probes said</h2>"
        yield f'<p class="muted">{insight.samples if insight else 0} calibration samples without labels, {insight.forwards if insight else 0} passes over them.</p>'
        yield _plot_row(plots, "sensitivity", "gain")
    if record.outcome and record.outcome.ops:
        yield from _op_section(record, record.outcome)
    yield from _environment(record)


def _summary(record: RunRecord) -> Iterable[str]:
    outcome = record.outcome
    if outcome:
        yield f"<p>{_text(outcome.reason)}</p>"
    else:
        state = (
            f"{words.plural(len(record.trials), 'trial')} so far"
            if record.baseline
            else "the float model is being measured"
        )
        yield f"<p>The run has not ended: {state}.</p>"
    yield f'<div class="cards">{"".join(_cards(record))}</div>'
    notices = outcome.notices if outcome else ()
    yield from (f'<div class="notice">{_text(notice)}</div>' for notice in notices)


def _cards(record: RunRecord) -> Iterable[str]:
    outcome, base = record.outcome, record.baseline
    if outcome and outcome.certificate:
        for entry in outcome.certificate.metrics:
            interval = ""
            if entry.low == entry.low:  # NaN without an interval
                interval = (
                    f"drop {words.metric(entry.drop)} (95 % CI {words.metric(entry.low)} to {words.metric(entry.high)})"
                )
            counts = f"{entry.worse} worse, {entry.better} better of {entry.samples}" if entry.samples else ""
            yield _card(
                entry.name, words.metric(entry.value), f"float {words.metric(entry.baseline)}", interval, counts
            )
    elif base:
        for name, value in base.metrics.items():
            yield _card(f"{name} of float", words.metric(value))
    if outcome and outcome.speed:
        speed = outcome.speed
        how = f"batch {speed.batch_size}, {words.plural(speed.threads, 'thread')}"
        interval = f"95 % CI {speed.low:.2f} to {speed.high:.2f}"
        times = f"{speed.float_ms:.3g} ms to {speed.ms:.3g} ms"
        yield _card("latency", f"{speed.ratio:.2f}x as fast", times, interval, how)
    if outcome and outcome.size and outcome.size_float:
        sizes = f"{words.size(outcome.size_float)} to {words.size(outcome.size)}"
        yield _card("size", f"{outcome.size_float / outcome.size:.2f}x smaller", sizes)
    for name in record.config.objectives.names:
        best = outcome.best if outcome else None
        if (
            best
            and base
            and name not in ("latency", "throughput", "size")
            and name in best.objectives
            and name in base.objectives
        ):
            yield _card(
                name,
                words.objective(name, best.objectives[name]),
                f"float {words.objective(name, base.objectives[name])}",
            )
    if outcome and outcome.ops:
        low = sum(not op.is_float for op in outcome.ops)
        yield _card("ops in low precision", f"{low} of {len(outcome.ops)}")
    effort = f"{outcome.passes:.2f} passes over the evaluation data" if outcome else ""
    yield _card("effort", words.plural(len(record.trials), "trial"), effort)


def _card(label: str, value: str, *details: str) -> str:
    lines = "".join(f"<span>{_text(detail)}</span>" for detail in details if detail)
    return f'<div class="card"><span>{_text(label)}</span><b>{_text(value)}</b>{lines}</div>'


def _plot_row(plots: dict[str, tuple[str, figures.Figure]], *names: str) -> str:
    shown = [
        f'<div class="plot"><h3>{_text(plots[name][0])}</h3><div id="{name}"></div></div>'
        for name in names
        if name in plots
    ]
    return f'<div class="plots">{"".join(shown)}</div>' if shown else ""


def _trial_table(record: RunRecord) -> str:
    rows = [_trial_row(record, result) for result in record.trials]
    rows += [
        f'<tr class="running"><td class="number">{number}</td><td colspan="6">running, or cut off before it ended</td></tr>'
        for number in record.running
    ]
    if not rows:
        return '<p class="muted">No trial has ended yet.</p>'
    return _table(("trial", "why it was tried", "ops", "outcome", "gain", "passes", "seconds"), rows)


def _trial_row(record: RunRecord, result: TrialResult) -> str:
    kind = "accepted" if result.is_accepted else result.status.value.replace("complete", "missed")
    told = result.error if result.status is TrialStatus.FAILED else result.reason
    if result.reused:
        told = f"the candidate of trial {result.reused} once more"
    base = record.baseline.objectives if record.baseline else {}
    gain = words.gain(record.config.objectives, result.objectives, base) if result.objectives else ""
    best = record.outcome.best if record.outcome else None
    kept = " <b>(the result)</b>" if best and best.trial.number == result.trial.number else ""
    candidate = result.trial.candidate
    why = _text(result.trial.origin.reason) + (
        f' <span class="muted">recipes: {_text(", ".join(candidate.recipes))}</span>' if candidate.recipes else ""
    )
    cells = (
        f'<td class="number">{result.trial.number}</td>',
        f"<td>{why}{kept}</td>",
        f'<td class="number">{len(candidate.ops)}</td>',
        f"<td>{_text(kind)}: {_text(told)}{_text(f' ({result.note})') if result.note else ''}</td>",
        f"<td>{_text(gain)}</td>",
        f'<td class="number">{result.passes:.2f}</td>',
        f'<td class="number">{sum(result.durations.values()):.2f}</td>',
    )
    return f'<tr class="{kind}">{"".join(cells)}</tr>'


def _op_section(record: RunRecord, outcome: Outcome) -> Iterable[str]:
    yield "<h2>The model, op by op</h2>"
    shown = "A click on an op shows what calibration saw of its inputs." if record.ranges else ""
    yield f'<p class="muted">In execution order; blue runs in low precision, ochre in float. {shown}</p>'
    yield '<p><input type="search" id="filter" placeholder="filter by name, type, precision or reason" aria-label="filter ops"></p>'
    insight = record.insight
    moved = dict((insight.divergence_with_recipes or insight.divergence) if insight else {})
    profile = insight.latency if insight else None
    rows = []
    for op in outcome.ops:
        read = [str(place) for place, seen in enumerate(record.ranges) if op.name in seen.ops]
        attributes = f' data-op="{_text(op.name)}" data-ranges="{" ".join(read)}" tabindex="0"' if read else ""
        kind = ("op float" if op.is_float else "op") + (" has-range" if read else "")
        times: tuple[str, ...] = ()
        if profile:
            times = tuple(
                f"{values[op.name]:.3g}" if op.name in values else "" for values in (profile.float_ms, profile.int8_ms)
            )
        cells = (
            f'<td class="name">{_text(op.name)}</td>',
            f"<td>{_text(op.type)}</td>",
            f"<td>{_text(op.precision)}</td>",
            f"<td>{_text(op.reason)}</td>",
            *((f'<td class="number">{f"{moved[op.name]:.2g}" if op.name in moved else ""}</td>',) if moved else ()),
            *(f'<td class="number">{time}</td>' for time in times),
        )
        rows.append(f'<tr class="{kind}"{attributes}>{"".join(cells)}</tr>')
    probed = (*(("sensitivity",) if moved else ()), *(("float ms", "quantized ms") if profile else ()))
    headers = ("op", "type", "precision", "why", *probed)
    yield _table(headers, rows)
    if outcome.counts:
        counts = ", ".join(f"{name} {value:g}" for name, value in outcome.counts.items())
        yield f'<p class="muted">{_text(counts)}</p>'


def _environment(record: RunRecord) -> Iterable[str]:
    yield "<h2>Environment and how to get it again</h2>"
    rows = [(name, version) for name, version in record.versions.items()]
    rows += [("calibration samples", str(record.calibration_samples or "none")), ("strategy", record.config.strategy)]
    rows += [
        (f"hash of the {name}", value)
        for name, value in record.identity.items()
        if name in ("model", "space", "configuration")
    ]
    yield _table((), [f'<tr><th>{_text(name)}</th><td class="name">{_text(value)}</td></tr>' for name, value in rows])
    folder = shlex.quote(str(record.directory))
    commands = _commands(folder, done=record.outcome is not None and bool(record.outcome.artifact))
    lines = "\n".join(map(_text, commands))
    yield f"<pre>{lines}</pre>"


def _commands(folder: str, *, done: bool) -> tuple[str, ...]:
    """Return lines for a shell: what goes on with the run, or gives its model again."""
    if not done:
        return "# go on with this run", f"neural-tune resume {folder}"
    return (
        "# the same candidate on the float model, without a search",
        f"neural-tune apply {folder}/recipe.yaml MODEL",
        "# the model of this run",
        f'python -c "import neural_tune; model = neural_tune.load({folder!r})"',
    )


def _range_title(seen: Any) -> str:
    outside = f"seen {seen.minimum:.4g} to {seen.maximum:.4g}; codes for {seen.low:.4g} to {seen.high:.4g}"
    return words.clean(f"{seen.tensor}: {outside}" + (f" ({seen.observer})" if seen.observer else ""))


def _table(headers: Sequence[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in headers)
    return f'<div class="scroll"><table>{f"<thead><tr>{head}</tr></thead>" if head else ""}<tbody>{"".join(rows)}</tbody></table></div>'


def _text(text: str) -> str:
    """Return a text that comes from anywhere (a model's names among it) as harmless HTML."""
    return html.escape(words.clean(text))


def _json(data: Any) -> str:
    """Return `data` as JSON that cannot end the script element it stands in."""
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")


def _resource(name: str) -> str:
    return (files("neural_tune.report") / "page" / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """Return plotly.js as the plotly package brings it, without importing the package."""
    spec = importlib.util.find_spec("plotly")
    places = spec.submodule_search_locations if spec else None
    script = Path(next(iter(places))) / "package_data" / "plotly.min.js" if places else None
    if script is None or not script.is_file():
        raise PluginError('the report page needs plotly, which is not installed: pip install "neural-tune[report]"')
    return script.read_text(encoding="utf-8").replace("</script", "<\\/script")
