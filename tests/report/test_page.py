"""The HTML report: what it says, and that it really renders in a browser."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neural_tune import ConfigError, TuneResult
from neural_tune.protocols import ObservedTensor
from neural_tune.report import figures, html
from neural_tune.report.record import read
from neural_tune.report.server import serve
from neural_tune.report.several import Several
from neural_tune.values import AccuracyCriterion, FrozenMap, to_jsonable

Page = Callable[..., Any]


def drawn(browser: Any) -> dict[str, int]:
    """Return plot id -> number of marks (points, bars, lines) that plotly really drew."""
    script = """
        const found = {};
        for (const plot of document.querySelectorAll('.plot > div')) {
            found[plot.id] = plot.querySelectorAll('.point, path.js-line').length;
        }
        return found;
    """
    counts: dict[str, int] = browser.execute_script(script)
    return counts


def test_the_page_of_a_run_renders_without_an_error_and_no_plot_is_empty(toy_run: TuneResult, page: Page) -> None:
    browser = page(html.write(toy_run.run_directory))
    assert browser.get_log("browser") == []
    marks = drawn(browser)
    assert {"trials", "effort", "pareto"} <= set(marks)
    assert all(marks.values()), marks
    assert marks["trials"] == len([trial for trial in toy_run.trials if not trial.reused]) + 1  # and float
    text = browser.find_element("tag name", "main").text
    assert toy_run.reason in text
    for op in toy_run.ops:
        assert op.name in text


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_a_phone(toy_run: TuneResult, page: Page, theme: str) -> None:
    browser = page(html.write(toy_run.run_directory), width=400, theme=theme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
    widest = browser.execute_script(
        "return Math.max(...[...document.querySelectorAll('.plot svg')].map(s => s.getBoundingClientRect().right))"
    )
    assert widest <= 400
    assert browser.get_log("browser") == []


def test_the_theme_follows_the_system_and_the_button(toy_run: TuneResult, page: Page) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    browser = page(html.write(toy_run.run_directory), theme="dark")
    dark = browser.execute_script(background)
    browser.find_element("id", "theme").click()
    light = browser.execute_script(background)
    assert dark != light == "rgb(255, 255, 255)"


def test_a_click_on_an_op_shows_what_calibration_saw(toy_run: TuneResult, page: Page, tmp_path: Path) -> None:
    run = tmp_path / "job" / "run"
    shutil.copytree(toy_run.run_directory, run)
    op = next(op for op in toy_run.ops if not op.is_float)
    counts = (3, 0, 40, 700, 41)
    seen = ObservedTensor(
        tensor="hidden</script><i>", ops=(op.name,), observer="minmax", low=-1.0, high=2.0, minimum=-1.0, maximum=2.1,
        start=-1.0, width=0.625, counts=counts,
    )  # fmt: skip
    (run / "ranges.json").write_text(json.dumps(to_jsonable((seen,))))
    browser = page(html.write(run))
    browser.find_element("css selector", "tr.op.has-range").click()
    dialog = browser.find_element("id", "ranges")
    assert dialog.is_displayed()
    assert op.name in dialog.text
    assert "hidden</script><i>" in dialog.text
    assert browser.execute_script("return document.querySelectorAll('#ranges .point').length") == len(counts)
    assert browser.get_log("browser") == []


def test_the_filter_leaves_the_ops_that_match(toy_run: TuneResult, page: Page) -> None:
    browser = page(html.write(toy_run.run_directory))
    browser.find_element("id", "filter").send_keys("dense3")
    shown = [row for row in browser.find_elements("css selector", "tr.op") if row.is_displayed()]
    assert shown
    assert all("dense3" in row.text for row in shown)


def test_a_page_needs_no_network(toy_run: TuneResult) -> None:
    text = html.write(toy_run.run_directory).read_text()
    own = text[: text.index("<script>")] + text[text.rindex("<script>") :]
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", own)
    assert "@import" not in own


def test_names_of_a_model_are_text_and_never_markup(toy_run: TuneResult, tmp_path: Path) -> None:
    run = tmp_path / "job" / "run"
    shutil.copytree(toy_run.run_directory, run)
    stored = json.loads((run / "result.json").read_text())
    stored["ops"][0]["name"] = '</script><img src=x onerror="alert(1)">'
    (run / "result.json").write_text(json.dumps(stored))
    text = html.write(run).read_text()
    assert "<img src=x" not in text
    assert "&lt;/script&gt;&lt;img" in text


def test_every_figure_is_one_that_plotly_accepts(toy_run: TuneResult) -> None:
    go = pytest.importorskip("plotly.graph_objects", reason="plotly is not installed")
    record = read(toy_run.run_directory)
    found = [figures.accuracy_against_objective(record), figures.accuracy_against_ops(record), figures.effort(record)]
    for figure in found:
        assert figure is not None
        text = re.sub(r'"@\w+"', '"#123456"', json.dumps(figure))
        go.Figure(json.loads(text))


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (AccuracyCriterion(True, "relative", 0.01), 0.792),
        (AccuracyCriterion(True, "absolute", 0.01), 0.79),
        (AccuracyCriterion(False, "absolute", 0.05), 0.85),
        (AccuracyCriterion(metrics=FrozenMap({"other": AccuracyCriterion()})), None),
    ],
)
def test_the_line_of_the_criterion_is_the_worst_value_that_is_accepted(
    criterion: AccuracyCriterion, expected: float | None
) -> None:
    found = figures.limit(criterion, "topk", 0.8)
    assert found == (None if expected is None else pytest.approx(expected))
    if found is not None:
        assert criterion.allows(found, 0.8)


def test_a_run_under_way_has_a_page_that_says_so(toy_run: TuneResult, tmp_path: Path) -> None:
    run = tmp_path / "job" / "run"
    shutil.copytree(toy_run.run_directory, run)
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    kinds = [json.loads(line)["kind"] for line in lines]
    first = kinds.index("trial")
    (run / "journal.jsonl").write_text("".join(lines[: first + 1]) + '{"v": 1, "kind": "tor')
    record = read(run)
    assert record.outcome is None
    assert len(record.trials) == 1
    assert "1 trial so far" in html.page(record)
    (run / "journal.jsonl").write_text("".join(lines[:1]))
    assert "being measured" in html.page(read(run))


def test_a_resumed_run_is_under_way_and_not_what_its_old_result_says(toy_run: TuneResult, tmp_path: Path) -> None:
    run = tmp_path / "job" / "run"
    shutil.copytree(toy_run.run_directory, run)
    trial = next(line for line in (run / "journal.jsonl").read_text().splitlines() if '"kind": "trial"' in line)
    with (run / "journal.jsonl").open("a") as journal:
        journal.write(f"{trial}\n")
    record = read(run)
    assert (run / "result.json").is_file()
    assert record.outcome is None
    assert len(record.trials) == len(toy_run.trials) + 1


def test_a_trial_whose_metric_is_no_number_costs_its_point_and_not_the_page(
    toy_run: TuneResult, tmp_path: Path
) -> None:
    record = read(toy_run.run_directory)
    worst = [
        replace(trial, metrics=FrozenMap(dict.fromkeys(trial.metrics, value)))
        for trial, value in zip(record.trials, (float("nan"), float("inf")), strict=False)
    ]
    assert len(worst) == 2
    broken = replace(record, trials=(*worst, *record.trials[2:]))
    assert "Every trial" in html.page(broken)
    figure = figures.accuracy_against_ops(broken)
    assert figure is not None
    assert sum(value is None for part in figure["data"] for value in part["y"]) == 2


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="journal"):
        html.write(tmp_path)


def test_the_served_page_refreshes_itself_when_the_run_goes_on(toy_run: TuneResult, tmp_path: Path, page: Page) -> None:
    run = tmp_path / "job" / "run"
    shutil.copytree(toy_run.run_directory, run)
    whole = (run / "journal.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    first = [json.loads(line)["kind"] for line in lines].index("trial")
    (run / "journal.jsonl").write_text("".join(lines[: first + 1]))
    server = serve(run, port=0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        with urllib.request.urlopen(f"{address}/version") as answer:
            assert answer.status == 200
        browser = page(f"{address}/")
        assert "1 trial so far" in browser.find_element("tag name", "main").text
        (run / "journal.jsonl").write_text(whole)
        # Asked by script: an element that was found before the page was fetched anew belongs to the old one.
        heading = "return document.querySelector('h1') ? document.querySelector('h1').textContent : ''"
        deadline = time.monotonic() + 60
        while "accepted" not in browser.execute_script(heading) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert "accepted" in browser.execute_script(heading)
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{address}/../journal.jsonl")
    finally:
        server.shutdown()
        server.server_close()


def test_several_reporters_all_hear_of_the_run() -> None:
    class Ear:
        def __init__(self) -> None:
            self.heard: list[object] = []
            self.closed = 0

        def on_event(self, event: object) -> None:
            self.heard.append(event)

        def close(self) -> None:
            self.closed += 1

    ears = [Ear(), Ear()]
    several = Several(ears)
    several.on_event("x")
    several.close()
    assert [ear.heard for ear in ears] == [["x"], ["x"]]
    assert [ear.closed for ear in ears] == [1, 1]


def test_the_commands_stand_on_lines_of_their_own(toy_run: TuneResult, page: Page) -> None:
    lines = page(html.write(toy_run.run_directory)).find_element("css selector", "main pre").text.splitlines()
    assert [line.split()[0] for line in lines] == ["#", "neural-tune", "#", "python"]
