"""Runs on the toy adapter, and a real browser to look at their pages with."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neural_tune import AccuracyCriterion, PerformanceConfig, PostTrainingQuantConfig, TuneResult, TuningCriterion, fit
from neural_tune.testing import ToyAdapter, sabotage, toy_task

# Chromium's own background connections are refused by closed networks, many at a time.
_QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    """A finished run with trials that missed, an op in float, and a name that would be markup."""
    task = toy_task()
    return fit(
        sabotage(task.model, "dense3", 256.0),
        PostTrainingQuantConfig(
            workspace=str(tmp_path_factory.mktemp("runs")),
            performance=PerformanceConfig(warmup=1, repeats=12, seconds=0.05, batch_size=8),
            tuning_criterion=TuningCriterion(strategy="basic", max_trials=20),
            accuracy_criterion=AccuracyCriterion(True, "absolute", 0.005),
            model_name="toy <b>&amp; job</b>",
        ),
        calib_dataloader=task.batches(),
        eval_dataloader=(task.inputs, task.labels),
        eval_metric="topk",
        framework=ToyAdapter(),
        reporter="quiet",
    )


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium under WebDriver."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = (
        shutil.which(name) or shutil.which(other)
        for name, other in (("chromium", "google-chrome"), ("chromedriver", "chromium.chromedriver"))
    )
    if not chromium or not driver:
        pytest.skip("no Chromium with chromedriver on this machine (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        *_QUIET,
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


def size(browser: Any, width: int, height: int = 900) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.fixture
def page(browser: Any) -> Any:
    """Opens a page file at a width and theme, and hands out the browser once everything is drawn."""

    def opened(path: Path | str, *, width: int = 1100, theme: str = "light") -> Any:
        size(browser, width)
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.get(path if isinstance(path, str) else path.resolve().as_uri())
        wait = pytest.importorskip("selenium.webdriver.support.ui", reason="selenium is not installed")
        wait.WebDriverWait(browser, 60).until(
            lambda b: b.execute_script("return document.body.dataset.drawn") == "true"
        )
        return browser

    return opened
