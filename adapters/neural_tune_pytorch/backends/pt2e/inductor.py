"""One graph compiled by Inductor for one shape of batch, without dynamo: no guards at every call, and no recompilation that nobody counts.

Three things must come together, and each one missing means float kernels without a word: freezing as a *global* setting of Inductor (the option of
torch.compile is not enough), no gradients, and torchao's patterns registered. So nothing else in this package compiles, and what was compiled is
counted: calls of onednn.qconv and onednn.qlinear in the generated code.

Dynamo is for capturing Python, and there is none left to capture. Its guards over every tensor of a model cost a small perceptron a third of its time, and a
guard that fails compiles anew, outside of these settings: in float.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch._inductor.config as inductor_config
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode

from neural_tune_pytorch.backend import Feed
from neural_tune_pytorch.backends.pt2e import memory
from neural_tune_pytorch.libraries import x86_inductor

_KERNELS = re.compile(r"\b(?:torch\.ops\.)?onednn\.(qconv|qlinear)\w*(?:\.\w+)?\(")
_LOCK = threading.RLock()
# Shapes are looked at before the code is called (`lowering.Compiled`), so the code itself need not.
_SETTINGS = {"freezing": True, "size_asserts": False}


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


@dataclass(frozen=True, slots=True)
class Form:
    """The code for one shape of batch.

    Attributes:
        call: Takes the tensors of a batch, contiguous and of the shapes that it was compiled for, under no_grad.
        kernels: The int8 kernels that it calls.
        code: The generated Python.
        output: What Inductor made of the graph: `call` runs `output.current_callable`, inside of AOTAutograd's wrappers where these do anything.
    """

    call: Callable[..., Sequence[Tensor]]
    kernels: Kernels
    code: str
    output: Any = None


def compiled(graph: fx.GraphModule, feed: Feed) -> Form:
    """Return `graph` compiled for batches like `feed`; the graph stays as it is, and its weights are copied into the form that the kernels read."""
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner  # noqa: PLC0415 - heavy, and only needed to compile

    x86_inductor()
    outputs: list[Any] = []

    def keep(*arguments: Any, **settings: Any) -> Any:
        outputs.append(compile_fx_inner(*arguments, **settings))
        return outputs[-1]

    with ExitStack() as stack:
        stack.enter_context(_LOCK)
        stack.enter_context(memory.kept(graph))
        code = stack.enter_context(generated_code())
        stack.enter_context(inductor_config.patch(_SETTINGS))
        # Inductor uses deprecated parts of torch itself.
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        # Freezing finds the weights in the tracing context, which dynamo would have made.
        stack.enter_context(tracing(TracingContext(FakeTensorMode(allow_non_fake_inputs=True))))
        call: Any = compile_fx(_bare(graph), list(feed), inner_compile=keep)
        output = outputs[-1] if outputs else None
        call = _innermost(call, output, feed)
    return Form(call, count(code), "\n".join(code), output)


@contextmanager
def generated_code() -> Iterator[list[str]]:
    """Yield the list that code is added to which Inductor generates, or takes from its cache, inside the block."""
    from torch._inductor.graph import GraphLowering  # noqa: PLC0415 - heavy, and only needed to compile

    code: list[str] = []
    before = GraphLowering.save_output_code
    GraphLowering.save_output_code = staticmethod(code.append)
    try:
        yield code
    finally:
        GraphLowering.save_output_code = before


def count(code: Sequence[str]) -> Kernels:
    """Return the int8 kernels that generated code calls."""
    found = [match.group(1) for text in code for match in _KERNELS.finditer(text)]
    return Kernels(found.count("qconv"), found.count("qlinear"))


def _innermost(call: Callable[..., Any], output: Any, feed: Feed) -> Callable[..., Sequence[Tensor]]:
    """Return what runs inside of AOTAutograd's wrappers, where these hand the very inputs in and the very outputs out; else `call`.

    They exist for gradients, changed inputs, and outputs that are views of inputs. What they do follows from the graph and the form of the batch, so one call tells.
    (Around a perceptron of four layers they took a sixth of the time.)
    """
    inner = getattr(output, "current_callable", None)
    if inner is None:
        return call
    feed = tuple(tensor.clone() for tensor in feed)  # a graph may write to what it is given
    taken: list[Any] = []
    given: list[Any] = []

    def watched(arguments: list[Any]) -> Any:
        taken.extend(arguments)  # the callee empties the list
        results = inner(arguments)
        given.extend(results)
        return results

    output.current_callable = watched
    try:
        results = call(*feed)
    finally:
        output.current_callable = inner
    if _are(taken, feed) and _are(given, results):
        return lambda *tensors: output.current_callable([*tensors])
    return call


def _are(ones: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(ones) == len(others) and all(one is other for one, other in zip(ones, others, strict=True))


def _bare(graph: fx.GraphModule) -> fx.GraphModule:
    """Return a copy for Inductor to change, over the same weights, and without what export noted about shapes: a batch of any size is not what is compiled."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph.graph, {}))
    for node in copy.nodes:
        node.meta.clear()
    return fx.GraphModule(graph, copy)
