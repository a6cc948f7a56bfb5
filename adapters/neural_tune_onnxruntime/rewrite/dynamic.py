"""Ops whose activations are quantized at run time, from the very values that arrive: no calibration, no range.

The graph is that of the runtime's own tool: DynamicQuantizeLinear and MatMulInteger (or ConvInteger) in standard ONNX, which the runtime fuses into
DynamicQuantizeMatMul or MatMulIntegerToFloat; an LSTM becomes DynamicQuantizeLSTM of the runtime's own domain. Weights are int8, because
uint8 weights cost a factor 1.9 (BERT-base: 2.87 times faster than float, against 1.49).
"""

from __future__ import annotations

import numpy as np
import onnx

from neural_tune.errors import CapabilityError
from neural_tune.numerics import qparams
from neural_tune.values import Granularity, OpConfig, QuantSpec
from neural_tune_onnxruntime import forms
from neural_tune_onnxruntime.graph import Op
from neural_tune_onnxruntime.model import OnnxModel
from neural_tune_onnxruntime.rewrite.fragment import CONTRIB, Fragment
from neural_tune_onnxruntime.weights import Quantized, read

_TIME_FIRST = ("layout",)


def write(op: Op, config: OpConfig, inputs: list[str], outputs: list[str], model: OnnxModel) -> Fragment:
    """Return what stands for `op`: same inputs, same outputs."""
    if config.weight is None:  # unreachable: `forms.check` insists on it
        raise CapabilityError(f"op {op.name!r}: a dynamic op needs a weight spec")
    fragment = Fragment(f"{op.name}{model.mark}")
    if op.type == "LSTM":
        _write_lstm(fragment, op, config.weight, inputs, outputs, model)
    elif op.type == "Conv":
        _write_conv(fragment, op, config.weight, inputs, outputs, model)
    else:
        _write_product(fragment, op, config.weight, inputs, outputs, model)
    return fragment


def _codes_of(fragment: Fragment, tensor: str, model: OnnxModel) -> tuple[str, str, str]:
    """Return codes, scale and zero point of an activation; all ops that read it share them."""
    stem = f"{tensor}{model.mark}dynamic"
    names = [f"{stem}_q", f"{stem}_scale", f"{stem}_zero"]
    fragment.nodes.append(onnx.helper.make_node("DynamicQuantizeLinear", [tensor], names, f"{stem}_node"))
    fragment.common.add(names[0])
    return names[0], names[1], names[2]


def _write_product(
    fragment: Fragment, op: Op, spec: QuantSpec, inputs: list[str], outputs: list[str], model: OnnxModel
) -> None:
    weight = _product_weight(op, spec, model)
    codes, scale, zero = _codes_of(fragment, inputs[0], model)
    matrix = fragment.constant("weight_q", weight.tensor)
    weight_zero = fragment.constant("weight_zero", weight.zero)
    steps = fragment.constant("weight_scale", weight.scale)
    total = fragment.add("MatMulInteger", [codes, matrix, zero, weight_zero], f"{fragment.stem}integers")
    bias = inputs[2] if op.type == "Gemm" and op.input(2) else ""
    _scale_back(fragment, total, (scale, steps), bias, outputs[0])


def _product_weight(op: Op, spec: QuantSpec, model: OnnxModel) -> Quantized:
    """Return the weight as MatMulInteger multiplies it: one column per output."""
    per_channel = spec.granularity is Granularity.PER_CHANNEL
    turned = forms.is_transposed(op)
    axis = (0 if turned else 1) if per_channel else None
    return _quantized(model, op.input(1), axis, spec, transpose=(1, 0) if turned else None)


def _quantized(
    model: OnnxModel, name: str, axis: int | None, spec: QuantSpec, transpose: tuple[int, ...] | None = None
) -> Quantized:
    """Return a constant in int8, its axes permuted; codes are written once."""
    reduced = "-reduced" if spec.reduce_range else ""
    key = f"dynamic {spec.dtype.value}{reduced} axis {axis} transpose {transpose}: {name}"

    def make() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
        values = np.asarray(model.store.array(name), np.float32)
        scale, zero = qparams.weight_parameters(values, axis, spec)
        codes = qparams.quantize(values, scale, zero, axis, spec.dtype)
        turned = codes if transpose is None else np.ascontiguousarray(codes.transpose(transpose))
        return {"codes": turned, "scale": scale, "zero": zero}

    made = model.store.kept(key, make)
    scale, zero = (np.asarray(read(made[part], model.store.folder)) for part in ("scale", "zero"))
    return Quantized(made["codes"], scale, zero, axis, spec.dtype, np.zeros(np.shape(scale), bool))


def _scale_back(fragment: Fragment, total: str, scales: tuple[str, str], bias: str, output: str) -> None:
    """Append the way from int32 sums to float: the product of the two scales, then the bias, which stays in float."""
    real = fragment.add("Cast", [total], f"{fragment.stem}floats", to=onnx.TensorProto.FLOAT)
    factor = fragment.add("Mul", list(scales), f"{fragment.stem}scale", "scales")
    scaled = fragment.add("Mul", [real, factor], f"{fragment.stem}scaled" if bias else output, "scaled")
    if bias:
        fragment.add("Add", [scaled, bias], output, "bias")


def _write_conv(
    fragment: Fragment, op: Op, spec: QuantSpec, inputs: list[str], outputs: list[str], model: OnnxModel
) -> None:
    weight = _quantized(model, op.input(1), None, spec)
    codes, scale, zero = _codes_of(fragment, inputs[0], model)
    kernel = fragment.constant("weight_q", weight.tensor)
    weight_zero = fragment.constant("weight_zero", weight.zero)
    step = fragment.constant("weight_scale", weight.scale)
    total = fragment.add("ConvInteger", [codes, kernel, zero, weight_zero], f"{fragment.stem}integers")
    fragment.nodes[-1].attribute.extend(op.node.attribute)
    bias = ""
    if op.input(2):
        values = np.asarray(model.store.array(op.input(2)), np.float32)
        spatial = len(model.graph.constants[op.input(1)].shape) - 2
        bias = fragment.constant("bias", values.reshape(1, -1, *(1,) * spatial))
    _scale_back(fragment, total, (scale, step), bias, outputs[0])


def _write_lstm(
    fragment: Fragment, op: Op, spec: QuantSpec, inputs: list[str], outputs: list[str], model: OnnxModel
) -> None:
    """Append DynamicQuantizeLSTM, which wants its weights turned: (directions, inputs, 4 * hidden)."""
    given = [*inputs, *[""] * (8 - len(inputs))]
    tail: list[str] = []
    for position, label in ((1, "W"), (2, "R")):
        codes, scale, zero = _lstm_weight(op.input(position), spec, model)
        given[position] = fragment.constant(f"{label}_q", codes)
        tail += [fragment.constant(f"{label}_scale", scale), fragment.constant(f"{label}_zero", zero)]
    fragment.add("DynamicQuantizeLSTM", [*given, *tail], outputs, domain=CONTRIB)
    kept = [item for item in op.node.attribute if item.name not in _TIME_FIRST]
    fragment.nodes[-1].attribute.extend(kept)


def _lstm_weight(
    name: str, spec: QuantSpec, model: OnnxModel
) -> tuple[onnx.TensorProto, onnx.TensorProto, onnx.TensorProto]:
    """Return codes, scales and zero points: a scale per direction, or per direction and gate unit."""
    per_channel = spec.granularity is Granularity.PER_CHANNEL
    key = f"lstm {spec.dtype.value}{'-reduced' if spec.reduce_range else ''} per_channel {per_channel}: {name}"

    def make() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
        values = np.asarray(model.store.array(name), np.float32)
        rows = values.reshape(-1 if per_channel else len(values), values.shape[-1] if per_channel else values[0].size)
        scale, zero = qparams.weight_parameters(rows, 0, spec)
        codes = qparams.quantize(rows, scale, zero, 0, spec.dtype).reshape(values.shape).transpose(0, 2, 1)
        shape = values.shape[:2] if per_channel else values.shape[:1]
        return {"codes": np.ascontiguousarray(codes), "scale": scale.reshape(shape), "zero": zero.reshape(shape)}

    made = model.store.kept(key, make)
    return made["codes"], made["scale"], made["zero"]
