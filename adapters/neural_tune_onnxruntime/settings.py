"""What the user asks of the artifact: its format, the processor it is meant for, the provider that will run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import onnxruntime

from neural_tune.errors import CapabilityError
from neural_tune.options import close_to
from neural_tune.protocols import AdapterOptions
from neural_tune_onnxruntime.processor import Processor

QDQ, QOPERATOR = "QDQ", "QOperator"
CPU = "CPUExecutionProvider"
# Key in the metadata of a saved model: which provider it was made for.
PROVIDER_KEY = "neural_tune.provider"
_FORMATS = {"default": QDQ, "qdq": QDQ, "qoperator": QOPERATOR, "qinteger": QDQ}
PROVIDERS: Mapping[str, str] = MappingProxyType(
    {
        "cpu": CPU,
        "cuda": "CUDAExecutionProvider",
        "tensorrt": "TensorrtExecutionProvider",
        "openvino": "OpenVINOExecutionProvider",
        "dnnl": "DnnlExecutionProvider",
    }
)
# Providers that no machine of this project has: their graphs are written and computed on the CPU in the tests, and run for the first time at the user's.
_NEVER_RUN = ("cuda", "tensorrt", "dnnl")
# What `options=` may hold.
KEYS = ("accuracy_level", "provider", "target")
# Names that Intel Neural Compressor gave to the same providers, as `backend`.
_BACKENDS = {"default": "", "onnxrt_cuda_ep": "cuda", "onnxrt_trt_ep": "tensorrt", "onnxrt_dnnl_ep": "dnnl"}
# uint8 activations and int8 weights where VNNI multiplies them; without VNNI one bit less, because two such products saturate in 16
# bits; int8 for both on ARM (onnxruntime's documentation, "Quantize ONNX models", section on data types).
TARGETS: Mapping[str, Processor] = MappingProxyType(
    {
        "x86_vnni": Processor(name="x86 avx512_vnni", dots=True),
        "x86": Processor(name="x86 avx2", saturates=True),
        "arm": Processor(name="arm64 asimddp", signed_activations=True),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the user asks of the artifact.

    Attributes:
        quant_format: "QDQ" or "QOperator".
        processor: The processor that it is meant for.
        provider: Name of the execution provider, as the runtime calls it.
        notes: What a person must see about these choices.
    """

    quant_format: str = QDQ
    processor: Processor = field(default_factory=Processor.detect)
    provider: str = CPU
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: AdapterOptions) -> Settings:
        """Return the settings that `options` name.

        Raises:
            CapabilityError: an option, format, target or provider does not exist, is not installed, or does not go with the others.
        """
        _check_keys(options)
        quant_format = _FORMATS.get(options.quant_format.lower())
        if quant_format is None:
            message = (
                f"quant_format {options.quant_format!r}: expected 'default', 'QDQ', 'QOperator' or 'QInteger'"
                f"{close_to(options.quant_format, ('QDQ', 'QOperator', 'QInteger'))}"
            )
            raise CapabilityError(message)
        provider = _provider(options)
        if provider != CPU and quant_format != QDQ:
            message = f"quant_format 'QOperator' goes with provider 'cpu' only, found {provider!r}: its operators exist for the CPU; use 'QDQ'"
            raise CapabilityError(message)
        processor, notes = _target(options)
        notes = (*notes, *_untried(provider))
        if options.reduce_range is not None:
            processor = replace(processor, saturates=options.reduce_range)
        if provider != CPU:  # what `dispatch` knows are kernels of the CPU provider
            processor = replace(processor, dots=False, tiles=False)
        return cls(quant_format=quant_format, processor=processor, provider=provider, notes=notes)


def _check_keys(options: AdapterOptions) -> None:
    unknown = [f"{key!r}{close_to(key, KEYS)}" for key in options.extra if key not in KEYS]
    if unknown:
        message = f"options: found {', '.join(unknown)}; the ONNX Runtime adapter knows {', '.join(KEYS)}"
        raise CapabilityError(message)


def _provider(options: AdapterOptions) -> str:
    if options.backend not in _BACKENDS:
        message = f"backend {options.backend!r}: expected 'default' (or {', '.join(map(repr, list(_BACKENDS)[1:]))}); options={{'provider': ...}} names the execution provider"
        raise CapabilityError(message)
    asked = options.extra.get("provider") or _BACKENDS[options.backend] or "cpu"
    if asked not in PROVIDERS:
        message = f"provider {asked!r}: expected one of {', '.join(PROVIDERS)}{close_to(asked, PROVIDERS)}"
        raise CapabilityError(message)
    name = PROVIDERS[str(asked)]
    if name not in onnxruntime.get_available_providers():
        found = ", ".join(onnxruntime.get_available_providers())
        message = f"provider {asked!r}: this onnxruntime {onnxruntime.__version__} has no {name} (it has {found}); install a build that has it, or use 'cpu'"
        raise CapabilityError(message)
    return name


def _untried(provider: str) -> tuple[str, ...]:
    asked = next(name for name, found in PROVIDERS.items() if found == provider)
    if asked not in _NEVER_RUN:
        return ()
    note = (
        f"provider {asked!r}: its graphs were generated and validated on the CPU while neural_tune was written, and not run there; accuracy and "
        "speed of this result are measured on it here, for the first time"
    )
    return (note,)


def _target(options: AdapterOptions) -> tuple[Processor, tuple[str, ...]]:
    asked, native = options.extra.get("target", "native"), Processor.detect()
    if asked == "native":
        return native, ()
    if asked not in TARGETS:
        expected = ("native", *TARGETS)
        message = f"target {asked!r}: expected one of {', '.join(expected)}{close_to(asked, expected)}"
        raise CapabilityError(message)
    processor = TARGETS[str(asked)]
    if _sort(processor) == _sort(native):
        return native, ()
    note = (
        f"target {asked!r} is not this processor ({native.name}): the model is computed and judged here, but its speed there was not measured, and "
        "the speed measured here says nothing about it"
    )
    return processor, (note,)


def _sort(processor: Processor) -> tuple[str, bool, bool]:
    """Return what of a processor decides the number formats, and with them whether what is measured here holds there."""
    return processor.name.partition(" ")[0], processor.signed_activations, processor.saturates
