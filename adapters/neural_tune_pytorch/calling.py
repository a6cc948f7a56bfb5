"""How a module is called and what it hands back, as values: so that every backend only sees flat tuples of tensors.

A backend's network takes the tensors in the order of `Calling.inputs` and returns a tuple of tensors. What the caller of the original module passes (positional,
by keyword, a mapping, a Hugging Face `BatchEncoding`) and expects back (a tensor, a tuple, a dict, a `ModelOutput`) is rebuilt around it. Everything here has a JSON form, because
a saved model must answer like the original one without it.
"""

from __future__ import annotations

import importlib
import inspect
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from neural_tune.errors import AdapterError, CapabilityError, DataError

# The only module from which a class is looked up by the name in a saved model; anything else comes back as `Outputs`.
_MODEL_OUTPUTS = "transformers.modeling_outputs"
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Style(StrEnum):
    """How the original module takes its inputs."""

    POSITIONAL = "positional"
    KEYWORD = "keyword"
    MAPPING = "mapping"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputInfo:
    """One input tensor.

    Attributes:
        name: Name of the parameter of `forward`, or key of the mapping.
        dtype: Torch dtype without its prefix, such as "float32".
        shape: Length per axis in the example.
        fixed: (axis, length) for the axes that the captured form takes with that length only; () where that is not known.
        is_written: Whether the original changes this input, and so is given a copy (`Calling.call`); what is captured or traced of that copies by itself.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    fixed: tuple[tuple[int, int], ...] = ()
    is_written: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch knows it."""
        return getattr(torch, self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calling:
    """Inputs and outputs of a module.

    Attributes:
        inputs: The tensors it takes, in order.
        style: How the original takes them.
        outputs: Structure of what the original returns, as plain data; see `flatten`.
    """

    inputs: tuple[InputInfo, ...]
    style: Style
    outputs: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(info.name for info in self.inputs)

    def call(self, module: nn.Module, tensors: Sequence[Tensor]) -> Any:
        """Return what `module` returns for `tensors`, passed the way it likes; batches are only read, whatever the module does to its inputs."""
        tensors = [
            tensor.clone() if info.is_written else tensor for tensor, info in zip(tensors, self.inputs, strict=True)
        ]
        if self.style is Style.POSITIONAL:
            return module(*tensors)
        named = dict(zip(self.names, tensors, strict=True))
        return module(named) if self.style is Style.MAPPING else module(**named)

    def bind(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the inputs in order, from whatever a caller passed: positional, keywords, one mapping, one tuple.

        Raises:
            DataError: names or number do not fit.
        """
        if not keywords and len(arguments) == len(self.inputs) and all(isinstance(item, Tensor) for item in arguments):
            return tuple(arguments)
        if len(arguments) == 1 and not keywords:
            only = arguments[0]
            if isinstance(only, Mapping):
                return self._by_name(only)
            if isinstance(only, tuple | list) and not (len(self.inputs) == 1 and _is_rows(only)):
                return self._by_position(only)
        given = dict(zip(self.names, arguments, strict=False))
        twice = sorted(set(given) & set(keywords))
        if len(arguments) > len(self.inputs) or twice:
            raise DataError(
                f"found {len(arguments)} positional inputs and {sorted(keywords)}, expected {list(self.names)}"
            )
        return self._by_name({**given, **keywords})

    def _by_name(self, found: Mapping[str, Any]) -> tuple[Any, ...]:
        given = {str(name): value for name, value in found.items() if value is not None}
        if set(given) != set(self.names):
            raise DataError(f"found inputs {sorted(given)}, expected the names {list(self.names)}")
        return tuple(given[name] for name in self.names)

    def _by_position(self, found: Sequence[Any]) -> tuple[Any, ...]:
        if len(found) != len(self.inputs):
            raise DataError(
                f"found {len(found)} inputs, expected {len(self.inputs)} in the order {list(self.names)} (or a mapping by name)"
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a saved model."""
        inputs = [
            {
                "name": info.name,
                "dtype": info.dtype,
                "shape": list(info.shape),
                "fixed": [list(pair) for pair in info.fixed],
            }
            for info in self.inputs
        ]
        return {"inputs": inputs, "style": self.style.value, "outputs": self.outputs}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calling:
        """Return what `to_json` described.

        Raises:
            AdapterError: the data is malformed.
        """
        try:
            inputs = tuple(map(_info, data["inputs"]))
            if not all(isinstance(getattr(torch, info.dtype, None), torch.dtype) for info in inputs):
                raise ValueError([info.dtype for info in inputs])  # noqa: TRY301 - one message for all that is malformed
            return cls(inputs=inputs, style=Style(data["style"]), outputs=data["outputs"])
        except (KeyError, TypeError, ValueError) as error:
            raise AdapterError(
                f"the description of the saved model's inputs is malformed ({error!r}): save it again"
            ) from error


class Outputs(OrderedDict[str, Any]):
    """Named outputs with attribute and integer access, where the original class is not at hand."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


class Flat(nn.Module):
    """A module behind the flat calling convention: tensors in, a tuple of tensors out."""

    def __init__(self, model: nn.Module, calling: Calling) -> None:
        super().__init__()
        self.model = model
        self._calling = calling

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the output tensors in the order of the structure."""
        return flatten(self._calling.call(self.model, tensors))[0]


def parameters_of(module: nn.Module) -> tuple[inspect.Parameter, ...]:
    """Return the parameters of `forward`, those with a star left out; () where there is no signature."""
    try:
        found = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(parameter for parameter in found if parameter.kind not in _VARIADIC)


def required_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters of `forward` that have no default."""
    return tuple(item.name for item in parameters_of(module) if item.default is inspect.Parameter.empty)


def describe(module: nn.Module, example: Any) -> tuple[tuple[str, ...], Style, tuple[Any, ...]]:
    """Return the input names, the style and the members of `example` in order.

    Raises:
        CapabilityError: the example does not fit `forward`.
    """
    parameters = parameters_of(module)
    known = tuple(item.name for item in parameters)
    if isinstance(example, Mapping):
        given = {str(name): value for name, value in example.items() if value is not None}
        takes_any = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in _all_parameters(module))
        if set(given) <= set(known) or takes_any:
            names = (*(name for name in known if name in given), *(name for name in given if name not in known))
            positional = not takes_any and names == known[: len(names)] and not _is_hugging_face(module)
            return names, Style.POSITIONAL if positional else Style.KEYWORD, tuple(given[name] for name in names)
        required = required_names(module)
        if len(known) >= 1 and len(required) <= 1:
            return tuple(given), Style.MAPPING, tuple(given.values())
        raise CapabilityError(
            f"found a batch of {sorted(given)}, but the module's forward takes {list(known)}: rename the keys"
        )
    members = tuple(example) if isinstance(example, tuple | list) else (example,)
    if len(members) > len(known) and not _takes_many(module):
        raise CapabilityError(f"found a batch of {len(members)} inputs, but the module's forward takes {list(known)}")
    names = (*known[: len(members)], *(f"input{number}" for number in range(len(known), len(members))))
    return names, Style.POSITIONAL, members


def flatten(value: Any) -> tuple[tuple[Tensor, ...], Any]:
    """Return the tensors of an output, in order, and its structure as plain data.

    Raises:
        CapabilityError: it holds something else than tensors, containers of tensors, numbers, texts and None.
    """
    tensors: list[Tensor] = []
    structure = _structure(value, tensors)
    return tuple(tensors), structure


def unflatten(tensors: Sequence[Tensor], structure: Any) -> Any:
    """Return the output that `flatten` took apart."""
    kind, content = structure
    match kind:
        case "tensor":
            return tensors[content]
        case "constant":
            return content
        case "tuple":
            return tuple(unflatten(tensors, item) for item in content)
        case "list":
            return [unflatten(tensors, item) for item in content]
        case "dict":
            return {name: unflatten(tensors, item) for name, item in content}
        case _:
            return _output_class(kind)({name: unflatten(tensors, item) for name, item in content})


def _info(item: Mapping[str, Any]) -> InputInfo:
    """Return one input from its plain data; files of before axes were checked say nothing of them."""
    return InputInfo(
        name=str(item["name"]),
        dtype=str(item["dtype"]),
        shape=tuple(map(int, item["shape"])),
        fixed=tuple((int(axis), int(size)) for axis, size in item.get("fixed", ())),
    )


def _structure(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors.append(value)
        return ["tensor", len(tensors) - 1]
    if value is None or isinstance(value, bool | int | float | str):
        return ["constant", value]
    if isinstance(value, Mapping):
        content = [[str(name), _structure(item, tensors)] for name, item in value.items()]
        return ["dict" if type(value) is dict else type(value).__name__, content]
    if isinstance(value, tuple | list):
        return ["list" if isinstance(value, list) else "tuple", [_structure(item, tensors) for item in value]]
    raise CapabilityError(
        f"the module returns a {type(value).__name__}, expected tensors in tuples, lists, dicts or a ModelOutput; "
        "wrap the module so that it returns these (for a transformer with a cache: use_cache=False)"
    )


def _output_class(name: str) -> type[Any]:
    """Return the Hugging Face class of that name where it is installed, else `Outputs`; no other class is ever looked up."""
    try:
        found = getattr(importlib.import_module(_MODEL_OUTPUTS), name, None)
    except ImportError:
        return Outputs
    return found if isinstance(found, type) and issubclass(found, OrderedDict) else Outputs


def _all_parameters(module: nn.Module) -> Iterable[inspect.Parameter]:
    try:
        return inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return ()


def _takes_many(module: nn.Module) -> bool:
    return any(item.kind is inspect.Parameter.VAR_POSITIONAL for item in _all_parameters(module)) or not parameters_of(
        module
    )


def _is_hugging_face(module: nn.Module) -> bool:
    return any(kind.__module__.split(".")[0] == "transformers" for kind in type(module).__mro__)


def _is_rows(values: Sequence[Any]) -> bool:
    """Return whether a sequence is itself one array of numbers, written as nested lists."""
    return bool(values) and not any(hasattr(value, "shape") or isinstance(value, Mapping) for value in values)
