"""Zero padding in front of a convolution becomes the convolution's own explicit padding."""

from __future__ import annotations

from typing import Any

import numpy as np

from neural_tune_tensorflow.graph import Graph, node_of
from neural_tune_tensorflow.passes.affine import is_channels_last


def merge_pads(graph: Graph) -> None:
    """Let every unpadded Conv2D read what its Pad reads; a Pad that others read too stays for them.

    Depthwise convolutions keep their Pad: with padding of their own they abort TensorFlow's optimizer (the int8 kernel takes it).
    """
    for node in graph:
        if node.op != "Conv2D" or not is_channels_last(node):
            continue
        amounts = pad_amounts(graph, node)
        if amounts is not None:
            node.input[0] = graph.nodes[node_of(node.input[0])].input[0]
            node.attr["padding"].s = b"EXPLICIT"
            node.attr["explicit_paddings"].list.i.extend(amounts)
    graph.sort()


def pad_amounts(graph: Graph, node: Any) -> list[int] | None:
    """Return the explicit paddings (eight numbers) by which the Pad before an unpadded convolution can be replaced; None if it cannot."""
    pad = graph.nodes[node_of(node.input[0])]
    if pad.op not in ("Pad", "PadV2") or node.attr["padding"].s != b"VALID" or node.input[0] != pad.name:
        return None
    amounts = graph.value(pad.input[1])
    filling = graph.value(pad.input[2]) if pad.op == "PadV2" else np.zeros(1)
    if amounts is None or amounts.shape != (4, 2) or filling is None or np.any(filling):
        return None
    if np.any(amounts[[0, 3]]) or np.any(amounts < 0):
        return None
    return [int(number) for number in amounts.reshape(-1)]
