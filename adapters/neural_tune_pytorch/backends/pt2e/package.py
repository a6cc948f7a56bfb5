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
from neural_tune_pytorch.backends.pt2e import lowering, save
from neural_tune_pytorch.calling import Calling, InputInfo
from neural_tune_pytorch.libraries import x86_inductor
from neural_tune_pytorch.threads import inference

FILE = "model.aoti.pt2"
# Relative L2 difference of outputs; the kernels are the same, and only float sums may be added in another order.
_SAME = 1e-3
_KERNELS = re.compile(rb"\baoti_torch_cpu__(?:qconv|qlinear)\w*\(")


def package(saved: str | os.PathLike[str], threads: int | None = None) -> Path:
    """Compile a saved model of backend "pt2e" ahead of time and return the path of the package, `model.aoti.pt2` beside it.

    Args:
        saved: What `TuneResult.save` wrote (the folder, or the model.pt2 in it).
        threads: Threads to compile for; None takes torch's own setting.

    Raises:
        AdapterError: it is no such model, it cannot be compiled, an int8 op would run in float in the package, or the package computes something else (torch
            2.13 does so with some float linears beside int8 convolutions). There is no package then.
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
        with archive.data_only(artifact), inference(threads):
            _prove(artifact, archive.calling_of(metadata), made)
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


def _prove(artifact: Path, calling: Calling, path: Path) -> None:
    """Compare the package with the compiled model, on noise of the example's shape: what AOTInductor makes of frozen weights is not always what they were."""
    generator = torch.Generator().manual_seed(0)
    feed = tuple(_noise(info, generator) for info in calling.inputs)
    expected = lowering.Compiled(save.read(artifact), pads=False)(*feed)
    found = torch._inductor.aoti_load_package(str(path))(*feed)  # noqa: SLF001 - the documented name
    for one, two in zip(expected, [found] if isinstance(found, torch.Tensor) else found, strict=True):
        distance = float((two.double() - one.double()).norm()) / max(float(one.double().norm()), 1e-30)
        if not distance <= _SAME:
            raise AdapterError(
                f"{artifact.name}: the package that AOTInductor made computes something else than the model (outputs differ by {distance:.2g} of their size): "
                "use the portable file"
            )


def _noise(info: InputInfo, generator: torch.Generator) -> torch.Tensor:
    kind = info.torch_dtype
    if kind.is_floating_point:
        return torch.randn(info.shape, generator=generator).to(kind)
    return torch.randint(0, 2, info.shape, generator=generator).to(kind)


def int8_kernels(path: Path) -> int:
    """Return how many calls of onednn's int8 convolution and linear are in the C++ code that a package brings with it."""
    with zipfile.ZipFile(path) as packed:
        sources = [packed.read(name) for name in packed.namelist() if name.endswith(".cpp")]
    return sum(len(_KERNELS.findall(source)) for source in sources)
