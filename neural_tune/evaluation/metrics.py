"""From what a user writes to a `Metric`: a name, a table with options, "module:callable", or a callable."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from neural_tune.errors import ConfigError, DataError
from neural_tune.evaluation.builtin import METRICS
from neural_tune.evaluation.data import to_numpy
from neural_tune.evaluation.identity import described
from neural_tune.evaluation.metric import Metric, MetricInfo
from neural_tune.evaluation.predictions import Selection
from neural_tune.protocols import Outputs

_COMMON = ("output", "labels", "name")


def metrics(spec: object) -> tuple[Metric, ...]:
    """Return the metrics of `spec`: one (see `metric`), a list of them, or a table with several names.

    Raises:
        ConfigError: a spec is wrong, none is given, or two have one name.
    """
    if isinstance(spec, Mapping) and len(spec) > 1 and "callable" not in spec:
        built = tuple(metric({name: options}) for name, options in spec.items())
    elif isinstance(spec, list | tuple):
        built = tuple(single for item in spec for single in metrics(item))
    else:
        built = (metric(spec),)
    names = [single.name for single in built]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not built:
        raise ConfigError(
            f"metrics: found {names}, expected at least one and every name once; give the option name, as in {{topk: {{k: 5, name: top5}}}}"
        )
    return built


def metric(spec: object) -> Metric:
    """Return the metric that `spec` describes.

    `spec` is one of: a built-in name ("topk"); `{name: value}` or `{name: {option: value}}`, as in `{"topk": 1}`, `{"topk": {"k": 5}}`,
    `{"f1": {"average": "macro"}}`, where every built-in also takes `output` (position), `labels` (key or position) and `name`;
    "module:callable" or `{"module:callable": {"higher_is_better": False}}`; a callable, or `{"callable": f, "higher_is_better": ...,
    "name": ...}`. A callable takes `(outputs, labels)` and returns a number; outputs are one array, or a tuple of arrays when the model
    has several. Where a callable comes without `higher_is_better`, the criterion says which way is better.

    Raises:
        ConfigError: the metric or an option is unknown, or a value is out of range.
    """
    if isinstance(spec, Metric):
        return spec
    if isinstance(spec, Mapping):
        if "callable" in spec:
            return _from_callable(spec["callable"], {key: value for key, value in spec.items() if key != "callable"})
        if len(spec) == 1:
            name, options = next(iter(spec.items()))
            return _from_name(str(name), options)
        raise ConfigError(
            f"metric: found a table with the keys {list(spec)}, expected one metric name, as in {{topk: 1}}"
        )
    if isinstance(spec, str):
        return _from_name(spec, None)
    if callable(spec):
        return _from_callable(spec, {})
    raise ConfigError(
        f"metric: found {spec!r}, expected a name, a table such as {{topk: 1}}, 'module:callable' or a callable"
    )


def _from_name(name: str, options: object) -> Metric:
    if ":" in name:
        table = {} if options is None else options
        if not isinstance(table, Mapping):
            raise ConfigError(f"metric {name}: found {options!r}, expected a table with higher_is_better or name")
        return _from_callable(_imported(name), table)
    info = METRICS.get(name)
    if info is None:
        close = difflib.get_close_matches(name, METRICS, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(
            f"unknown metric {name!r}.{hint} Known: {', '.join(sorted(METRICS))}; or give 'module:callable' or a callable"
        )
    return _from_info(name, info, _table(name, info, options))


def _table(name: str, info: MetricInfo, options: object) -> dict[str, Any]:
    """Return the options as a table; a bare value sets the metric's main option."""
    if options is None:
        return {}
    if isinstance(options, Mapping):
        return {str(key): value for key, value in options.items()}
    if not info.option:
        raise ConfigError(f"metric {name}: found {options!r}, expected a table of options ({', '.join(_COMMON)})")
    return {info.option: options}


def _from_info(name: str, info: MetricInfo, options: dict[str, Any]) -> Metric:
    parameters = inspect.signature(info.build).parameters
    own = [key for key in parameters if key != "selection"]
    unknown = sorted(set(options) - set(own) - set(_COMMON))
    if unknown:
        raise ConfigError(f"metric {name}: found the options {unknown}, expected only {[*own, *_COMMON]}")
    output = options.get("output", 0)
    if isinstance(output, bool) or not isinstance(output, int):
        raise ConfigError(f"metric {name}: found output={output!r}, expected the position of an output")
    selection = Selection(metric=str(options.get("name", name)), output=output, labels=options.get("labels"))
    built: Metric = info.build(selection, **{key: value for key, value in options.items() if key in own})
    chosen = {key: options.get(key, parameters[key].default) for key in own}
    where = {"output": output, "labels": selection.labels, "name": selection.metric}
    return replace(built, spec=f"{name} {described({**chosen, **where})}")


def _from_callable(function: object, options: Mapping[Any, Any]) -> Metric:
    unknown = sorted(set(map(str, options)) - {"higher_is_better", "name"})
    higher = options.get("higher_is_better")
    if not callable(function):
        raise ConfigError(f"metric: found {function!r}, expected a callable (outputs, labels) -> number")
    if unknown or not isinstance(higher, bool | None):
        raise ConfigError(
            f"metric {function!r}: found the options {dict(options)}, expected higher_is_better (true or false) and name"
        )
    name = str(options.get("name") or getattr(function, "__name__", type(function).__name__))
    called: Callable[..., object] = function

    def compute(outputs: Outputs, labels: object) -> float:
        return as_number(called(outputs[0] if len(outputs) == 1 else outputs, labels), f"metric {name!r}")

    spec = f"{described(function)} {described({'name': name, 'higher_is_better': higher})}"
    return Metric(name=name, higher_is_better=higher, compute=compute, spec=spec)


def _imported(target: str) -> object:
    module, _, path = target.partition(":")
    try:
        found: object = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"metric {target!r}: cannot import {module!r} ({error}); expected an importable 'module:callable'"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"metric {target!r}: module {module!r} has no {path!r}; expected 'module:callable'")
        found = getattr(found, part)
    return found


def as_number(value: object, source: str) -> float:
    """Return a float from a number, numpy scalar or tensor with one element; NaN is let through.

    Raises:
        DataError: anything else, bool and None included; the message says what `source` returned.
    """
    if isinstance(value, int | float | np.number) and not isinstance(value, bool | np.complexfloating):
        return float(value)
    if getattr(value, "shape", None) == () and not isinstance(value, np.bool_):
        number = to_numpy(value)
        if number.dtype.kind in "iuf":
            return float(number)
    kind = type(value).__name__
    shape = getattr(value, "shape", None)
    shown = f"a {kind} of shape {tuple(shape)}" if shape not in (None, ()) else f"{value!r:.60} ({kind})"
    wrong = f"{source} returned {shown}, expected a number (int, float, numpy scalar or 0-d tensor)"
    raise DataError(wrong + ("; did you forget the return statement?" if value is None else ""))


def best_possible(metric: Metric, seen: float, count: int, size: int) -> float:
    """Return the best value the metric can still reach when `count` of `size` samples are known and their values add up to `seen`.

    A metric that is no mean of per-sample values can still be anything: +inf, or -inf where lower is better. The bound is widened by
    a relative 1e-9, so that rounding never rejects what the library's own sum accepts.

    Raises:
        ConfigError: the metric's direction is not known.
    """
    if metric.higher_is_better is None:
        raise ConfigError(f"metric {metric.name!r}: it is not known whether higher is better; state higher_is_better")
    if metric.per_sample is None:
        return math.inf if metric.higher_is_better else -math.inf
    bound = (seen + (size - count) * metric.best_per_sample) / size
    return bound + abs(bound) * 1e-9 * (1 if metric.higher_is_better else -1)
