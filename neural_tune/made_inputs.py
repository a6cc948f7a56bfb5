"""Made-up inputs for a model, where no data are at hand: for measuring speed and for a first try. They say nothing about accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from neural_tune.errors import ConfigError
from neural_tune.protocols import AnyAdapter, Array, DescribesInputs, InputSpec


def specs_of(adapter: AnyAdapter, model: Any, shapes: Mapping[str, InputSpec]) -> tuple[InputSpec, ...]:
    """Return the inputs of a loaded model; `shapes` has the user's word, by input name.

    Raises:
        ConfigError: a shape names no input, or the adapter cannot tell and nobody said.
    """
    if not isinstance(adapter, DescribesInputs):
        if not shapes:
            raise ConfigError(
                f"the {adapter.name} adapter cannot tell the shapes of this model's inputs: say them, as in --shape x=1,3,224,224"
            )
        return tuple(shapes.values())
    known = {spec.name: spec for spec in adapter.describe_inputs(model)}
    unknown = sorted(name for name, spec in known.items() if not spec.shape and name not in shapes)
    if unknown:
        raise ConfigError(f"input {unknown[0]!r} takes any shape: say one, as in --shape {unknown[0]}=1,224,224,3")
    strange = sorted(set(shapes) - set(known))
    if strange:
        raise ConfigError(f"--shape: found {strange[0]!r}, expected an input of the model: {', '.join(known)}")
    return tuple(replace(spec, shape=shapes[name].shape) if name in shapes else spec for name, spec in known.items())


def parse_shapes(texts: Sequence[str]) -> dict[str, InputSpec]:
    """Return the inputs that texts such as "x=1,3,224,224" or "ids=1,128:int64" describe, the batch axis first.

    Raises:
        ConfigError: a text has another form.
    """
    found = {}
    for text in texts:
        name, _, rest = text.partition("=")
        lengths, _, dtype = rest.partition(":")
        try:
            shape = tuple(int(length) for length in lengths.split(","))
            kind = np.dtype(dtype or "float32").name
        except (ValueError, TypeError):
            shape, kind = (), ""
        if not name or not shape or min(shape) < 1:
            raise ConfigError(
                f"--shape: found {text!r}, expected input=lengths with the batch axis first, as in x=1,3,224,224 or ids=1,128:int64"
            )
        found[name] = InputSpec(name=name, dtype=kind, shape=shape)
    return found


def random_inputs(specs: Sequence[InputSpec], samples: int, seed: int = 0) -> dict[str, Array]:
    """Return `samples` random samples by input name: normal numbers for floats, 0 or 1 for integers.

    Raises:
        ConfigError: a length besides the batch axis is free.
    """
    generator = np.random.default_rng(seed)
    found = {}
    for spec in specs:
        if any(length is None for length in spec.shape[1:]):
            shown = ",".join("?" if length is None else str(length) for length in (1, *spec.shape[1:]))
            raise ConfigError(
                f"input {spec.name!r} has free lengths ({shown}): say them, as in --shape {spec.name}={shown.replace('?', '128')}"
            )
        shape = (samples, *(length or 1 for length in spec.shape[1:]))
        kind = np.dtype(spec.dtype)
        made = generator.normal(size=shape) if kind.kind == "f" else generator.integers(0, 2, shape)
        found[spec.name] = np.asarray(made, kind)
    return found


def batch_size_of(specs: Sequence[InputSpec]) -> int | None:
    """Return the length of the batch axis where the model fixes it, else None."""
    return next((spec.shape[0] for spec in specs if spec.shape and spec.shape[0] is not None), None)
