"""Empirical bias correction: what rounding the weights does to the mean of every output channel is put right in the bias.

Quantizing W to W_q moves the mean output by E[W_q x] - E[W x] (Nagel et al. 2019, arXiv:1906.04721, section 4.2; Banner et al. 2019, arXiv:1810.05723). Rounding errors of one
channel do not average out when the inputs are all positive, as behind a relu. The mean of op(x, W - W_q) is taken on the calibration inputs with the
op itself, so that padding, strides and groups are accounted for exactly, and is added to the bias; it depends on that op alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx

from neural_tune.calibration.spool import Spool
from neural_tune_pytorch.backends.pt2e.capture import Captured, attribute, constant
from neural_tune_pytorch.backends.pt2e.codes import WEIGHT_FIRST, WEIGHT_LAST
from neural_tune_pytorch.backends.pt2e.ops import LINEAR
from neural_tune_pytorch.backends.pt2e.stored import weight_codes
from neural_tune_pytorch.recipes import derive, probe

NAME = "bias_correction"


def is_offered(captured: Captured) -> bool:
    """Return whether the model has a convolution or linear that can run in int8."""
    return any(op.weight and op.edges for op in captured.ops)


def with_biases(captured: Captured, found: Mapping[str, Tensor]) -> Captured:
    """Return `captured` with other biases; weights, names and whatever was computed from the weights stay."""
    twin = derive.derive(captured, {(name, 2): values.numpy() for name, values in found.items()}, {}, NAME)
    return replace(twin, cache=captured.cache)


def biases(captured: Captured, nodes: Collection[str], spool: Spool) -> dict[str, Tensor]:
    """Return node -> its corrected bias, float32, one value per output channel; measured once per calibration."""
    wanted = {node.name: node for node in captured.graph.graph.nodes if node.name in nodes}
    source, known = captured.cache.get(NAME, (None, {}))
    if source is not spool:  # a new calibration has means of its own
        known = {}
        captured.cache[NAME] = spool, known
    missing = [node for name, node in wanted.items() if name not in known]
    if missing:
        known.update(_measured(captured, missing, spool))
    return {name: known[name] for name in wanted}


def _measured(captured: Captured, nodes: list[fx.Node], spool: Spool) -> dict[str, Tensor]:
    rounding = {node.name: _rounding(captured, node) for node in nodes}
    readers: dict[str, list[fx.Node]] = defaultdict(list)
    for node in nodes:
        readers[str(node.args[0])].append(node)
    totals: dict[str, Tensor] = {}
    samples: dict[str, int] = defaultdict(int)

    def see(tensor: str, values: Tensor, many: int) -> None:
        for node in readers[tensor]:
            shift = _mean(node, node.target(values, rounding[node.name], None, *node.args[3:]))
            totals[node.name] = totals.get(node.name, torch.zeros_like(shift)) + many * shift
            samples[node.name] += many

    probe.watch(captured, frozenset(readers), spool, probe.SAMPLES, see)
    found = {}
    for node in nodes:
        before = constant(captured.graph, node.args[2]) if len(node.args) > 2 else None
        shift = totals[node.name] / samples[node.name]
        found[node.name] = (shift if before is None else before.detach().double() + shift).float()
    return found


def _rounding(captured: Captured, node: fx.Node) -> Tensor:
    """Return W - W_q."""
    path = str(node.args[1].target)
    values, scale, zero = weight_codes(captured, path)
    read = torch.ops.quantized_decomposed.dequantize_per_channel(
        values, scale, zero, 0, WEIGHT_FIRST, WEIGHT_LAST, torch.int8
    )
    return attribute(captured.graph, path).detach() - read


def _mean(node: fx.Node, output: Tensor) -> Tensor:
    """Return the mean per output channel in float64."""
    weight_rank = node.args[1].meta["val"].ndim
    axis = output.ndim - 1 if node.target is LINEAR else output.ndim - (weight_rank - 1)
    return output.double().movedim(axis, -1).reshape(-1, output.shape[axis]).mean(0)
