"""A saved model compiled ahead of time: an AOTInductor package beside the portable file, which torch alone loads and runs, without torchao and without a compiler.

The price: it is made for the processor, the torch and the number of threads of the machine that compiles it. So it is something to add to a model that is finished, and the
portable file stays what counts.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
import zipfile
from pathlib import Path

import torch
import torch._inductor

from neural_tune.errors import AdapterError
from neural_tune_pytorch import archive
from neural_tune_pytorch import model as models
from neural_tune_pytorch.backends.pt2e import save
from neural_tune_pytorch.calling import Calling
from neural_tune_pytorch.libraries import x86_inductor
from neural_tune_pytorch.threads import inference

FILE = "model.aoti.pt2"
_KERNELS = re.compile(rb"\baoti_torch_cpu__(?:qconv|qlinear)\w*\(")


def package(saved: str | os.PathLike[str], threads: int | None = None) -> Path:
    """Compile a saved model of backend "pt2e" ahead of time and return the path of the package, `model.aoti.pt2` beside it.

    Args:
        saved: What `TuneResult.save` wrote (the folder, or the model.pt2 in it).
        threads: Threads to compile for; None takes torch's own setting.

    Raises:
        AdapterError: it is no such model, it cannot be compiled, or an int8 op would run in float in the package.
    """
    artifact = Path(saved) / save.FILE if Path(saved).is_dir() else Path(saved)
    metadata = archive.metadata_of(artifact)
    if metadata.get("backend") != "pt2e":
        raise AdapterError(
            f"{artifact}: found a file of backend {metadata.get('backend')!r}, expected one that backend 'pt2e' saved"
        )
    expected = int(metadata.get("kernels", 0))
    with tempfile.TemporaryDirectory(prefix="neural_tune-", dir=artifact.parent) as scratch:
        made = Path(scratch) / FILE
        with archive.data_only(artifact), inference(threads):
            _compile(artifact, archive.calling_of(metadata), made)
        found = int8_kernels(made)
        if found != expected:
            raise AdapterError(
                f"{artifact.name}: {expected} int8 kernels were expected, the package would call {found}, and the others in float: use the portable file"
            )
        return made.replace(artifact.with_name(FILE))


def _compile(artifact: Path, calling: Calling, path: Path) -> None:
    x86_inductor()  # without it the file cannot be read, and what is compiled would be float
    # Of a sample only the form is looked at; the file holds none, because it would be the user's data.
    sample = tuple(torch.zeros(info.shape, dtype=info.torch_dtype) for info in calling.inputs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(artifact)
            program.example_inputs = (sample, {})
            torch._inductor.aoti_compile_and_package(  # noqa: SLF001 - the documented name
                program, package_path=str(path), inductor_configs={"freezing": True}
            )
    except Exception as error:
        raise AdapterError(
            f"{artifact.name}: AOTInductor cannot compile it ({type(error).__name__}: {models.first_line(error)})"
        ) from error


def int8_kernels(path: Path) -> int:
    """Return how many calls of onednn's int8 convolution and linear are in the C++ code that a package brings with it."""
    with zipfile.ZipFile(path) as packed:
        sources = [packed.read(name) for name in packed.namelist() if name.endswith(".cpp")]
    return sum(len(_KERNELS.findall(source)) for source in sources)
