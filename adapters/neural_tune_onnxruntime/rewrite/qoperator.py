"""The other format: operators that compute on codes (QLinearConv, QGemm ...) instead of Q/DQ pairs around float operators.

A Q/DQ graph says what an integer kernel computes, and ONNX Runtime looks for its patterns when a session starts. `from_qdq` makes that
replacement once and for all, in the file, with the very kernels that the runtime would choose, so that both formats compute the same bits. The price: half of
these operators belong to the runtime's own domain, so no other runtime can read the file. `to_qdq` goes the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import onnx
from onnx import helper

from neural_tune.errors import CapabilityError
from neural_tune_onnxruntime.rewrite.tensors import CONTRIB, STANDARD, Codes, Tensors, assemble, attribute

# Ops that compute the same on codes as on the values they stand for, as long as both sides have one scale: (type, since opset).
CARRIERS: Mapping[str, int] = MappingProxyType(
    {
        "MaxPool": 12,
        "ReduceMax": 12,
        "ReduceMin": 12,
        **dict.fromkeys(("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Identity"), 1),
        **dict.fromkeys(("Split", "Gather", "GatherElements", "Expand", "Tile", "DepthToSpace", "Resize"), 11),
    }
)
_BOUNDED = ("Relu", "Clip")
# Of their bias: the scale must be the product of the other two, as the accumulator has it.
_TOLERANCE = 1e-4


def from_qdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a Q/DQ graph with integer operators wherever the runtime has one; what it has none for keeps its Q/DQ pairs.

    Args:
        model: Weights may lie in other files, scales and zero points may not; never changed.

    Raises:
        AdapterError: scales or zero points lie in another file.
    """
    return _Fuser(Tensors.of(model)).run()


@dataclass(slots=True)
class _Fuser:
    """Replaces node by node; what lies around a replaced node goes once nobody reads it."""

    tensors: Tensors
    dequantized: dict[str, Codes] = field(default_factory=dict)
    quantizers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)

    def run(self) -> onnx.ModelProto:
        nodes = self.tensors.model.graph.node
        for node in nodes:
            if node.domain not in STANDARD or len(node.input) < 3 or not node.input[2]:
                continue
            if node.op_type == "DequantizeLinear":
                self.dequantized[node.output[0]] = self._codes(node)
            elif node.op_type == "QuantizeLinear":
                self.quantizers.setdefault(node.input[0], []).append(node)
        kept = [self._fused(node) or node for node in nodes]
        kept = [node for node in kept if not (node.op_type == "QuantizeLinear" and node.output[0] in self.gone)]
        read = {name for node in kept for name in node.input} | {v.name for v in self.tensors.model.graph.output}
        shadow = Tensors.of(assemble(self.tensors, kept)).readers  # counts what subgraphs read, too
        kept = [
            node
            for node in kept
            if node.op_type != "DequantizeLinear" or node.output[0] in read or shadow[node.output[0]]
        ]
        return assemble(self.tensors, kept)

    def _codes(self, node: onnx.NodeProto) -> Codes:
        scale = self.tensors.constants.get(node.input[1])
        axis = int(attribute(node, "axis", 1)) if scale is not None and scale.dims else None
        return Codes(node.input[0], node.input[1], node.input[2], axis)

    def _fused(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        if node.domain not in STANDARD:
            return None
        if node.op_type in CARRIERS:
            return self._carrier(node)
        if node.op_type in _BOUNDED:
            return self._bounded(node)
        rule = _RULES.get(node.op_type)
        if rule is None:
            return None
        inputs = [self.dequantized.get(name) for name in node.input]
        output = self.written(node.output[0])
        fused = rule(self, node, inputs, output)
        if fused is None:
            return None
        if output is not None and fused.output[0] == output.name:
            self.gone.add(output.name)
        fused.name = node.name
        return fused

    def written(self, tensor: str) -> Codes | None:
        """Return the codes that a tensor is turned into; None unless that is all that happens to it."""
        found = self.quantizers.get(tensor, [])
        if len(found) != 1 or self.tensors.readers[tensor] != 1:
            return None
        node = found[0]
        return Codes(node.output[0], node.input[1], node.input[2]) if self.is_single(node.input[1]) else None

    def is_single(self, scale: str) -> bool:
        """Return whether a scale is a constant of one value."""
        return scale in self.tensors.constants and not self.tensors.constants[scale].dims

    def is_activation(self, codes: Codes | None, kind: int = 0) -> bool:
        """Return whether `codes` have one 8-bit scale, and the element type `kind` if that is given."""
        if codes is None or codes.axis is not None or not self.is_single(codes.scale):
            return False
        found = self.tensors.kind(codes.zero)
        return found in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8) and kind in (0, found)

    def is_weight(self, codes: Codes | None, axis: int) -> bool:
        """Return whether `codes` are an 8-bit constant with one scale, or one per index of `axis`."""
        if codes is None or codes.name not in self.tensors.constants or codes.scale not in self.tensors.constants:
            return False
        eight_bits = self.tensors.kind(codes.zero) in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
        rank = self.tensors.rank(codes.name)
        return eight_bits and (codes.axis is None or codes.axis % max(rank, 1) == axis)

    def bias(self, node: onnx.NodeProto, data: Codes, weight: Codes) -> str | None:
        """Return the int32 codes of the third input of `node`, "" where there is none, None where it is no such bias."""
        if len(node.input) < 3 or not node.input[2]:
            return ""
        found = self.dequantized.get(node.input[2])
        if found is None or self.tensors.kind(found.name) != onnx.TensorProto.INT32:
            return None
        step, given = self.tensors.values(data.scale), self.tensors.values(found.scale)
        scale = self.tensors.values(weight.scale)
        if step is None or given is None or scale is None:
            return None
        return found.name if np.allclose(given, step * scale, rtol=_TOLERANCE, atol=0.0) else None

    def kind(self, codes: Codes | None) -> int:
        """Return the element type of codes, -1 where there are none."""
        return self.tensors.kind(codes.zero) if codes is not None else -1

    def _carrier(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        data = self.dequantized.get(node.input[0])
        outputs = [self.written(name) for name in node.output]
        if not self.is_activation(data) or data is None or self.tensors.opset < CARRIERS[node.op_type]:
            return None
        if node.op_type == "Resize" and attribute(node, "mode", b"nearest") != b"nearest":
            return None
        found = [codes for codes in outputs if codes is not None and self._share_scale(data, codes)]
        if len(found) != len(node.output):
            return None
        fused = onnx.NodeProto()
        fused.CopyFrom(node)
        fused.input[0] = data.name
        fused.output[:] = [codes.name for codes in found]
        self.gone.update(fused.output)
        return fused

    def _bounded(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return Relu or Clip on codes; exact, because rounding is monotone and a bound has the code that it rounds to."""
        data, output = self.dequantized.get(node.input[0]), self.written(node.output[0])
        if not self.is_activation(data) or data is None or output is None or self.tensors.opset < 12:
            return None
        bounds = self._bounds(node)
        scale, zero = self.tensors.values(data.scale), self.tensors.values(data.zero)
        if bounds is None or scale is None or zero is None or not self._share_scale(data, output):
            return None
        limits = np.iinfo(zero.dtype)
        names = []
        for which, bound in zip(("low", "high"), bounds, strict=True):
            if bound is None:
                names.append("")
                continue
            code = np.clip(np.round(np.float32(bound) / scale) + int(zero), limits.min, limits.max)
            names.append(self.tensors.add(f"{node.name or node.output[0]}_{which}", code.astype(zero.dtype)))
        while not names[-1]:
            names.pop()
        self.gone.add(output.name)
        return helper.make_node("Clip", [data.name, *names], [output.name], node.name)

    def _bounds(self, node: onnx.NodeProto) -> tuple[float | None, float | None] | None:
        if node.op_type == "Relu":
            return 0.0, None
        found: list[float | None] = []
        for name in (*node.input[1:3], "", "")[:2]:
            values = self.tensors.values(name) if name else None
            if name and values is None:
                return None
            found.append(None if values is None else float(values.reshape(-1)[0]))
        return (found[0], found[1]) if found != [None, None] else None

    def _share_scale(self, first: Codes, second: Codes) -> bool:
        return self.tensors.agree(first.scale, second.scale) and self.tensors.agree(first.zero, second.zero)


_Inputs: TypeAlias = Sequence[Codes | None]
_Rule: TypeAlias = Callable[[_Fuser, onnx.NodeProto, _Inputs, Codes | None], onnx.NodeProto | None]


def _triple(codes: Codes) -> list[str]:
    return [codes.name, codes.scale, codes.zero]


def _conv(fuser: _Fuser, node: onnx.NodeProto, inputs: _Inputs, output: Codes | None) -> onnx.NodeProto | None:
    data, weight = inputs[0], inputs[1]
    if data is None or weight is None or output is None or not fuser.is_weight(weight, 0):
        return None
    bias = fuser.bias(node, data, weight)
    if not fuser.is_activation(data, fuser.kind(output)) or bias is None:
        return None
    names = [*_triple(data), *_triple(weight), output.scale, output.zero, *([bias] if bias else [])]
    return _node("QLinearConv", names, output, node)


def _matmul(fuser: _Fuser, node: onnx.NodeProto, inputs: _Inputs, output: Codes | None) -> onnx.NodeProto | None:
    left, right = inputs[0], inputs[1]
    if left is None or right is None or not fuser.is_activation(left):
        return None
    constant = right.name in fuser.tensors.constants
    fits = fuser.is_weight(right, fuser.tensors.rank(right.name) - 1) if constant else fuser.is_activation(right)
    if not fits:
        return None
    if output is not None and fuser.kind(output) == fuser.kind(left):
        return _node("QLinearMatMul", [*_triple(left), *_triple(right), output.scale, output.zero], output, node)
    names = [left.name, right.name, left.scale, right.scale, left.zero, right.zero]
    return helper.make_node("MatMulIntegerToFloat", names, list(node.output), domain=CONTRIB)


def _gemm(fuser: _Fuser, node: onnx.NodeProto, inputs: _Inputs, output: Codes | None) -> onnx.NodeProto | None:
    data, weight = inputs[0], inputs[1]
    if data is None or weight is None or not fuser.is_activation(data):
        return None
    # The runtime's kernel drops beta, and alpha too: errors of 0.75 and 0.50.
    if any(attribute(node, name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return None
    bias = fuser.bias(node, data, weight)
    if bias is None or not fuser.is_weight(weight, 0 if attribute(node, "transB", 0) else 1):
        return None
    names = [*_triple(data), *_triple(weight), bias]
    is_coded = output is not None and fuser.kind(output) == fuser.kind(data)
    if output is not None and is_coded:
        names += [output.scale, output.zero]
    target = [output.name] if output is not None and is_coded else list(node.output)
    fused = helper.make_node("QGemm", names if names[-1] else names[:-1], target, domain=CONTRIB)
    fused.attribute.extend(item for item in node.attribute if item.name in ("transA", "transB"))
    return fused


def _joining(kind: str, **more: int) -> _Rule:
    """Return the rule of an op that reads activations only."""

    def rule(fuser: _Fuser, node: onnx.NodeProto, inputs: _Inputs, output: Codes | None) -> onnx.NodeProto | None:
        found = [codes for codes in inputs if codes is not None and fuser.is_activation(codes, fuser.kind(output))]
        if output is None or len(found) != len(node.input):
            return None
        data = [name for codes in found for name in _triple(codes)]
        scale = [output.scale, output.zero]
        names = [*scale, *data] if kind == "QLinearConcat" else [*data, *scale]
        fused = _node(kind, names, output, node, CONTRIB)
        fused.attribute.extend(helper.make_attribute(name, value) for name, value in more.items())
        return fused

    return rule


def _softmax(fuser: _Fuser, node: onnx.NodeProto, inputs: _Inputs, output: Codes | None) -> onnx.NodeProto | None:
    fused = _joining("QLinearSoftmax")(fuser, node, inputs, output)
    if fused is not None:
        fused.attribute.append(helper.make_attribute("opset", fuser.tensors.opset))
    return fused


def _where(fuser: _Fuser, node: onnx.NodeProto, inputs: _Inputs, output: Codes | None) -> onnx.NodeProto | None:
    found = [codes for codes in inputs[1:] if codes is not None and fuser.is_activation(codes, fuser.kind(output))]
    if output is None or len(found) != 2:
        return None
    names = [node.input[0], *_triple(found[0]), *_triple(found[1]), output.scale, output.zero]
    return _node("QLinearWhere", names, output, node, CONTRIB)


def _node(kind: str, inputs: list[str], output: Codes, source: onnx.NodeProto, domain: str = "") -> onnx.NodeProto:
    fused = helper.make_node(kind, inputs, [output.name], domain=domain)
    fused.attribute.extend(source.attribute)
    return fused


_RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        "Conv": _conv,
        "MatMul": _matmul,
        "Gemm": _gemm,
        "Add": _joining("QLinearAdd"),
        "Mul": _joining("QLinearMul"),
        "Sigmoid": _joining("QLinearSigmoid"),
        "LeakyRelu": _joining("QLinearLeakyRelu"),
        "Concat": _joining("QLinearConcat"),
        "GlobalAveragePool": _joining("QLinearGlobalAveragePool", channels_last=0),
        "AveragePool": _joining("QLinearAveragePool", channels_last=0),
        "Softmax": _softmax,
        "Where": _where,
    }
)


def to_qdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph of integer operators, ours or that of another tool, as Q/DQ pairs around standard float operators.

    Args:
        model: Weights may lie in other files, scales and zero points may not; never changed.

    Raises:
        CapabilityError: it holds an integer operator that has no such form, or scales that are computed.
        AdapterError: scales or zero points lie in another file.
    """
    return _Unfuser(Tensors.of(model)).run()


# Integer operators that do more than a standard operator between DequantizeLinear and QuantizeLinear.
_WITHOUT_FORM = frozenset(("QAttention", "QEmbedLayerNormalization", "QLinearReduceMean", "QMoE", "QOrderedMatMul"))
_ALONE = MappingProxyType(
    {
        f"QLinear{kind}": kind
        for kind in (
            "Add",
            "Mul",
            "Sigmoid",
            "LeakyRelu",
            "Concat",
            "GlobalAveragePool",
            "AveragePool",
            "Softmax",
            "Where",
        )
    }
)
_OWN_ATTRIBUTES = ("channels_last", "opset")


@dataclass(slots=True)
class _Unfuser:
    """Writes the nodes anew, in order."""

    tensors: Tensors
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    scales: dict[str, Codes] = field(default_factory=dict)
    seen: dict[Codes, str] = field(default_factory=dict)

    def run(self) -> onnx.ModelProto:
        for node in self.tensors.model.graph.node:
            self._visit(node)
        return assemble(self.tensors, self.nodes)

    def _visit(self, node: onnx.NodeProto) -> None:
        own = node.domain in STANDARD
        if node.op_type in _WITHOUT_FORM and not own:
            message = f"{node.op_type} {node.name!r} has no form in Q/DQ: it does more than one standard operator"
            raise CapabilityError(message)
        if own and node.op_type == "QLinearConv":
            self._product(node, "Conv", node.input[8:9], channel_axis=0)
        elif node.op_type == "QLinearMatMul":
            self._product(node, "MatMul", (), channel_axis=-1)
        elif node.op_type == "QGemm" and not own:
            self._gemm(node)
        elif node.op_type == "MatMulIntegerToFloat" and not own:
            self._integer_to_float(node)
        elif node.op_type in _ALONE and not own:
            self._companion(node)
        elif own and node.op_type in CARRIERS and node.input[0] in self.scales:
            self._carrier(node)
        elif own and node.op_type == "Clip" and node.input[0] in self.scales:
            self._bounded(node)
        else:
            self._keep(node)

    def _keep(self, node: onnx.NodeProto) -> None:
        self.nodes.append(node)
        if node.op_type == "QuantizeLinear" and len(node.input) > 2:
            self._note(Codes(node.output[0], node.input[1], node.input[2]))
        elif node.op_type == "DequantizeLinear" and len(node.input) > 2 and self._has_one_scale(node.input[1]):
            self.seen[Codes(node.input[0], node.input[1], node.input[2])] = node.output[0]
        elif node.op_type == "Pad" and node.input[0] in self.scales:  # takes codes in either format
            found = self.scales[node.input[0]]
            self._note(Codes(node.output[0], found.scale, found.zero))

    def _has_one_scale(self, scale: str) -> bool:
        return scale in self.tensors.constants and not self.tensors.constants[scale].dims

    def _note(self, codes: Codes) -> None:
        self.scales[codes.name] = codes

    def _product(self, node: onnx.NodeProto, kind: str, bias: Sequence[str], *, channel_axis: int) -> None:
        data, weight = self._codes(node.input[:3]), self._codes(node.input[3:6], channel_axis)
        inputs = [self._dequantize(data), self._dequantize(weight)]
        if bias and bias[0]:
            inputs.append(self._bias(node, bias[0], data, weight))
        self._float(node, kind, inputs, node.input[6:8])

    def _gemm(self, node: onnx.NodeProto) -> None:
        if attribute(node, "alpha", 1.0) != 1.0:
            message = f"QGemm {node.name!r} has alpha {attribute(node, 'alpha', 1.0):g}: on its bias the runtime does not apply it as Gemm does"
            raise CapabilityError(message)
        data = self._codes(node.input[:3])
        weight = self._codes(node.input[3:6], 0 if attribute(node, "transB", 0) else 1)
        inputs = [self._dequantize(data), self._dequantize(weight)]
        if len(node.input) > 6 and node.input[6]:
            inputs.append(self._bias(node, node.input[6], data, weight))
        self._float(node, "Gemm", inputs, node.input[7:9])

    def _integer_to_float(self, node: onnx.NodeProto) -> None:
        names = [*node.input, *[""] * (7 - len(node.input))]
        left = self._codes((names[0], names[2], names[4]))
        right = self._codes((names[1], names[3], names[5]), -1)
        inputs = [self._dequantize(left), self._dequantize(right)]
        if not names[6]:
            self._float(node, "MatMul", inputs, ())
            return
        product = self.tensors.fresh(f"{node.output[0]}_product")
        self.nodes.append(helper.make_node("MatMul", inputs, [product], node.name))
        self.nodes.append(helper.make_node("Add", [product, names[6]], list(node.output), f"{node.name}_bias"))

    def _companion(self, node: onnx.NodeProto) -> None:
        kind = _ALONE[node.op_type]
        if attribute(node, "channels_last", 0):
            message = f"{node.op_type} {node.name!r} has its channels last: standard {kind} has not"
            raise CapabilityError(message)
        names = list(node.input)
        front = [names.pop(0)] if kind == "Where" else []
        output = names[:2] if kind == "Concat" else names[-2:]
        data = names[2:] if kind == "Concat" else names[:-2]
        triples = [data[start : start + 3] for start in range(0, len(data), 3)]
        self._float(node, kind, [*front, *(self._dequantize(self._codes(found)) for found in triples)], output)

    def _carrier(self, node: onnx.NodeProto) -> None:
        data = self.scales[node.input[0]]
        target = [self.tensors.fresh(f"{name}_float") for name in node.output]
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[0], copy.output[:] = self._dequantize(data), target
        self.nodes.append(copy)
        for source, name in zip(target, node.output, strict=True):
            self._quantize(source, name, data.scale, data.zero)

    def _bounded(self, node: onnx.NodeProto) -> None:
        data = self.scales[node.input[0]]
        scale, zero = self._number(data.scale), self._number(data.zero)
        bounds = []
        for name in node.input[1:]:
            code = self._number(name) if name else None
            real = None if code is None else np.float32((float(code) - float(zero)) * float(scale))
            bounds.append("" if real is None else self.tensors.add(f"{name}_float", np.asarray(real)))
        target = self.tensors.fresh(f"{node.output[0]}_float")
        self.nodes.append(helper.make_node("Clip", [self._dequantize(data), *bounds], [target], node.name))
        self._quantize(target, node.output[0], data.scale, data.zero)

    def _number(self, name: str) -> float:
        values = self.tensors.values(name)
        if values is None:
            message = f"tensor {name!r} is computed: expected a constant, which Q/DQ pairs need"
            raise CapabilityError(message)
        return float(values.reshape(-1)[0])

    def _codes(self, names: Sequence[str], channel_axis: int | None = None) -> Codes:
        """Return what three inputs of an integer operator say; scales of one value become scalars, as Q/DQ pairs take them."""
        codes, scale, zero = names
        found = self.tensors.constants.get(scale)
        if found is None or (zero and zero not in self.tensors.constants):
            message = f"the scale {scale!r} of {codes!r} is computed: expected a constant, which Q/DQ pairs need"
            raise CapabilityError(message)
        size = int(np.prod(found.dims))
        if channel_axis is None or size == 1:
            return Codes(codes, self._scalar(scale), self._scalar(zero))
        rank = self.tensors.rank(codes) if codes in self.tensors.constants else 2
        if self.tensors.opset < 13:
            message = f"opset {self.tensors.opset}: DequantizeLinear takes no axis before 13, which the scales of {codes!r} need"
            raise CapabilityError(message)
        return Codes(codes, scale, self._spread(zero, size), channel_axis % rank)

    def _scalar(self, name: str) -> str:
        if not name or not self.tensors.constants[name].dims:
            return name
        values = self.tensors.values(name)
        return name if values is None else self.tensors.add(f"{name}_scalar", values.reshape(()))

    def _spread(self, zero: str, size: int) -> str:
        """Return a zero point with one value per channel, as DequantizeLinear wants it."""
        if not zero or self.tensors.constants[zero].dims:
            return zero
        values = self.tensors.values(zero)
        return zero if values is None else self.tensors.add(f"{zero}_channels", np.full(size, values))

    def _bias(self, node: onnx.NodeProto, codes: str, data: Codes, weight: Codes) -> str:
        step, scale = self.tensors.values(data.scale), self.tensors.values(weight.scale)
        stem = f"{node.name or node.output[0]}_bias"
        if step is None or scale is None:
            message = f"the scales of {node.name!r} are computed: expected constants, which Q/DQ pairs need"
            raise CapabilityError(message)
        product = np.asarray(step * scale, np.float32)
        name = self.tensors.add(f"{stem}_scale", product)
        zero = self.tensors.add(f"{stem}_zero", np.zeros(product.shape, np.int32))
        return self._dequantize(Codes(codes, name, zero, 0 if product.ndim else None))

    def _dequantize(self, codes: Codes) -> str:
        if codes in self.seen:
            return self.seen[codes]
        target = self.tensors.fresh(f"{codes.name}_dq")
        names = [codes.name, codes.scale, *([codes.zero] if codes.zero else [])]
        node = helper.make_node("DequantizeLinear", names, [target], self.tensors.fresh(f"{target}_node"))
        if codes.axis is not None:
            node.attribute.append(helper.make_attribute("axis", codes.axis))
        self.nodes.append(node)
        self.seen[codes] = target
        return target

    def _quantize(self, source: str, codes: str, scale: str, zero: str) -> None:
        name = self.tensors.fresh(f"{codes}_node")
        self.nodes.append(helper.make_node("QuantizeLinear", [source, scale, zero], [codes], name))
        self._note(Codes(codes, scale, zero))

    def _float(self, node: onnx.NodeProto, kind: str, inputs: list[str], output: Sequence[str]) -> None:
        """Append the standard operator, and QuantizeLinear behind it where `output` names a scale and a zero point."""
        target = self.tensors.fresh(f"{node.output[0]}_float") if output else node.output[0]
        copy = helper.make_node(kind, inputs, [target], node.name)
        copy.attribute.extend(item for item in node.attribute if item.name not in _OWN_ATTRIBUTES)
        self.nodes.append(copy)
        if output:
            self._quantize(target, node.output[0], self._scalar(output[0]), self._scalar(output[1]))
