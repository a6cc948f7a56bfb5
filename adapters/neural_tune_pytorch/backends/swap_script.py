"""TorchScript as the artifact of modules with `torch.ao` kernels: it loads with `torch.jit.load` alone, without our code, the model's code or pickle.

Why not something else: `torch.export` refuses these modules (packed weights), and a state dict needs the model's code to load. TorchScript is deprecated
upstream, and works. Loading one runs the TorchScript interpreter on what the file says: as with every model file, take it from people you trust.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neural_tune.errors import AdapterError
from neural_tune.protocols import BuildReport
from neural_tune_pytorch import archive
from neural_tune_pytorch.backend import Built
from neural_tune_pytorch.backends import swap
from neural_tune_pytorch.calling import Calling, Flat, flatten
from neural_tune_pytorch.model import first_line

_LOG = logging.getLogger(__name__)
SUFFIX = ".pt"


class Artifact:
    """A network that can be written as TorchScript; the script is made once, when it is first asked for."""

    def __init__(
        self,
        network: nn.Module,
        calling: Calling,
        example: tuple[Tensor, ...],
        backend: str,
        report: Callable[[], BuildReport],
    ) -> None:
        self._network = network
        # The module behind the flat calling convention, where there is one: TorchScript compiles it, but not the convention.
        self._inner: nn.Module | None = network.model if isinstance(network, Flat) else None
        self._calling = calling
        self._example = example
        self._backend = backend
        self._report = report
        self._bytes: bytes | None = None

    def content(self) -> bytes:
        """Return the file's bytes.

        Raises:
            AdapterError: TorchScript can neither compile nor trace the network.
        """
        if self._bytes is None:
            with swap.engine(), torch.no_grad():
                scripted, is_flat = self._scripted()
                text = archive.metadata(
                    self._backend, self._calling, self._report(), engine=swap.engine_name(), flat=is_flat
                )
                buffer = io.BytesIO()
                torch.jit.save(scripted, buffer, _extra_files={archive.METADATA: text})
            self._bytes = buffer.getvalue()
        return self._bytes

    def _scripted(self) -> tuple[Any, bool]:
        """Return the network as TorchScript, and whether it is flat."""
        if self._inner is None:
            try:
                return torch.jit.script(self._network), True
            except Exception as error:  # noqa: BLE001 - whatever the compiler dislikes, a trace may do
                _LOG.info("TorchScript cannot compile the network (%s); tracing it", first_line(error))
        traced, branches = _traced(self._network, self._example)
        if branches and self._inner is not None:
            try:
                return torch.jit.script(self._inner), False
            except Exception as error:  # noqa: BLE001 - as above
                _LOG.warning(
                    "the saved model is a trace: what forward() decides in Python is fixed as it was for the example (%s), and TorchScript cannot compile it (%s)",
                    branches,
                    first_line(error),
                )
        return traced, True

    def write(self, directory: Path) -> Path:
        """Write model.pt below `directory` and return its path."""
        path = directory / f"model{SUFFIX}"
        path.write_bytes(self.content())
        return path

    def size(self) -> int:
        """Return the bytes of the file."""
        return len(self.content())


def built(
    network: nn.Module,
    calling: Calling,
    example: tuple[Tensor, ...],
    backend: str,
    report: BuildReport,
    threads: int | None,
) -> Built:
    """Return a network as a `Built` that saves itself as TorchScript."""
    artifact = Artifact(network, calling, example, backend, lambda: report)
    return Built(
        network=network,
        calling=calling,
        report=lambda: report,
        write=artifact.write,
        size=artifact.size,
        threads=threads,
    )


def restore(artifact: Path, metadata: Mapping[str, Any], threads: int | None) -> Built:
    """Return a saved network, its weights packed for the engine it was made for.

    Raises:
        AdapterError: the file is torn, or this torch lacks the engine.
    """
    name = str(metadata.get("engine", swap.engine_name()))
    if name not in torch.backends.quantized.supported_engines:
        raise AdapterError(
            f"{artifact.name} was made for the engine {name!r}, this torch has {torch.backends.quantized.supported_engines}: another engine "
            "would compute other numbers without a word; quantize the model again here"
        )
    try:
        with swap.engine(name):
            network = torch.jit.load(str(artifact), map_location="cpu").eval()
    except (RuntimeError, OSError, ValueError) as error:
        raise AdapterError(
            f"{artifact.name} is no readable TorchScript model ({first_line(error)}): save it again"
        ) from error
    found, calling = archive.report_of(metadata), archive.calling_of(metadata)

    def structured(*feed: Tensor) -> tuple[Tensor, ...]:
        return flatten(calling.call(network, feed))[0]

    def copy(directory: Path) -> Path:
        path = directory / f"model{SUFFIX}"
        path.write_bytes(artifact.read_bytes())
        return path

    return Built(
        network=network if metadata.get("flat", True) else structured,
        calling=calling,
        report=lambda: found,
        write=copy,
        size=lambda: artifact.stat().st_size,
        threads=threads,
    )


def _traced(network: nn.Module, example: tuple[Tensor, ...]) -> tuple[Any, str]:
    """Return a checked trace, and the first warning about a decision that it has fixed ("" if there is none)."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        try:
            traced = torch.jit.trace(network, example, check_trace=False, strict=False)
        except Exception as error:
            raise AdapterError(
                f"TorchScript can neither compile nor trace the network, so it cannot be saved: {first_line(error)}"
            ) from error
    branches = [
        str(item.message) for item in found if "boolean" in str(item.message) and "Converting" in str(item.message)
    ]
    _check(traced, network, example)
    return traced, branches[0].splitlines()[0] if branches else ""


def _check(traced: Any, network: nn.Module, example: tuple[Tensor, ...]) -> None:
    """Refuse a trace that has frozen the batch size (or a branch) of the example into the model."""
    for feed in (example, _doubled(example)):
        try:
            expected = network(*feed)
        except Exception:  # noqa: BLE001, S112 - the model itself does not take another batch size
            continue
        try:
            found = traced(*feed)
            agree = all(
                torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in zip(found, expected, strict=True)
            )
        except RuntimeError:
            agree = False
        if not agree:
            raise AdapterError(
                f"a trace of the network with a batch of {len(example[0])} computes something else for other inputs (control flow in Python?), "
                "so it cannot be saved; use backend 'pt2e'"
            )


def _doubled(example: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    lengths = {len(item) for item in example if item.dim()}
    return tuple(torch.cat((item, item)) if item.dim() and len(lengths) == 1 else item for item in example)
