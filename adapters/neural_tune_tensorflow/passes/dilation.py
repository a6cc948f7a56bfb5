"""SpaceToBatchND, convolution, BatchToSpaceND: how older graphs write a dilated convolution, which Conv2D can do by itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from neural_tune_tensorflow.graph import Graph, node_of
from neural_tune_tensorflow.passes.affine import is_channels_last


def contract_dilations(graph: Graph) -> None:
    """Replace the three ops by one Conv2D with dilations and explicit padding.

    Cutting `crop` rows off the result of a convolution of stride 1 is the same as padding its input by `crop` rows less.
    """
    readers = graph.readers()
    moved: dict[str, str] = {}
    for node in graph:
        if node.op != "Conv2D" or not is_channels_last(node) or readers.get(node.name, [""]) == [""]:
            continue
        entry, ends = graph.nodes[node_of(node.input[0])], readers[node.name]
        leave = graph.nodes[ends[0]] if len(ends) == 1 and ends[0] else None
        amounts = None if leave is None else _amounts(graph, entry, node, leave)
        if amounts is None or leave is None:
            continue
        block, paddings = amounts
        node.input[0] = entry.input[0]
        node.attr["dilations"].list.i[:] = [1, *block, 1]
        node.attr["padding"].s = b"EXPLICIT"
        node.attr["explicit_paddings"].list.i[:] = [0, 0, *paddings, 0, 0]
        moved[leave.name] = node.name
    graph.redirect(moved)
    graph.sort()


def _amounts(graph: Graph, entry: Any, node: Any, leave: Any) -> tuple[list[int], list[int]] | None:
    """Return dilations (rows, columns) and paddings (top, bottom, left, right); None where the three ops are something else."""
    if entry.op != "SpaceToBatchND" or leave.op != "BatchToSpaceND" or node.input[0] != entry.name:
        return None
    if node.attr["padding"].s != b"VALID" or any(size != 1 for size in node.attr["strides"].list.i):
        return None
    if any(size != 1 for size in node.attr["dilations"].list.i):
        return None
    values = [graph.value(name) for name in (*entry.input[1:3], *leave.input[1:3])]
    if any(value is None for value in values):
        return None
    block, paddings, back, crops = (np.asarray(value) for value in values)
    kept = paddings - crops if paddings.shape == crops.shape else np.array([-1])
    if block.shape != (2,) or not np.array_equal(block, back) or np.any(kept < 0):
        return None
    return [int(size) for size in block], [int(size) for size in kept.reshape(-1)]
