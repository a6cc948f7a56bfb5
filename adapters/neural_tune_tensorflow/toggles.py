"""One float session in which the quantization of every op of a candidate can be switched: what the sensitivity probe runs.

Codes are simulated exactly: QuantizeV2 and Dequantize over the same ranges as in the int8 graph on activations, dequantized weights. A switch per op is
fed with every run, so that no graph is built or loaded between two subsets.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neural_tune.errors import AdapterError
from neural_tune.protocols import Inputs, Outputs
from neural_tune.values import Granularity
from neural_tune_tensorflow.graph import Graph, node_of
from neural_tune_tensorflow.inputs import to_feed
from neural_tune_tensorflow.model import OnednnModel
from neural_tune_tensorflow.rewrite.emit import ROUND_MODE
from neural_tune_tensorflow.rewrite.plan import Code, Plan
from neural_tune_tensorflow.rewrite.units import Unit
from neural_tune_tensorflow.runtime import NodeDef, tf
from neural_tune_tensorflow.session import FixedSession


class ToggleModel:
    """Implements `neural_tune.protocols.Toggles`."""

    def __init__(self, model: OnednnModel, plan: Plan, threads: int | None) -> None:
        self._model = model
        self._ops = tuple(plan.configs)
        self._switches = {name: f"neural_tune_switch_{number}" for number, name in enumerate(self._ops)}
        graph = _switched(model, plan, self._switches)
        self._outputs = list(graph.outputs)
        self._session = FixedSession(graph.graph_def(), threads)

    def run(self, int8_ops: frozenset[str], inputs: Inputs) -> Outputs:
        """Return the outputs when exactly `int8_ops` are quantized.

        Raises:
            AdapterError: an op is not in the candidate.
        """
        unknown = sorted(int8_ops - set(self._ops) - set(self._model.graph.nodes))
        if unknown:
            raise AdapterError(f"toggles: {', '.join(unknown)} not in the candidate")
        feed = to_feed(inputs, self._model.inputs)
        fed: dict[str, Any] = {port.tensor: feed[port.name] for port in self._model.inputs}
        fed.update({switch: np.asarray(name in int8_ops) for name, switch in self._switches.items()})
        return self._session.fetch(fed, self._outputs)


def _switched(model: OnednnModel, plan: Plan, switches: dict[str, str]) -> Graph:
    """Return the canonical graph with a switched, simulated quantization around every unit of `plan`."""
    graph = model.graph.copy()
    for switch in switches.values():
        graph.add("Placeholder", switch, [], dtype=tf.bool)
    after: dict[str, str] = {}
    for tail, name in plan.written.items():
        after[tail] = _simulated(graph, tail, plan.codes[tail], switches[name], "written")
    for node in model.graph:
        if any(item in after for item in node.input):
            copy = NodeDef()
            copy.CopyFrom(node)
            del copy.input[:]
            copy.input.extend(after.get(item, item) for item in node.input)
            graph.nodes[node.name] = copy
    graph.outputs = [after.get(name, name) for name in graph.outputs]
    for name, switch in switches.items():
        unit = model.units.by_name[name]
        _read_switched(graph, model, plan, unit, switch, after)
    graph.sort()
    return graph


def _read_switched(
    graph: Graph, model: OnednnModel, plan: Plan, unit: Unit, switch: str, after: dict[str, str]
) -> None:
    """Let a product read the simulated codes of its input and weight when its switch is on."""
    source = after.get(unit.source, unit.source)
    read = _simulated(graph, source, plan.codes[unit.source], switch, f"read_by_{unit.name}")
    config = plan.configs[unit.name]
    granularity = Granularity.PER_CHANNEL if config.weight is None else config.weight.granularity
    codes = model.store.codes(unit, granularity)
    scale = codes.scale
    if unit.kind == "DepthwiseConv2dNative" and scale.ndim:
        scale = scale.reshape(codes.values.shape[2:])
    simulated = graph.constant(
        graph.fresh(f"{unit.name}/simulated_weight"), (codes.values.astype(np.float32) * scale).astype(np.float32)
    )
    weight = graph.add(
        "SelectV2", graph.fresh(f"{unit.name}/switched_weight"), [switch, simulated, unit.weight], T=tf.float32
    )
    product = NodeDef()
    product.CopyFrom(graph.nodes[unit.name])
    if unit.paddings:
        # The Pad may serve others too: this product gets one of its own.
        pad = NodeDef()
        pad.CopyFrom(model.graph.nodes[node_of(product.input[0])])
        pad.name = graph.fresh(f"{unit.name}/switched_pad")
        pad.input[0] = read
        graph.nodes[pad.name] = pad
        read = pad.name
    product.input[0], product.input[1] = read, weight
    graph.nodes[unit.name] = product


def _simulated(graph: Graph, tensor: str, code: Code, switch: str, label: str) -> str:
    """Return `tensor`, quantized and dequantized when `switch` is on."""
    base = f"{tensor.replace(':', '_')}/{label.replace(':', '_')}"
    kind = tf.qint8 if code.is_signed else tf.quint8
    ends = [
        graph.constant(graph.fresh(f"{base}/{end}"), np.asarray(value, np.float32))
        for end, value in (("low", code.low), ("high", code.high))
    ]
    codes = graph.add(
        "QuantizeV2",
        graph.fresh(f"{base}/quantize"),
        [tensor, *ends],
        T=kind,
        mode="SCALED",
        round_mode=ROUND_MODE,
        narrow_range=False,
        axis=-1,
        ensure_minimum_range=0.0,
    )
    back = graph.add(
        "Dequantize",
        graph.fresh(f"{base}/dequantize"),
        [codes, *ends],
        T=kind,
        mode="SCALED",
        narrow_range=False,
        axis=-1,
        dtype=tf.float32,
    )
    return graph.add("SelectV2", graph.fresh(f"{base}/switched"), [switch, back, tensor], T=tf.float32)
