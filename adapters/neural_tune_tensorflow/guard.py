"""Graphs on which TensorFlow is known to end the process are tried in a child process first.

TensorFlow's optimizer aborts (CHECK failure, no exception) on a float DepthwiseConv2dNative with explicit paddings. Canonicalisation takes
such paddings out of the main graph; what remains inside functions, or comes in otherwise, is tried where it can do no harm: an abort is an
AdapterError with its reason, and so a failed trial.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neural_tune.errors import AdapterError
from neural_tune_tensorflow.runtime import GraphDef

_SECONDS = 180.0


def risks(graph_def: Any) -> tuple[str, ...]:
    """Return the nodes on which TensorFlow may end the process."""
    return tuple(
        f"{node.name} (explicitly padded DepthwiseConv2dNative)"
        for node in _nodes(graph_def)
        if node.op == "DepthwiseConv2dNative" and node.attr["padding"].s == b"EXPLICIT"
    )


def check(graph_def: Any, what: str) -> None:
    """Let a child process try a risky graph; any other graph costs nothing.

    Raises:
        AdapterError: the child did not survive.
    """
    found = risks(graph_def)
    if found:
        try_in_child(graph_def, f"{what} holds {', '.join(found[:3])}")


def try_in_child(graph_def: Any, what: str) -> None:
    """Run a graph once on zeros in a child process.

    Raises:
        AdapterError: the child died, failed or did not come to an end; the message says how.
    """
    with tempfile.TemporaryDirectory(prefix="neural_tune-guard-") as folder:
        path = Path(folder) / "graph.pb"
        path.write_bytes(graph_def.SerializeToString())
        command = [sys.executable, "-m", "neural_tune_tensorflow.guard", str(path)]
        try:
            done = subprocess.run(  # noqa: S603 - our own interpreter and our own module
                command, capture_output=True, text=True, timeout=_SECONDS, check=False, env=dict(os.environ)
            )
        except subprocess.TimeoutExpired as error:
            raise AdapterError(f"{what}: a trial in a child process took more than {_SECONDS:.0f} s") from error
    if done.returncode:
        raise AdapterError(f"{what}: {_verdict(done.returncode, done.stderr.splitlines())}")


def _verdict(code: int, said: list[str]) -> str:
    """Return what became of a child that did not end in an orderly way; only exit code 0 shows that a graph is safe."""
    if code < 0:
        reason = next((line for line in said if "Check failed" in line or line.startswith("F")), "")
        return f"TensorFlow ended the child process with signal {-code}. {reason[-300:]}"
    reason = next((line for line in reversed(said) if line.strip()), "it said nothing")
    return (
        f"it is not known to be safe, for the child process that tried it ended with exit code {code}: {reason[-300:]}"
    )


def _nodes(graph_def: Any) -> Iterator[Any]:
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def _run(path: Path) -> None:
    """Run the graph of a file on zeros; what TensorFlow refuses in an orderly way is no concern of the guard."""
    import numpy as np  # noqa: PLC0415 - the child's own

    from neural_tune_tensorflow import source  # noqa: PLC0415
    from neural_tune_tensorflow.runtime import tf  # noqa: PLC0415

    graph_def = GraphDef()
    graph_def.ParseFromString(path.read_bytes())
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(graph_def, name="")
    feeds = {}
    for node in graph_def.node:
        if node.op == "Placeholder":
            tensor = graph.get_tensor_by_name(f"{node.name}:0")
            sizes = [1 if size is None else size for size in (tensor.shape.as_list() if tensor.shape.rank else [])]
            feeds[tensor] = np.zeros(sizes, tensor.dtype.as_numpy_dtype)
    try:
        with tf.compat.v1.Session(graph=graph) as session:
            session.run([f"{name}:0" for name in source.sinks(graph_def)], feeds)
    except (tf.errors.OpError, ValueError, TypeError):
        return


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
