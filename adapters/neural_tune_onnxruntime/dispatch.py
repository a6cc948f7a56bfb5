"""Which of its kernels the runtime gives an int8 convolution, and how constants are written so that it is the faster one.

onnxruntime 1.31 has two on x86. The *direct* one multiplies in VNNI instructions, four input channels at a time, and is taken when the zero points
of the weights are 0 and the input channels are a multiple of four. The *product* gathers patches and hands them to the general matrix product,
which alone runs in AMX tiles where the processor has them. Neither is always faster (x = time of the other form over time of this one; one
thread, AMX machine, quiet; results are equal bit for bit):

| convolution | written so | x |
|---|---|---|
| 1x1, 256 or more products per output, 64 or more outputs | weights with zero point -1: product in tiles | 1.0 to 2.1 |
| other, 512 or more products per output, 64 or more outputs | the same | 1.0 to 2.1 |
| fewer products or outputs, the same | - | 0.4 to 1.0, so zero point 0 |
| 1 to 3 input channels, at most 25 taps, 16 or more outputs | channels filled up to four: direct | 1.2 to 2.9 |
| the same, 7x7, 64 outputs and 3 channels | the same | 1.0 alone, 1.05 for all of ResNet-50 |
| the same, 7x7, fewer | - | 0.7 to 0.97, so left alone |

All of ResNet-50 at batch 1: x1.20 by the tiles and x1.05 by the fourth channel; MobileNetV2 x1.05 and x1.11.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from neural_tune.values import Role
from neural_tune_onnxruntime.graph import Graph, Op
from neural_tune_onnxruntime.kernels import Kernel
from neural_tune_onnxruntime.processor import Processor

_TILED_OUTPUTS = 64
_TILED_POINTWISE, _TILED_PATCHES = 256, 512
_QUAD = 4
_QUAD_OUTPUTS, _QUAD_TAPS = 16, 25


def tiled_weights(graph: Graph, kernels: Mapping[str, Kernel], processor: Processor) -> frozenset[str]:
    """Return the constants that are to be written with a zero point other than 0, so that their convolution runs in tiles."""
    if not processor.tiles:
        return frozenset()
    return frozenset(op.inputs[1] for op in graph.ops if _is_plain(op, kernels[op.name]) and _pays_in_tiles(op, graph))


def missing_channels(op: Op, kernel: Kernel, graph: Graph, processor: Processor) -> int:
    """Return how many input channels to add, all zero, so that the direct kernel takes the convolution; 0 where that does not pay."""
    if not processor.dots or not _is_plain(op, kernel):
        return 0
    shape = graph.constants[op.inputs[1]].shape
    outputs, channels, taps = shape[0], shape[1], prod(shape[2:])
    is_small = 1 < taps <= _QUAD_TAPS and outputs >= _QUAD_OUTPUTS
    is_wide = taps > _QUAD_TAPS and channels == _QUAD - 1 and outputs >= _TILED_OUTPUTS
    pays = len(shape) == 4 and channels < _QUAD and (is_small or is_wide)
    return _QUAD - channels if pays else 0


def _is_plain(op: Op, kernel: Kernel) -> bool:
    return op.type == "Conv" and kernel.role is Role.ANCHOR and op.attribute("group", 1) == 1


def _pays_in_tiles(op: Op, graph: Graph) -> bool:
    shape = graph.constants[op.inputs[1]].shape
    steps = [*op.attribute("strides", []), *shape[2:]]
    is_pointwise = all(step == 1 for step in steps) and not any(op.attribute("pads", []))
    return shape[0] >= _TILED_OUTPUTS and prod(shape[1:]) >= (_TILED_POINTWISE if is_pointwise else _TILED_PATCHES)
