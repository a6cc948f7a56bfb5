"""A built model as TensorFlow's users call one: arrays or tensors in, tensors out, and `predict` for arrays out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from neural_tune.protocols import Array, Outputs
from neural_tune_tensorflow.backend import Built, Port
from neural_tune_tensorflow.inputs import to_feed
from neural_tune_tensorflow.runtime import tf


class NativeModel:
    """A Keras-like callable over a built model. It is for inference only: it has no weights to train.

    Outputs have the structure of the caller's model: one tensor, a list, or a dictionary by output name.
    """

    def __init__(self, built: Built) -> None:
        self._built = built

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What it takes, in order."""
        return self._built.inputs

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, in order."""
        return [port.name for port in self._built.inputs]

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""
        return [port.name for port in self._built.outputs]

    def __call__(self, *args: Any, training: bool = False, **named: Any) -> Any:
        """Return the outputs for one batch as tensors.

        Args:
            args: The inputs: one array or tensor, a list, a dictionary by name, or one argument per input.
            training: Taken for Keras' sake; only False means anything here.
            named: Inputs by name.

        Raises:
            ValueError: `training` is True: the graph is frozen.
            DataError: the inputs do not fit.
        """
        if training:
            raise ValueError("training=True: a quantized graph is frozen, train the float model instead")
        return self._structured(tuple(tf.convert_to_tensor(item) for item in self._run(args, named)))

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: object = 0,  # noqa: ARG002 - Keras has it
        steps: int | None = None,
    ) -> Any:
        """Return the outputs for all of `x` as arrays: an array, list or dictionary that is cut into batches, or an iterable of batches."""
        if isinstance(x, Mapping | list | tuple) or hasattr(x, "shape"):
            results = [self._run((part,), {}) for part in _cut(x, 32 if batch_size is None else batch_size)]
        else:
            batches = (item[0] if isinstance(item, tuple) else item for item in x)
            results = [self._run((item,), {}) for item, _ in zip(batches, _count(steps), strict=False)]
        joined = tuple(np.concatenate(parts) for parts in zip(*results, strict=True))
        return self._structured(joined)

    def _run(self, args: Sequence[Any], named: Mapping[str, Any]) -> Outputs:
        inputs = named or (args[0] if len(args) == 1 else tuple(args))
        return self._built.run(to_feed(inputs, self._built.inputs))

    def _structured(self, values: tuple[Any, ...]) -> Any:
        if self._built.structure == "dict":
            return dict(zip(self.output_names, values, strict=True))
        return list(values) if self._built.structure == "list" else values[0]


def _cut(x: Any, size: int) -> Iterable[Any]:
    if isinstance(x, Mapping):
        arrays: list[Array] = [np.asarray(value) for value in x.values()]
        for begin in range(0, len(arrays[0]), size):
            yield dict(zip(x, (item[begin : begin + size] for item in arrays), strict=True))
        return
    members = [np.asarray(item) for item in x] if isinstance(x, list | tuple) else [np.asarray(x)]
    for begin in range(0, len(members[0]), size):
        parts = [item[begin : begin + size] for item in members]
        yield parts if isinstance(x, list | tuple) else parts[0]


def _count(steps: int | None) -> Iterable[int]:
    number = 0
    while steps is None or number < steps:
        yield number
        number += 1
