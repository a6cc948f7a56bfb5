"""A network as a .pt2 file of torch.export, and back. Integers stay integers in it, and no float weight that nothing reads is kept."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch
from torch import fx

from neural_tune.errors import AdapterError
from neural_tune_pytorch import model as models
from neural_tune_pytorch.archive import METADATA
from neural_tune_pytorch.backend import Feed
from neural_tune_pytorch.backends.pt2e.capture import export, plain, widened
from neural_tune_pytorch.libraries import x86_inductor

FILE = "model.pt2"


def to_bytes(graph: fx.GraphModule, example: Feed, *, free_batch: bool, metadata: str) -> bytes:
    """Return the content of the .pt2 file.

    Raises:
        AdapterError: torch.export cannot write the graph.
    """
    try:
        program = export(graph, widened(example) if free_batch else example, free_batch=free_batch)
        for node in program.graph.nodes:  # traces of the user's source are neither needed nor anyone's business
            node.meta = {name: value for name, value in node.meta.items() if name == "val"}
        program._example_inputs = None  # noqa: SLF001 - a sample of the user's data has no place in the file
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(program, buffer, extra_files={METADATA: metadata})
    except Exception as error:
        raise AdapterError(
            f"torch.export cannot save the model: {type(error).__name__}: {models.first_line(error)}"
        ) from error
    return buffer.getvalue()


def write(content: bytes, directory: Path) -> Path:
    """Write the file and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILE
    path.write_bytes(content)
    return path


def read(artifact: Path) -> fx.GraphModule:
    """Return the graph in a .pt2 file: flat tensors in, a tuple out.

    Raises:
        AdapterError: torch.export cannot read it.
    """
    x86_inductor()  # registers the Q/DQ ops; without them a file that names them cannot be read
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch.export.load(io.BytesIO(artifact.read_bytes())).module(check_guards=False)
    except Exception as error:
        raise AdapterError(
            f"{artifact.name}: torch.export cannot load it ({type(error).__name__}: {models.first_line(error)})"
        ) from error
    plain(graph)
    # A module of its own: the loaded one checks its inputs in a hook at every call, which took an eighth of a small perceptron's time; `Calling` has checked them already.
    return fx.GraphModule(graph, graph.graph)
