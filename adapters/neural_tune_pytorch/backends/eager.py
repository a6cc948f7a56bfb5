"""Eager mode: int8 modules put in place of float ones, in a model whose forward stays Python.

What INC and `torch.ao` ask the user for is done here: batch norms are folded, QuantStubs and DeQuantStubs set where codes begin and end, Relus found. What cannot be done in
eager mode: a sum in the user's forward (`x + y`) stays float, because it is not a module. Int8 is then an island between two floats, and tensors stay quantized only
from one int8 module to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neural_tune.errors import AdapterError, CapabilityError, DataError
from neural_tune.protocols import AdapterOptions, BuildReport, OpOutcome, Toggles
from neural_tune.values import (
    FLOAT,
    Candidate,
    Capability,
    FrozenMap,
    LatencyProfile,
    Mode,
    OpCapability,
    OpConfig,
    QuantSpec,
    Role,
)
from neural_tune_pytorch.backend import Built, Feed, Source
from neural_tune_pytorch.backends import eager_flow, fx_graph, fx_plan, swap, swap_script
from neural_tune_pytorch.backends.eager_flow import Flow
from neural_tune_pytorch.backends.fx_plan import Ranges
from neural_tune_pytorch.backends.swap import Grid
from neural_tune_pytorch.calling import Calling, Flat
from neural_tune_pytorch.model import copy_of, first_line
from neural_tune_pytorch.statistics import Collector, Statistics

_ISLANDS = "eager mode: sums and other functions in forward() stay float; int8 modules are islands with a quantize before and a dequantize behind"


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """A module that has a low-precision form.

    Attributes:
        name: Module path.
        type: Its class.
        relu: Whether a Relu behind it is done in the kernel as well (the one in forward then changes nothing).
        why: Why it is float only.
    """

    name: str
    type: str
    relu: bool = False
    why: str = ""

    @property
    def source(self) -> str:
        """Name of the tensor it reads."""
        return f"{self.name}:in"

    @property
    def target(self) -> str:
        """Name of the tensor it writes, behind the Relu."""
        return f"{self.name}:out"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Captured:
    """The float module, batch norms folded, and what it does with its tensors. Nobody changes it.

    Attributes:
        module: Float.
        flow: One recorded run of it.
        ops: Every module of a quantizable type that was called.
        calling: How the original is called.
        example: One batch.
        options: What the configuration says.
        cache: Parts of candidates that depend on the float model only.
    """

    module: nn.Module
    flow: Flow
    ops: tuple[Op, ...]
    calling: Calling
    example: Feed
    options: AdapterOptions
    cache: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """A candidate laid over the modules.

    Attributes:
        configs: Op name -> config, for the ops that are really in low precision.
        reasons: Op name -> why it is float although the candidate asks for more.
        static: The static ones by name.
        fed: Static ops whose input arrives as codes.
        staying: Static ops whose output stays codes.
    """

    configs: Mapping[str, OpConfig]
    reasons: Mapping[str, str]
    static: Mapping[str, Op]
    fed: frozenset[str]
    staying: frozenset[str]


class EagerBackend:
    """Implements `neural_tune_pytorch.backend.Backend`."""

    name = "eager"

    def unusable(self, options: AdapterOptions) -> str:  # noqa: ARG002 - protocol
        """Return "": an engine that is missing is refused by `capture`."""
        return ""

    def capture(self, source: Source, options: AdapterOptions) -> Captured:
        """Return the module with batch norms folded, and a recording of one run.

        Raises:
            CapabilityError: nothing in it has a low-precision form, or torch has no int8 kernels.
        """
        swap.engine_name()
        if fx_plan.bits_of(options.extra) < 8:
            raise CapabilityError("options.bits: fewer than 8 bits are simulated by backend 'fx' only")
        module = copy_of(source.module)
        if isinstance(module, torch.fx.GraphModule):
            raise CapabilityError("an exported program has no modules to exchange; use backend 'pt2e'")

        def run(changed: nn.Module) -> Any:
            return source.calling.call(changed, source.example)

        for anchor, norm, axes in list(eager_flow.foldable_norms(module, eager_flow.record(module, run))):
            folded = fx_graph.folded_norm(module.get_submodule(anchor), module.get_submodule(norm), axes)
            if folded is not None:
                module.set_submodule(anchor, folded)
                module.set_submodule(norm, nn.Identity())
        for parameter in module.parameters():
            parameter.requires_grad_(requires_grad=False)
        flow = eager_flow.record(module, run)
        ops = tuple(
            _op(module, flow, path) for path in flow.modules if isinstance(module.get_submodule(path), swap.QUANTIZABLE)
        )
        if all(op.why for op in ops):
            raise CapabilityError(
                "eager mode found no Linear, convolution, LSTM, GRU or Embedding that it could exchange"
            )
        return Captured(
            module=module, flow=flow, ops=ops, calling=source.calling, example=source.example, options=options
        )

    def identity(self, captured: Captured) -> str:
        """Return the structure of the module."""
        return f"eager;{swap.engine_name()};{captured.module!r};{captured.ops!r}"

    def query(self, captured: Captured) -> Capability:
        """Return the choices of every op."""
        return Capability(
            framework="pytorch",
            runtime_version=torch.__version__,
            instruction_set=f"{torch.backends.cpu.get_cpu_capability()} {'vnni' if swap.has_vnni() else 'no vnni'}, engine {swap.engine_name()}",
            ops=tuple(_capability(captured, op) for op in captured.ops),
            inputs=captured.calling.names,
            notes=(_ISLANDS,) if captured.options.approach in ("static", "auto", "qat") else (),
        )

    def observe(self, captured: Captured, batches: Iterable[Feed]) -> Statistics:
        """Read `batches` once and return the statistics of what every convolution and linear reads and writes.

        Raises:
            DataError: a tensor holds NaN.
            AdapterError: the module breaks on a batch.
        """
        collector = Collector()
        module = copy_of(captured.module)
        for op in captured.ops:
            if not op.why:
                module.get_submodule(op.name).register_forward_hook(_observer(collector, op))
        count = 0
        for feed in batches:
            count += 1
            try:
                with torch.no_grad():
                    captured.calling.call(module, feed)
            except DataError:
                raise
            except Exception as error:
                raise AdapterError(
                    f"the float model breaks in calibration ({type(error).__name__}: {first_line(error)})"
                ) from error
            collector.end_batch()
        if not count:
            raise DataError("calibration found no batch, expected one or more")
        return collector.statistics()

    def build(
        self, captured: Captured, candidate: Candidate, statistics: Statistics | None, threads: int | None
    ) -> Built:
        """Return the module with the ops of `candidate` exchanged."""
        if candidate.recipes:
            raise CapabilityError(
                f"recipes {list(candidate.recipes)}: backend 'eager' folds batch norm always and offers no other"
            )
        planned = plan(captured, candidate, statistics)
        ranges = Ranges.of(candidate, statistics)
        module = copy_of(captured.module)
        for name, config in planned.configs.items():
            if name in planned.static:
                grids = _Grids(ranges, planned.static[name], spec_of(planned, name))
                weights = swap.weight_grid(module.get_submodule(name).weight, config.weight or swap.WEIGHT)
                module.set_submodule(name, island(captured, planned, name, grids.source(), grids.target(), weights))
            else:
                module.set_submodule(name, _swapped(captured, name, config))
        return finished(captured, planned, module, threads)

    def restore(self, artifact: Path, metadata: Mapping[str, Any], threads: int | None) -> Built:
        """Return what was saved as TorchScript."""
        return swap_script.restore(artifact, metadata, threads)

    def toggles(
        self,
        captured: Captured,  # noqa: ARG002 - the signature of the protocol
        candidate: Candidate,  # noqa: ARG002
        statistics: Statistics | None,  # noqa: ARG002
        threads: int | None,  # noqa: ARG002
    ) -> Toggles:
        """Refuse: a build costs milliseconds, so single candidates are built instead."""
        raise AdapterError(
            "backend 'eager' has no toggle model: a build costs milliseconds, so single candidates are built instead"
        )

    def profile(
        self,
        captured: Captured,  # noqa: ARG002 - the signature of the protocol
        candidate: Candidate,  # noqa: ARG002
        statistics: Statistics | None,  # noqa: ARG002
        feed: Feed,  # noqa: ARG002
        threads: int,  # noqa: ARG002
    ) -> LatencyProfile:
        """Refuse: there is no profile per op here."""
        raise AdapterError("backend 'eager' does not attribute run time to ops; use backend 'pt2e'")


def plan(captured: Captured, candidate: Candidate, statistics: Statistics | None) -> Plan:
    """Return what `candidate` does.

    Raises:
        CapabilityError: it names an op that the model does not have, or that has no low-precision form.
    """
    known = {op.name: op for op in captured.ops}
    strange = sorted(set(candidate.ops) - set(known))
    if strange:
        raise CapabilityError(f"the candidate names the ops {strange[:5]}, which the model does not have")
    configs: dict[str, OpConfig] = {}
    reasons: dict[str, str] = {}
    for name, config in candidate.ops.items():
        op = known[name]
        if op.why:
            raise CapabilityError(f"the candidate quantizes {name!r} ({op.type}): {op.why}")
        infinite = statistics is not None and bool({op.source, op.target} & statistics.infinite)
        if config.mode is Mode.STATIC and infinite:
            reasons[name] = "its input or output took infinite values in calibration, so it has no range"
        else:
            configs[name] = config
    static = {name: known[name] for name, config in configs.items() if config.mode is Mode.STATIC}
    int8, flow = frozenset(static), captured.flow
    staying = frozenset(
        name
        for name in static
        if _written(flow, name) and all(flow.stays(tensor, int8) for tensor in _written(flow, name))
    )
    coded = flow.coded(frozenset(tensor for name in staying for tensor in _written(flow, name)))
    fed = frozenset(name for name in static if all(set(call.inputs) <= coded for call in flow.calls_of(name)))
    return Plan(configs=configs, reasons=reasons, static=static, fed=fed, staying=staying)


def island(
    captured: Captured, planned: Plan, name: str, source: Grid | None, target: Grid | None, weights: swap.WeightGrid
) -> nn.Module:
    """Return an op as an int8 module with its borders; a grid may be None where the plan does not need it."""
    module, op = captured.module.get_submodule(name), planned.static[name]
    is_float = borders_are_float(planned, name)
    known = source or Grid(scale=1.0, zero=0)
    kernel = swap.static(module, weights, known, None if is_float else target, relu=op.relu)
    quantizes = source if not is_float else None
    return _Island(
        kernel, quantizes, dequantizes_input=is_float, dequantizes_output=not is_float and name not in planned.staying
    )


def borders_are_float(planned: Plan, name: str) -> bool:
    """Return whether an op runs in the kernel with float input and output."""
    return (
        planned.static[name].type == "Linear"
        and name not in planned.staying
        and name not in planned.fed
        and swap.offers_float_borders()
    )


def finished(captured: Captured, planned: Plan, module: nn.Module, threads: int | None) -> Built:
    """Return a module with exchanged parts as a `Built`."""
    network = Flat(module.eval(), captured.calling).eval()
    return swap_script.built(network, captured.calling, captured.example, "eager", report(captured, planned), threads)


def report(captured: Captured, planned: Plan) -> BuildReport:
    """Return what became of every op."""
    outcomes = []
    for op in captured.ops:
        config = planned.configs.get(op.name)
        why = planned.reasons.get(op.name) or op.why or "the candidate keeps it in float"
        precision = "float" if config is None else config.describe()
        outcomes.append(
            OpOutcome(name=op.name, type=op.type, precision=precision, reason=why if config is None else "")
        )
    kernels = sum(1 for config in planned.configs.values() if config.mode in (Mode.STATIC, Mode.DYNAMIC))
    borders = sum((name not in planned.fed) + (name not in planned.staying) for name in planned.static)
    counts = FrozenMap({"int8_kernels": float(kernels), "borders": float(borders)})
    return BuildReport(ops=tuple(outcomes), counts=counts)


class _Island(nn.Module):
    """An int8 module between its borders."""

    def __init__(
        self, kernel: nn.Module, source: Grid | None, *, dequantizes_input: bool, dequantizes_output: bool
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.has_grid = source is not None
        self.scale = 1.0 if source is None else source.scale
        self.zero_point = 0 if source is None else source.zero
        self.dequantizes_input = dequantizes_input
        self.dequantizes_output = dequantizes_output

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, as codes or real."""
        if x.is_quantized:
            x = x.dequantize() if self.dequantizes_input else x
        elif not self.dequantizes_input:
            if (
                not self.has_grid
            ):  # trained on codes of the op before it; any range made up here would be wrong without a word
                raise RuntimeError(
                    "an int8 module got a float input where codes always arrived: forward() took another path"
                )
            x = torch.quantize_per_tensor(x, self.scale, self.zero_point, torch.quint8)
        y = self.kernel(x)
        return y.dequantize() if self.dequantizes_output else y


@dataclass(frozen=True, slots=True)
class _Grids:
    """The grids of one op."""

    ranges: Ranges
    op: Op
    spec: QuantSpec

    def source(self) -> Grid:
        return self.ranges.grid(self.op.source, self.spec)

    def target(self) -> Grid:
        return self.ranges.grid(self.op.target, self.spec)


def spec_of(planned: Plan, name: str) -> QuantSpec:
    """Return the spec of the activations of a static op. Raises CapabilityError where no kernel takes it."""
    spec = planned.configs[name].activation
    if spec is None or spec.dtype != "uint8":
        raise CapabilityError(
            f"op {name!r}: {planned.configs[name].describe()} has no int8 kernel in eager mode; activations are uint8"
        )
    return spec


def _written(flow: Flow, name: str) -> tuple[int, ...]:
    return tuple(tensor for call in flow.calls_of(name) for tensor in call.outputs)


def _observer(collector: Collector, op: Op) -> Any:
    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if op.type in ("LSTM", "GRU", "Embedding"):
            return
        collector.see(op.source, np.asarray(inputs[0]))
        collector.see(op.target, np.asarray(torch.relu(output) if op.relu else output))

    return hook


def _op(module: nn.Module, flow: Flow, path: str) -> Op:
    child = module.get_submodule(path)
    why = swap.refusal(child)
    if path in flow.touched:
        why = "forward() of another module reads its weight directly, so it must stay what it is"
    elif isinstance(child, swap.ANCHORS) and any(len(call.inputs) != 1 for call in flow.calls_of(path)):
        why = "it is called with something else than one tensor"
    relu = isinstance(child, swap.ANCHORS) and flow.has_relu(path)
    return Op(name=path, type=type(child).__name__, relu=relu, why=why)


def _capability(captured: Captured, op: Op) -> OpCapability:
    module = captured.module.get_submodule(op.name)
    is_anchor = isinstance(module, swap.ANCHORS)
    inputs, outputs = ((op.source,), (op.target,)) if is_anchor else ((), ())
    if op.why:
        return OpCapability(
            name=op.name, type=op.type, role=Role.NEVER, choices=(FLOAT,), why=op.why, inputs=inputs, outputs=outputs
        )
    choices, extra = swap.choices(module, captured.options.approach, reduce_range=captured.options.reduce_range)
    why = "" if len(choices) > 1 else f"{op.type} has no {captured.options.approach} form here"
    role = Role.ANCHOR if len(choices) + len(extra) > 1 else Role.NEVER
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return OpCapability(
        name=op.name,
        type=op.type,
        role=role,
        choices=choices,
        extra=extra,
        why=why,
        parameters=parameters,
        inputs=inputs,
        outputs=outputs,
    )


def _swapped(captured: Captured, name: str, config: OpConfig) -> nn.Module:
    key = (name, config)
    if key not in captured.cache:
        captured.cache[key] = swap.swapped(captured.module.get_submodule(name), config)
    return captured.cache[key]
