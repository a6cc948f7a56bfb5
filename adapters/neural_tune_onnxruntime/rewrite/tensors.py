"""The tensors of a quantized graph as it stands: who reads what, which constants hold which scale, names that are still free."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import external_data_helper, helper, numpy_helper

from neural_tune.errors import AdapterError
from neural_tune_onnxruntime.graph import captured_names

STANDARD = ("", "ai.onnx")
CONTRIB = "com.microsoft"


@dataclass(frozen=True, slots=True)
class Codes:
    """Codes with their scale and zero point, as names of tensors.

    Attributes:
        name: The tensor of integers.
        scale: Its scale.
        zero: Its zero point.
        axis: Channel axis of scale and zero point; None where they are one for all.
    """

    name: str
    scale: str
    zero: str
    axis: int | None = None


@dataclass(slots=True)
class Tensors:
    """An index over the main graph of a model, to be replaced when the graph changes.

    Attributes:
        model: The model.
        constants: Initializer name -> tensor.
        readers: Tensor -> number of places that read it, bodies of subgraphs and graph outputs included.
        taken: Every name in use.
    """

    model: onnx.ModelProto
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    readers: Counter[str] = field(default_factory=Counter)
    taken: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Tensors:
        """Return the index of `model`."""
        graph = model.graph
        readers = Counter(name for node in graph.node for name in (*node.input, *captured_names(node)) if name)
        readers.update(value.name for value in graph.output)
        taken = set(readers) | {name for node in graph.node for name in (*node.output, node.name)}
        taken |= {item.name for item in graph.initializer} | {value.name for value in graph.input}
        return cls(model, {item.name: item for item in graph.initializer}, readers, taken)

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return next((item.version for item in self.model.opset_import if item.domain in STANDARD), 1)

    def kind(self, name: str) -> int:
        """Return the element type of a constant, 0 where it is none."""
        return self.constants[name].data_type if name in self.constants else 0

    def rank(self, name: str) -> int:
        """Return the number of axes of a constant."""
        return len(self.constants[name].dims)

    def values(self, name: str) -> NDArray[Any] | None:
        """Return the values of a constant; None where it is none.

        Raises:
            AdapterError: it lies in another file, so that its values cannot be seen.
        """
        tensor = self.constants.get(name)
        if tensor is None:
            return None
        if external_data_helper.uses_external_data(tensor):
            message = f"initializer {name!r} lies in another file: load the model with its data"
            raise AdapterError(message)
        return numpy_helper.to_array(tensor)

    def agree(self, first: str, second: str) -> bool:
        """Return whether two constants are the same, by name or by value."""
        if first == second:
            return True
        one, two = self.constants.get(first), self.constants.get(second)
        if one is None or two is None or one.data_type != two.data_type:
            return False
        left, right = self.values(first), self.values(second)
        return left is not None and right is not None and left.shape == right.shape and bool(np.all(left == right))

    def fresh(self, stem: str) -> str:
        """Return a name that nothing uses yet, and take it."""
        name, number = stem, 1
        while name in self.taken:
            number += 1
            name = f"{stem}_{number}"
        self.taken.add(name)
        return name

    def add(self, stem: str, values: NDArray[Any]) -> str:
        """Add a constant and return its name."""
        name = self.fresh(stem)
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Return the value of an attribute of `node`, `default` when it is absent."""
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def assemble(tensors: Tensors, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """Return the model of `tensors` with other nodes: constants, types of tensors and operator sets that are left over are dropped."""
    source = tensors.model
    result = onnx.ModelProto()
    for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(result, name, getattr(source, name))
    result.metadata_props.extend(source.metadata_props)
    result.functions.extend(source.functions)
    graph = result.graph
    graph.name, graph.doc_string = source.graph.name, source.graph.doc_string
    graph.input.extend(source.graph.input)
    graph.output.extend(source.graph.output)
    graph.sparse_initializer.extend(source.graph.sparse_initializer)
    graph.node.extend(nodes)
    made = {name for node in nodes for name in node.output}
    graph.value_info.extend(value for value in source.graph.value_info if value.name in made)
    used = {name for node in nodes for name in (*node.input, *captured_names(node))}
    used |= {value.name for value in graph.output}
    graph.initializer.extend(tensor for name, tensor in tensors.constants.items() if name in used)
    domains = {node.domain for node in nodes} | {node.domain for function in result.functions for node in function.node}
    kept = [item for item in source.opset_import if item.domain != CONTRIB or CONTRIB in domains]
    result.opset_import.extend(kept)
    if CONTRIB in domains and all(item.domain != CONTRIB for item in kept):
        result.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return result
