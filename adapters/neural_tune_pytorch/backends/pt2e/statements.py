"""Where compiled code spends its time: the Python that Inductor generates, run with a clock between its statements. Nothing is compiled for it."""

from __future__ import annotations

import ast
import inspect
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from types import MethodType
from typing import Any

from neural_tune.errors import AdapterError
from neural_tune_pytorch.backends.pt2e.inductor import Form

_NODES = re.compile(r"Source Nodes: \[([^\]]*)\]")
_CLOCK = "_neural_tune_clock"
# Calls that prepare something for the kernel behind them; their time is booked with it.
_ASIDE = ("empty_strided", "assert_size_stride", "assert_alignment", "reinterpret_tensor", "args.clear")


@dataclass(frozen=True, slots=True)
class Statement:
    """One call of a kernel in generated code, with what is allocated for it.

    Attributes:
        kernel: Name of the function, such as "torch.ops.onednn.qlinear_pointwise.tensor" or "cpp_fused_quantize_per_tensor_0".
        nodes: Names of the graph nodes that Inductor made it of, in order; () for loops that it wrote itself.
        codes: Elements of the uint8 buffers among its arguments.
    """

    kernel: str
    nodes: tuple[str, ...]
    codes: int

    @property
    def only_quantizes(self) -> bool:
        """Whether it is a loop that turns floats into codes and does nothing else."""
        found = re.fullmatch(r"cpp_fused_([a-z_]+?)_\d+", self.kernel)
        names = ("choose_qparams", "quantize_per_tensor", "_to_copy")
        rest = found.group(1) if found and "dequantize" not in self.kernel else "x"
        for name in names:
            rest = rest.replace(name, "")
        return "quantize" in self.kernel and not rest.strip("_")


class Clocked:
    """A form whose statements can be timed. While it is, nobody else should run the form."""

    def __init__(self, form: Form, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """Read the generated code.

        Raises:
            AdapterError: it does not look as this torch's Inductor writes it.
        """
        runner = getattr(form.output, "current_callable", None)
        if not inspect.ismethod(runner):
            raise AdapterError("Inductor's generated code has no method to time: there is no latency profile here")
        self._form = form
        self._runner: MethodType = runner
        self._clock = clock
        self._ticks: list[float] = []
        tree = ast.parse(form.code)
        method = _method(tree, runner.__name__)
        self.statements, self._ends = _read(method, form.code.splitlines())
        self._timed = self._instrumented(tree, method)

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """Let calls of the form be timed inside the block."""
        self._form.output.current_callable = self._timed
        try:
            yield
        finally:
            self._form.output.current_callable = self._runner

    def seconds(self) -> list[float]:
        """Return the seconds per statement of the last call."""
        spent = [after - before for before, after in pairwise(self._ticks)]
        found, start = [], 0
        for end in self._ends:
            found.append(sum(spent[start : end + 1]))
            start = end + 1
        return found

    def _instrumented(self, tree: ast.Module, method: ast.FunctionDef) -> Callable[[Any], Any]:
        """Return the method with a clock before every statement and behind the last, over the very constants and kernels of the compiled module."""
        tick = ast.parse(f"{_CLOCK}()").body[0]
        *body, last = method.body
        method.body = [part for statement in body for part in (tick, statement)] + [tick, last]
        space = dict(self._runner.__func__.__globals__)
        space[_CLOCK] = lambda: self._ticks.append(self._clock())
        module = ast.Module(body=[method], type_ignores=[])
        exec(compile(ast.fix_missing_locations(module), "<timed>", "exec"), space)  # noqa: S102 - the code that runs anyway
        del tree
        call = MethodType(space[method.name], self._runner.__self__)

        def timed(args: Any) -> Any:
            self._ticks.clear()
            return call(args)

        return timed


def _method(tree: ast.Module, name: str) -> ast.FunctionDef:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == name and isinstance(node.body[-1], ast.Return):
            return node
    raise AdapterError(f"Inductor's generated code has no function {name!r} to time: there is no latency profile here")


def _read(method: ast.FunctionDef, lines: list[str]) -> tuple[tuple[Statement, ...], list[int]]:
    """Return the kernels that a method calls, and the number of the statement in which each is."""
    codes: dict[str, int] = {}
    found: list[Statement] = []
    ends: list[int] = []
    for number, statement in enumerate(method.body[:-1]):
        call = getattr(statement, "value", None)
        if not isinstance(call, ast.Call):
            continue
        name = ast.unparse(call.func)
        if name.startswith("empty_strided") and ast.unparse(call.args[-1]) == "torch.uint8":
            target = ast.unparse(statement.targets[0])  # type: ignore[attr-defined]
            codes[target] = prod(ast.literal_eval(call.args[0]))
        if name.startswith(_ASIDE):
            continue
        nodes = _NODES.search(lines[statement.lineno - 2])
        names = tuple(nodes.group(1).split(", ")) if nodes else ()
        found.append(Statement(name, names, sum(codes.get(ast.unparse(item), 0) for item in call.args)))
        ends.append(number)
    return tuple(found), ends
