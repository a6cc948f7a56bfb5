"""A piece of graph that stands for one op."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

CONTRIB = "com.microsoft"


@dataclass(slots=True)
class Fragment:
    """Nodes and constants that stand for one op, written in order.

    Attributes:
        stem: Begins the names of everything that belongs to this op alone.
        nodes: The nodes.
        tensors: The constants they bring along.
        common: Outputs of nodes that other fragments write under the same name; one of them is enough.
    """

    stem: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    common: set[str] = field(default_factory=set)

    def add(
        self,
        kind: str,
        inputs: list[str],
        outputs: str | list[str],
        label: str = "",
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Append a node and return the name of its first output; `label` makes its name."""
        made = [outputs] if isinstance(outputs, str) else outputs
        name = f"{self.stem}{label or kind}_node"
        self.nodes.append(helper.make_node(kind, inputs, made, name, domain=domain, **attributes))
        return made[0]

    def constant(self, label: str, values: NDArray[Any] | onnx.TensorProto) -> str:
        """Add a constant and return its name."""
        name = f"{self.stem}{label}"
        if isinstance(values, onnx.TensorProto):
            tensor = onnx.TensorProto()
            tensor.CopyFrom(values)
            tensor.name = name
        else:
            tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        self.tensors.append(tensor)
        return name
