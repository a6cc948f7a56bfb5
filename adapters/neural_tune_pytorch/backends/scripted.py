"""What the backends FX and eager share: both put `torch.ao`'s int8 modules in the place of float ones, and save TorchScript."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neural_tune.calibration import Collector, Statistics
from neural_tune.errors import AdapterError, CapabilityError, DataError
from neural_tune.protocols import AdapterOptions, Toggles
from neural_tune.values import FLOAT, Candidate, Capability, LatencyProfile, Mode, OpCapability, Role
from neural_tune_pytorch.backend import Built, Feed
from neural_tune_pytorch.backends import swap, swap_script
from neural_tune_pytorch.model import first_line


class ScriptedBackend:
    """The part of `neural_tune_pytorch.backend.Backend` that does not depend on how modules are exchanged.

    Attributes:
        name: As in the protocol.
    """

    name: str

    def unusable(self, options: AdapterOptions) -> str:  # noqa: ARG002 - protocol
        """Return "": an engine that is missing is refused by `capture`."""
        return ""

    def restore(self, artifact: Path, metadata: Mapping[str, Any], threads: int | None) -> Built:
        """Return what was saved as TorchScript."""
        return swap_script.restore(artifact, metadata, threads)

    def toggles(
        self,
        captured: Any,  # noqa: ARG002 - the signature of the protocol
        candidate: Candidate,  # noqa: ARG002
        statistics: Statistics | None,  # noqa: ARG002
        threads: int | None,  # noqa: ARG002
    ) -> Toggles:
        """Refuse: a build costs milliseconds, so single candidates are built instead."""
        raise AdapterError(
            f"backend {self.name!r} has no toggle model: a build costs milliseconds, so single candidates are built instead"
        )

    def profile(
        self,
        captured: Any,  # noqa: ARG002 - the signature of the protocol
        candidate: Candidate,  # noqa: ARG002
        statistics: Statistics | None,  # noqa: ARG002
        feed: Feed,  # noqa: ARG002
        threads: int,  # noqa: ARG002
    ) -> LatencyProfile:
        """Refuse: there is no profile per op here."""
        raise AdapterError(f"backend {self.name!r} does not attribute run time to ops; use backend 'pt2e'")

    def refuse_recipes(self, candidate: Candidate) -> None:
        """Refuse a candidate with recipes.

        Raises:
            CapabilityError: it has some.
        """
        if candidate.recipes:
            raise CapabilityError(
                f"recipes {list(candidate.recipes)}: backend {self.name!r} folds batch norm always and offers no other"
            )


def capability(ops: Iterable[OpCapability], inputs: tuple[str, ...], notes: tuple[str, ...]) -> Capability:
    """Return the capability of a model on the int8 kernels of this torch."""
    vnni = "vnni" if swap.has_vnni() else "no vnni"
    return Capability(
        framework="pytorch",
        runtime_version=torch.__version__,
        instruction_set=f"{torch.backends.cpu.get_cpu_capability()} {vnni}, engine {swap.engine_name()}",
        ops=tuple(ops),
        inputs=inputs,
        notes=notes,
    )


def offered(bare: OpCapability, module: nn.Module, options: AdapterOptions, *, bits: int = 8) -> OpCapability:
    """Return `bare`, an op that may stay float only, with the low-precision forms of its module; below 8 bits the static ones."""
    choices, extra = swap.choices(module, options.approach, reduce_range=options.reduce_range)
    if bits < 8:
        choices, extra = (*(config for config in choices if config.mode is Mode.STATIC), FLOAT), ()
    return replace(
        bare,
        role=Role.ANCHOR if len(choices) + len(extra) > 1 else Role.NEVER,
        choices=choices,
        extra=extra,
        why="" if len(choices) > 1 else f"{bare.type} has no {options.approach} form here",
        parameters=sum(parameter.numel() for parameter in module.parameters()),
    )


def watched(run: Callable[[Feed], object], batches: Iterable[Feed], collector: Collector) -> Statistics:
    """Run every batch and return what `collector` has seen, to which `run` shows the tensors.

    Raises:
        DataError: there is no batch, or a tensor holds NaN.
        AdapterError: the model breaks on a batch.
    """
    for feed in batches:
        try:
            with torch.no_grad():
                run(feed)
        except DataError:
            raise
        except Exception as error:
            raise AdapterError(
                f"the float model breaks in calibration ({type(error).__name__}: {first_line(error)})"
            ) from error
        collector.end_batch()
    return collector.statistics()
