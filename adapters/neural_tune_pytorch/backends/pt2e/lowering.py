"""Q/DQ graphs made fast: torch.compile with freezing, and the proof that int8 kernels came out of it.

Three things must come together, and each one missing means float kernels without a word: freezing as a *global* setting of Inductor (the option of
torch.compile is not enough), no gradients, and torchao's patterns registered. So nothing else in this package compiles, and what was compiled is
counted: calls of onednn.qconv and onednn.qlinear in the generated code.
"""

from __future__ import annotations

import functools
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch._dynamo.config as dynamo_config
import torch._inductor.config as inductor_config
from torch import Tensor, fx, nn

from neural_tune.errors import AdapterError
from neural_tune_pytorch import model as models
from neural_tune_pytorch.inputs import shapes_of
from neural_tune_pytorch.libraries import x86_inductor

logger = logging.getLogger(__name__)
_KERNELS = re.compile(r"\b(?:torch\.ops\.)?onednn\.(qconv|qlinear)\w*(?:\.\w+)?\(")
_LOCK = threading.RLock()
_Key: TypeAlias = tuple[tuple[bool, int], tuple[tuple[int, ...], ...]]
# Dynamo gives up on a function after eight versions and silently runs it uncompiled: int8 in Q/DQ form, slower than float.
_MOST_VERSIONS = 256


@dataclass(frozen=True, slots=True)
class Kernels:
    """How many int8 kernels the compiled code calls.

    Attributes:
        convolutions: Calls of onednn.qconv.
        linears: Calls of onednn.qlinear.
    """

    convolutions: int
    linears: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.convolutions + self.linears


class Reference:
    """A graph run node by node, in float arithmetic with Q/DQ in between: what the compiled form is compared with."""

    kernels: Kernels | None = None

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph

    def __call__(self, *feed: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs."""
        return _guarded(self.graph, feed)


class Compiled:
    """A graph compiled at its first call, and again for every batch size that comes back.

    Every size gets code of its own. Code for any size costs a third compile anyway, is slower (7.6 against 2.8 ms for a batch of one image through resnet20 in int8),
    and breaks where a convolution has one input channel (Inductor mistakes the layout). A size that shows up once, as the last batch of a pass does, is padded
    to the next larger one instead of being compiled, provided the rows of a batch do not see each other.

    Attributes:
        graph: What is compiled.
        kernels: What came out; None before the first call.
    """

    def __init__(self, graph: fx.GraphModule, *, pads: bool) -> None:
        """Take the graph, and whether its rows are independent, so that a batch may be padded."""
        self.graph = graph
        self.kernels: Kernels | None = None
        x86_inductor()
        self._call = torch.compile(graph, dynamic=False)
        self._pads = pads
        self._compiled: set[_Key] = set()
        self._padded: set[_Key] = set()

    def __call__(self, *feed: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs; shapes that come for the second time compile."""
        feed = tuple(tensor.contiguous() for tensor in feed)
        key = _key(feed)
        if key in self._compiled:
            with torch.no_grad():
                return self._call(*feed)  # type: ignore[no-any-return]
        rows = feed[0].shape[0] if feed[0].ndim else 0
        larger = self._larger(key, rows) if key not in self._padded else 0
        if larger:
            self._padded.add(key)
            order = torch.arange(larger) % rows  # rows again and again: they leave the range of a dynamic op as it is
            with torch.no_grad():
                outputs = self._call(*(tensor[order] for tensor in feed))
            return tuple(output[:rows] for output in outputs)
        return self._compile(key, feed)

    def _compile(self, key: _Key, feed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with _LOCK, torch.no_grad(), freezing() as code:
            result = _guarded(self._call, feed)
        if self.kernels is None:
            self.kernels = count(code)
        self._compiled.add(key)
        return result

    def _larger(self, key: _Key, rows: int) -> int:
        """Return the smallest compiled batch size above `rows` that differs in nothing else; 0 if there is none."""
        if not self._pads or not rows:
            return 0
        mode, shapes = key
        fitting = [
            known[0][0]
            for other, known in self._compiled
            if other == mode and known[0][0] > rows and all(a[1:] == b[1:] for a, b in zip(known, shapes, strict=True))
        ]
        return min(fitting, default=0)


def _key(feed: tuple[Tensor, ...]) -> _Key:
    """Return what dynamo would compile anew for."""
    return (torch.is_inference_mode_enabled(), torch.get_num_threads()), tuple(tuple(tensor.shape) for tensor in feed)


@contextmanager
def freezing() -> Iterator[list[str]]:
    """Let torch.compile fold constants into packed weights inside the block; yields the list that generated code is added to."""
    from torch._inductor.graph import GraphLowering  # noqa: PLC0415 - heavy, and only needed to compile

    code: list[str] = []
    before = GraphLowering.save_output_code
    GraphLowering.save_output_code = staticmethod(code.append)
    try:
        settings = dynamo_config.patch(recompile_limit=_MOST_VERSIONS, accumulated_recompile_limit=_MOST_VERSIONS * 16)
        with inductor_config.patch(freezing=True), settings, warnings.catch_warnings():
            # Inductor and dynamo use deprecated parts of torch themselves.
            warnings.simplefilter("ignore")
            yield code
    finally:
        GraphLowering.save_output_code = before


def count(code: list[str]) -> Kernels:
    """Return the int8 kernels that generated code calls."""
    found = [match.group(1) for text in code for match in _KERNELS.finditer(text)]
    return Kernels(found.count("qconv"), found.count("qlinear"))


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


def _guarded(call: Any, feed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    try:
        with torch.no_grad():
            return tuple(call(*feed))
    except Exception as error:
        raise AdapterError(
            f"the network breaks on inputs of shapes {shapes_of(feed)}: {type(error).__name__}: {models.first_line(error)}"
        ) from error


def kernel_counts(network: nn.Module | Reference | Compiled) -> Kernels | None:
    """Return the counted kernels of a network; None where nothing was compiled yet."""
    return getattr(network, "kernels", None)
