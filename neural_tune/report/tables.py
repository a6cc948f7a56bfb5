"""Tables of the console: the space before a search, the result after it, and why ops stayed in float."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from neural_tune.evaluation import MetricCertificate
from neural_tune.protocols import OpOutcome
from neural_tune.report import words
from neural_tune.result import TuneResult
from neural_tune.space import TuningSpace
from neural_tune.values import OpCapability, Role

_MOST_ROWS = 12  # more float ops than this are shown by reason
_MOST_NAMES = 3


def describe_space(space: TuningSpace) -> list[str]:
    """Return the lines that say how large a search this is."""
    ops = space.capability.ops
    able = [op for op in ops if op.is_quantizable]
    roles = [(len([op for op in able if op.role is role]), role.value.replace("_", "-")) for role in Role]
    parts = ", ".join(f"{count} {name}" for count, name in roles if count)
    line = f"{words.plural(len(ops), 'op')}: {len(able)} quantizable" + (f" ({parts})" if parts else "")
    carried = sum(op.role is Role.PASS_THROUGH and not op.is_quantizable for op in ops)
    line += f", {carried} folded into their neighbours or passing on what they get" if carried else ""
    line += f", {len(ops) - len(able) - carried} not"
    if space.fixed:
        line += f"; user rules keep {len(space.fixed)} in float"
    tunable = f"{words.plural(len(space.op_names), 'tunable op')} in {words.plural(len(space.groups), 'group')}"
    return [line, f"space: {tunable}, {words.plural(space.size, 'candidate')}"]


def space_tables(space: TuningSpace) -> tuple[Table, Table]:
    """Return one row per op (what it may be, and why not more), and what the sets of choices named there hold."""
    choices = {op: group.choices for group in space.groups for op in group.ops}
    sets = {offered: f"set {number}" for number, offered in enumerate(dict.fromkeys(choices.values()), 1)}
    has_groups = any(len(group.ops) > 1 for group in space.groups)
    ops = _table("op", "type", "role", "choices", *(["group"] if has_groups else []), "why")
    for op in space.capability.ops:
        shown = sets[choices[op.name]] if op.name in choices else "float"
        ops.add_row(
            *_cells(op.name, op.type, op.role.value, shown, *([op.group] if has_groups else []), _why(op, space))
        )
    legend = _table("choices", "most preferred first")
    for offered, name in sets.items():
        legend.add_row(*_cells(name, "\n".join(words.precision(config) for config in offered)))
    return ops, legend


def _why(op: OpCapability, space: TuningSpace) -> str:
    return space.fixed.get(op.name, "") or op.why


def result_table(result: TuneResult) -> Table:
    """Return float against the result: metrics, speed, size, memory and what it took."""
    table = _table("", "float", "accepted" if result.accepted else "best effort", "change")
    certified = result.certificate.metrics if result.certificate else ()
    for entry in certified:
        table.add_row(*_cells(entry.name, words.metric(entry.baseline), words.metric(entry.value), _drop(entry)))
    if result.speed:
        speed = result.speed
        how = f"latency, batch {speed.batch_size}, {words.plural(speed.threads, 'thread')}"
        change = f"{speed.ratio:.2f}x as fast (95 % CI {speed.low:.2f} to {speed.high:.2f})"
        table.add_row(*_cells(how, f"{speed.float_ms:.3g} ms", f"{speed.ms:.3g} ms", change))
    if result.size_ratio is not None:
        change = f"{result.size_ratio:.2f}x smaller"
        table.add_row(*_cells("size", words.size(result.size_float), words.size(result.size), change))
    for name in _other_objectives(result):
        table.add_row(*_cells(name, *_objective_row(result, name)))
    quantized = sum(not op.is_float for op in result.ops)
    table.add_row(*_cells("ops in low precision", "0", str(quantized), f"of {words.plural(len(result.ops), 'op')}"))
    effort = f"{words.plural(len(result.trials), 'trial')}, {result.passes:.2f} passes over the evaluation data"
    table.add_row(*_cells("effort", "", "", effort))
    return table


def _drop(entry: MetricCertificate) -> str:
    text = f"drop {words.metric(entry.drop)}"
    if not math.isnan(entry.low):
        text += f" (95 % CI {words.metric(entry.low)} to {words.metric(entry.high)})"
    else:
        text += f", interval: {entry.method}"
    if entry.samples:
        text += f"; {entry.worse} worse, {entry.better} better of {words.plural(entry.samples, 'sample')}"
    return text


def _other_objectives(result: TuneResult) -> list[str]:
    if result.best is None or result.baseline is None:
        return []
    shown = {"size"} | ({"latency", "throughput"} if result.speed else set())
    return [name for name in result.best.objectives if name not in shown]


def _objective_row(result: TuneResult, name: str) -> tuple[str, str, str]:
    before = result.baseline.objectives.get(name, math.nan) if result.baseline else math.nan
    after = result.best.objectives[name] if result.best else math.nan
    change = f"{after / before:.3g} of float" if before > 0 else ""
    return words.objective(name, before), words.objective(name, after), change


def float_table(ops: Sequence[OpOutcome]) -> Table | None:
    """Return why ops are float: one row per op, or one per reason where there are many; None when there is none."""
    floats = [op for op in ops if op.is_float]
    if not floats:
        return None
    if len(floats) <= _MOST_ROWS:
        table = _table("float op", "type", "why")
        for op in floats:
            table.add_row(*_cells(op.name, op.type, op.reason or "no reason given"))
        return table
    table = _table("float ops", "types", "for instance", "why")
    for reason, members in _by_reason(floats).items():
        types = ", ".join(sorted({op.type for op in members}))
        names = ", ".join(op.name for op in members[:_MOST_NAMES]) + (" ..." if len(members) > _MOST_NAMES else "")
        table.add_row(*_cells(str(len(members)), types, names, reason or "no reason given"))
    return table


def _by_reason(ops: Iterable[OpOutcome]) -> dict[str, list[OpOutcome]]:
    groups: dict[str, list[OpOutcome]] = {}
    for op in ops:
        groups.setdefault(op.reason, []).append(op)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def table_of(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a plain table of texts."""
    table = _table(*headers)
    for row in rows:
        table.add_row(*_cells(*row))
    return table


def _table(*headers: str) -> Table:
    # ASCII rules: the same bytes in a terminal, a log file and a terminal without UTF-8.
    table = Table(box=box.ASCII_DOUBLE_HEAD, header_style="bold", show_edge=False, pad_edge=False)
    for header in headers:
        table.add_column(Text(header), overflow="fold")
    return table


def _cells(*texts: str) -> list[Text]:
    """Return cells that are shown as they are: no markup, and control characters escaped (line breaks are kept)."""
    return [Text("\n".join(words.clean(line) for line in text.split("\n"))) for text in texts]
