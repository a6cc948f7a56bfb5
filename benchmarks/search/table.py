"""The rows of a results folder as one Markdown table and one JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

COLUMNS = (
    "contestant",
    "outcome",
    "passes",
    "calls",
    "trials",
    "CPU s",
    "peak MB",
    "float ops: chosen / running / all",
    "drop [95 %]",
    "speed-up over float (batch)",
    "bytes / float",
)
_LEGEND = """
*passes*: validation samples evaluated over the size of the set, baseline and certificate included. *calls*: calls of the evaluation function, counted \
inside it. *CPU s*: from the call of the tuner to the certified model, one core; *peak MB* of that process. *float ops*: products (convolutions, \
matrix products) that the tool left in float (in brackets: for the sake of accuracy, the others because int8 is no faster), that the runtime really runs in float after its own fusions, and all of them. *drop*: in units \
of the metric, against the same model in float in the same runtime, judged outside the tool. *speed-up*: interleaved, one thread, CPU time, in the \
runtime of the model (quartiles). A star marks an accepted model whose drop the judge finds above the tolerable one.
"""


def write(folder: Path) -> Path:
    """Write results.json and results.md from all rows in `folder`; return the path of the latter."""
    paths = sorted(path for path in folder.glob("*--*.json"))
    rows = [json.loads(path.read_text()) for path in paths]
    rows.sort(key=lambda row: (row["task"], not row["contestant"].startswith("neural_tune"), row["contestant"]))
    (folder / "results.json").write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    target = folder / "results.md"
    target.write_text(markdown(rows))
    return target


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return a section per task."""
    parts = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        known = next((row for row in mine if "metric_float" in row and row.get("runtime") == "onnxruntime"), None)
        about = f": float {known['metric_float']:.4f}, tolerable drop {known['tolerable']:.4f}" if known else ""
        lines = [f"### {task}{about}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        lines += [f"| {' | '.join(cells(row))} |" for row in mine]
        notes = [
            f"* {row['contestant']}: {why(row)}" for row in mine if row["status"] not in ("accepted", "not judged")
        ]
        when = f"Measured {', '.join(sorted({row['date'] for row in mine}))} on {'; '.join(sorted({row['machine'] for row in mine}))}."
        parts.append("\n".join([*lines, "", *notes, "", when]))
    return "\n\n".join([*parts, _LEGEND.strip()]) + "\n"


def defaults(row: dict[str, Any]) -> str:
    """Return one line about a model that its runtime, left alone, runs in another precision than it was accepted in."""
    found = row["by_default"]
    speeds = "; ".join(speed(size, each) for size, each in found["latency"].items())
    return (
        f"* {row['contestant']}: with the runtime's default precision ({found['precision']}) instead of float32, metric "
        f"{found['metric']:.4f} against {found['metric_float']:.4f}, speed-up {speeds}"
    )


def why(row: dict[str, Any]) -> str:
    """Return one line about a row that is no success."""
    text = " ".join(str(row.get("reason", "")).split()).replace("|", "/")
    return f"{row['status']}. {text[:400]}"


def cells(row: dict[str, Any]) -> list[str]:
    """Return the cells of one row; a figure that there is not is a dash."""
    star = "*" if row["status"] == "accepted" and row.get("is_met") is False else ""
    outcome = row["status"]
    if row["status"] == "not judged" and "is_met" in row:
        outcome = "meets it" if row["is_met"] else "misses it"
    chosen = row.get("float_decided", row.get("reverted"))
    because = f"{number(chosen, 0)} ({row['float_for_accuracy']})" if "float_for_accuracy" in row else number(chosen, 0)
    counts = [row.get("float_running"), row.get("products")]
    return [
        row["contestant"],
        outcome + star,
        number(row.get("passes"), 2),
        number(row.get("calls"), 0),
        number(row.get("trials"), 0),
        cpu(row),
        number(row.get("peak_mb"), 0),
        " / ".join([because, *(number(count, 0) for count in counts)]) if "products" in row else "-",
        drop(row),
        "; ".join(speed(size, found) for size, found in row.get("latency", {}).items()) or "-",
        f"{row['bytes']} / {row['float_bytes']}" if "float_bytes" in row else "-",
    ]


def cpu(row: dict[str, Any]) -> str:
    """Return the CPU seconds to the accepted model; of one that was cut off or failed, those it had used by then."""
    if row["status"] == "skipped":
        return "-"
    return number(row["cpu_s"], 1) if "cpu_s" in row else f"> {row.get('cpu_child_s', 0.0):.0f}"


def number(value: float | None, digits: int) -> str:
    """Return a figure, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def drop(row: dict[str, Any]) -> str:
    """Return the drop with its interval."""
    if "drop" not in row:
        return "-"
    return f"{row['drop']:+.4f} [{row['drop_low']:+.4f}, {row['drop_high']:+.4f}]"


def speed(size: str, found: dict[str, float]) -> str:
    """Return the ratio at one batch size."""
    return f"{found['ratio']:.2f} ({size}; {found['quartile_low']:.2f}-{found['quartile_high']:.2f})"
