"""One form for every model: opset 13 or newer, hoisted constants, unique names, nothing left that a kernel cannot take.

Every step keeps the function that the model computes. Steps change the draft in place; the draft is our own copy.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import inliner, numpy_helper, version_converter
from onnx.helper import get_attribute_value

from neural_tune.errors import CapabilityError
from neural_tune_onnxruntime.graph import captured_names
from neural_tune_onnxruntime.session import newest_ir_version
from neural_tune_onnxruntime.source import Draft

logger = logging.getLogger(__name__)

# QuantizeLinear and DequantizeLinear take an axis from 13 on: before it, nothing can be quantized per channel.
OPSET = 13
_RANK_OF_FIRST = frozenset(
    (
        "Relu",
        "Clip",
        "LeakyRelu",
        "Sigmoid",
        "HardSwish",
        "BatchNormalization",
        "MaxPool",
        "AveragePool",
        "Pad",
        "Slice",
    )
)
_RANK_OF_LARGEST = frozenset(("Add", "Mul"))


def normalise(draft: Draft, outputs: tuple[str, ...] = ()) -> None:
    """Bring `draft` into the one form, in place.

    Args:
        draft: The model.
        outputs: Names of the outputs to keep; empty keeps all.

    Raises:
        CapabilityError: `outputs` names something that is no output.
    """
    _inline_functions(draft)
    _convert_opset(draft)
    _keep_outputs(draft, outputs)
    _hoist_constants(draft)
    _drop_identities(draft)
    _drop_dead(draft)
    _merge_biases(draft)
    _fold_batch_norms(draft)
    _fold_gemm_factors(draft)
    _pool_spatial_means(draft)
    _drop_dead(draft)
    _name_nodes(draft.model.graph)
    draft.model.ir_version = min(max(draft.model.ir_version, 7), newest_ir_version())


def _inline_functions(draft: Draft) -> None:
    if draft.model.functions:
        draft.model = inliner.inline_local_functions(draft.model)


def _convert_opset(draft: Draft) -> None:
    if draft.opset >= OPSET:
        return
    found = draft.opset
    # The converter copies the model through one message. Large tensors stay outside; it only has to see the small ones.
    large = [name for name in draft.tensors if not draft.is_small(name)]
    carrier = onnx.ModelProto()
    carrier.CopyFrom(draft.model)
    carrier.ir_version = max(carrier.ir_version, 7)
    carrier.graph.initializer.extend(draft.inline(name) for name in draft.tensors if draft.is_small(name))
    for name in large:
        kind = onnx.helper.make_tensor_type_proto(draft.elem_type(name), draft.shape(name))
        carrier.graph.input.append(onnx.helper.make_value_info(name, kind))
    try:
        converted = version_converter.convert_version(carrier, OPSET)
    except Exception as error:  # noqa: BLE001 - the converter raises whatever its C++ code throws, RuntimeError to bad casts
        reason = str(error).strip().split("\n", maxsplit=1)[0][:200]
        draft.notes.append(f"opset {found} could not be converted to {OPSET} ({reason}): weights per_tensor only")
        return
    draft.tensors = {name: draft.tensors[name] for name in large} | {t.name: t for t in converted.graph.initializer}
    del converted.graph.initializer[:]
    _keep(converted.graph.input, lambda value: value.name not in draft.tensors)
    draft.model = converted
    draft.notes.append(f"converted from opset {found} to {OPSET}")


def _keep_outputs(draft: Draft, outputs: tuple[str, ...]) -> None:
    if not outputs:
        return
    known = {value.name: value for value in draft.model.graph.output}
    unknown = [name for name in outputs if name not in known]
    if unknown:
        message = f"outputs: found {unknown}, expected names among {sorted(known)}"
        raise CapabilityError(message)
    chosen = [known[name] for name in outputs]
    kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in chosen]
    del draft.model.graph.output[:]
    draft.model.graph.output.extend(kept)


def _hoist_constants(draft: Draft) -> None:
    graph = draft.model.graph
    results = {value.name for value in graph.output}
    hoisted: set[str] = set()
    for node in graph.node:
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or node.output[0] in results:
            continue
        tensor = _constant_tensor(node)
        if tensor is not None:
            draft.tensors[node.output[0]] = tensor
            hoisted.add(node.output[0])
    _keep(graph.node, lambda node: not (node.op_type == "Constant" and node.output[0] in hoisted))


def _constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return the tensor of a Constant node; None for strings and sparse tensors, which no weight is."""
    name = node.output[0]
    kinds: dict[str, type[np.generic]] = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    for item in node.attribute:
        if item.name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(item.t)
            tensor.name = name
            return tensor
        if item.name in kinds:
            return numpy_helper.from_array(np.asarray(get_attribute_value(item), kinds[item.name]), name)
    return None


def _drop_identities(draft: Draft) -> None:
    """Let the readers of Identity(constant) read the constant: exporters share tied weights that way."""
    graph = draft.model.graph
    fixed = _fixed_names(graph)
    aliases: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Identity" and node.output[0] not in fixed:
            source = aliases.get(node.input[0], node.input[0])
            if source in draft.constant_names:
                aliases[node.output[0]] = source
    if aliases:
        _keep(graph.node, lambda node: not (node.op_type == "Identity" and node.output[0] in aliases))
        for node in graph.node:
            for position, name in enumerate(node.input):
                node.input[position] = aliases.get(name, name)


def _fold_batch_norms(draft: Draft) -> None:
    """Fold BatchNormalization into the Conv or Gemm before it (Jacob et al. 2018, section 3.2)."""
    graph = draft.model.graph
    readers = Counter(name for node in graph.node for name in node.input)
    fixed = _fixed_names(graph)
    producers = {name: node for node in graph.node for name in node.output}
    folded: set[str] = set()
    for norm in graph.node:
        conv = producers.get(norm.input[0]) if norm.op_type == "BatchNormalization" and norm.input else None
        if (
            conv is None
            or conv.op_type not in ("Conv", "Gemm")
            or readers[conv.output[0]] != 1
            or conv.output[0] in fixed
        ):
            continue
        if _can_fold(draft, conv, norm):
            _fold_batch_norm(draft, conv, norm)
            folded.add(norm.output[0])
    _keep(graph.node, lambda node: not (node.op_type == "BatchNormalization" and node.output[0] in folded))


def _can_fold(draft: Draft, conv: onnx.NodeProto, norm: onnx.NodeProto) -> bool:
    training = any(item.name == "training_mode" and item.i for item in norm.attribute)
    results = [name for name in norm.output if name]
    names = [*conv.input[1:], *norm.input[1:]]
    return (
        not training
        and len(results) == 1
        and all(name in draft.constant_names for name in names if name)
        and all(draft.elem_type(name) == onnx.TensorProto.FLOAT for name in names if name)
    )


def _fold_batch_norm(draft: Draft, conv: onnx.NodeProto, norm: onnx.NodeProto) -> None:
    gamma, beta, mean, variance = (draft.array(name).astype(np.float64) for name in norm.input[1:5])
    epsilon = next((item.f for item in norm.attribute if item.name == "epsilon"), 1e-5)
    factor = gamma / np.sqrt(variance + epsilon)
    weight = draft.array(conv.input[1]).astype(np.float64)
    bias = draft.array(conv.input[2]).astype(np.float64) if len(conv.input) > 2 and conv.input[2] else 0.0
    attributes = {item.name: item for item in conv.attribute}
    if "beta" in attributes:  # of a Gemm, on its bias
        bias, attributes["beta"].f = bias * attributes["beta"].f, 1.0
    columns = conv.op_type == "Gemm" and not ("transB" in attributes and attributes["transB"].i)
    shape = (-1,) if columns else (-1, *(1,) * (weight.ndim - 1))
    names = _add_folded(draft, conv.input[1], weight * factor.reshape(shape), "weight")
    bias_name = _add_folded(draft, f"{conv.input[1]}_bias", beta + (bias - mean) * factor, "bias")
    data, result = conv.input[0], norm.output[0]
    del conv.input[:], conv.output[:]
    conv.input.extend([data, names, bias_name])
    conv.output.append(result)


def _add_folded(draft: Draft, stem: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], what: str) -> str:
    name = draft.fresh(f"{stem}_folded_{what}")
    draft.arrays[name] = values.astype(np.float32)
    return name


def _merge_biases(draft: Draft) -> None:
    """Turn MatMul and the Add of a constant vector behind it into a Gemm, which keeps the MatMul's name.

    The runtime does it too, but behind DequantizeLinear: it then fuses the activation into a *float* Gemm that dequantizes its
    weights on every call. Only products of two matrices: with more axes the runtime keeps MatMul, and fuses it well.
    """
    graph = draft.model.graph
    readers = Counter(name for node in graph.node for name in node.input)
    consumers = {name: node for node in graph.node for name in node.input}
    ranks, fixed, merged = _ranks(draft), _fixed_names(graph), set()
    for node in graph.node:
        if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx"):
            continue
        result = node.output[0]
        add = consumers.get(result)
        if add is None or add.op_type != "Add" or readers[result] != 1 or result in fixed:
            continue
        bias = add.input[1] if add.input[0] == result else add.input[0]
        weight = node.input[1]
        constant = all(
            name in draft.constant_names and draft.elem_type(name) == onnx.TensorProto.FLOAT for name in (weight, bias)
        )
        if not constant or ranks.get(node.input[0]) != 2 or len(draft.shape(weight)) != 2:
            continue
        if tuple(draft.shape(bias)) not in {(draft.shape(weight)[1],), (1, draft.shape(weight)[1])}:
            continue
        node.op_type = "Gemm"
        node.input.append(bias)
        node.output[0] = add.output[0]
        merged.add(add.output[0])
    _keep(graph.node, lambda node: not (node.op_type == "Add" and node.output[0] in merged))


def _fold_gemm_factors(draft: Draft) -> None:
    """Multiply alpha into B and beta into C, where they are constants: the integer kernel knows neither."""
    for node in draft.model.graph.node:
        if node.op_type != "Gemm" or node.domain not in ("", "ai.onnx"):
            continue
        for attribute, position in (("alpha", 1), ("beta", 2)):
            factor = next((item for item in node.attribute if item.name == attribute), None)
            name = node.input[position] if position < len(node.input) else ""
            if factor is None or factor.f == 1.0:
                continue
            if not name and attribute == "beta":  # without C, beta multiplies nothing
                factor.f = 1.0
            elif name in draft.constant_names and draft.elem_type(name) == onnx.TensorProto.FLOAT:
                values = draft.array(name).astype(np.float64) * factor.f
                node.input[position] = _add_folded(draft, name, values, attribute)
                factor.f = 1.0


def _pool_spatial_means(draft: Draft) -> None:
    """Write a mean over all spatial axes as GlobalAveragePool, which has an integer kernel; ReduceMean has none.

    The exporters of torch and Keras write ReduceMean. CPU time, int8: DS-CNN with 16 words 894 -> 793 us (float 873 -> 837), ResNet-20
    with one image 466 -> 462 us (float 803 -> 792).

    Only what is a feature map for sure: float32 (the pool knows no other type here), with four axes or more, or with three where convolutions made it. A
    mean over the last of three axes is else that of a transformer, and a mean that is subtracted belongs to a normalization, which the runtime
    fuses only as ReduceMean.
    """
    nodes = list(draft.model.graph.node)
    ranks, maps = _ranks(draft), _feature_maps(draft)
    centred = {name for node in nodes if node.op_type == "Sub" for name in node.input}
    squares = {
        node.output[0]
        for node in nodes
        if node.op_type == "Pow" or (node.op_type == "Mul" and len(set(node.input)) == 1)
    }
    flattened: list[tuple[int, onnx.NodeProto]] = []
    for index, node in enumerate(nodes):
        if node.op_type != "ReduceMean" or node.domain not in ("", "ai.onnx"):
            continue
        rank = ranks.get(node.input[0], 0)
        source = node.input[0]
        if rank < 3 or source not in maps or (rank == 3 and not maps[source]):
            continue
        if source in squares or source in centred or node.output[0] in centred:
            continue
        if {axis % rank for axis in _reduced_axes(draft, node, rank)} != set(range(2, rank)):
            continue
        keeps = next((item.i for item in node.attribute if item.name == "keepdims"), 1)
        node.op_type = "GlobalAveragePool"
        del node.attribute[:], node.input[1:]
        if not keeps:
            result, pooled = node.output[0], draft.fresh(f"{node.output[0]}_pooled")
            node.output[0] = pooled
            flattened.append((index, onnx.helper.make_node("Flatten", [pooled], [result], f"{node.name}_flatten")))
    for index, node in reversed(flattened):
        draft.model.graph.node.insert(index + 1, node)


def _feature_maps(draft: Draft) -> dict[str, bool]:
    """Return the tensors that are float32 beyond doubt, before any inference -> whether nothing but convolutions and pixelwise ops made them."""
    graph = draft.model.graph
    maps: dict[str, bool] = {
        name: False for name in draft.constant_names if draft.elem_type(name) == onnx.TensorProto.FLOAT
    }
    values = [*graph.input, *graph.value_info]
    maps |= {value.name: False for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    for node in graph.node:
        if node.op_type == "Conv" and (node.input[1] in maps or node.input[0] in maps):
            maps[node.output[0]] = True
        elif node.op_type in _RANK_OF_FIRST and node.input[0] in maps:
            maps[node.output[0]] = maps[node.input[0]]
        elif node.op_type in _RANK_OF_LARGEST and any(name in maps for name in node.input):
            maps[node.output[0]] = any(maps.get(name, False) for name in node.input)
    return maps


def _reduced_axes(draft: Draft, node: onnx.NodeProto, rank: int) -> list[int]:
    """Return the axes of a ReduceMean; none where they are computed, or default to all."""
    if len(node.input) > 1 and node.input[1] in draft.constant_names:
        axes = [int(axis) for axis in draft.array(node.input[1]).reshape(-1)]
    else:
        axes = next((list(item.ints) for item in node.attribute if item.name == "axes"), [])
    return axes if all(-rank <= axis < rank for axis in axes) else []


def _ranks(draft: Draft) -> dict[str, int]:
    """Return the number of axes of the tensors where that is beyond doubt, before any shape inference."""
    graph = draft.model.graph
    ranks = {name: len(draft.shape(name)) for name in draft.constant_names}
    for value in (*graph.input, *graph.value_info):
        if value.type.tensor_type.HasField("shape"):
            ranks[value.name] = len(value.type.tensor_type.shape.dim)
    for node in graph.node:
        known = [ranks.get(name, 0) for name in node.input if name]
        if node.op_type == "Conv":
            found = known[1]
        elif node.op_type in ("Gemm", "Flatten") or (node.op_type == "MatMul" and known == [2, 2]):
            found = 2
        elif node.op_type in _RANK_OF_FIRST:
            found = known[0]
        elif node.op_type in _RANK_OF_LARGEST:
            found = max(known) if all(known) else 0
        else:
            continue
        if found:
            ranks.setdefault(node.output[0], found)
    return ranks


def _drop_dead(draft: Draft) -> None:
    """Drop nodes whose results nobody reads, and constants that are left over."""
    graph = draft.model.graph
    needed = {value.name for value in graph.output}
    alive: set[int] = set()
    for index in range(len(graph.node) - 1, -1, -1):
        node = graph.node[index]
        if any(name in needed for name in node.output):
            alive.add(index)
            needed.update(node.input)
            needed.update(captured_names(node))
    for index in range(len(graph.node) - 1, -1, -1):
        if index not in alive:
            del graph.node[index]
    draft.tensors = {name: tensor for name, tensor in draft.tensors.items() if name in needed}
    draft.arrays = {name: values for name, values in draft.arrays.items() if name in needed}
    known = {name for node in graph.node for name in node.output}
    _keep(graph.value_info, lambda value: value.name in known)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Name every node uniquely; a name that is unique already stays, because users address ops by it."""
    taken = Counter(node.name for node in graph.node if node.name)
    used: set[str] = {name for name, count in taken.items() if count == 1}
    for node in graph.node:
        if node.name and taken[node.name] == 1:
            continue
        stem = node.name or f"{node.op_type}_{next((name for name in node.output if name), 'node')}"
        name, number = stem, 1
        while name in used:
            number += 1
            name = f"{stem}_{number}"
        node.name = name
        used.add(name)


def _fixed_names(graph: onnx.GraphProto) -> frozenset[str]:
    captured = {name for node in graph.node for name in captured_names(node)}
    return frozenset(captured | {value.name for value in graph.output})


def _keep(field: Any, test: Callable[[Any], bool]) -> None:
    """Keep what passes `test` in a repeated protobuf field, in place."""
    for index in range(len(field) - 1, -1, -1):
        if not test(field[index]):
            del field[index]
