"""The plug-in under test, taken from where users get it: the entry points."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from neural_tune.plugins import PluginT


def installed(known: Mapping[str, PluginT], name: str) -> PluginT:
    """Return the plug-in `name`; the test skips where a package that the plug-in needs is missing, and fails where nobody registered it."""
    if name not in known:
        pytest.fail(
            f"no entry point {name!r}; registered: {', '.join(known) or 'none'}. Is the distribution installed?"
        )
    plugin = known[name]
    if plugin.missing:
        pytest.skip(f'not installed: {", ".join(plugin.missing)}; pip install "{plugin.install}"')
    return plugin
