"""Tuning spaces without a model, for tests of strategies."""

from __future__ import annotations

from dataclasses import replace

from neural_tune.space import TuningSpace
from neural_tune.values import (
    FLOAT,
    Capability,
    DType,
    Granularity,
    Mode,
    Observer,
    OpCapability,
    OpConfig,
    QuantSpec,
    Role,
)

INT8 = OpConfig(
    mode=Mode.STATIC,
    activation=QuantSpec(dtype=DType.UINT8, symmetric=False),
    weight=QuantSpec(dtype=DType.INT8, granularity=Granularity.PER_CHANNEL),
)


def with_observer(config: OpConfig, observer: Observer) -> OpConfig:
    """Return `config` with another activation observer."""
    if config.activation is None:
        return config
    return replace(config, activation=replace(config.activation, observer=observer))


def with_granularity(config: OpConfig, granularity: Granularity) -> OpConfig:
    """Return `config` with another weight granularity."""
    if config.weight is None:
        return config
    return replace(config, weight=replace(config.weight, granularity=granularity))


def choices(*observers: Observer, per_tensor: bool = False) -> tuple[OpConfig, ...]:
    """Return the product of per_channel (and per_tensor) weights with min/max and further `observers`, then FLOAT."""
    grains = (Granularity.PER_CHANNEL, Granularity.PER_TENSOR) if per_tensor else (Granularity.PER_CHANNEL,)
    return (
        *(
            with_observer(with_granularity(INT8, grain), observer)
            for grain in grains
            for observer in (Observer.MINMAX, *observers)
        ),
        FLOAT,
    )


def op(
    name: str,
    kind: str = "Conv",
    offered: tuple[OpConfig, ...] = (INT8, FLOAT),
    *,
    role: Role = Role.ANCHOR,
    group: str = "",
) -> OpCapability:
    """Return an op of type `kind` that offers int8 and float, or what `offered` says."""
    return OpCapability(
        name=name, type=kind, role=role, choices=offered, group=group, why="" if offered[1:] else "test"
    )


def space_of(*ops: OpCapability) -> TuningSpace:
    """Return the space of a model with `ops` in execution order."""
    return TuningSpace.of(
        Capability(framework="script", runtime_version="1", instruction_set="none", ops=ops, inputs=("x",))
    )


def small_spaces() -> dict[str, TuningSpace]:
    """Return spaces of every shape that a strategy must cope with, each small enough to be enumerated."""
    many = choices(Observer.KL, per_tensor=True)
    return {
        "empty": space_of(op("relu", "Relu", (FLOAT,), role=Role.PASS_THROUGH)),
        "one op": space_of(op("fc", "Gemm", choices(Observer.KL))),
        "two ops": space_of(op("conv"), op("fc", "Gemm")),
        "five ops": space_of(*(op(f"conv{number}") for number in range(5))),
        "options": space_of(
            op("conv1", "Conv", many), op("conv2", "Conv", many), op("fc", "Gemm", choices(Observer.MSE))
        ),
        "companions and a group": space_of(
            op("conv1"),
            op("left", group="shared"),
            op("right", group="shared"),
            op("add", "Add", role=Role.COMPANION),
            op("fc", "Gemm", choices(Observer.PERCENTILE)),
        ),
    }
