"""How one tensor, and how one operation, is represented in low precision."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from neural_tune.errors import ConfigError


class DType(StrEnum):
    """Number formats a quantized (or cast) tensor can have."""

    INT4 = "int4"
    UINT4 = "uint4"
    INT8 = "int8"
    UINT8 = "uint8"
    INT16 = "int16"
    UINT16 = "uint16"
    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"

    @property
    def is_float(self) -> bool:
        """True for the floating-point formats, which have no scale and no zero_point."""
        return self in (DType.BF16, DType.FP16, DType.FP32)


class Granularity(StrEnum):
    """How many elements share one scale."""

    PER_TENSOR = "per_tensor"
    PER_CHANNEL = "per_channel"
    PER_GROUP = "per_group"


class Observer(StrEnum):
    """How the range of a tensor is taken from its statistics; GPTQ is for weights: rounding that makes up for earlier rounding."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    KL = "kl"
    MSE = "mse"
    GPTQ = "gptq"


class Mode(StrEnum):
    """When and what is quantized."""

    STATIC = "static"
    DYNAMIC = "dynamic"
    WEIGHT_ONLY = "weight_only"
    CAST = "cast"
    FLOAT = "float"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantSpec:
    """The quantization of one tensor.

    Attributes:
        dtype: Stored number format.
        symmetric: True fixes the zero_point at the middle of the range (0 for signed dtypes).
        granularity: Elements that share a scale.
        axis: Channel axis for per_channel and per_group; None lets the adapter take the op's output channel.
        group_size: Elements per scale along the axis, for per_group only.
        observer: How the range is found.
        percentile: Share of absolute values kept, in percent, for the percentile observer; None means 99.99.
        reduce_range: Use one bit less, for x86 processors without VNNI, whose int8 products saturate in int16.

    Raises:
        ConfigError: the fields contradict each other.
    """

    dtype: DType
    symmetric: bool = True
    granularity: Granularity = Granularity.PER_TENSOR
    axis: int | None = None
    group_size: int | None = None
    observer: Observer = Observer.MINMAX
    percentile: float | None = None
    reduce_range: bool = False

    def __post_init__(self) -> None:
        """Refuse contradictions, so that an adapter never meets one."""
        if (self.group_size is not None) != (self.granularity is Granularity.PER_GROUP):
            message = (
                f"group_size={self.group_size} with granularity {self.granularity}: give it for per_group, only there"
            )
            raise ConfigError(message)
        if self.percentile is not None and self.observer is not Observer.PERCENTILE:
            message = (
                f"percentile={self.percentile} with observer {self.observer}: give it for the percentile observer only"
            )
            raise ConfigError(message)
        if self.percentile is not None and not 50.0 < self.percentile <= 100.0:
            message = f"percentile={self.percentile}: expected a share in percent, above 50 and at most 100"
            raise ConfigError(message)

    def describe(self) -> str:
        """Return a short form such as "uint8 asym per_tensor kl"."""
        if self.dtype.is_float:
            return self.dtype.value
        scope = self.granularity.value if self.group_size is None else f"{self.granularity.value}({self.group_size})"
        parts = [self.dtype.value, "sym" if self.symmetric else "asym", scope]
        if self.observer is not Observer.MINMAX:
            parts.append(self.observer.value)
        return " ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpConfig:
    """The precision of one operation.

    Attributes:
        mode: When and what is quantized; `Mode.FLOAT` means untouched.
        activation: Spec of the quantized inputs; None where inputs stay in float.
        weight: Spec of the constant operand; None where there is none.
        output: Spec of the output when this op itself produces a quantized tensor; None leaves the output in
            float unless a consumer quantizes it.
    """

    mode: Mode
    activation: QuantSpec | None = None
    weight: QuantSpec | None = None
    output: QuantSpec | None = None

    @property
    def is_float(self) -> bool:
        """True when the operation runs exactly as in the float model."""
        return self.mode is Mode.FLOAT

    @property
    def word(self) -> str:
        """The precision in one word: "int8", "int4", "fp16" ... or "float".

        That of the weight where there is one, but "int16" beside 16-bit activations: those decide which kernel runs, if any.
        """
        spec = self.weight or self.activation
        if spec is None or self.is_float:
            return "float"
        if self.activation is not None and self.activation.dtype in (DType.INT16, DType.UINT16):
            spec = self.activation
        return spec.dtype.value.removeprefix("u")

    def describe(self) -> str:
        """Return a short form such as "static: uint8 asym per_tensor, weight int8 sym per_channel"."""
        if self.is_float:
            return "float"
        parts = [self.activation.describe()] if self.activation else []
        parts += [f"weight {self.weight.describe()}"] if self.weight else []
        return f"{self.mode.value}: {', '.join(parts)}" if parts else self.mode.value


FLOAT = OpConfig(mode=Mode.FLOAT)
