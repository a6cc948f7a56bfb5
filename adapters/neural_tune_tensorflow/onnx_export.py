"""From the canonical float graph to an ONNX file, by tf2onnx: the way from any TensorFlow model to the ONNX Runtime adapter.

The canonical graph is what tf2onnx likes best: frozen, constants and batch norms folded, no ops of training. One op of Keras' exact Gelu it does not
know: Erfc(x), which is 1 - Erf(x).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neural_tune.errors import AdapterError, PluginError
from neural_tune.protocols import AdapterOptions
from neural_tune.values import FrozenMap
from neural_tune_tensorflow import source
from neural_tune_tensorflow.graph import Graph
from neural_tune_tensorflow.model import hold
from neural_tune_tensorflow.session import full_name

OPSET = 17


def to_onnx(model: object, path: str | Path, *, signature: str = "", opset: int = OPSET) -> Path:
    """Write `model` in float as an ONNX file, with its names of inputs and outputs, and return the path.

    Args:
        model: Whatever `fit` takes: a Keras model, a function, or a path to a file or folder that TensorFlow knows. It is only read.
        path: Where to write.
        signature: Which signature of a SavedModel; "" for the default one.
        opset: Version of the ONNX operators.

    Raises:
        PluginError: tf2onnx is not installed.
        AdapterError: the model cannot be read, or holds an op that ONNX has no form for.
    """
    try:
        convert = importlib.import_module("tf2onnx").convert
    except ImportError as error:
        raise PluginError(
            'to_onnx needs tf2onnx, which is not installed: pip install "neural-tune[tf2onnx]"'
        ) from error
    options = AdapterOptions(extra=FrozenMap({"signature": signature} if signature else {}))
    held = hold(source.read(model, options))
    graph = held.graph.copy()
    spell_out_erfc(graph)
    inputs = {full_name(port.tensor): port.name for port in held.inputs}
    outputs = _under_own_names(graph, [port.name for port in held.outputs])
    try:
        proto, _ = convert.from_graph_def(
            graph.graph_def(), input_names=list(inputs), output_names=list(outputs), opset=opset
        )
    except Exception as error:
        raise AdapterError(f"tf2onnx cannot convert the model: {type(error).__name__}: {error}") from error
    _rename(proto.graph, {**inputs, **outputs})
    Path(path).write_bytes(proto.SerializeToString())
    return Path(path)


def spell_out_erfc(graph: Graph) -> None:
    """Write 1 - Erf(x) in the place of every Erfc(x)."""
    for node in graph:
        if node.op == "Erfc":
            erf = graph.add("Erf", graph.fresh(f"{node.name}/erf"), [node.input[0]], T=np.float32)
            one = graph.constant(graph.fresh(f"{node.name}/one"), np.asarray(1.0, np.float32))
            graph.add("Sub", node.name, [one, erf], T=np.float32)
    graph.sort()


def _under_own_names(graph: Graph, names: list[str]) -> dict[str, str]:
    """Give every output a node of its own, for two outputs may be one tensor, and return its tensor -> its name."""
    found = {}
    for number, name in enumerate(names):
        reference = graph.outputs[number]
        copy = graph.fresh(f"neural_tune_output_{number}")
        graph.outputs[number] = graph.add("Identity", copy, [reference], T=graph.dtypes[reference])
        found[full_name(copy)] = name
    graph.sort()
    return found


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Rename tensors of an ONNX graph; tf2onnx calls them as TensorFlow does ("x:0")."""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
