"""Writes the Q/DQ graph that the regions describe, in standard ONNX, over the weight files of the model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from neural_tune.errors import AdapterError
from neural_tune.numerics import qparams
from neural_tune.numerics.qparams import Floats, Parameters
from neural_tune.values import DType, OpConfig, Role
from neural_tune_onnxruntime import dispatch
from neural_tune_onnxruntime.graph import Op
from neural_tune_onnxruntime.kernels import Kernel
from neural_tune_onnxruntime.model import OnnxModel
from neural_tune_onnxruntime.rewrite import replace as replacement
from neural_tune_onnxruntime.rewrite.fragment import CONTRIB
from neural_tune_onnxruntime.rewrite.regions import Coded, Regions
from neural_tune_onnxruntime.weights import Quantized, onnx_type, read

_PRODUCER = "neural_tune"
_WIDE_OPSET = 21
_QUANTIZED_UNASKED = ("Conv", "ConvTranspose", "Gemm")
# Of scales and zero points in the source model that are understood.
_PLAIN = (onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.INT8)


def write(model: OnnxModel, regions: Regions) -> onnx.ModelProto:
    """Return the Q/DQ graph; its large tensors point into the weight store of `model`."""
    writer = _Writer(model, regions)
    for value in model.proto.graph.input:
        writer.code(value.name)
    for op in model.graph.ops:
        writer.visit(op)
    return writer.finish()


def write_op(model: OnnxModel, regions: Regions, op: Op) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], str]:
    """Return one op as `write` writes it, with the conversions of its inputs in front, apart from the rest of the graph.

    Returns:
        The nodes, the initializers they bring along, and the name of what readers of the op see. A name may be written twice
        (a graph output that carries codes): the last one counts.
    """
    writer = _Writer(model, regions)
    for tensor in dict.fromkeys(op.inputs):
        if tensor in regions.coded and regions.coded[tensor].is_read_by(op):
            writer.convert(tensor)
    writer.visit(op)
    return writer.nodes, list(writer.tensors.values()), writer.seen_behind(op)


@dataclass(slots=True)
class _Writer:
    model: OnnxModel
    regions: Regions
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)
    common: set[str] = field(default_factory=set)

    def visit(self, op: Op) -> None:
        """Append `op` with the conversions around it."""
        if op.name in self.regions.folded:
            return  # written, or replaced, together with the op before it
        config = self.regions.configs.get(op.name)
        kernel = self.model.kernels[op.name]
        inputs = [self._read(op, tensor) for tensor in op.inputs]
        if config is not None and replacement.is_replaced(config):
            self._append_fragment(op, config, inputs)
            return
        if config is not None and kernel.weight is not None:
            self._quantize_operands(op, kernel, config, inputs)
        tail = self.regions.tails.get(op.name)
        if op.name in self.regions.carried and kernel.on_codes and _has_8_bits(self.regions.coded[op.outputs[0]]):
            self._append_on_codes(op)
            return
        if tail is None:
            self._append(op, inputs, [self._written_name(name) for name in op.outputs])
        else:
            self._append_integer(op, inputs, tail)
        for name in (*op.outputs, *([tail] if tail is not None and tail not in op.outputs else [])):
            self.code(name)

    def code(self, tensor: str) -> None:
        """Append Q and DQ behind a tensor that carries codes."""
        coded = self.regions.coded.get(tensor)
        if coded is not None:
            self._pair(self._written_name(tensor), self._coded_name(coded), coded, tensor)

    def convert(self, tensor: str) -> None:
        """Append Q and DQ behind a tensor of which only the float values are there."""
        coded = self.regions.coded[tensor]
        self._pair(tensor, self._coded_name(coded), coded, tensor)

    def seen_behind(self, op: Op) -> str:
        """Return the name of what readers of the output of `op` (behind a folded Relu) see."""
        tail = self.regions.tails.get(op.name)
        return op.outputs[0] if tail is None else self._coded_name(self.regions.coded[tail])

    def finish(self) -> onnx.ModelProto:
        """Return the model: only nodes, initializers and value_info that are still in use."""
        source = self.model.proto
        read = {name for node in self.nodes for name in node.input} | self.model.graph.fixed
        # Codes that only a Pad reads need no DequantizeLinear.
        self.nodes = [node for node in self.nodes if node.op_type != "DequantizeLinear" or node.output[0] in read]
        result = onnx.ModelProto(ir_version=source.ir_version, producer_name=_PRODUCER)
        result.opset_import.extend(source.opset_import)
        if any(node.domain == CONTRIB for node in self.nodes) and all(i.domain != CONTRIB for i in source.opset_import):
            result.opset_import.append(helper.make_opsetid(CONTRIB, 1))
        result.metadata_props.extend(source.metadata_props)
        graph = result.graph
        graph.name = source.graph.name
        graph.input.extend(source.graph.input)
        graph.output.extend(source.graph.output)
        graph.node.extend(self.nodes)
        made = {name for node in self.nodes for name in node.output}
        graph.value_info.extend(value for value in source.graph.value_info if value.name in made)
        used = {name for node in self.nodes for name in node.input} | self.model.graph.fixed
        graph.initializer.extend(
            tensor for name, tensor in self.model.store.tensors.items() if name in used and name not in self.tensors
        )
        graph.initializer.extend(self.tensors.values())
        return result

    def _read(self, op: Op, tensor: str) -> str:
        coded = self.regions.coded.get(tensor)
        channels = self._channels_to_shield(op) if tensor == op.inputs[0] else 0
        if coded is None or not coded.is_read_by(op):
            return self._shield_source(op, tensor, channels) if channels else tensor
        return self._dequantize_per_channel(op, coded, tensor, channels) if channels else self._coded_name(coded)

    def _channels_to_shield(self, op: Op) -> int:
        """Return the input channels of a float op that the runtime would quantize against the candidate's will; else 0.

        onnxruntime 1.21 and newer give a float Conv or Gemm between DequantizeLinear and QuantizeLinear int8 weights of their own, per_tensor
        (its WeightBiasQuantization pass), so an op that fell back to float may lose more accuracy than in full int8: outputs of a random half of
        a MobileNet were off by 0.32 instead of 0.24. The pass looks for a single scale: the same scale once per channel keeps it away.
        (Whether a QuantizeLinear follows cannot be told here: the runtime first moves one that lies behind a MaxPool, Reshape or Transpose
        backward to the op before those.)
        """
        if op.name in self.regions.configs or op.type not in _QUANTIZED_UNASKED or not self.model.takes_axis:
            return 0
        weight = self.model.graph.constants.get(op.input(1))
        if weight is None or len(weight.shape) < 2:
            return 0
        if op.type == "Conv":
            return weight.shape[1] * int(op.attribute("group", 1))
        return weight.shape[1 if op.type == "Gemm" and op.attribute("transB", 0) else 0]

    def _shield_source(self, op: Op, tensor: str, channels: int) -> str:
        """Dequantize per channel what a DequantizeLinear of the source model dequantizes per tensor; leave anything else as it is.

        So it leaves an op between codes of the source on both sides, which runs in integers in the float model too.
        """
        maker, graph = self.model.graph.producers.get(tensor), self.model.graph
        if maker is None or maker.type != "DequantizeLinear" or self._is_quantized_by_source(op):
            return tensor
        names = [name for name in maker.inputs[1:] if name]
        known = [graph.constants[name] for name in names if name in graph.constants and graph.constants[name].size == 1]
        if len(known) < len(names) or any(found.elem_type not in _PLAIN for found in known):
            return tensor
        target = f"{tensor}{self._mark}dq{channels}"
        for name, found in zip(names, known, strict=True):
            values = np.broadcast_to(self.model.store.array(name).reshape(-1), (channels,))
            self._constant(f"{target}_{name}", found.elem_type, values)
        self._dequantize_along(op, [maker.inputs[0], *(f"{target}_{name}" for name in names)], target)
        return target

    def _is_quantized_by_source(self, op: Op) -> bool:
        reader = self.model.graph.sole_consumer(op.outputs[0])
        while reader is not None and self.model.kernels[reader.name].role is Role.PASS_THROUGH:
            reader = self.model.graph.sole_consumer(reader.outputs[0])
        return reader is not None and reader.type == "QuantizeLinear"

    def _dequantize_per_channel(self, op: Op, coded: Coded, tensor: str, channels: int) -> str:
        stem = f"{coded.source}{self._mark}channels{channels}"
        self._constant(f"{stem}_scale", onnx.TensorProto.FLOAT, np.full(channels, coded.parameters.scale, np.float32))
        zeros = np.full(channels, coded.parameters.zero, qparams.storage(coded.parameters.dtype))
        self._constant(f"{stem}_zero", onnx_type(coded.parameters.dtype), zeros)
        target = f"{tensor}{self._mark}dq{channels}"
        inputs = [f"{tensor}{self._mark}q", f"{stem}_scale", f"{stem}_zero"]
        self._dequantize_along(op, inputs, target, self._domain(coded))
        return target

    def _dequantize_along(self, op: Op, inputs: list[str], target: str, domain: str = "") -> None:
        """Append a DequantizeLinear along the axis that `op` sums over, unless another reader of its input has."""
        if all(target not in node.output for node in self.nodes):
            axis = 0 if op.type == "Gemm" and op.attribute("transA", 0) else 1
            name = f"{target}_node"
            self.nodes.append(
                helper.make_node("DequantizeLinear", inputs, [target], name, domain=domain or None, axis=axis)
            )

    def _coded_name(self, coded: Coded) -> str:
        """Return the name of the dequantized tensor: the tensor's own where that name must survive, and all see codes."""
        if coded.readers is None and coded.tensor in self.model.graph.fixed:
            return coded.tensor
        return f"{coded.tensor}{self._mark}dq"

    def _written_name(self, tensor: str) -> str:
        """Return the name under which the producer writes a tensor, in float."""
        coded = self.regions.coded.get(tensor)
        moves = coded is not None and coded.readers is None and tensor in self.model.graph.fixed
        return f"{tensor}{self._mark}raw" if moves else tensor

    def _append(self, op: Op, inputs: list[str], outputs: list[str]) -> None:
        node = onnx.NodeProto()
        node.CopyFrom(op.node)
        node.input[:] = inputs
        node.output[:] = outputs
        self.nodes.append(node)

    def _append_fragment(self, op: Op, config: OpConfig, inputs: list[str]) -> None:
        """Append what stands for an op that is not static; nodes that several fragments share come once."""
        outputs = [self._written_name(name) for name in op.outputs]
        fragment = replacement.write(op, config, inputs, outputs, self.model)
        for node in fragment.nodes:
            if node.output[0] not in self.common:
                self.nodes.append(node)
        self.common |= fragment.common
        self.tensors.update((tensor.name, tensor) for tensor in fragment.tensors)
        for name in op.outputs:
            self.code(name)

    def _append_integer(self, op: Op, inputs: list[str], tail: str) -> None:
        """Append an op that writes codes, with the Relu or Clip behind it unless saturation does the same."""
        target = self._written_name(tail)
        follower = self.model.graph.sole_consumer(op.outputs[0])
        if follower is None or self.regions.folded.get(follower.name) != op.name:
            self._append(op, inputs, [target])
            return
        coded = self.regions.coded[tail]
        if saturates_like(follower, coded.parameters, self.model):
            self._append(op, inputs, [target])
            return
        # The range of the activation's output is enough for its input too: whatever lies outside is cut off anyway.
        result = op.outputs[0]
        self._append(op, inputs, [result])
        self._pair(result, f"{result}{self._mark}dq", coded, result)
        self._append(follower, [f"{result}{self._mark}dq", *follower.inputs[1:]], [target])

    def _append_on_codes(self, op: Op) -> None:
        """Append a Pad that reads and writes codes; it fills up with the zero point."""
        coded = self.regions.coded[op.outputs[0]]
        _, zero = self._parameters(coded)
        fill = zero if op.attribute("mode", b"constant") == b"constant" else ""
        inputs = [f"{op.inputs[0]}{self._mark}q", op.inputs[1], fill, *op.inputs[3:]]
        codes = f"{op.outputs[0]}{self._mark}q"
        self._append(op, _without_trailing_blanks(inputs), [codes])
        self._dequantize_codes(codes, self._coded_name(coded), coded, op.outputs[0])

    def _pair(self, source: str, target: str, coded: Coded, stem: str) -> None:
        scale, zero = self._parameters(coded)
        codes = f"{stem}{self._mark}q"
        domain = self._domain(coded)
        self.nodes.append(
            helper.make_node("QuantizeLinear", [source, scale, zero], [codes], f"{codes}_node", domain=domain)
        )
        self._dequantize_codes(codes, target, coded, stem)

    def _dequantize_codes(self, codes: str, target: str, coded: Coded, stem: str) -> None:
        scale, zero = self._parameters(coded)
        name = f"{stem}{self._mark}dq_node"
        self.nodes.append(
            helper.make_node("DequantizeLinear", [codes, scale, zero], [target], name, domain=self._domain(coded))
        )

    def _domain(self, coded: Coded) -> str:
        """Return the domain of Q and DQ: in standard ONNX they take 16 bits from opset 21 on."""
        return "" if _has_8_bits(coded) or self.model.opset >= _WIDE_OPSET else CONTRIB

    def _parameters(self, coded: Coded) -> tuple[str, str]:
        """Return the names of scale and zero point; tensors that share a scale share these initializers."""
        scale, zero = f"{coded.source}{self._mark}scale", f"{coded.source}{self._mark}zero"
        if scale not in self.tensors:
            values: Parameters = coded.parameters
            kind = onnx_type(values.dtype)
            code = np.asarray(values.zero, qparams.storage(values.dtype))
            self.tensors[scale] = _tensor(scale, onnx.TensorProto.FLOAT, np.asarray(values.scale, np.float32))
            self.tensors[zero] = _tensor(zero, kind, code)
        return scale, zero

    def _quantize_operands(self, op: Op, kernel: Kernel, config: OpConfig, inputs: list[str]) -> None:
        """Replace weight and bias in `inputs` by dequantized integers of their own."""
        if kernel.weight is None or config.weight is None:
            return
        operand = (op.inputs[kernel.weight], kernel.axis)
        found = self.model.store.quantized(operand, config.weight)
        if kernel.bias is not None:
            bias = self._bias(op, kernel)
            step = self.regions.coded[op.inputs[kernel.data[0]]].parameters.scale
            free = qparams.scale_of_dead_channels(bias, step, found.scale, found.dead)
            found = found if free is None else replace(found, scale=free)
            is_balanced = (config.weight.symmetric and config.weight.dtype is DType.INT8) or not found.zero.any()
            with np.errstate(over="ignore"):  # looked for below
                widened = qparams.widened_for_bias(bias, step, found.scale) if is_balanced else None
            if widened is not None:
                if not np.isfinite(widened).all():
                    message = f"op {op.name!r}: its bias (up to {np.abs(bias).max():.3g}) is too large beside its input (steps of {step:.3g}) for any scale in float32; leave it float"
                    raise AdapterError(message)
                found = self.model.store.requantized(operand, config.weight, found, widened)
            inputs[kernel.bias] = self._write_bias(op, bias, step, found)
        missing = dispatch.missing_channels(op, kernel, self.model.graph, self.model.processor)
        is_narrow = found.dtype is DType.INT8 and _has_8_bits(self.regions.coded[op.inputs[kernel.data[0]]])
        if missing and is_narrow and self.model.takes_axis:
            inputs[0] = self._fill_channels(op, missing)
            found = _with_channels(found, missing, self.model.store.folder)
        inputs[kernel.weight] = self._write_weight(op, found)

    def _fill_channels(self, op: Op, missing: int) -> str:
        """Append channels of zeros behind those of the codes that a convolution reads; return what it reads then."""
        tensor, stem = op.inputs[0], f"{op.outputs[0]}{self._mark}filled"
        coded = self.regions.coded[tensor]
        _, zero = self._parameters(coded)
        self._constant(f"{stem}_pads", onnx.TensorProto.INT64, np.array([0, 0, 0, 0, 0, missing, 0, 0]))
        inputs = [f"{tensor}{self._mark}q", f"{stem}_pads", zero]
        self.nodes.append(helper.make_node("Pad", inputs, [f"{stem}_q"], f"{stem}_node"))
        self._dequantize_codes(f"{stem}_q", f"{stem}_dq", coded, stem)
        return f"{stem}_dq"

    def _bias(self, op: Op, kernel: Kernel) -> Floats:
        """Return the bias with one value per output channel, whatever shape it is broadcast from."""
        values = np.asarray(self.model.store.array(op.inputs[kernel.bias or 0]), np.float32).reshape(-1)
        # Not from the channel axis of the kernel, which is None where the opset lets weights be quantized per tensor only.
        axis = 1 if op.type == "Gemm" and not op.attribute("transB", 0) else 0
        channels = self.model.graph.constants[op.inputs[kernel.weight or 0]].shape[axis]
        return values if values.size == channels else np.broadcast_to(values, (channels,)).copy()

    def _write_bias(self, op: Op, bias: Floats, step: np.float32, weight: Quantized) -> str:
        """Add the bias as int32 with the scale of the accumulator; every op gets its own, shared or not."""
        stem = f"{op.name}{self._mark}bias"
        codes, scale = qparams.bias_codes(bias, step, weight.scale)
        self._constant(f"{stem}_q", onnx.TensorProto.INT32, codes)
        self._constant(f"{stem}_scale", onnx.TensorProto.FLOAT, scale)
        self._constant(f"{stem}_zero", onnx.TensorProto.INT32, np.zeros(scale.shape, np.int32))
        return self._dequantize(stem, 0 if scale.ndim else None)

    def _write_weight(self, op: Op, weight: Quantized) -> str:
        stem = f"{op.name}{self._mark}weight"
        tensor = onnx.TensorProto()
        tensor.CopyFrom(weight.tensor)
        tensor.name = f"{stem}_q"
        self.tensors[tensor.name] = tensor
        self._constant(f"{stem}_scale", onnx.TensorProto.FLOAT, weight.scale)
        self._constant(f"{stem}_zero", onnx_type(weight.dtype), weight.zero)
        return self._dequantize(stem, weight.axis)

    def _constant(self, name: str, kind: int, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
        self.tensors[name] = _tensor(name, kind, values)

    def _dequantize(self, stem: str, axis: int | None) -> str:
        inputs = [f"{stem}_q", f"{stem}_scale", f"{stem}_zero"]
        node = helper.make_node("DequantizeLinear", inputs, [f"{stem}_dq"], f"{stem}_dq_node")
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
        self.nodes.append(node)
        return f"{stem}_dq"

    @property
    def _mark(self) -> str:
        return self.model.mark


def _has_8_bits(coded: Coded) -> bool:
    """Return whether the codes are those that ops other than Q and DQ take: onnxruntime 1.31 has no Pad of 16-bit integers."""
    return coded.parameters.dtype in (DType.UINT8, DType.INT8)


def saturates_like(activation: Op, parameters: Parameters, model: OnnxModel) -> bool:
    """Return whether saturation to the codes of `parameters` does exactly what a Relu or Clip does before it.

    It does when the codes of the bounds are the first and the last one, or beyond: what the op would cut off, saturation cuts off.
    """
    low, high = _bounds(activation, model)
    fits_low = low is None or parameters.code_of(low) <= parameters.first
    return fits_low and (high is None or parameters.code_of(high) >= parameters.last)


def _bounds(activation: Op, model: OnnxModel) -> tuple[float | None, float | None]:
    if activation.type == "Relu":
        return 0.0, None
    low, high = activation.attribute("min", None), activation.attribute("max", None)
    if activation.input(1):
        low = float(model.store.array(activation.input(1)).reshape(-1)[0])
    if activation.input(2):
        high = float(model.store.array(activation.input(2)).reshape(-1)[0])
    return low, high


def _with_channels(weight: Quantized, missing: int, folder: Path) -> Quantized:
    """Return the weight of a 2-D convolution with input channels added that multiply by zero, its codes inside the graph."""
    codes = np.pad(
        read(weight.tensor, folder), ((0, 0), (0, missing), (0, 0), (0, 0)), constant_values=weight.zero.flat[0]
    )
    return replace(weight, tensor=_tensor(weight.tensor.name, weight.tensor.data_type, codes))


def _without_trailing_blanks(names: list[str]) -> list[str]:
    while names and not names[-1]:
        names = names[:-1]
    return names


def _tensor(name: str, kind: int, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> onnx.TensorProto:
    return onnx.TensorProto(name=name, data_type=kind, dims=values.shape, raw_data=values.tobytes())
