"""A frozen graph that runs: a session with a fixed number of threads of its own."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from neural_tune.errors import AdapterError, DataError
from neural_tune.protocols import Array, Outputs
from neural_tune_tensorflow.backend import Port
from neural_tune_tensorflow.runtime import tf

# What TensorFlow raises on a graph or an input it cannot work with.
RUNTIME_ERRORS = (tf.errors.OpError, ValueError, TypeError, KeyError)


class FixedSession:
    """Runs a GraphDef. Sessions of different thread counts live side by side (see `runtime`)."""

    def __init__(self, graph_def: Any, threads: int | None) -> None:
        """Load the graph.

        Raises:
            AdapterError: TensorFlow refuses it.
        """
        graph = tf.Graph()
        try:
            with graph.as_default():
                tf.import_graph_def(graph_def, name="")
            self._session = tf.compat.v1.Session(graph=graph, config=_config(threads))
        except RUNTIME_ERRORS as error:
            raise AdapterError(f"TensorFlow refuses the graph: {_first_line(error)}") from error
        self._graph = graph
        self._calls: dict[tuple[tuple[str, ...], tuple[str, ...]], Any] = {}
        self._lock = threading.Lock()

    def fetch(self, feed: Mapping[str, Array], tensors: Sequence[str]) -> Outputs:
        """Return the values of `tensors` when `feed` (tensor -> array) is fed.

        Raises:
            AdapterError: the graph breaks on this input.
        """
        key = (tuple(feed), tuple(tensors))
        try:
            if key not in self._calls:
                with self._lock:
                    self._calls[key] = self._callable(*key)
            return tuple(self._calls[key](*feed.values()))
        except RUNTIME_ERRORS as error:
            shapes = [list(value.shape) for value in feed.values()]
            raise AdapterError(f"the model breaks on inputs of shape {shapes}: {_first_line(error)}") from error

    def trace(self, feed: Mapping[str, Array], tensors: Sequence[str]) -> Any:
        """Run once and return the RunMetadata with the time of every node.

        Raises:
            AdapterError: the graph breaks on this input.
        """
        return self._watched(tf.compat.v1.RunOptions(trace_level=tf.compat.v1.RunOptions.FULL_TRACE), feed, tensors)

    def optimized(self, feed: Mapping[str, Array], tensors: Sequence[str]) -> list[Any]:
        """Run once and return the nodes (NodeDef) that TensorFlow really runs, after all of its fusions.

        Raises:
            AdapterError: the graph breaks on this input.
        """
        metadata = self._watched(tf.compat.v1.RunOptions(output_partition_graphs=True), feed, tensors)
        return [node for part in metadata.partition_graphs for node in part.node]

    def _watched(self, options: Any, feed: Mapping[str, Array], tensors: Sequence[str]) -> Any:
        metadata = tf.compat.v1.RunMetadata()
        feeds = {full_name(name): value for name, value in feed.items()}
        try:
            self._session.run([full_name(name) for name in tensors], feeds, options=options, run_metadata=metadata)
        except RUNTIME_ERRORS as error:
            raise AdapterError(f"the model breaks while it is profiled: {_first_line(error)}") from error
        return metadata

    def _callable(self, feed: Sequence[str], tensors: Sequence[str]) -> Any:
        names = [full_name(name) for name in tensors]
        # A callable skips the checks of `run`, which cost half a millisecond a call.
        return self._session.make_callable(
            [self._graph.get_tensor_by_name(name) for name in names],
            feed_list=[self._graph.get_tensor_by_name(full_name(name)) for name in feed],
        )


class Runner:
    """A session with the names of a model: feed by input name, outputs in order."""

    def __init__(self, graph_def: Any, inputs: Sequence[Port], outputs: Sequence[Port], threads: int | None) -> None:
        self.session = FixedSession(graph_def, threads)
        self._inputs = {port.name: port.tensor for port in inputs}
        self._outputs = [port.tensor for port in outputs]

    def __call__(self, feed: Mapping[str, Array]) -> Outputs:
        """Return the outputs for one batch.

        Raises:
            DataError: an input is missing.
        """
        missing = [name for name in self._inputs if name not in feed]
        if missing:
            raise DataError(f"inputs: found no {', '.join(missing)}")
        return self.session.fetch({tensor: feed[name] for name, tensor in self._inputs.items()}, self._outputs)


def full_name(tensor: str) -> str:
    """Return a reference as TensorFlow writes it: "x" is "x:0"."""
    return tensor if ":" in tensor else f"{tensor}:0"


def _config(threads: int | None) -> Any:
    config = tf.compat.v1.ConfigProto()
    if threads is not None:
        config.intra_op_parallelism_threads = threads
        config.inter_op_parallelism_threads = 1
        config.use_per_session_threads = True
    return config


def _first_line(error: BaseException) -> str:
    # A TensorFlow message begins with where the node was made; what is wrong comes with the node's name.
    text = str(getattr(error, "message", None) or error).strip()
    useful = [
        line
        for line in text.splitlines()
        if line.strip() and not line.startswith((" ", "Detected at", "Graph execution", "Node:"))
    ]
    return (useful[0] if useful else text.splitlines()[0] if text else type(error).__name__)[:400]
