"""Made-up inputs for a model, where no data are at hand: for measuring speed and for a first try. They say nothing about accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from neural_tune.errors import AdapterError, CapabilityError, ConfigError, DataError
from neural_tune.protocols import AnyAdapter, Array, DescribesInputs, InputSpec, NamesInputs

_SHOWN = 6


def specs_of(adapter: AnyAdapter, model: Any, shapes: Mapping[str, InputSpec]) -> tuple[InputSpec, ...]:
    """Return the inputs of a loaded model; `shapes` has the user's word, by input name.

    Raises:
        ConfigError: a shape names no input, or the adapter cannot tell and nobody said.
    """
    if not isinstance(adapter, DescribesInputs):
        if not shapes:
            raise unknown_shapes(adapter)
        return tuple(shapes.values())
    known = {spec.name: spec for spec in adapter.describe_inputs(model)}
    unknown = sorted(name for name, spec in known.items() if not spec.shape and name not in shapes)
    if unknown:
        raise ConfigError(f"input {unknown[0]!r} takes any shape: say one, as in --shape {unknown[0]}=1,224,224,3")
    strange = sorted(set(shapes) - set(known))
    if strange:
        raise ConfigError(f"--shape: found {strange[0]!r}, expected an input of the model: {', '.join(known)}")
    return tuple(replace(spec, shape=shapes[name].shape) if name in shapes else spec for name, spec in known.items())


def unknown_shapes(adapter: AnyAdapter, model: object = None) -> ConfigError:
    """Return the error for a model that can only be called with shapes that nobody said; it names the inputs where the adapter knows them."""
    names = names_of(adapter, model)
    whose = f"this model's inputs ({_listed(names)})" if names else "this model's inputs"
    example = f"--shape {names[0] if names else 'x'}=1,3,224,224"
    return ConfigError(
        f"the {adapter.name} adapter cannot tell the shapes of {whose}: say them, the batch axis first, as in {example}"
    )


def names_of(adapter: AnyAdapter, model: object) -> tuple[str, ...]:
    """Return the names of a model's inputs, those that must be given first; () where nobody can tell."""
    return adapter.input_names(model) if isinstance(adapter, NamesInputs) else ()


def check_names(adapter: AnyAdapter, model: object, shapes: Mapping[str, InputSpec]) -> None:
    """Raise ConfigError for a shape whose name is none of the model's inputs."""
    names = names_of(adapter, model)
    strange = [name for name in shapes if name not in names]
    if names and strange:
        raise ConfigError(f"--shape: no input {strange[0]!r}, expected {_listed(names)}")


@contextmanager
def blaming_names(adapter: AnyAdapter, model: object, shapes: Mapping[str, InputSpec]) -> Iterator[None]:
    """Call a model with made-up inputs inside: where it breaks, a wrong name is the likelier cause than what it says.

    A name that is no parameter is no mistake by itself: a model may take one mapping, or any keyword.
    """
    try:
        yield
    except (AdapterError, CapabilityError, DataError) as error:
        try:
            check_names(adapter, model, shapes)
        except ConfigError as wrong:
            raise wrong from error
        raise


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")


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
