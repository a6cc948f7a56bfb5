"""Plug-ins: adapters and strategies, found by entry point, described by a light object, loaded at first use.

A distribution registers an `AdapterPlugin` in the entry-point group "neural_tune.adapters" or a `StrategyPlugin` in
"neural_tune.strategies". The module of the entry point must import no framework: `neural-tune list` loads all of them.
First-party plug-ins come in through the same door.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from neural_tune.errors import ConfigError, PluginError
from neural_tune.options import close_to
from neural_tune.protocols import AnyAdapter, Strategy

ADAPTER_GROUP = "neural_tune.adapters"
STRATEGY_GROUP = "neural_tune.strategies"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPlugin:
    """A light description of an adapter.

    Attributes:
        name: Framework name, equal to the entry point's name.
        summary: One line for `neural-tune list`.
        requires: Import names of the packages it needs; probed without importing them.
        install: What to pip install when one is missing, such as "neural-tune[onnxruntime]".
        accepts: Cheap test whether a model (object or path) belongs to it; imports nothing heavy.
        load: Returns the adapter; may import the framework.
    """

    name: str
    summary: str
    requires: tuple[str, ...]
    install: str
    accepts: Callable[[object], bool]
    load: Callable[[], AnyAdapter]

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of required packages that are not installed."""
        return tuple(name for name in self.requires if importlib.util.find_spec(name) is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyPlugin:
    """A light description of a strategy.

    Attributes:
        name: Name, equal to the entry point's name.
        summary: One line for `neural-tune list`.
        create: Returns a strategy for a seed and keyword options; raises ConfigError for an option it does not know.
        requires: Import names of the packages it needs.
        install: What to pip install when one is missing.
    """

    name: str
    summary: str
    create: Callable[..., Strategy]
    requires: tuple[str, ...] = ()
    install: str = ""

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of required packages that are not installed."""
        return tuple(name for name in self.requires if importlib.util.find_spec(name) is None)


PluginT = TypeVar("PluginT", AdapterPlugin, StrategyPlugin)


def adapters() -> dict[str, AdapterPlugin]:
    """Return every registered adapter by name. Raises PluginError for duplicates and wrong types."""
    return _discover(ADAPTER_GROUP, AdapterPlugin)


def strategies() -> dict[str, StrategyPlugin]:
    """Return every registered strategy by name. Raises PluginError for duplicates and wrong types."""
    return _discover(STRATEGY_GROUP, StrategyPlugin)


def adapter_for(model: object, framework: str | AnyAdapter = "") -> AnyAdapter:
    """Return the adapter named `framework`, or `framework` itself if it is an adapter, or the one that accepts `model`.

    Raises:
        PluginError: nothing accepts the model, several do, or the framework is not installed.
    """
    if not isinstance(framework, str):
        return framework
    known = adapters()
    if framework:
        if framework not in known:
            raise PluginError(f"no adapter named {framework!r}{close_to(framework, known)}; installed: {_roll(known)}")
        return _load_adapter(known[framework])
    accepting = [plugin for plugin in known.values() if plugin.accepts(model)]
    if len(accepting) == 1:
        return _load_adapter(accepting[0])
    shown = repr(model) if isinstance(model, str) else f"a {type(model).__module__}.{type(model).__qualname__}"
    if not accepting:
        raise PluginError(
            f"no adapter accepts {shown}; installed adapters: {_roll(known)}. "
            "Pass a path or object of one of these frameworks, or install the plug-in that knows it"
        )
    names = ", ".join(plugin.name for plugin in accepting)
    raise PluginError(f"several adapters accept {shown}: {names}. Name one in the configuration (model.framework)")


def strategy(name: str, seed: int, /, **options: Any) -> Strategy:
    """Return a new strategy.

    Raises:
        PluginError: there is no such strategy, or a package it needs is missing.
        ConfigError: an option is unknown to it.
    """
    known = strategies()
    if name not in known:
        there = ", ".join(known) or "none"
        raise PluginError(f"no strategy named {name!r}{close_to(name, known)}; installed: {there}")
    plugin = known[name]
    if plugin.missing:
        raise PluginError(_missing(f"strategy {name!r}", plugin.missing, plugin.install))
    if "seed" in options:
        raise ConfigError(
            f"strategy {name!r}: found seed={options['seed']!r} among its options; set random_seed instead"
        )
    return plugin.create(seed=seed, **options)


def _load_adapter(plugin: AdapterPlugin) -> AnyAdapter:
    if plugin.missing:
        raise PluginError(_missing(f"adapter {plugin.name!r}", plugin.missing, plugin.install))
    return plugin.load()


def hint_for(module: str) -> str:
    """Return what to install for a module that an adapter or a strategy needs; "" when none of them does."""
    known: tuple[AdapterPlugin | StrategyPlugin, ...] = (*adapters().values(), *strategies().values())
    package = module.partition(".")[0]
    return next((f'pip install "{plugin.install}"' for plugin in known if package in plugin.requires), "")


def _missing(what: str, names: tuple[str, ...], install: str) -> str:
    verb = "is" if len(names) == 1 else "are"
    return f'{what} needs {", ".join(names)}, which {verb} not installed: pip install "{install}"'


def _roll(known: Mapping[str, AdapterPlugin]) -> str:
    """Return the adapters that can run, then those whose framework is not there."""
    able = ", ".join(name for name, plugin in known.items() if not plugin.missing) or "none"
    lacking = [f'{name} (pip install "{plugin.install}")' for name, plugin in known.items() if plugin.missing]
    return able + (f"; without their framework: {', '.join(lacking)}" if lacking else "")


@functools.cache
def _discover(group: str, kind: type[PluginT]) -> dict[str, PluginT]:
    found: dict[str, PluginT] = {}
    owners: dict[str, str] = {}
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, _owner(point))):
        try:
            plugin = point.load()
        except (ImportError, AttributeError) as error:
            raise PluginError(
                f"entry point {point.name!r} of {_owner(point)} in {group} cannot be loaded ({error}); "
                "repair or uninstall it"
            ) from error
        if not isinstance(plugin, kind):
            raise PluginError(
                f"entry point {point.name!r} of {_owner(point)} in {group}: found a {type(plugin).__name__}, "
                f"expected a neural_tune.plugins.{kind.__name__}"
            )
        if plugin.name != point.name:
            raise PluginError(
                f"entry point {point.name!r} of {_owner(point)} in {group} describes {plugin.name!r}; make the names equal"
            )
        if point.name in found:
            raise PluginError(
                f"{group}: {point.name!r} is registered twice, by {owners[point.name]} and "
                f"{_owner(point)} ({point.value}); uninstall one"
            )
        found[point.name] = plugin
        owners[point.name] = f"{_owner(point)} ({point.value})"
    return found


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown distribution"
