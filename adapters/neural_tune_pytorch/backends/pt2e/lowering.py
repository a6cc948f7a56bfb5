"""Q/DQ graphs as networks: run node by node, or compiled once per shape of batch; and the question what becomes int8 kernels here."""

from __future__ import annotations

import functools
import logging
import threading
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from neural_tune.errors import AdapterError
from neural_tune_pytorch import model as models
from neural_tune_pytorch.backend import Feed
from neural_tune_pytorch.backends.pt2e import inductor, memory
from neural_tune_pytorch.backends.pt2e.inductor import Form, Kernels
from neural_tune_pytorch.inputs import shapes_of

logger = logging.getLogger(__name__)
_Key: TypeAlias = tuple[int, tuple[tuple[int, ...], ...]]


class Reference:
    """A graph run node by node, in float arithmetic with Q/DQ in between: what the compiled form is compared with."""

    kernels: Kernels | None = None

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self._constants = memory.constant_outputs(graph.graph)

    def __call__(self, *feed: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs."""
        return _own(_guarded(self.graph, feed), self._constants)


class Compiled:
    """A graph compiled at its first call, and again for every batch size that comes back.

    Every size gets code of its own. Code for any size costs a third compile anyway, is slower (7.6 against 2.8 ms for a batch of one image through resnet20 in int8),
    and breaks where a convolution has one input channel (Inductor mistakes the layout). A size that shows up once, as the last batch of a pass does, is padded
    to the next larger one instead of being compiled, provided the rows of a batch do not see each other. The number of threads is compiled in, too.

    May be called by several threads.

    Attributes:
        graph: What is compiled.
    """

    def __init__(self, graph: fx.GraphModule, *, pads: bool) -> None:
        """Take the graph, and whether its rows are independent, so that a batch may be padded."""
        self.graph = graph
        self._constants = memory.constant_outputs(graph.graph)
        self._pads = pads
        self._forms: dict[_Key, Form] = {}
        self._padded: set[_Key] = set()
        self._lock = threading.Lock()

    @property
    def forms(self) -> tuple[Form, ...]:
        """What was compiled so far, one form per shape of batch and number of threads."""
        return tuple(self._forms.values())

    def form(self, feed: Feed) -> Form:
        """Return the code for batches like `feed`, compiled now if it was not yet."""
        key = _key(feed)
        if key not in self._forms:
            self._compile(key, feed)
        return self._forms[key]

    @property
    def kernels(self) -> Kernels | None:
        """The int8 kernels that every call runs: of several forms the one with the fewest; None before the first call."""
        return min((form.kernels for form in self.forms), key=lambda kernels: kernels.total, default=None)

    def __call__(self, *feed: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs; shapes that come for the second time compile."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self(*feed)
        key = _key(feed)
        form = self._forms.get(key)
        if form is None:
            return self._first(key, feed)
        outputs = tuple(form.call(*[tensor.contiguous() for tensor in feed]))
        return _own(outputs, self._constants) if self._constants else outputs

    def _first(self, key: _Key, feed: Feed) -> tuple[Tensor, ...]:
        """Return the outputs for shapes that were not compiled yet: padded when they come for the first time, else compiled."""
        rows = feed[0].shape[0] if feed[0].ndim else 0
        larger = self._larger(key, rows) if key not in self._padded else 0
        if larger:
            self._padded.add(key)
            order = torch.arange(larger) % rows  # rows again and again: they leave the range of a dynamic op as it is
            return tuple(output[:rows] for output in self(*(tensor[order] for tensor in feed)))
        return self._compile(key, feed)

    def _compile(self, key: _Key, feed: Feed) -> tuple[Tensor, ...]:
        feed = tuple(tensor.contiguous() for tensor in feed)
        with self._lock:
            if key not in self._forms:
                self._forms[key] = _explained(inductor.compiled, feed, self.graph, feed)
        return _own(_guarded(self._forms[key].call, feed), self._constants)

    def _larger(self, key: _Key, rows: int) -> int:
        """Return the smallest compiled batch size above `rows` that differs in nothing else; 0 if there is none."""
        if not self._pads or not rows:
            return 0
        threads, shapes = key
        fitting = [
            known[0][0]
            for other, known in tuple(self._forms)
            if other == threads
            and known[0][0] > rows
            and all(a[1:] == b[1:] for a, b in zip(known, shapes, strict=True))
        ]
        return min(fitting, default=0)


def _own(outputs: tuple[Tensor, ...], constants: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Return outputs with copies of those that are the same memory at every call: they belong to the caller now."""
    return tuple(output.clone() if at in constants else output for at, output in enumerate(outputs))


def _key(feed: Feed) -> _Key:
    """Return what code is compiled for: the number of threads and the shapes."""
    return torch.get_num_threads(), tuple([tuple(tensor.shape) for tensor in feed])


@dataclass(frozen=True, slots=True)
class Probe:
    """What the installed torch really lowers on this machine.

    Attributes:
        convolution: Static int8 convolutions become onednn kernels.
        linear: Static int8 linears do.
        dynamic: Dynamic int8 linears do.
        problem: Why nothing can be compiled at all; empty when it can.
    """

    convolution: bool
    linear: bool
    dynamic: bool
    problem: str = ""


@functools.cache
def probe() -> Probe:
    """Compile one convolution and two linears, as candidates would be, and look at the code; once per process."""
    from neural_tune_pytorch.backends.pt2e.sample import sample  # noqa: PLC0415 - it builds on everything else

    if any(letter.isspace() for letter in torch.__file__):
        # Inductor splits its compiler commands at blanks (cpp_builder joins them into one string), its own include folders among them.
        where = "torch is installed below a folder with a space in its name, and the compiler commands that Inductor writes break there"
        return Probe(convolution=False, linear=False, dynamic=False, problem=where)
    graph, feed = sample()
    try:
        network = Compiled(graph, pads=False)
        network(*feed)
    except AdapterError as error:
        logger.warning("torch.compile does not work here: %s", error)
        return Probe(convolution=False, linear=False, dynamic=False, problem=str(error))
    kernels = network.kernels or Kernels(0, 0)
    return Probe(convolution=kernels.convolutions == 1, linear=kernels.linears >= 1, dynamic=kernels.linears == 2)


def _guarded(call: Any, feed: Feed) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(_explained(call, feed, *feed))


def _explained(call: Any, feed: Feed, *arguments: Any) -> Any:
    """Return call(*arguments); whatever torch raises becomes an AdapterError that names the shapes of `feed`."""
    try:
        return call(*arguments)
    except Exception as error:
        raise AdapterError(
            f"the network breaks on inputs of shapes {shapes_of(feed)}: {type(error).__name__}: {models.first_line(error)}"
        ) from error
