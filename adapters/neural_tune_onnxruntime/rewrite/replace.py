"""What stands for an op that is not static: the one place that knows all these forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from neural_tune.values import Mode, OpConfig
from neural_tune_onnxruntime.graph import Op
from neural_tune_onnxruntime.model import OnnxModel
from neural_tune_onnxruntime.rewrite import casts, dynamic, weight_only
from neural_tune_onnxruntime.rewrite.fragment import Fragment

_Write: TypeAlias = Callable[[Op, OpConfig, list[str], list[str], OnnxModel], Fragment]
_WRITERS: Mapping[Mode, _Write] = MappingProxyType(
    {Mode.DYNAMIC: dynamic.write, Mode.WEIGHT_ONLY: weight_only.write, Mode.CAST: casts.write}
)


def is_replaced(config: OpConfig | None) -> bool:
    """Return whether `config` is one that `write` knows: neither static nor float."""
    return config is not None and config.mode in _WRITERS


def write(op: Op, config: OpConfig, inputs: list[str], outputs: list[str], model: OnnxModel) -> Fragment:
    """Return what stands for `op`.

    Args:
        op: The op of the float model.
        config: A config that `forms.check` let through.
        inputs: Names that the op reads, by position: of float tensors, dequantized where the tensor carries codes.
        outputs: Names under which its results are expected, in float.
        model: The model.

    Raises:
        AdapterError: the config needs calibration inputs, and there are none.
    """
    return _WRITERS[config.mode](op, config, inputs, outputs, model)
