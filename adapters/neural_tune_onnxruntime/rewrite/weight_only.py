"""Ops whose weights are stored in fewer bits, and computed with as they are: MatMulNBits for products, tables in int8 or in blocks of 4 bits for Gather.

MatMulNBits (of the runtime's own domain) multiplies blocks of 4 or 8 bits; at accuracy level 4 it rounds the activations to int8 inside, per block. A
table is gathered as codes and the few rows that come out are dequantized: int8 in standard ONNX, and no slower; blocks by the runtime's GatherBlockQuantized.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx
from onnx import helper

from neural_tune.errors import CapabilityError
from neural_tune.numerics import qparams
from neural_tune.values import Granularity, Observer, OpConfig, QuantSpec
from neural_tune_onnxruntime import forms, gptq, nbits
from neural_tune_onnxruntime.graph import Op
from neural_tune_onnxruntime.hessian import hessian
from neural_tune_onnxruntime.model import OnnxModel
from neural_tune_onnxruntime.nbits import Blocks
from neural_tune_onnxruntime.rewrite.fragment import CONTRIB, Fragment

logger = logging.getLogger(__name__)

_INT8_ACTIVATIONS = 4


def write(op: Op, config: OpConfig, inputs: list[str], outputs: list[str], model: OnnxModel) -> Fragment:
    """Return what stands for `op`: same inputs, same outputs.

    Raises:
        AdapterError: GPTQ without calibration inputs.
    """
    if config.weight is None:  # unreachable: `forms.check` insists on it
        raise CapabilityError(f"op {op.name!r}: a weight_only op needs a weight spec")
    fragment = Fragment(f"{op.name}{model.mark}")
    if op.type == "Gather" and config.weight.granularity is Granularity.PER_GROUP:
        _write_blocks_of_table(fragment, op, config.weight, inputs, outputs, model)
    elif op.type == "Gather":
        _write_table(fragment, op, config.weight, inputs, outputs, model)
    else:
        _write_product(fragment, op, config, config.weight, inputs, outputs, model)
    return fragment


def _write_product(
    fragment: Fragment,
    op: Op,
    config: OpConfig,
    spec: QuantSpec,
    inputs: list[str],
    outputs: list[str],
    model: OnnxModel,
) -> None:
    made = _blocks(op, spec, model)
    rows, columns = forms.rows_and_columns(op, model)
    given = [inputs[0], fragment.constant("weight_q", made["codes"]), fragment.constant("weight_scale", made["scale"])]
    if not spec.symmetric:
        given.append(fragment.constant("weight_zero", made["zero"]))
    attributes: dict[str, Any] = {"K": rows, "N": columns, "bits": nbits.bits_of(spec), "block_size": spec.group_size}
    if config.activation is not None:
        attributes["accuracy_level"] = _INT8_ACTIVATIONS
    bias = inputs[2] if op.type == "Gemm" and op.input(2) else ""
    target = f"{fragment.stem}product" if bias else outputs[0]
    fragment.add("MatMulNBits", given, target, domain=CONTRIB, **attributes)
    if bias:
        fragment.add("Add", [target, bias], outputs[0], "bias")


def _blocks(op: Op, spec: QuantSpec, model: OnnxModel) -> dict[str, onnx.TensorProto]:
    """Return codes, scales and zero points of the weight of `op` in the layout of the kernel; made once per form."""
    looks = spec.observer is Observer.GPTQ or (spec.observer is Observer.MSE and model.spool is not None)
    # Clipping and GPTQ fit the inputs of this op; another op with the same weight has other inputs.
    whose = f" for {op.inputs[0]}" if looks else ""
    key = f"blocks {spec.dtype.value} {spec.group_size} {spec.observer.value}{whose} turned {forms.is_transposed(op)}: {op.input(1)}"

    def make() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
        values = np.asarray(model.store.array(op.input(1)), np.float32)
        found = _rounded(op, values.T if forms.is_transposed(op) else values, spec, model)
        return {"codes": found.packed(), "scale": found.scale, "zero": found.packed_zero()}

    return dict(model.store.kept(key, make))


def _rounded(
    op: Op, weight: np.ndarray[tuple[int, ...], np.dtype[np.float32]], spec: QuantSpec, model: OnnxModel
) -> Blocks:
    if spec.observer is Observer.MINMAX:
        return nbits.round_to_nearest(weight, spec)
    if spec.observer is Observer.MSE and model.spool is None:
        return nbits.clipped(weight, spec)
    curvature = hessian(model, op.inputs[0], _inputs_of_products(model))
    if spec.observer is Observer.MSE:
        return nbits.clipped(weight, spec, curvature)
    logger.debug("GPTQ of %s", op.name)
    return gptq.quantize(weight, spec, curvature)


def _inputs_of_products(model: OnnxModel) -> list[str]:
    """Return the inputs of all products that blocks can be made for, in order."""
    products = (op for op in model.graph.ops if not forms.product_refusal(op, model))
    return list(dict.fromkeys(op.inputs[0] for op in products if len(model.graph.constants[op.inputs[1]].shape) == 2))


def _write_table(
    fragment: Fragment, op: Op, spec: QuantSpec, inputs: list[str], outputs: list[str], model: OnnxModel
) -> None:
    per_channel = spec.granularity is Granularity.PER_CHANNEL
    name = op.input(0)

    def make() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
        values = np.asarray(model.store.array(name), np.float32)
        scale, zero = qparams.weight_parameters(values, 1 if per_channel else None, spec)
        codes = qparams.quantize(values, scale, zero, 1 if per_channel else None, spec.dtype)
        return {"codes": codes, "scale": scale, "zero": zero}

    made = model.store.kept(f"table {spec.dtype.value} {spec.granularity.value} {spec.reduce_range}: {name}", make)
    table = fragment.constant("table_q", made["codes"])
    parameters = [fragment.constant("table_scale", made["scale"]), fragment.constant("table_zero", made["zero"])]
    node = onnx.NodeProto()
    node.CopyFrom(op.node)
    node.input[0] = table
    node.input[1] = inputs[1]
    node.output[0] = f"{fragment.stem}codes"
    fragment.nodes.append(node)
    fragment.add("DequantizeLinear", [node.output[0], *parameters], outputs[0])
    if per_channel:
        fragment.nodes[-1].attribute.append(helper.make_attribute("axis", -1))


def _write_blocks_of_table(
    fragment: Fragment, op: Op, spec: QuantSpec, inputs: list[str], outputs: list[str], model: OnnxModel
) -> None:
    name = op.input(0)

    def make() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
        rows = np.asarray(model.store.array(name), np.float32).T  # a row of the table is what a column of a product is
        found = nbits.clipped(rows, spec) if spec.observer is Observer.MSE else nbits.round_to_nearest(rows, spec)
        return {"codes": found.packed().reshape(rows.shape[1], -1), "scale": found.scale, "zero": found.packed_zero()}

    made = model.store.kept(f"table {spec.dtype.value} {spec.group_size} {spec.observer.value}: {name}", make)
    given = [fragment.constant("table_q", made["codes"]), inputs[1], fragment.constant("table_scale", made["scale"])]
    if not spec.symmetric:
        given.append(fragment.constant("table_zero", made["zero"]))
    attributes: dict[str, Any] = {
        "bits": nbits.bits_of(spec),
        "block_size": spec.group_size,
        "gather_axis": 0,
        "quantize_axis": 1,
    }
    fragment.add("GatherBlockQuantized", given, outputs[0], domain=CONTRIB, **attributes)
