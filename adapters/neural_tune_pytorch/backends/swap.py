"""One float module replaced by one low-precision module: the kernels of eager and FX mode. The only file that touches `torch.ao`.

`torch.ao.nn.quantized` is deprecated upstream and still the only way to int8 kernels without a compiler, with LSTM, GRU and Embedding among them. So it is imported here and
nowhere else, at first use, and what is missing is a `CapabilityError`. Every module made here can be scripted and traced by TorchScript, which is how it is saved.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neural_tune.errors import AdapterError, CapabilityError
from neural_tune.numerics import qparams
from neural_tune.values import FLOAT, DType, Granularity, Mode, Observer, OpConfig, QuantSpec

_LOG = logging.getLogger(__name__)
# x86 runs fbgemm for linear and onednn for convolutions, whichever is faster. Its bad name (7 bit by default) comes from observers, and ours are 8 bit where VNNI is there.
ENGINES = ("x86", "onednn", "fbgemm")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
ANCHORS = (*CONVOLUTIONS, nn.Linear)
RECURRENT = (nn.LSTM, nn.GRU)
QUANTIZABLE = (*ANCHORS, *RECURRENT, nn.Embedding)
OBSERVERS = (Observer.MINMAX, Observer.PERCENTILE, Observer.KL, Observer.MSE)
GROUP = 32

_BF16 = QuantSpec(dtype=DType.BF16)
CAST = OpConfig(mode=Mode.CAST, activation=_BF16, weight=_BF16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The codes of an activation: real = scale * (code - zero), first <= code <= last."""

    scale: float
    zero: int
    first: int = 0
    last: int = 255


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightGrid:
    """The codes of a weight, symmetric, one scale (float32) per output channel, which is axis 0; -last <= code <= last."""

    scale: Tensor
    last: int = 127


@cache
def engine_name() -> str:
    """Return the quantized engine of this processor.

    Raises:
        CapabilityError: torch was built without any.
    """
    found = [name for name in ENGINES if name in torch.backends.quantized.supported_engines]
    if not found:
        raise CapabilityError(
            f"this torch has no x86 int8 kernels (engines: {torch.backends.quantized.supported_engines}); use backend 'pt2e'"
        )
    return found[0]


@contextmanager
def engine(name: str | None = None) -> Iterator[None]:
    """Pack and unpack weights for the engine `name` inside the block; torch keeps it in a global."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name or engine_name()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.quantized.engine = before


@cache
def has_vnni() -> bool:
    """Return whether int8 products are added up in int32 here; without it they saturate in int16 and 7 bits are used."""
    probe = getattr(torch.cpu, "_is_vnni_supported", None) or getattr(torch.cpu, "_is_avx512_vnni_supported", None)
    return bool(probe()) if probe is not None else False


def static_spec(
    observer: Observer = Observer.MINMAX, *, symmetric: bool = False, reduce_range: bool | None = None
) -> QuantSpec:
    """Return the spec of a quantized activation."""
    reduced = not has_vnni() if reduce_range is None else reduce_range
    return QuantSpec(dtype=DType.UINT8, symmetric=symmetric, observer=observer, reduce_range=reduced)


WEIGHT = QuantSpec(dtype=DType.INT8, symmetric=True, granularity=Granularity.PER_CHANNEL, axis=0)


def choices(
    module: nn.Module, approach: str, *, reduce_range: bool | None = None
) -> tuple[tuple[OpConfig, ...], tuple[OpConfig, ...]]:
    """Return (choices, extra) of a float module under an approach: choices best first and ending in FLOAT."""
    offered = {
        Mode.STATIC: _static(module, reduce_range, trained=approach == "qat"),
        Mode.DYNAMIC: _dynamic(module, reduce_range),
        Mode.WEIGHT_ONLY: _weight_only(module),
        Mode.CAST: (CAST,) if isinstance(module, ANCHORS) else (),
    }
    order = {
        "static": (Mode.STATIC,),
        "qat": (Mode.STATIC,),
        "dynamic": (Mode.DYNAMIC,) if not isinstance(module, nn.Embedding) else (Mode.WEIGHT_ONLY,),
        "weight_only": (Mode.WEIGHT_ONLY,),
        "auto": (Mode.STATIC, Mode.DYNAMIC) if not isinstance(module, nn.Embedding) else (Mode.WEIGHT_ONLY,),
    }[approach]
    first = tuple(config for mode in order for config in offered[mode])
    rest = (
        ()
        if approach == "qat"
        else tuple(config for mode in offered for config in offered[mode] if config not in first)
    )
    return (*first, FLOAT), rest


def refusal(module: nn.Module) -> str:
    """Return why a module of a quantizable type cannot be quantized; empty when it can."""
    if type(module) not in QUANTIZABLE:
        return f"{type(module).__name__} has no int8 kernel in eager and FX mode"
    if isinstance(module, CONVOLUTIONS) and module.padding_mode != "zeros":
        return f"padding_mode {module.padding_mode!r}: the int8 convolution pads with zeros only"
    if isinstance(module, CONVOLUTIONS) and isinstance(module.padding, str):
        return f"padding {module.padding!r}: the int8 convolution takes numbers"
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.embedding_dim % 4):
        return "the int8 embedding takes no max_norm, and a width divisible by 4"
    if isinstance(module, nn.LSTM) and module.proj_size:
        return "the int8 LSTM has no projections"
    return ""


def _static(module: nn.Module, reduce_range: bool | None, *, trained: bool) -> tuple[OpConfig, ...]:
    if not isinstance(module, ANCHORS):
        return ()
    # In training the range is learned, so that an observer only says where it starts.
    observers = OBSERVERS[:1] if trained else OBSERVERS
    return tuple(
        OpConfig(mode=Mode.STATIC, activation=static_spec(observer, reduce_range=reduce_range), weight=WEIGHT)
        for observer in observers
    )


def _dynamic(module: nn.Module, reduce_range: bool | None) -> tuple[OpConfig, ...]:
    if isinstance(module, nn.Linear):
        return (OpConfig(mode=Mode.DYNAMIC, activation=static_spec(reduce_range=reduce_range), weight=WEIGHT),)
    if isinstance(module, RECURRENT):
        activation = static_spec()  # torch's recurrent kernels decide that themselves
        return (OpConfig(mode=Mode.DYNAMIC, activation=activation, weight=QuantSpec(dtype=DType.INT8, symmetric=True)),)
    return ()


def _weight_only(module: nn.Module) -> tuple[OpConfig, ...]:
    if isinstance(module, nn.Embedding):
        specs = [
            QuantSpec(dtype=dtype, symmetric=False, granularity=Granularity.PER_CHANNEL, axis=0)
            for dtype in (DType.UINT8, DType.UINT4)
        ]
        return tuple(OpConfig(mode=Mode.WEIGHT_ONLY, weight=spec) for spec in specs)
    if isinstance(module, nn.Linear):
        eight = (OpConfig(mode=Mode.WEIGHT_ONLY, weight=WEIGHT),)
        if module.in_features % GROUP:
            return eight
        four = QuantSpec(dtype=DType.INT4, symmetric=True, granularity=Granularity.PER_GROUP, axis=1, group_size=GROUP)
        return (*eight, OpConfig(mode=Mode.WEIGHT_ONLY, weight=four))
    return ()


# --- weights -------------------------------------------------------------------------------------------------------------


def weight_grid(weight: Tensor, spec: QuantSpec, bits: int = 8) -> WeightGrid:
    """Return the scales of a weight whose output channels lie on axis 0.

    Args:
        weight: Float32.
        spec: Symmetric; per_channel or per_tensor.
        bits: Fewer than 8 uses the codes of so many bits within int8 (a simulation: there is no kernel for it).
    """
    if not spec.symmetric:
        raise CapabilityError("the int8 kernels of eager and FX mode take symmetric weights")
    array = weight.detach().numpy()
    axis = 0 if spec.granularity is Granularity.PER_CHANNEL else None
    scale, _ = qparams.weight_parameters(array, axis, spec)
    last = (1 << (bits - 1)) - 1
    if bits < 8:
        scale = (scale.astype(np.float64) * (qparams.code_range(spec)[1] / last)).astype(np.float32)
    return WeightGrid(scale=torch.from_numpy(np.broadcast_to(scale, (weight.shape[0],)).copy()), last=last)


def _codes(weight: Tensor, grid: WeightGrid) -> Tensor:
    """Return the quantized weight as torch.ao has it. The codes are ours: rounding once, saturated at the codes in use."""
    if not bool(torch.isfinite(weight).all()):
        raise AdapterError("found a weight that is not finite: it cannot be quantized")
    zeros = torch.zeros(weight.shape[0], dtype=torch.long)
    scale = grid.scale.to(torch.float64)
    shape = [-1] + [1] * (weight.dim() - 1)
    codes = (weight.detach() / grid.scale.reshape(shape)).round().clamp(-grid.last, grid.last).to(torch.int8)
    return torch._make_per_channel_quantized_tensor(codes, scale, zeros, 0)  # noqa: SLF001 - the only way to give codes


@cache
def _library(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        raise CapabilityError(f"this torch has no {name} any more ({error}); use backend 'pt2e'") from error


def static(module: nn.Module, weights: WeightGrid, source: Grid, target: Grid | None, *, relu: bool) -> nn.Module:
    """Return the int8 form of a Linear or convolution: a quantized tensor in and out; with `target` None (Linear only) float in and out.

    Args:
        module: The float module, batch norm folded.
        weights: Codes of the weight.
        source: Codes of the input; used for `target` None.
        target: Codes of the output.
        relu: The Relu behind is done in the kernel.
    """
    with engine():
        weight, bias = _codes(module.weight, weights), None if module.bias is None else module.bias.detach()
        if target is None:
            return _FloatBorders(weight, bias, source, relu=relu)
        made = _empty(module, relu=relu)
        made.set_weight_bias(weight, bias)
        made.scale, made.zero_point = target.scale, target.zero
        return made.eval()


def offers_float_borders() -> bool:
    """Return whether an int8 Linear with float input and output exists on the engine."""
    return _probe_float_borders(engine_name())


@cache
def _probe_float_borders(name: str) -> bool:
    with engine(name):
        made = _FloatBorders(
            _codes(torch.ones(4, 4), WeightGrid(scale=torch.ones(4))), None, Grid(scale=1.0, zero=0), relu=False
        )
        try:
            return bool(torch.equal(made(torch.ones(1, 4)), torch.full((1, 4), 4.0)))
        except RuntimeError:
            return False


def _empty(module: nn.Module, *, relu: bool) -> Any:
    library = _library("torch.ao.nn.intrinsic.quantized" if relu else "torch.ao.nn.quantized")
    if isinstance(module, nn.Linear):
        return getattr(library, "LinearReLU" if relu else "Linear")(module.in_features, module.out_features)
    name = type(module).__name__
    kind = getattr(library, name.replace("Conv", "ConvReLU") if relu else name)
    shape = (
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
    )
    return kind(*shape, module.bias is not None)


class _FloatBorders(nn.Module):
    """An int8 Linear that quantizes its float input and returns float: no 8-bit rounding of the output."""

    def __init__(self, weight: Tensor, bias: Tensor | None, source: Grid, *, relu: bool) -> None:
        super().__init__()
        inner = _library("torch.ao.nn.quantized").Linear(weight.shape[1], weight.shape[0])
        inner.set_weight_bias(weight, bias)
        self._packed_params = inner._packed_params  # noqa: SLF001 - the module that TorchScript can save
        self.scale = source.scale
        self.zero_point = source.zero
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Return the float output, shape (..., out)."""
        y = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x,
            self.scale,
            self.zero_point,
            self._packed_params._packed_params,  # noqa: SLF001
        )
        return torch.relu(y) if self.relu else y


# --- without calibration -------------------------------------------------------------------------------------------------


def swapped(module: nn.Module, config: OpConfig) -> nn.Module:
    """Return `module` in a mode that needs no statistics: dynamic, weight_only or cast. The float module is only read.

    Raises:
        CapabilityError: there is no such form of it.
    """
    if config.mode is Mode.CAST:
        return _Bf16(module)
    with engine():
        if config.mode is Mode.DYNAMIC and isinstance(module, nn.Linear) and config.weight is not None:
            return _dynamic_linear(
                module, config.weight, reduce_range=config.activation is not None and config.activation.reduce_range
            )
        if config.mode is Mode.DYNAMIC and isinstance(module, RECURRENT):
            return _dynamic_recurrent(module)
        if config.mode is Mode.WEIGHT_ONLY and config.weight is not None:
            if isinstance(module, nn.Embedding):
                return _embedding(module, four=config.weight.dtype is DType.UINT4)
            if isinstance(module, nn.Linear):
                return _WeightOnly(module, four=config.weight.dtype is DType.INT4)
    raise CapabilityError(f"{type(module).__name__} has no form {config.describe()!r} in eager and FX mode")


def _dynamic_linear(module: nn.Linear, spec: QuantSpec, *, reduce_range: bool) -> nn.Module:
    weight = _codes(module.weight, weight_grid(module.weight, spec))
    inner = _library("torch.ao.nn.quantized").Linear(module.in_features, module.out_features)
    inner.set_weight_bias(weight, None if module.bias is None else module.bias.detach())
    return _DynamicLinear(inner._packed_params, reduce_range=reduce_range)  # noqa: SLF001


class _DynamicLinear(nn.Module):
    """An int8 Linear whose activation range is taken from each batch; float in and out.

    Not `torch.ao.nn.quantized.dynamic.Linear`, which gives one bit of every activation away (reduce_range) on every processor.
    """

    def __init__(self, packed: nn.Module, *, reduce_range: bool) -> None:
        super().__init__()
        self._packed_params = packed
        self.reduce_range = reduce_range

    def forward(self, x: Tensor) -> Tensor:
        """Return the float output, shape (..., out)."""
        y: Tensor = torch.ops.quantized.linear_dynamic(x, self._packed_params._packed_params, self.reduce_range)  # noqa: SLF001
        return y


def _dynamic_recurrent(module: nn.Module) -> nn.Module:
    kind = getattr(_library("torch.ao.nn.quantized.dynamic"), type(module).__name__)
    float_module = type(module)(  # a copy: from_float wants a qconfig on the module
        module.input_size,
        module.hidden_size,
        module.num_layers,
        bias=module.bias,
        batch_first=module.batch_first,
        dropout=module.dropout,
        bidirectional=module.bidirectional,
    ).eval()
    float_module.load_state_dict(module.state_dict())
    float_module.qconfig = _library("torch.ao.quantization").default_dynamic_qconfig
    made: nn.Module = kind.from_float(float_module)
    return made.eval()


def _embedding(module: nn.Embedding, *, four: bool) -> nn.Module:
    dtype, levels = (torch.quint4x2, 15) if four else (torch.quint8, 255)
    weight = module.weight.detach()
    low = torch.clamp(weight.amin(dim=1), max=0.0)
    scale = torch.clamp((torch.clamp(weight.amax(dim=1), min=0.0) - low) / levels, min=torch.finfo(torch.float32).tiny)
    codes = torch.quantize_per_channel(weight, scale, -low / scale, 0, dtype)
    # The constructor would take a tensor of the type, and refuses quint4x2 in some releases: set it afterwards.
    made = _library("torch.ao.nn.quantized").Embedding(
        module.num_embeddings, module.embedding_dim, module.padding_idx, dtype=dtype
    )
    made.set_weight(codes)
    return made.eval()


class _WeightOnly(nn.Module):
    """A Linear that stores int8 (or 4 bit in groups) and computes in float: a smaller file, not a faster model."""

    def __init__(self, module: nn.Linear, *, four: bool) -> None:
        super().__init__()
        self.four = four
        weight = module.weight.detach()
        rows, columns = weight.shape
        groups = weight.reshape(rows, -1, GROUP) if four else weight.reshape(rows, 1, columns)
        last = 7.0 if four else 127.0
        scale = groups.abs().amax(dim=2, keepdim=True) / last
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        codes = (groups / scale).round().clamp(-last, last).to(torch.int8).reshape(rows, columns)
        if four:
            shifted = (codes + 8).to(torch.uint8)
            codes = shifted[:, 0::2] | (shifted[:, 1::2] << 4)
        self.rows, self.columns = rows, columns
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if module.bias is None else module.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return the float output, shape (..., out)."""
        codes = self.codes
        if self.four:
            codes = torch.stack((codes & 15, codes >> 4), dim=2).to(torch.int8) - 8
        weight = (codes.reshape(self.rows, self.scale.shape[1], -1).to(x.dtype) * self.scale).reshape(
            self.rows, self.columns
        )
        return nn.functional.linear(x, weight, self.bias)


class _Bf16(nn.Module):
    """A module that computes in bfloat16 between float32 borders."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = _clone(module).to(torch.bfloat16).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return the float32 output."""
        y: Tensor = self.inner(x.to(torch.bfloat16))
        return y.to(torch.float32)


def _clone(module: nn.Module) -> nn.Module:
    from neural_tune_pytorch.model import copy_of  # noqa: PLC0415 - model imports evaluation, which this file can do without

    return copy_of(module)
