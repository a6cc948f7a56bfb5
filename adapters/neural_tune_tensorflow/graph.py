"""A frozen graph as this package works on it: nodes in execution order, constants as arrays, references without ":0".

A reference is "node" for the first output of a node and "node:1" for the others.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neural_tune.errors import AdapterError
from neural_tune.protocols import Array
from neural_tune_tensorflow.runtime import GraphDef, NodeDef, tf

Shape = tuple[int | None, ...]
ALIASES = frozenset({"Identity", "StopGradient", "PreventGradient", "CheckNumerics", "Snapshot"})
# Constants up to this many elements may be shapes, axes or paddings, which inference reads.
_SMALL = 64


def ref(tensor: str) -> str:
    """Return the reference of a tensor name: "x:0" is "x"."""
    return tensor.removesuffix(":0")


def node_of(reference: str) -> str:
    """Return the name of the node that writes `reference`."""
    return reference.split(":", 1)[0]


@dataclass(slots=True)
class Graph:
    """A graph that passes rewrite in place; whoever hands it out hands out a copy.

    Attributes:
        nodes: Name -> NodeDef, in execution order after `sort`.
        outputs: References of the results.
        inputs: References of the inputs: kept even where nobody reads them.
        library: Functions that nodes call.
        versions: Versions of the graph.
        shapes: Reference -> shape, as far as it is known; filled by `infer`.
        dtypes: Reference -> TensorFlow type; filled by `infer`.
    """

    nodes: dict[str, Any]
    outputs: list[str]
    inputs: list[str]
    library: Any = None
    versions: Any = None
    shapes: dict[str, Shape | None] = field(default_factory=dict)
    dtypes: dict[str, Any] = field(default_factory=dict)
    _values: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def of(cls, graph_def: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Graph:
        """Return a working copy of `graph_def`, cut to what the outputs need."""
        nodes = {}
        for node in graph_def.node:
            copy = NodeDef()
            copy.CopyFrom(node)
            # Frozen for inference: what a control edge protects (asserts, variable reads) is gone.
            plain = [ref(name) for name in node.input if not name.startswith("^")]
            del copy.input[:]
            copy.input.extend(plain)
            nodes[copy.name] = copy
        found = cls(
            nodes,
            [ref(name) for name in outputs],
            [ref(name) for name in inputs],
            graph_def.library,
            graph_def.versions,
        )
        found.sort()
        return found

    def copy(self) -> Graph:
        """Return a graph whose nodes can be exchanged; the NodeDefs themselves are shared."""
        return Graph(
            dict(self.nodes),
            list(self.outputs),
            list(self.inputs),
            self.library,
            self.versions,
            self.shapes,
            self.dtypes,
            self._values,
        )

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self.nodes.values()))

    def add(self, op: str, name: str, inputs: Iterable[str], **attributes: Any) -> str:
        """Add (or replace) a node and return its name. Attributes are types, bools, ints, floats, strings or lists of them."""
        node = NodeDef(op=op, name=name)
        node.input.extend(inputs)
        for key, value in attributes.items():
            node.attr[key].CopyFrom(attribute(value))
        self.nodes[name] = node
        return name

    def constant(self, name: str, value: Array, dtype: Any = None) -> str:
        """Add a constant and return its name."""
        kind = dtype or tf.as_dtype(value.dtype)
        self.nodes[name] = constant_node(name, value, kind)
        if dtype is None:
            self._values[name] = value
        return name

    def fresh(self, name: str) -> str:
        """Return `name`, or a variant of it that no node has."""
        found, number = name, 1
        while found in self.nodes:
            found, number = f"{name}_{number}", number + 1
        return found

    def value(self, reference: str) -> Array | None:
        """Return the value of a constant; None for anything else."""
        node = self.nodes.get(reference)
        if node is None or node.op != "Const":
            return None
        if reference not in self._values:
            self._values[reference] = tf.make_ndarray(node.attr["value"].tensor)
        return self._values[reference]

    def readers(self) -> dict[str, list[str]]:
        """Return reference -> names of the nodes that read it, once per reading input; results read under the name ""."""
        found: dict[str, list[str]] = {}
        for node in self.nodes.values():
            for name in node.input:
                found.setdefault(name, []).append(node.name)
        for name in self.outputs:
            found.setdefault(name, []).append("")
        return found

    def redirect(self, moved: Mapping[str, str]) -> None:
        """Let everybody who reads a key of `moved` read its value instead."""
        if not moved:
            return

        def last(name: str) -> str:
            seen = name
            while seen in moved:
                seen = moved[seen]
            return seen

        for node in self.nodes.values():
            for position, name in enumerate(node.input):
                if name in moved:
                    node.input[position] = last(name)
        self.outputs = [last(name) for name in self.outputs]

    def sort(self) -> None:
        """Put the nodes into execution order and drop what no result needs; linear in the size of the graph.

        Raises:
            AdapterError: a node reads something that does not exist, or the graph has a loop.
        """
        order: dict[str, Any] = {}
        state: dict[str, int] = {}
        for root in (*self.inputs, *self.outputs):
            stack = [node_of(root)]
            while stack:
                name = stack[-1]
                if state.get(name) == 2:
                    stack.pop()
                    continue
                if name not in self.nodes:
                    raise AdapterError(f"the graph reads {name!r}, which no node writes")
                pending = [node_of(item) for item in self.nodes[name].input if state.get(node_of(item)) != 2]
                if not pending:
                    state[name] = 2
                    order[name] = self.nodes[name]
                    stack.pop()
                elif state.get(name) == 1 and any(state.get(item) == 1 for item in pending):
                    raise AdapterError(f"the graph has a loop at {name!r}: TensorFlow 1 control flow is not supported")
                else:
                    state[name] = 1
                    stack.extend(reversed(pending))
        self.nodes = order

    def infer(self) -> None:
        """Fill `shapes` and `dtypes` with what TensorFlow infers."""
        graph = tf.Graph()
        with graph.as_default():
            try:
                tf.import_graph_def(self._outline(), name="")
            except (ValueError, tf.errors.OpError) as error:
                raise AdapterError(f"TensorFlow refuses the graph: {str(error).splitlines()[0]}") from error
        self.shapes, self.dtypes = {}, {}
        for operation in graph.get_operations():
            for tensor in operation.outputs:
                rank = tensor.shape.rank
                self.shapes[ref(tensor.name)] = None if rank is None else tuple(tensor.shape.as_list())
                self.dtypes[ref(tensor.name)] = tensor.dtype

    def _outline(self) -> Any:
        """Return the graph with weights as placeholders: shapes do not depend on them, and a hundred megabytes need not be copied."""
        found = GraphDef()
        for node in self.nodes.values():
            shape = node.attr["value"].tensor.tensor_shape if node.op == "Const" else None
            if shape is None or math.prod(item.size for item in shape.dim) <= _SMALL:
                found.node.add().CopyFrom(node)
                continue
            stand_in = found.node.add(op="Placeholder", name=node.name)
            stand_in.attr["dtype"].CopyFrom(node.attr["dtype"])
            stand_in.attr["shape"].shape.CopyFrom(shape)
        if self.versions is not None:
            found.versions.CopyFrom(self.versions)
        if self.library is not None:
            found.library.CopyFrom(self.library)
        return found

    def graph_def(self) -> Any:
        """Return the graph as a GraphDef."""
        found = GraphDef()
        found.node.extend(self.nodes.values())
        if self.versions is not None:
            found.versions.CopyFrom(self.versions)
        if self.library is not None:
            found.library.CopyFrom(self.library)
        return found

    def digest(self) -> str:
        """Return a hash of nodes, weights and results."""
        total = hashlib.sha256()
        for node in self.nodes.values():
            total.update(node.SerializeToString(deterministic=True))
        total.update("\0".join((*self.inputs, "", *self.outputs)).encode())
        return total.hexdigest()


def constant_node(name: str, value: Array, dtype: Any) -> Any:
    """Return a Const node; 8-bit codes are stored as they are."""
    node = NodeDef(op="Const", name=name)
    kind = tf.as_dtype(dtype)
    node.attr["dtype"].type = kind.as_datatype_enum
    if kind in (tf.qint8, tf.quint8):
        tensor = node.attr["value"].tensor
        tensor.dtype = kind.as_datatype_enum
        for size in value.shape:
            tensor.tensor_shape.dim.add(size=size)
        tensor.tensor_content = np.ascontiguousarray(value).tobytes()
    else:
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, dtype=kind))
    return node


def attribute(value: Any) -> Any:
    """Return a Python value as an AttrValue."""
    kind = tf.compat.v1.AttrValue
    if isinstance(value, kind):
        return value
    if isinstance(value, list | tuple):
        field_name = _field(value[0]) if value else "i"
        return kind(list=kind.ListValue(**{field_name: [_plain(item) for item in value]}))
    return kind(**{_field(value): _plain(value)})


def _field(value: Any) -> str:
    if isinstance(value, bool):
        return "b"
    if isinstance(value, int):
        return "i"
    if isinstance(value, float):
        return "f"
    return "s" if isinstance(value, str) else "type"


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value
    return value.encode() if isinstance(value, str) else tf.as_dtype(value).as_datatype_enum
