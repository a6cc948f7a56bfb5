"""A look at the float graph on the calibration inputs: per channel what a tensor looks like, and what the model answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neural_tune.calibration.spool import Spool, length_of
from neural_tune.numerics.factors import Moments
from neural_tune_pytorch.backend import Feed
from neural_tune_pytorch.backends.pt2e import observe
from neural_tune_pytorch.backends.pt2e.capture import Captured

# Enough for the choice of factors and for means. The ranges themselves are taken from all samples, once the choice is made.
SAMPLES = 128


def moments(captured: Captured, axes: Mapping[str, int], spool: Spool) -> dict[str, Moments]:
    """Return what every channel of some tensors looks like, over the first kept samples.

    Args:
        captured: The float graph.
        axes: Tensor -> channel axis.
        spool: The calibration inputs.
    """
    seen: dict[str, list[tuple[int, Tensor]]] = {name: [] for name in axes}

    def see(name: str, values: Tensor, samples: int) -> None:
        rows = values.movedim(axes[name], -1).reshape(-1, values.shape[axes[name]]).double()
        seen[name].append((samples, torch.stack([rows.amin(0), rows.amax(0), rows.mean(0), (rows**2).mean(0)])))

    watch(captured, frozenset(axes), spool, SAMPLES, see)
    return {name: _joined(found) for name, found in seen.items()}


def watch(
    captured: Captured, wanted: frozenset[str], spool: Spool, most: int, see: Callable[[str, Tensor, int], None]
) -> None:
    """Show the wanted tensors, with the number of samples of their batch, over the first `most` kept samples."""
    for feed, samples in feeds(captured, spool, most):

        def each(name: str, values: Tensor, many: int = samples) -> None:
            see(name, values, many)

        observe.watch(captured, feed, wanted, each)


def outputs(captured: Captured, spool: Spool, most: int) -> Iterator[list[NDArray[Any]]]:
    """Yield the outputs of the float graph, batch by batch."""
    for feed, _ in feeds(captured, spool, most):
        with torch.no_grad():  # never around a yield: two such generators in turns would leave gradients off
            found = [item.numpy() for item in captured.graph(*feed)]
        yield found


def feeds(captured: Captured, spool: Spool, most: int | None = None) -> Iterator[tuple[Feed, int]]:
    """Yield the kept batches as tensors, with their lengths."""
    for batch in spool.feeds(most):
        yield (
            tuple(torch.from_numpy(np.ascontiguousarray(batch[name])) for name in captured.calling.names),
            length_of(batch),
        )


def _joined(found: list[tuple[int, Tensor]]) -> Moments:
    total = sum(samples for samples, _ in found)
    low = torch.stack([rows[0] for _, rows in found]).amin(0)
    high = torch.stack([rows[1] for _, rows in found]).amax(0)
    mean, square = (sum(samples * rows[at] for samples, rows in found) / total for at in (2, 3))
    return Moments(low.numpy(), high.numpy(), mean.numpy(), square.numpy())
