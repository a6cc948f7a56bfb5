"""Quantization-aware training in eager mode: fake_quant around the modules that will be int8 islands."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from neural_tune.calibration import Statistics
from neural_tune.values import Candidate
from neural_tune_pytorch.backend import Built
from neural_tune_pytorch.backends import eager, eager_plan, swap
from neural_tune_pytorch.backends.eager_plan import Captured
from neural_tune_pytorch.backends.fx_plan import Ranges
from neural_tune_pytorch.calling import Flat
from neural_tune_pytorch.model import copy_of
from neural_tune_pytorch.qat_fake_quant import FakeQuant, Trained, check_finite


class EagerTrainee:
    """A trainable module of a candidate, and how it becomes integers. Implements `neural_tune_pytorch.qat.Trainee`."""

    def __init__(self, captured: Captured, candidate: Candidate, statistics: Statistics | None) -> None:
        self._planned = eager_plan.plan(captured, candidate, statistics)
        self._module = copy_of(captured.module)
        self._captured = captured
        ranges = Ranges.of(candidate, statistics) if statistics is not None else None
        self._islands = {name: self._island(name, ranges) for name in self._planned.static}
        for name, island in self._islands.items():
            self._module.set_submodule(name, island)
        for parameter in self._module.parameters():
            parameter.requires_grad_(requires_grad=True)
        self.network: nn.Module = Flat(self._module, captured.calling)

    def finish(self, threads: int | None) -> Built:
        """Return the trained module with its ops exchanged.

        Raises:
            AdapterError: training left something that cannot be quantized.
        """
        check_finite(self._module)
        self._module.eval()
        for parameter in self._module.parameters():
            parameter.requires_grad_(requires_grad=False)
        for name, island in self._islands.items():
            self._module.set_submodule(name, island.trained.module)
        captured = replace(self._captured, module=copy_of(self._module), cache={})
        for name, config in self._planned.configs.items():
            if name not in self._islands:
                self._module.set_submodule(name, swap.swapped(captured.module.get_submodule(name), config))
                continue
            island = self._islands[name]
            source, target = (None if part is None else part.grid() for part in (island.source, island.target))
            weights = island.trained.fake_quant.grid(island.trained.module.weight.detach())
            self._module.set_submodule(name, eager.island(captured, self._planned, name, source, target, weights))
        return eager.finished(captured, self._planned, self._module, threads)

    def _island(self, name: str, ranges: Ranges | None) -> _FakeIsland:
        op, spec = self._planned.static[name], self._planned.spec_of(name)
        config = self._planned.configs[name]
        trained = Trained(self._module.get_submodule(name), config.weight or swap.WEIGHT, relu=op.relu)

        def fake_quant(tensor: str) -> FakeQuant:
            start = None if ranges is None else ranges.grid(tensor, spec)
            return FakeQuant(start, last=127 if spec.reduce_range else 255, symmetric=spec.symmetric, tensor=tensor)

        source = None if name in self._planned.fed else fake_quant(op.source)
        target = None if self._planned.has_float_borders(name) else fake_quant(op.target)
        return _FakeIsland(trained, source, target)


class _FakeIsland(nn.Module):
    """A module with fake_quant on its weight, and on its input and output where the int8 island will round."""

    def __init__(self, trained: Trained, source: FakeQuant | None, target: FakeQuant | None) -> None:
        super().__init__()
        self.trained = trained
        self.source = source
        self.target = target

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded output."""
        y: Tensor = self.trained(x if self.source is None else self.source(x))
        return y if self.target is None else self.target(y)
