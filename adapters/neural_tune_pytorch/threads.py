"""How torch computes inside a block: the number of threads, and for inference neither gradients nor autocast.

Written out instead of composed of torch's own context managers: around a small network these cost as much as one of its layers.
"""

from __future__ import annotations

from types import TracebackType

import torch


class threads:  # noqa: N801 - used like a function
    """Compute with `number` threads inside the block; None leaves torch's own setting."""

    __slots__ = ("_before", "_number")

    def __init__(self, number: int | None) -> None:
        self._number = number
        self._before = 0

    def __enter__(self) -> None:
        """Set the number of threads."""
        self._before = torch.get_num_threads()
        if self._number is not None and self._number != self._before:
            torch.set_num_threads(self._number)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Set what it was before."""
        if self._number is not None and self._number != self._before:
            torch.set_num_threads(self._before)


class inference(threads):  # noqa: N801 - used like a function
    """Compute with `number` threads, without gradients, and without autocast (under which float32 ops would turn to bfloat16)."""

    __slots__ = ("_autocast", "_gradients")

    def __init__(self, number: int | None) -> None:
        super().__init__(number)
        self._autocast = self._gradients = False

    def __enter__(self) -> None:
        """Turn gradients and autocast off."""
        super().__enter__()
        self._gradients, self._autocast = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        if self._gradients:
            torch.set_grad_enabled(False)
        if self._autocast:
            torch.set_autocast_enabled("cpu", False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Turn on what was on before."""
        if self._autocast:
            torch.set_autocast_enabled("cpu", True)
        if self._gradients:
            torch.set_grad_enabled(True)
        super().__exit__(kind, error, trace)
