"""What a module does with its tensors, recorded in one run: for models that no tracer takes, because their forward is Python.

A recording is true for the run it was made in. It is used for two things only, and both are safe where another input takes another path: to fold a batch norm whose input
comes from one convolution and goes nowhere else, and to leave a tensor quantized between two int8 modules (the second one looks at what it gets).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from neural_tune_pytorch.backends import swap

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_WATCHED = (*swap.QUANTIZABLE, *_NORMS)
_RELUS = frozenset({"relu", "relu_"})
# Functions and tensor methods that compute the same on codes as on real values.
_PASSING = _RELUS | {
    "flatten",
    "view",
    "reshape",
    "permute",
    "transpose",
    "contiguous",
    "squeeze",
    "unsqueeze",
    "max_pool2d",
    "_max_pool2d",
    "dropout",
}
# They look at a tensor and touch no value.
_LOOKING = frozenset({"size", "dim", "ndimension", "numel", "stride", "is_contiguous", "__get__", "__len__"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a watched module, or of a function outside of all of them.

    Attributes:
        name: Module path, or name of the function.
        is_module: Which of the two it is.
        inputs: Numbers of the tensors read.
        outputs: Numbers of the tensors written.
    """

    name: str
    is_module: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A recording.

    Attributes:
        calls: In order.
        results: Numbers of the tensors that the model returned.
        touched: Watched modules of which something outside read a tensor (`self.embed.weight`): they must stay what they are.
        axes: Number of axes of every tensor, by its number.
    """

    calls: tuple[Call, ...]
    results: frozenset[int]
    touched: frozenset[str]
    axes: tuple[int, ...]

    def readers(self, tensor: int) -> tuple[Call, ...]:
        """Return the calls that read a tensor."""
        return tuple(call for call in self.calls if tensor in call.inputs)

    def calls_of(self, module: str) -> tuple[Call, ...]:
        """Return the calls of a module."""
        return tuple(call for call in self.calls if call.is_module and call.name == module)

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of the watched modules that were called, in the order of their first call."""
        return tuple(dict.fromkeys(call.name for call in self.calls if call.is_module))

    def has_relu(self, module: str) -> bool:
        """Return whether whatever `module` writes is read by a Relu and by nothing else."""
        return all(
            len(readers := self.readers(tensor)) == 1
            and not readers[0].is_module
            and readers[0].name in _RELUS
            and tensor not in self.results
            for call in self.calls_of(module)
            for tensor in call.outputs
        )

    def stays(self, tensor: int, int8: frozenset[str]) -> bool:
        """Return whether everything that reads a tensor takes codes: modules of `int8`, or functions that pass codes on to such."""
        return self._stays(tensor, int8, frozenset())

    def _stays(self, tensor: int, int8: frozenset[str], above: frozenset[int]) -> bool:
        if tensor in self.results or tensor in above:
            return False
        readers = self.readers(tensor)
        return bool(readers) and all(self._takes(call, int8, above | {tensor}) for call in readers)

    def _takes(self, call: Call, int8: frozenset[str], above: frozenset[int]) -> bool:
        if call.is_module:
            return call.name in int8
        if call.name not in _PASSING or len(call.inputs) != 1 or len(call.outputs) != 1:
            return False
        return self._stays(call.outputs[0], int8, above)

    def coded(self, written: frozenset[int]) -> frozenset[int]:
        """Return all tensors that exist as codes when those of `written` do."""
        found = set(written)
        for call in self.calls:
            if not call.is_module and call.name in _PASSING and found.intersection(call.inputs):
                found.update(call.outputs)
        return frozenset(found)


def record(module: nn.Module, run: Callable[[nn.Module], Any]) -> Flow:
    """Return what happens to the tensors when `run(module)` is called; the module is as before afterwards."""
    recorder = _Recorder()
    watched = {path: child for path, child in module.named_modules() if type(child) in _WATCHED}
    for path, child in watched.items():
        module.set_submodule(path, _Watched(child, path, recorder))
    try:
        with torch.no_grad(), recorder:
            result = run(module)
    finally:
        for path, child in watched.items():
            module.set_submodule(path, child)
    results = frozenset(recorder.number(tensor) for tensor in leaves(result))
    return Flow(calls=tuple(recorder.calls), results=results, touched=frozenset(recorder.touched), axes=recorder.axes())


def leaves(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested containers, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from leaves(item)


def foldable_norms(module: nn.Module, flow: Flow) -> Iterator[tuple[str, str, int]]:
    """Yield (convolution or linear, batch norm, axes of the tensor between) for every norm that reads one such module's output, alone."""
    for name in flow.modules:
        calls = flow.calls_of(name)
        if not isinstance(module.get_submodule(name), swap.ANCHORS) or len(calls) != 1 or name in flow.touched:
            continue
        (written,) = calls[0].outputs
        readers = flow.readers(written)
        if written in flow.results or len(readers) != 1 or not readers[0].is_module:
            continue
        norm = readers[0].name
        if (
            isinstance(module.get_submodule(norm), _NORMS)
            and len(flow.calls_of(norm)) == 1
            and norm not in flow.touched
        ):
            yield name, norm, flow.axes[written]


@dataclass(slots=True)
class _Numbers:
    """Numbers tensors by identity; they are kept alive, so that no identity comes back."""

    known: dict[int, int] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)

    def of(self, tensor: Tensor) -> int:
        if id(tensor) not in self.known:
            self.known[id(tensor)] = len(self.alive)
            self.alive.append(tensor)
        return self.known[id(tensor)]

    def axes(self) -> tuple[int, ...]:
        return tuple(tensor.dim() for tensor in self.alive)


class _Recorder(TorchFunctionMode):
    """Notes every function outside of watched modules."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.touched: set[str] = set()
        self.inside = 0
        self._numbers = _Numbers()

    def number(self, tensor: Tensor) -> int:
        return self._numbers.of(tensor)

    def axes(self) -> tuple[int, ...]:
        return self._numbers.axes()

    def note(self, name: str, inputs: Any, outputs: Any, *, is_module: bool) -> None:
        read = tuple(self.number(tensor) for tensor in leaves(inputs))
        written = tuple(self.number(tensor) for tensor in leaves(outputs))
        if written or name not in _LOOKING:
            self.calls.append(Call(name=name, is_module=is_module, inputs=read, outputs=written))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.inside:
            name = getattr(func, "__name__", "")
            self.note(
                "max_pool2d" if func is functional.max_pool2d else name, (args, kwargs or {}), result, is_module=False
            )
        return result


class _Watched(nn.Module):
    """Stands in for a module while a run is recorded."""

    def __init__(self, inner: nn.Module, path: str, recorder: _Recorder) -> None:
        super().__init__()
        self.inner = inner
        self._path = path
        self._recorder = recorder

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            value = getattr(self.inner, name)
            if isinstance(value, Tensor):
                self._recorder.touched.add(self._path)
            return value

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        self._recorder.inside += 1
        try:
            result = self.inner(*arguments, **keywords)
        finally:
            self._recorder.inside -= 1
        self._recorder.note(self._path, (arguments, keywords), result, is_module=True)
        return result
