"""The canonical form of a float model: what calibration looks at, what candidates are rewritten from, and the honest float baseline.

Identities and constants are gone, products with a constant side are Conv2D, DepthwiseConv2dNative or MatMul with one BiasAdd,
batch norms are folded into them, pads are merged, and dilated convolutions are one op. Every pass walks the graph once; the outputs equal the original's up to
rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neural_tune_tensorflow.backend import Port
from neural_tune_tensorflow.graph import Graph
from neural_tune_tensorflow.passes.affine import fold_affine
from neural_tune_tensorflow.passes.dilation import contract_dilations
from neural_tune_tensorflow.passes.fold import fold_constants
from neural_tune_tensorflow.passes.padding import merge_pads
from neural_tune_tensorflow.passes.products import lower_products
from neural_tune_tensorflow.passes.strip import share_reshapes, simplify_moves, strip
from neural_tune_tensorflow.rewrite.activations import lift_activations
from neural_tune_tensorflow.rewrite.summands import lift_sums


def canonical(graph_def: Any, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> Graph:
    """Return `graph_def` in canonical form; it is not changed.

    Raises:
        AdapterError: the graph cannot be read, or TensorFlow refuses it.
    """
    graph = Graph.of(graph_def, [port.tensor for port in inputs], [port.tensor for port in outputs])
    strip(graph)
    fold_constants(graph)
    graph.infer()
    simplify_moves(graph)
    graph.infer()
    lower_products(graph)
    contract_dilations(graph)
    graph.infer()
    simplify_moves(graph)
    graph.infer()
    fold_affine(graph)
    merge_pads(graph)
    graph.infer()
    lift_activations(graph)
    graph.infer()
    lift_sums(graph)
    _own_weights(graph)
    graph.infer()
    simplify_moves(graph)
    share_reshapes(graph)
    graph.infer()
    return graph


def _own_weights(graph: Graph) -> None:
    """Give every product a weight and a bias of its own: what two layers share would tie their quantization together."""
    owners: dict[str, str] = {}
    for node in graph:
        if node.op not in ("Conv2D", "DepthwiseConv2dNative", "MatMul", "BiasAdd"):
            continue
        name = node.input[1]
        value = graph.value(name)
        if value is None:
            continue
        if owners.setdefault(name, node.name) != node.name:
            node.input[1] = graph.constant(graph.fresh(f"{node.name}/own"), np.array(value))
