"""LiteRT's interpreter behind one method: arrays in, arrays out, for any batch size."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from neural_tune.errors import AdapterError
from neural_tune.protocols import Array, Outputs
from neural_tune_tensorflow.backend import Feed, Port
from neural_tune_tensorflow.backends import litert_model

# Plain kernels, node by node: a delegate keeps no tensor that it fused away.
_WATCHED = {
    "experimental_preserve_all_tensors": True,
    "experimental_op_resolver_type": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
}


class LiteSession:
    """A `.tflite` model that is ready to run. Calls are serialized: an interpreter has one set of buffers.

    Attributes:
        inputs: What it takes.
        outputs: What it gives.
    """

    def __init__(self, content: bytes, threads: int | None = None, *, keep_all: bool = False) -> None:
        """Start an interpreter.

        Args:
            content: The flatbuffer.
            threads: Threads of the runtime; None takes its default.
            keep_all: Whether every tensor can be read after a run (slower: no delegate, no reuse of memory).

        Raises:
            AdapterError: the runtime refuses the file.
        """
        self._in, self._out = litert_model.ports_of(litert_model.parse(content))
        self.inputs: tuple[Port, ...] = tuple(place.port for place in self._in)
        self.outputs: tuple[Port, ...] = tuple(place.port for place in self._out)
        self._lock = threading.Lock()
        self._shapes: tuple[tuple[int, ...], ...] = ()
        try:
            # The interpreter reads the weights where they lie, so it keeps `content` alive.
            self._interpreter: Any = Interpreter(
                model_content=content, num_threads=threads, **(_WATCHED if keep_all else {})
            )
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            message = f"LiteRT refuses the model: {_first_line(error)}"
            raise AdapterError(message) from error

    def run(self, feed: Feed) -> Outputs:
        """Return the outputs for one batch, in the order of `outputs`.

        Args:
            feed: Input name -> array of the right type and shape (`inputs.to_feed` makes one).

        Raises:
            AdapterError: the runtime breaks on it.
        """
        with self._lock:
            self._invoke(feed)
            return tuple(np.array(self._interpreter.get_tensor(place.index)) for place in self._out)

    def watch(self, feed: Feed, indices: Sequence[int]) -> list[Array]:
        """Return the tensors of `indices` after one batch; needs `keep_all`."""
        with self._lock:
            self._invoke(feed)
            return [self._interpreter.get_tensor(index) for index in indices]

    def _invoke(self, feed: Feed) -> None:
        shapes = tuple(feed[place.port.name].shape for place in self._in)
        try:
            if shapes != self._shapes:
                for place, shape in zip(self._in, shapes, strict=True):
                    self._interpreter.resize_tensor_input(place.index, shape)
                self._interpreter.allocate_tensors()
                self._shapes = shapes
            for place in self._in:
                self._interpreter.set_tensor(place.index, np.ascontiguousarray(feed[place.port.name]))
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            self._shapes = ()
            message = f"the model breaks on inputs of shape {[list(shape) for shape in shapes]}: {_first_line(error)}"
            raise AdapterError(message) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
