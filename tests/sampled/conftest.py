"""Everything here takes seconds, not milliseconds: a Gaussian process is fitted for every proposal."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "sampled" in item.path.parts:
            item.add_marker(pytest.mark.slow)
