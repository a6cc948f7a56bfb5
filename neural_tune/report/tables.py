"""Tables of the console: the space before a search, the result after it, and why ops stayed in float."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from neural_tune import words
from neural_tune.protocols import OpOutcome
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
    return table_of(("", "float", "accepted" if result.accepted else "best effort", "change"), result.comparison())


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
