"""What the engine knows about this adapter before it is loaded. Imports neither torch nor torchao."""

from __future__ import annotations

from pathlib import Path

from neural_tune.plugins import AdapterPlugin
from neural_tune.protocols import AnyAdapter


def accepts(model: object) -> bool:
    """Return whether `model` is a `torch.nn.Module`, a `torch.export.ExportedProgram` or a path to a .pt2 file."""
    if isinstance(model, str | Path):
        return Path(model).suffix.lower() == ".pt2"
    # By name, along the ancestry: importing torch only to say no to an ONNX model would cost seconds.
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(model).__mro__}
    return bool(names & {"torch.nn.modules.module.Module", "torch.export.exported_program.ExportedProgram"})


def load() -> AnyAdapter:
    """Return the adapter; imports torch and torchao."""
    from neural_tune_pytorch.adapter import PyTorchAdapter  # noqa: PLC0415 - heavy, loaded at first use

    return PyTorchAdapter()


PLUGIN = AdapterPlugin(
    name="pytorch",
    summary="PyTorch modules on the CPU: PT2E with Inductor, FX, eager mode",
    requires=("torch", "torchao"),
    install="neural-tune[pytorch]",
    accepts=accepts,
    load=load,
)
