"""A check report for a console, for a test dashboard (JUnit), for a pull request (Markdown), and as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree  # noqa: ICN001 - two letters say less

from neural_tune import words
from neural_tune.check import Check, CheckReport, Outcome
from neural_tune.report import tables
from neural_tune.values import to_jsonable

_MARKS = {Outcome.PASSED: "ok", Outcome.FAILED: "FAILED", Outcome.SKIPPED: "skipped"}
_SIGNS = {Outcome.PASSED: "✅", Outcome.FAILED: "❌", Outcome.SKIPPED: "⏭️"}


def console_parts(report: CheckReport) -> list[Any]:
    """Return the table of checks, the notices, and the verdict."""
    rows = [(check.name, _MARKS[check.outcome], check.locked, check.now, check.detail) for check in report.checks]
    notices = [f"NOTICE: {notice}" for notice in report.notices]
    return [tables.table_of(("check", "", "locked", "now", "why"), rows), "", *notices, verdict(report)]


def verdict(report: CheckReport) -> str:
    """Return the last line: what failed, or that nothing did."""
    failed = [check.name for check in report.checks if check.outcome is Outcome.FAILED]
    if failed:
        return f"REGRESSED: {', '.join(failed)}"
    skipped = sum(check.outcome is Outcome.SKIPPED for check in report.checks)
    passed = words.plural(len(report.checks) - skipped, "check")
    return f"NO REGRESSION: {passed} passed" + (f", {skipped} skipped" if skipped else "")


def as_data(report: CheckReport) -> dict[str, Any]:
    """Return the report as plain JSON data."""
    checks = [{"name": check.name, "outcome": check.outcome.value, **_texts(check)} for check in report.checks]
    return {
        "version": 1,
        "passed": report.is_passed,
        "checks": checks,
        "notices": list(report.notices),
        "versions": to_jsonable(report.versions),
    }


def _texts(check: Check) -> dict[str, str]:
    return {name: getattr(check, name) for name in ("locked", "now", "detail")}


def as_junit(reports: Sequence[tuple[str, CheckReport]]) -> str:
    """Return reports, each with the name of its lock, as JUnit XML: a suite per lock, a test case per check."""
    suites = ElementTree.Element(
        "testsuites", {"name": "neural-tune check", **_counts([report for _, report in reports])}
    )
    for lock, report in reports:
        suite = ElementTree.SubElement(suites, "testsuite", {"name": _printable(lock), **_counts([report])})
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in report.versions.items():
            ElementTree.SubElement(properties, "property", {"name": _printable(name), "value": _printable(value)})
        for check in report.checks:
            _add_case(suite, check)
        if report.notices:
            ElementTree.SubElement(suite, "system-out").text = _printable("\n".join(report.notices))
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _counts(reports: Sequence[CheckReport]) -> dict[str, str]:
    outcomes = [check.outcome for report in reports for check in report.checks]
    counts = {"tests": len(outcomes), "failures": outcomes.count(Outcome.FAILED), "errors": 0}
    return {name: str(count) for name, count in (*counts.items(), ("skipped", outcomes.count(Outcome.SKIPPED)))}


def _add_case(suite: ElementTree.Element, check: Check) -> None:
    case = ElementTree.SubElement(suite, "testcase", {"classname": "neural-tune.check", "name": _printable(check.name)})
    text = _printable(f"locked: {check.locked}\nnow: {check.now}\n{check.detail}")
    if check.outcome is Outcome.FAILED:
        failure = ElementTree.SubElement(case, "failure", {"message": _printable(check.detail), "type": "regression"})
        failure.text = text
    elif check.outcome is Outcome.SKIPPED:
        ElementTree.SubElement(case, "skipped", {"message": _printable(check.detail)})
    else:
        ElementTree.SubElement(case, "system-out").text = text


def as_markdown(report: CheckReport, lock: str) -> str:
    """Return the report as Markdown for the summary of a pull request."""
    lines = [
        f"### {_SIGNS[Outcome.PASSED if report.is_passed else Outcome.FAILED]} {_cell(lock)}: {verdict(report)}",
        "",
    ]
    lines += ["| | check | locked | now | why |", "|---|---|---|---|---|"]
    for check in report.checks:
        cells = (check.name, check.locked, check.now, check.detail)
        lines.append(f"| {_SIGNS[check.outcome]} | {' | '.join(_cell(text) for text in cells)} |")
    lines += ["", *(f"- {_cell(notice)}" for notice in report.notices)]
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    """Return text that cannot break out of a table or become markup: it may hold names from a model."""
    safe = "".join(char if char.isprintable() else " " for char in text)
    for sign in ("\\", "|", "<", ">", "`", "*", "_", "[", "]"):
        safe = safe.replace(sign, f"\\{sign}" if sign not in "<>" else {"<": "&lt;", ">": "&gt;"}[sign])
    return safe


def _printable(text: str) -> str:
    """Return text without what XML forbids."""
    return "".join(char if char in "\n\t" or (char.isprintable() and ord(char) < 0xFFFE) else " " for char in text)
