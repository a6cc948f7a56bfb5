"""Every way to run an op in low precision that needs no range of its own: dynamic, weight-only and cast; and 16-bit activations.

| op | form | runtime's kernel |
|---|---|---|
| MatMul, Gemm with a constant B | dynamic, int8 weights | DynamicQuantizeMatMul, MatMulIntegerToFloat: BERT-base x2.8, MLP x3.0 at batch 1; with AMX x3.7 and x3.4 |
| the same, of an input of two axes | per_tensor first | x3.4 against x3.24 with a scale per column; of three axes (BERT) they are equally fast, and per_channel is first |
| LSTM with constant weights | dynamic, int8 weights, per_tensor first | DynamicQuantizeLSTM: x3.1; with AMX x8.3, per_channel x7.5 |
| Conv | dynamic, int8 weights | ConvInteger: x0.48 on MobileNet, so only for a user who asks |
| MatMul, Gemm with a constant matrix B | weight-only, 4 or 8 bits in blocks | MatMulNBits: BERT-base x1.66 (8 bits), x1.57 (4 bits, blocks of 128), x1.20 (blocks of 32) |
| Gather of a constant table | weight-only, int8 | Gather of codes, then DequantizeLinear: size |
| the same | weight-only, 4 bits in blocks, on request | GatherBlockQuantized: half of that size |
| Conv, MatMul, Gemm | cast to fp16 or bf16 | only where a trial shows that the runtime computes in it |

Measured with onnxruntime 1.31 on x86 with VNNI, one thread (x = float time over low-precision time of the whole model).
"""

from __future__ import annotations

from dataclasses import dataclass

from neural_tune.errors import CapabilityError
from neural_tune.values import DType, Granularity, Mode, Observer, OpConfig, QuantSpec
from neural_tune_onnxruntime import nbits, precisions
from neural_tune_onnxruntime.graph import FLOAT32, Graph, Op
from neural_tune_onnxruntime.model import OnnxModel

# DynamicQuantizeLinear and MatMulInteger.
_DYNAMIC_OPSET = 11
# Smaller tables are positions or classes: nothing to save.
_TABLE_ELEMENTS = 4096
GROUP_SIZES = (128, 64, 32)
_FAST_GROUP = 128
_WEIGHT_OBSERVERS = (Observer.GPTQ, Observer.MSE, Observer.MINMAX)
_FOUR_BITS = (DType.INT4, DType.UINT4)
# Nothing is multiplied, so there are no inputs that GPTQ could look at.
_TABLE_OBSERVERS = (Observer.MSE, Observer.MINMAX)
SLOW_CONV = "ConvInteger is slower than float (x0.48 on MobileNet)"
FLOAT_16 = "16-bit activations have no integer kernel on the CPU: it computes them in float, with conversions around"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forms:
    """What is on offer for one op, best first.

    Attributes:
        dynamic: Activations quantized at run time.
        weight_only: Weights quantized, activations in float.
        cast: Both in a smaller float format.
        slow: What runs, but costs time or accuracy: for a user who asks.
        why: Reason for what is missing.
    """

    dynamic: tuple[OpConfig, ...] = ()
    weight_only: tuple[OpConfig, ...] = ()
    cast: tuple[OpConfig, ...] = ()
    slow: tuple[OpConfig, ...] = ()
    why: str = ""


def offered(op: Op, model: OnnxModel) -> Forms:
    """Return the forms of `op` on the installed runtime."""
    if _is_quantized_already(op, model.graph):
        return Forms(why="the source model already quantizes it")
    if op.type in ("MatMul", "Gemm"):
        return _product_forms(op, model)
    if op.type == "LSTM":
        why = lstm_refusal(op, model)
        # x8.3 against x7.5 with a scale per gate unit (two layers of 512, batch 1), x5.3 against x5.0 at batch 8.
        return Forms(why=why) if why else Forms(dynamic=_dynamic_configs(model, per_channel=True, coarse_first=True))
    if op.type == "Gather":
        why = table_refusal(op, model)
        return Forms(why=why) if why else Forms(weight_only=_table_configs(), slow=_table_blocks(op, model))
    if op.type == "Conv":
        why = conv_refusal(op, model)
        slow = () if why else _dynamic_configs(model, per_channel=False)
        return Forms(slow=slow, cast=_casts(op), why=why or f"{SLOW_CONV}: only for a rule that asks for it")
    return Forms()


def refusal(op: Op, model: OnnxModel, config: OpConfig) -> str:
    """Return why the runtime cannot run `op` in `config`, which is not static; "" when it can."""
    if _is_quantized_already(op, model.graph):
        return "the source model already quantizes it"
    if config.output is not None:
        return f"a {config.mode.value} op hands out float: expected no output spec"
    if config.mode is Mode.DYNAMIC:
        return _dynamic_refusal(op, model, config)
    if config.mode is Mode.WEIGHT_ONLY:
        return _weight_only_refusal(op, model, config)
    if config.mode is Mode.CAST:
        return _cast_refusal(op, config)
    return f"mode {config.mode.value}: expected static, dynamic, weight_only or cast"


def check(op: Op, model: OnnxModel, config: OpConfig) -> None:
    """Hold a candidate to what the runtime can do.

    Raises:
        CapabilityError: it cannot; the message names the op and the reason.
    """
    reason = refusal(op, model, config)
    if reason:
        message = f"op {op.name!r} cannot run as {config.describe()!r}: {reason}"
        raise CapabilityError(message)


def is_transposed(op: Op) -> bool:
    """Return whether the constant of a Gemm holds one row per output."""
    return op.type == "Gemm" and bool(op.attribute("transB", 0))


def product_refusal(op: Op, model: OnnxModel) -> str:
    """Return why `op` is no product of an activation with a constant; "" when it is one."""
    graph = model.graph
    left, right = op.input(0), op.input(1)
    if op.type not in ("MatMul", "Gemm"):
        return "it is no product"
    if left in graph.constants or graph.elem_types.get(left, FLOAT32) != FLOAT32:
        return "the left operand is no float32 activation"
    if right not in graph.constants or graph.constants[right].elem_type != FLOAT32:
        return "the right operand is no float32 constant"
    if len(graph.constants[right].shape) < 2 or graph.ranks.get(left, 2) < 2 or not graph.constants[right].size:
        return "a product with a vector"
    if op.type == "Gemm":
        if op.attribute("transA", 0):
            return "the left operand is transposed"
        if op.attribute("alpha", 1.0) != 1.0 or (op.input(2) and op.attribute("beta", 1.0) != 1.0):
            return "alpha or beta is not 1, on an operand that is no constant"
        if graph.elem_types.get(op.input(2), FLOAT32) != FLOAT32:
            return "C is no float32 tensor"
    return ""


def lstm_refusal(op: Op, model: OnnxModel) -> str:
    """Return why DynamicQuantizeLSTM cannot stand for `op`; "" when it can."""
    constants = [model.graph.constants.get(op.input(position)) for position in (1, 2)]
    if any(item is None or item.elem_type != FLOAT32 or len(item.shape) != 3 for item in constants):
        return "LSTM: W and R must be float32 constants"
    if op.attribute("layout", 0):
        return "LSTM with the batch axis first: DynamicQuantizeLSTM knows only the time axis first"
    return _old_opset(model)


def table_refusal(op: Op, model: OnnxModel) -> str:
    """Return why codes cannot stand for the table of a Gather; "" when they can."""
    table = model.graph.constants.get(op.input(0))
    if table is None or table.elem_type != FLOAT32:
        return "Gather: its table is no float32 constant"
    if op.input(1) in model.graph.constants:
        return "Gather: of constants only"
    if len(table.shape) != 2 or op.attribute("axis", 0) not in (0, -2):
        return "Gather: not rows of a matrix"
    if table.size < _TABLE_ELEMENTS:
        return "Gather: a small table, nothing to save"
    return "" if model.takes_axis else _opset_words(model)


def conv_refusal(op: Op, model: OnnxModel) -> str:
    """Return why ConvInteger cannot stand for `op`; "" when it can."""
    weight = model.graph.constants.get(op.input(1))
    if weight is None or weight.elem_type != FLOAT32:
        return "the weight is no float32 constant"
    if op.input(0) in model.graph.constants or model.graph.elem_types.get(op.input(0), FLOAT32) != FLOAT32:
        return "the input is no float32 activation"
    bias = op.input(2)
    if bias and (bias not in model.graph.constants or model.graph.constants[bias].elem_type != FLOAT32):
        return "the bias is no float32 constant"
    return _old_opset(model)


def weight_rank(op: Op, model: OnnxModel) -> int:
    """Return the number of axes of the constant operand of a product."""
    return len(model.graph.constants[op.input(1)].shape)


def rows_and_columns(op: Op, model: OnnxModel) -> tuple[int, int]:
    """Return K and N of a product with a constant matrix."""
    shape = model.graph.constants[op.input(1)].shape
    return (shape[1], shape[0]) if is_transposed(op) else (shape[-2], shape[-1])


def _is_quantized_already(op: Op, graph: Graph) -> bool:
    writers = map(graph.producers.get, op.inputs)
    return any(writer is not None and writer.type == "DequantizeLinear" for writer in writers)


def _old_opset(model: OnnxModel) -> str:
    return _opset_words(model) if model.opset < _DYNAMIC_OPSET else ""


def _opset_words(model: OnnxModel) -> str:
    return f"opset {model.opset} is too old for it, and the model could not be converted to a newer one"


def _product_forms(op: Op, model: OnnxModel) -> Forms:
    why = product_refusal(op, model) or _old_opset(model)
    if why:
        return Forms(why=why)
    per_channel = weight_rank(op, model) == 2 and model.takes_axis
    dynamic = _dynamic_configs(model, per_channel=per_channel, coarse_first=_is_vector_wise(op, model))
    if weight_rank(op, model) > 2:
        return Forms(dynamic=dynamic, why="a constant of three or more axes: no blocks, and one scale only")
    fast, slow = _block_configs(op, model)
    why = "" if model.has_data else "GPTQ needs calibration data, and none is given"
    return Forms(dynamic=dynamic, weight_only=fast, cast=_casts(op), slow=slow, why=why)


def _is_vector_wise(op: Op, model: OnnxModel) -> bool:
    """Return whether an input is one vector per sample, as in a perceptron.

    At batch 1 a scale per column then costs 4 % of the time (2 % at batch 8), and gains nothing: on four trained perceptrons (digits, keywords, CIFAR-10,
    a medical table) the relative error of the outputs is 0.0034, 0.0063, 0.0055, 0.0106 with it and 0.0043, 0.0065, 0.0055, 0.0097 without,
    because the activations have one range anyway; both are within one sample in 300 of the float accuracy.
    """
    return op.type == "Gemm" or model.graph.ranks.get(op.input(0)) == 2


def _dynamic_configs(model: OnnxModel, *, per_channel: bool, coarse_first: bool = False) -> tuple[OpConfig, ...]:
    activation = QuantSpec(dtype=DType.UINT8, symmetric=False)
    scopes = (Granularity.PER_CHANNEL, Granularity.PER_TENSOR) if per_channel else (Granularity.PER_TENSOR,)
    scopes = scopes[::-1] if coarse_first else scopes
    weights = (QuantSpec(dtype=DType.INT8, granularity=s, reduce_range=model.processor.saturates) for s in scopes)
    return tuple(OpConfig(mode=Mode.DYNAMIC, activation=activation, weight=weight) for weight in weights)


def _table_configs() -> tuple[OpConfig, ...]:
    scopes = (Granularity.PER_CHANNEL, Granularity.PER_TENSOR)
    specs = (QuantSpec(dtype=DType.INT8, granularity=scope) for scope in scopes)
    return tuple(OpConfig(mode=Mode.WEIGHT_ONLY, weight=spec) for spec in specs)


def _table_blocks(op: Op, model: OnnxModel) -> tuple[OpConfig, ...]:
    """Return the forms of a table in blocks of 4 bits, the accurate ones first."""
    configs = [
        block_config(dtype, size, observer, 0)
        for size in reversed(GROUP_SIZES)
        for dtype in _FOUR_BITS
        for observer in _TABLE_OBSERVERS
    ]
    return tuple(config for config in configs if not _weight_only_refusal(op, model, config))


def _block_configs(op: Op, model: OnnxModel) -> tuple[tuple[OpConfig, ...], tuple[OpConfig, ...]]:
    """Return the configs worth searching, and all others that run.

    8 bits first: they are faster than 4 on this kernel, and lose next to nothing. Of 4 bits the large block is the fast one, the small
    block the accurate one.
    """
    rows, _ = rows_and_columns(op, model)
    sizes = [size for size in GROUP_SIZES if size <= rows] or [GROUP_SIZES[-1]]
    observers = [item for item in _WEIGHT_OBSERVERS if item is not Observer.GPTQ or model.has_data]
    level = model.accuracy_level
    fast = [block_config(DType.INT8, sizes[0], Observer.MINMAX, level)]
    fast += [
        block_config(DType.INT4, size, observer, level) for size in (sizes[0], sizes[-1]) for observer in observers
    ]
    every = [
        block_config(dtype, size, observer, other)
        for other in (level, 0 if level else 4)
        for dtype in (DType.INT8, DType.UINT8, DType.INT4, DType.UINT4)
        for size in sizes
        for observer in observers
    ]
    fast = list(dict.fromkeys(fast))
    return tuple(fast), tuple(config for config in every if config not in fast)


def block_config(dtype: DType, size: int, observer: Observer, accuracy_level: int) -> OpConfig:
    """Return the config of a product with weights in blocks; with accuracy level 4 the kernel rounds activations to int8 per block."""
    activation = None
    if accuracy_level == 4:
        activation = QuantSpec(dtype=DType.INT8, granularity=Granularity.PER_GROUP, group_size=size)
    symmetric = dtype in (DType.INT4, DType.INT8)
    weight = QuantSpec(
        dtype=dtype, symmetric=symmetric, granularity=Granularity.PER_GROUP, group_size=size, observer=observer
    )
    return OpConfig(mode=Mode.WEIGHT_ONLY, activation=activation, weight=weight)


def _casts(op: Op) -> tuple[OpConfig, ...]:
    kinds = [kind for kind in precisions.KINDS if precisions.computes_in(op.type, kind)]
    return tuple(cast_config(kind) for kind in kinds)


def cast_config(kind: DType) -> OpConfig:
    """Return the config of an op whose inputs and weights are cast to `kind`."""
    return OpConfig(mode=Mode.CAST, activation=QuantSpec(dtype=kind), weight=QuantSpec(dtype=kind))


def _dynamic_refusal(op: Op, model: OnnxModel, config: OpConfig) -> str:
    rules = {"MatMul": product_refusal, "Gemm": product_refusal, "LSTM": lstm_refusal, "Conv": conv_refusal}
    if op.type not in rules:
        return "it has no dynamic kernel"
    reason = rules[op.type](op, model) or _old_opset(model)
    if reason:
        return reason
    activation, weight = config.activation, config.weight
    if activation is None or weight is None:
        return "a dynamic op needs an activation spec and a weight spec"
    if (activation.dtype, activation.symmetric, activation.granularity) != (DType.UINT8, False, Granularity.PER_TENSOR):
        return "the runtime quantizes dynamic activations as uint8, asymmetric, per_tensor"
    if weight.dtype is not DType.INT8 or not weight.symmetric or weight.observer is not Observer.MINMAX:
        return "weights of dynamic ops are int8, symmetric, minmax (uint8 weights cost a factor 1.9)"
    if weight.granularity is Granularity.PER_TENSOR:
        return ""
    if weight.granularity is Granularity.PER_GROUP or weight.axis is not None:
        return "weights of dynamic ops are per_tensor or per_channel along the op's own axis"
    if op.type == "Conv" or (op.type in ("MatMul", "Gemm") and weight_rank(op, model) != 2):
        return "its weight is quantized per_tensor only"
    return "" if model.takes_axis else f"opset {model.opset}: per_tensor only"


def _weight_only_refusal(op: Op, model: OnnxModel, config: OpConfig) -> str:
    weight = config.weight
    if weight is None:
        return "a weight_only op needs a weight spec"
    if op.type == "Gather":
        return table_refusal(op, model) or _table_form_refusal(op, model, config.activation, weight)
    reason = product_refusal(op, model)
    if reason or weight_rank(op, model) != 2:
        return reason or "the constant is no matrix"
    return _block_refusal(config.activation, weight)


def _table_form_refusal(op: Op, model: OnnxModel, activation: QuantSpec | None, weight: QuantSpec) -> str:
    if activation is not None:
        return "a table has no activation to quantize"
    if weight.granularity is Granularity.PER_GROUP:
        width = model.graph.constants[op.input(0)].shape[1]
        if weight.dtype not in _FOUR_BITS or weight.observer not in _TABLE_OBSERVERS:
            return "blocks of a table are int4 or uint4, rounded by 'rtn' (minmax) or 'mse' (clipping)"
        if width % (weight.group_size or width + 1):
            return f"rows of {width} values are no whole number of blocks of {weight.group_size}"
        return _block_refusal(None, weight)
    if (weight.dtype, weight.symmetric) != (DType.INT8, True):
        return "a table is stored as int8, symmetric, or in blocks of 4 bits"
    return "" if weight.axis is None else "a table is quantized per_tensor or per_channel (a scale per column)"


def _block_refusal(activation: QuantSpec | None, weight: QuantSpec) -> str:
    size = weight.group_size or 0
    if (
        weight.granularity is not Granularity.PER_GROUP
        or weight.axis is not None
        or size not in (16, *GROUP_SIZES, 256)
    ):
        return "weights lie in blocks: per_group with group_size 16, 32, 64, 128 or 256"
    if weight.dtype not in nbits.BITS:
        return "blocks of weights are int4, uint4, int8 or uint8"
    if weight.symmetric != (weight.dtype in (DType.INT4, DType.INT8)):
        return "int4 and int8 blocks are symmetric, uint4 and uint8 blocks are not"
    if weight.observer not in _WEIGHT_OBSERVERS or weight.reduce_range:
        return "blocks are rounded by 'rtn' (minmax), 'mse' (clipping) or 'gptq', over the full range"
    expected = block_config(weight.dtype, size, weight.observer, 4).activation
    return "" if activation in (None, expected) else "activations are float, or int8 in the blocks of the weight"


def _cast_refusal(op: Op, config: OpConfig) -> str:
    activation, weight = config.activation, config.weight
    if activation is None or weight is None or activation != weight or activation.dtype not in precisions.KINDS:
        return "a cast needs the same spec, fp16 or bf16, for activation and weight"
    if op.type not in precisions.TYPES:
        return f"only {', '.join(precisions.TYPES)} are cast"
    if precisions.computes_in(op.type, activation.dtype):
        return ""
    return precisions.why_not(op.type, activation.dtype)
