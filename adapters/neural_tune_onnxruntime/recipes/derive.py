"""A model with other constants: same ops, same tensors, same function, other weights."""

from __future__ import annotations

import secrets
from dataclasses import replace

import onnx

from neural_tune.numerics.rescaling import Edits
from neural_tune_onnxruntime.dispatch import tiled_weights
from neural_tune_onnxruntime.graph import Graph, captured_names
from neural_tune_onnxruntime.kernels import kernel_of
from neural_tune_onnxruntime.model import OnnxModel, Variants, operands_of


def derive(model: OnnxModel, edits: Edits, label: str) -> OnnxModel:
    """Return `model` with some constants replaced, each by one that only its op reads; names of ops and tensors stay.

    Args:
        model: Never changed.
        edits: The new constants. A position behind the last input adds an input (a bias where there was none).
        label: A word for the file names.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.initializer[:]
    added = {}
    for node in proto.graph.node:
        for name, position in edits:
            if name == node.name:
                constant = f"{name}{model.mark}input{position}"
                _set_input(node, position, constant)
                added[constant] = edits[name, position]
    # Other variants of the model lie in the same folder, perhaps of other statistics, perhaps made by a forked process.
    store = model.store.derived(added, f"{label}-{secrets.token_hex(4)}")
    needed = {name for node in proto.graph.node for name in (*node.input, *captured_names(node))}
    needed |= {value.name for value in proto.graph.output}
    proto.graph.initializer.extend(tensor for name, tensor in store.tensors.items() if name in needed)
    graph = Graph.of(proto)
    kernels = {op.name: kernel_of(op, graph, model.opset) for op in graph.ops}
    store.operands = operands_of(graph, kernels)
    store.shifted = tiled_weights(graph, kernels, model.processor)
    return replace(model, proto=proto, graph=graph, kernels=kernels, store=store, variants=Variants())


def _set_input(node: onnx.NodeProto, position: int, name: str) -> None:
    while len(node.input) <= position:
        node.input.append("")
    node.input[position] = name
