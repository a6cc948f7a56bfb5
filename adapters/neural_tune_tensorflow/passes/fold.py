"""Constants: whatever follows from constants alone is computed once, by TensorFlow itself."""

from __future__ import annotations

from typing import Any

from neural_tune.errors import AdapterError
from neural_tune_tensorflow.graph import Graph, node_of
from neural_tune_tensorflow.runtime import GraphDef, tf

# A constant that grows by folding (a broadcast, a tile) is better computed than stored.
_LARGEST_GROWTH = 1 << 20
_NEVER = frozenset({"Placeholder", "PlaceholderWithDefault", "Const", "NoOp"})
_CALLS = frozenset(
    {"While", "StatelessWhile", "If", "StatelessIf", "PartitionedCall", "StatefulPartitionedCall", "Case"}
)


def fold_constants(graph: Graph) -> None:
    """Replace every op that depends on constants only by its value.

    Raises:
        AdapterError: TensorFlow cannot compute one of them.
    """
    constant = {node.name for node in graph if node.op == "Const"}
    folded: set[str] = set()
    for node in graph:
        if node.input and not _is_kept(node) and all(node_of(name) in constant for name in node.input):
            constant.add(node.name)
            folded.add(node.name)
    wanted = _frontier(graph, folded)
    if not wanted:
        return
    values = _compute(graph, constant, wanted)
    moved = {}
    for reference, value in values.items():
        if ":" in reference:
            moved[reference] = graph.constant(graph.fresh(reference.replace(":", "_")), value)
        elif value.nbytes <= _input_bytes(graph, reference) + _LARGEST_GROWTH and value.dtype != object:
            graph.constant(reference, value)
    graph.redirect(moved)
    graph.sort()


def _is_kept(node: Any) -> bool:
    if node.op in _NEVER or node.op in _CALLS:
        return True
    from tensorflow.python.framework import op_def_registry  # noqa: PLC0415 - has no public name

    definition = op_def_registry.get(node.op)
    return definition is None or definition.is_stateful


def _frontier(graph: Graph, folded: set[str]) -> list[str]:
    """Return the folded references that something outside reads."""
    wanted = dict.fromkeys(name for name in graph.outputs if node_of(name) in folded)
    for node in graph:
        if node.name not in folded:
            wanted.update(dict.fromkeys(name for name in node.input if node_of(name) in folded))
    return list(wanted)


def _compute(graph: Graph, constant: set[str], wanted: list[str]) -> dict[str, Any]:
    part = GraphDef()
    part.node.extend(node for node in graph if node.name in constant)
    if graph.versions is not None:
        part.versions.CopyFrom(graph.versions)
    scratch = tf.Graph()
    with scratch.as_default():
        tf.import_graph_def(part, name="")
    options = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
    # What is folded must not be touched by an optimizer that thinks otherwise.
    options.graph_options.rewrite_options.disable_meta_optimizer = True
    try:
        with tf.compat.v1.Session(graph=scratch, config=options) as session:
            found = session.run([name if ":" in name else f"{name}:0" for name in wanted])
    except (tf.errors.OpError, ValueError, TypeError) as error:
        raise AdapterError(
            f"TensorFlow cannot compute the constants of the graph: {str(error).splitlines()[0]}"
        ) from error
    return dict(zip(wanted, found, strict=True))


def _input_bytes(graph: Graph, name: str) -> int:
    total = 0
    for source in graph.nodes[name].input:
        value = graph.value(source)
        total += 0 if value is None else value.nbytes
    return total
