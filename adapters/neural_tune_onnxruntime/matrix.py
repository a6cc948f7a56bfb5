"""The matrix op type x format as one table: which kernel runs, what was measured, or why the op stays float.

`kernels` decides about one op of one model (its weight may be no constant, its type no float32 ...); this table says what there is to decide
between, per op type. `tabulate` puts both together for a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from neural_tune.values import Mode, Role
from neural_tune_onnxruntime import capability, forms
from neural_tune_onnxruntime.model import OnnxModel

FORMATS: Mapping[str, Mode] = MappingProxyType(
    {"QDQ": Mode.STATIC, "QOperator": Mode.STATIC, "dynamic": Mode.DYNAMIC, "weight_only": Mode.WEIGHT_ONLY}
)
HEADER = ("op type", "ops", "role", *FORMATS, "measured or why")
_FLOAT = "float"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What an op type can become.

    Attributes:
        role: The part it plays; of an op whose form decides (a depthwise convolution), that of the usual form.
        qdq: The kernel that the runtime makes of the op between Q/DQ pairs; "" where it stays float.
        qoperator: What stands in the file in format QOperator; "" where it stays float.
        dynamic: The kernel that quantizes its input at run time; "" where there is none.
        weight_only: The kernel that dequantizes its weights as it goes; "" where there is none.
        measured: float time over int8 time, inside a region and (isolated) with a conversion at both ends; or why it stays float.
    """

    role: Role
    qdq: str = ""
    qoperator: str = ""
    dynamic: str = ""
    weight_only: str = ""
    measured: str = ""

    def kernel(self, quant_format: str) -> str:
        """Return the kernel in one of `FORMATS`, "" for float."""
        found = (self.qdq, self.qoperator, self.dynamic, self.weight_only)
        return found[list(FORMATS).index(quant_format)]


def _carrier(measured: str) -> Row:
    return Row(role=Role.PASS_THROUGH, qdq="same op on codes", qoperator="same op on codes", measured=measured)


def _folded(measured: str) -> Row:
    return Row(
        role=Role.PASS_THROUGH,
        qdq="saturation, or as it is",
        qoperator="saturation, or Clip on codes",
        measured=measured,
    )


def _companion(kernel: str, measured: str) -> Row:
    return Row(role=Role.COMPANION, qdq=kernel, qoperator=kernel, measured=measured)


def _never(why: str) -> Row:
    return Row(role=Role.NEVER, measured=why)


_NOT_FUSED = "not fused: conversions would be pure loss (x1.0, isolated 0.2 to 0.6)"
# What was measured: time of the op in float32 over its time in int8, with onnxruntime 1.31, all optimizations and one thread; medians of CPU time of runs in turns
# (good to about 3 %). Inside a region: tensors arrive and leave as codes, the two kernels alone are compared. Isolated: a QuantizeLinear before the op and a
# DequantizeLinear behind it count as well. "x3.99" is AMD Zen 4 with AVX512-VNNI, "AMX x1.9" an Intel Xeon with AMX. Figures "on MobileNet" or "on BERT" are
# those of whole models. Other processors, shapes and versions give other figures: these order the choices, the figures of a result are always measured anew.
ROWS: Mapping[str, Row] = MappingProxyType(
    {
        "Conv": Row(
            role=Role.ANCHOR,
            qdq="QLinearConv",
            qoperator="QLinearConv",
            dynamic="ConvInteger",
            measured="3x3 x3.99, 1x1 x3.73, 1-D x4.28 (isolated 3.9, 3.1, 4.2); depthwise x0.74 keeps its region whole; grouped x0.69 only "
            "on request; in AMX tiles (`dispatch`) 3x3 x8.2, 1x1 x9.0; dynamic x0.48 on MobileNet, only on request",
        ),
        "Gemm": Row(
            role=Role.ANCHOR,
            qdq="QGemm",
            qoperator="QGemm",
            dynamic="DynamicQuantizeMatMul",
            weight_only="MatMulNBits",
            measured="x4.0 (isolated 3.8); dynamic x2.75",
        ),
        "MatMul": Row(
            role=Role.ANCHOR,
            qdq="QLinearMatMul or MatMulIntegerToFloat",
            qoperator="QLinearMatMul or MatMulIntegerToFloat",
            dynamic="DynamicQuantizeMatMul",
            weight_only="MatMulNBits",
            measured="constant operand x3.7 (isolated 3.4), dynamic x2.87 on BERT, 8 bit weights x1.66; two activations x1.24 (isolated 0.98), on request",
        ),
        "Add": _companion("QLinearAdd", "x1.0, AMX x1.9 (isolated 0.30, 0.41): only in a region"),
        "Mul": _companion("QLinearMul", "x0.75, AMX x1.2 (isolated 0.36): only between int8 ops"),
        "Sigmoid": _companion("QLinearSigmoid", "x1.3, AMX x1.3 (isolated 0.6, 0.5): only between int8 ops"),
        "LeakyRelu": _companion("QLinearLeakyRelu", "x0.67, AMX x0.84 (isolated 0.35): only between int8 ops"),
        "Concat": _companion("QLinearConcat", "x0.39, AMX x1.16 (isolated 0.42): only between int8 ops"),
        "GlobalAveragePool": _companion(
            "QLinearGlobalAveragePool", "x1.2, AMX x0.96 (isolated 0.3, 0.5): only in a region"
        ),
        "Resize": _companion(
            "same op on codes", "nearest x0.67, AMX x0.94 (isolated 0.58): only between int8 ops; others not fused"
        ),
        "Softmax": _companion("QLinearSoftmax", "x0.16, AMX x0.19: on request only"),
        "AveragePool": _companion("QLinearAveragePool", "x0.02, AMX x0.15: on request only"),
        "Where": _companion("QLinearWhere", "no gain: on request only"),
        "MaxPool": _carrier("free behind an int8 Conv (NhwcMaxPool); alone x0.02, AMX x0.06"),
        "Relu": _folded("free: the saturation of the op before it"),
        "Clip": _folded("free: the saturation of the op before it"),
        "Pad": _carrier("zeros only, on codes; AMX x0.89"),
        "Reshape": _carrier("x>1"),
        "Flatten": _carrier("x>1"),
        "Transpose": _carrier("x>1, AMX x3.1"),
        "Squeeze": _carrier("AMX x8.5"),
        "Unsqueeze": _carrier("as Squeeze"),
        "Slice": _carrier("x>1, AMX x2.0"),
        "Identity": _carrier("removed"),
        "Split": _carrier("AMX x2.9"),
        "Gather": Row(
            role=Role.PASS_THROUGH,
            qdq="same op on codes",
            qoperator="same op on codes",
            weight_only="Gather",
            measured="of activations AMX x2.2; a constant table has no arithmetic, codes save space only; blocks of 4 bits "
            "(GatherBlockQuantized) only on request",
        ),
        "GatherElements": _carrier("as Gather"),
        "Expand": _carrier("AMX x3.8"),
        "Tile": _carrier("AMX x4.3"),
        "DepthToSpace": _carrier("AMX x1.25"),
        "ReduceMax": _carrier("AMX x3.6"),
        "ReduceMin": _carrier("AMX x3.9"),
        "LSTM": Row(
            role=Role.NEVER, dynamic="DynamicQuantizeLSTM", measured="no static kernel (x0.98); dynamic x3.1 to x3.25"
        ),
        "GRU": _never("no int8 kernel"),
        **dict.fromkeys(
            ("com.microsoft.Attention", "com.microsoft.EmbedLayerNormalization"),
            _never(
                "fused before quantization; BERT in QAttention x2.82, in dynamic products of the graph as exported x2.87"
            ),
        ),
        "ConvTranspose": _never(_NOT_FUSED),
        "BatchNormalization": _never(f"folded into the Conv or Gemm before it; elsewhere {_NOT_FUSED}"),
        "If": _never("its bodies stay in float: static quantization does not enter subgraphs"),
        "Loop": _never("its body stays in float: static quantization does not enter subgraphs"),
        "Scan": _never("its body stays in float: static quantization does not enter subgraphs"),
        **dict.fromkeys(
            (
                *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "Gelu", "Tanh", "HardSwish"),
                *("HardSigmoid", "Erf", "Sub", "Div", "Pow", "Sqrt", "ReduceMean", "PRelu", "Elu", "Exp", "Max", "Min"),
                *("Abs", "Neg", "SpaceToDepth", "TopK", "GatherND"),
            ),
            _never(_NOT_FUSED),
        ),
    }
)
_OTHER = Row(role=Role.NEVER, measured="no int8 kernel in ONNX Runtime")


def tabulate(model: OnnxModel) -> tuple[tuple[str, ...], ...]:
    """Return the matrix for `model`, the header first: one row per op type and part that its ops play, in order of appearance.

    A cell names the kernel, "float", or "on request: ..." where no search tries it.
    """
    asked = capability.query(model).ops
    found: dict[tuple[str, str, frozenset[Mode], frozenset[Mode], str], int] = {}
    for op, known in zip(model.graph.ops, asked, strict=True):
        others = forms.offered(op, model)
        slow = frozenset(config.mode for config in others.slow)
        offered = {config.mode for config in (*known.choices, *known.extra, *others.dynamic, *others.weight_only)}
        searched = {config.mode for config in (*known.choices, *others.dynamic, *others.weight_only)}
        key = (op.type, known.role.value, frozenset(offered | slow), frozenset(searched), known.why)
        found[key] = found.get(key, 0) + 1
    return (HEADER, *(_line(key, count) for key, count in found.items()))


def _line(key: tuple[str, str, frozenset[Mode], frozenset[Mode], str], count: int) -> tuple[str, ...]:
    kind, role, offered, searched, why = key
    row = ROWS.get(kind, _OTHER)
    cells = (_cell(row, name, mode, role, offered, searched) for name, mode in FORMATS.items())
    parts = {Role.PASS_THROUGH: (row.measured,), Role.NEVER: (why or row.measured,)}.get(
        Role(role), (why, row.measured)
    )
    return (kind, str(count), role, *cells, "; ".join(dict.fromkeys(part for part in parts if part)))


def _cell(row: Row, name: str, mode: Mode, role: str, offered: frozenset[Mode], searched: frozenset[Mode]) -> str:
    carried = mode is Mode.STATIC and role == Role.PASS_THROUGH
    if not carried and mode not in offered:
        return _FLOAT
    return row.kernel(name) if carried or mode in searched else f"on request: {row.kernel(name)}"
