"""The matrix op type x format: every cell is a kernel that computes what float64 says and the stock tool too, or float with a reason.

To add a format, add its builder to FORMATS and its cells to `matrix.ROWS`; to add an op type, add a row and a case.
"""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

from dataclasses import dataclass, field, replace

import emulation
import graphs
import numpy as np
import onnx
import onnxruntime
from graphs import ADAPTER, FLOAT, Tuned, graph_of, weights
from onnx import helper
from onnxruntime.quantization import QuantFormat

from neural_tune.values import Candidate, DType, Role
from neural_tune_onnxruntime import guard, kernels, matrix, model
from neural_tune_onnxruntime.rewrite import qoperator

STATIC = ("QDQ", "QOperator")


@dataclass(frozen=True)
class Case:
    """A model around one op, which is called "op" and whose result is called "y".

    Attributes:
        kind: Op type.
        model: The float model.
        asked: Whether only a user's request makes the op int8.
        differs: Format -> why the stock tool of the runtime writes other numbers than we do; everywhere else its model is equal bit for bit.
    """

    kind: str
    model: onnx.ModelProto
    asked: bool = False
    differs: dict[str, str] = field(default_factory=dict)


def ints(*values):
    return np.array(values, np.int64)


def anchor(kind, constants, shape, inputs=("x", "w", "b"), **attributes):
    names = [name for name in inputs if name in constants or name == "x"]
    node = helper.make_node(kind, names, ["y"], "op", **attributes)
    return graph_of([node], constants, {"x": shape})


def region(kind, sources=1, constants=None, results=("y",), order=None, opset=17, shape=(2, 4, 6, 6), **attributes):
    """Convolutions (or products) before the op and one behind it; all tensors between are outputs, so that each can be compared."""
    constants = dict(constants or {})
    found = weights(**{f"w{i}": (8, 4, 1, 1) for i in range(sources)})
    data = [f"c{i}" for i in range(sources)]
    nodes = [helper.make_node("Conv", ["x", f"w{i}"], [f"c{i}"], f"first{i}") for i in range(sources)]
    nodes.append(
        helper.make_node(kind, order(data) if order else [*data, *constants], list(results), "op", **attributes)
    )
    nodes += [helper.make_node("MatMul", [name, "m"], [f"{name}_read"], f"reader_{name}") for name in results]
    probe = graph_of(nodes[: -len(results)], found | constants, {"x": shape}, results, opset=opset)
    width = graphs.run(probe, graphs.batches(probe, 1)[0])[0].shape[-1]
    # Not the input of Relu or Clip: as an output it would have to keep what they cut off.
    every = [*(data if kind not in ("Relu", "Clip") else []), *results, *(f"{name}_read" for name in results)]
    return graph_of(nodes, found | constants | weights(3, m=(width, 4)), {"x": shape}, every, opset=opset)


LEFT_FLOAT = "stock leaves the op float"
OWN_RANGE = "stock gives the result a range of its own, we that of the input, which the kernel needs"
INPUT_RANGE = "stock gives the result the range of the input, we its own"
CASES = {
    "conv 3x3": Case("Conv", anchor("Conv", weights(w=(6, 4, 3, 3), b=(6,)), [2, 4, 9, 9], pads=[1, 1, 1, 1])),
    "conv 1x1": Case("Conv", anchor("Conv", weights(w=(6, 4, 1, 1)), [2, 4, 9, 9])),
    "conv strided, dilated": Case(
        "Conv", anchor("Conv", weights(w=(6, 4, 3, 3), b=(6,)), [2, 4, 11, 11], strides=[2, 2], dilations=[2, 1])
    ),
    "conv 1-D": Case("Conv", anchor("Conv", weights(w=(6, 4, 3), b=(6,)), [2, 4, 20])),
    "conv 3-D": Case("Conv", anchor("Conv", weights(w=(6, 4, 3, 3, 3), b=(6,)), [2, 4, 5, 5, 5])),
    "conv depthwise": Case("Conv", anchor("Conv", weights(w=(8, 1, 3, 3), b=(8,)), [2, 8, 9, 9], group=8)),
    "conv grouped": Case("Conv", anchor("Conv", weights(w=(8, 4, 3, 3), b=(8,)), [2, 8, 9, 9], group=2), asked=True),
    "gemm": Case("Gemm", anchor("Gemm", weights(w=(16, 12), b=(12,)), [5, 16])),
    "gemm transposed": Case("Gemm", anchor("Gemm", weights(w=(12, 16), b=(12,)), [5, 16], transB=1)),
    "gemm without bias": Case("Gemm", anchor("Gemm", weights(w=(16, 12)), [5, 16])),
    "matmul": Case("MatMul", anchor("MatMul", weights(w=(16, 12)), [5, 16])),
    "matmul of three axes": Case("MatMul", anchor("MatMul", weights(w=(16, 12)), [2, 5, 16])),
    "matmul of two activations": Case("MatMul", region("MatMul", 2), asked=True),
    "add": Case("Add", region("Add", 2)),
    "mul": Case("Mul", region("Mul", 2)),
    "sigmoid": Case("Sigmoid", region("Sigmoid")),
    "leaky relu": Case("LeakyRelu", region("LeakyRelu", alpha=0.2)),
    "concat": Case("Concat", region("Concat", 2, axis=1)),
    "global average": Case("GlobalAveragePool", region("GlobalAveragePool")),
    "resize nearest": Case(
        "Resize",
        region("Resize", constants={"s": np.array([1, 1, 2, 2], np.float32)}, order=lambda data: [*data, "", "s"]),
    ),
    "softmax": Case(
        "Softmax",
        region("Softmax", axis=-1),
        asked=True,
        differs={"QOperator": "stock takes the scale 1/256, which cannot say 1"},
    ),
    "average pool": Case(
        "AveragePool", region("AveragePool", kernel_shape=[2, 2]), asked=True, differs={"QDQ": INPUT_RANGE}
    ),
    "average pool of zeros": Case(
        "AveragePool",
        region("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        asked=True,
        differs={"QDQ": INPUT_RANGE},
    ),
    "where": Case(
        "Where",
        region("Where", 2, {"mask": np.arange(6) % 2 == 0}, order=lambda data: ["mask", *data]),
        asked=True,
        differs={"QOperator": LEFT_FLOAT},
    ),
    "max pool": Case("MaxPool", region("MaxPool", kernel_shape=[2, 2], strides=[2, 2])),
    "relu": Case("Relu", region("Relu")),
    "clip": Case("Clip", region("Clip", constants={"lo": np.float32(-0.3), "hi": np.float32(0.4)})),
    "pad": Case("Pad", region("Pad", constants={"p": ints(0, 0, 1, 1, 0, 0, 1, 1)})),
    "reshape": Case("Reshape", region("Reshape", constants={"s": ints(2, 8, -1)})),
    "flatten": Case("Flatten", region("Flatten")),
    "transpose": Case("Transpose", region("Transpose", perm=[0, 2, 3, 1])),
    "squeeze": Case("Squeeze", region("Squeeze", constants={"a": ints(0)}, shape=(1, 4, 6, 6))),
    "unsqueeze": Case("Unsqueeze", region("Unsqueeze", constants={"a": ints(1)})),
    "slice": Case("Slice", region("Slice", constants={"a": ints(1), "b": ints(5), "c": ints(1)})),
    "identity": Case("Identity", region("Identity")),
    "split": Case("Split", region("Split", results=("y", "z"), opset=18, axis=1, num_outputs=2)),
    "gather": Case("Gather", region("Gather", constants={"i": ints(3, 1, 1)}, axis=1)),
    "gather elements": Case(
        "GatherElements",
        region("GatherElements", constants={"i": np.ones((2, 3, 6, 6), np.int64)}, axis=1),
        differs={"QOperator": LEFT_FLOAT},
    ),
    "expand": Case("Expand", region("Expand", constants={"s": ints(3, 2, 8, 6, 6)})),
    "tile": Case("Tile", region("Tile", constants={"r": ints(1, 2, 1, 1)})),
    "depth to space": Case("DepthToSpace", region("DepthToSpace", blocksize=2)),
    "reduce max": Case(
        "ReduceMax",
        region("ReduceMax", constants={"a": ints(1)}, opset=18),
        differs={"QDQ": OWN_RANGE, "QOperator": LEFT_FLOAT},
    ),
    "reduce min": Case(
        "ReduceMin",
        region("ReduceMin", constants={"a": ints(1)}, opset=18),
        differs={"QDQ": OWN_RANGE, "QOperator": LEFT_FLOAT},
    ),
}


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request, tmp_path_factory):
    found = CASES[request.param]
    folder = tmp_path_factory.mktemp("case")
    return found, Tuned(found.model, graphs.batches(found.model), folder), folder


def candidate_of(case, tuned, dtype=None):
    """Full int8, the op itself by request where no search would try it."""
    candidate = tuned.space.preferred()
    op = next(op for op in tuned.capability.ops if op.name == "op")
    if case.asked:
        assert len(op.choices) == 1, "a search would try it: the case is wrong"
        candidate = candidate.with_ops({"op": op.extra[0]})
    if dtype is None:
        return candidate
    signed = {name: replace(config.activation, dtype=dtype) for name, config in candidate.ops.items()}
    return Candidate.of(
        {
            name: replace(config, activation=signed[name], output=signed[name] if config.output else None)
            for name, config in candidate.ops.items()
        }
    )


def saved(tuned, candidate, quant_format, folder):
    hold = replace(tuned.hold, quant_format=quant_format)
    return ADAPTER.save(ADAPTER.build(hold, candidate, tuned.statistics, 1), folder / quant_format)


def outputs(path, feed):
    session = graphs.session_of(path)
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, feed), strict=True))


@pytest.mark.parametrize("dtype", [DType.UINT8, DType.INT8])
def test_cell_is_within_one_step_of_float64_in_both_static_formats(case, dtype):
    found, tuned, folder = case
    candidate = candidate_of(found, tuned, dtype)
    paths = {name: saved(tuned, candidate, name, folder) for name in STATIC}
    literal = onnx.load(str(paths["QDQ"]))
    (feed,) = graphs.batches(found.model, 1, seed=77)
    produced = {name: outputs(path, feed) for name, path in paths.items()}
    for name, values in produced.items():
        steps = emulation.differences(literal, feed, values)
        assert steps.keys() == values.keys()
        for tensor, distance in steps.items():
            assert distance.max() < 1.01, f"{name}: {tensor}"
            if found.kind != "Softmax":  # QLinearSoftmax rounds its table: one result in seven is a step off
                assert (distance > 0.01).mean() < 0.02, f"{name}: {tensor}"
    if dtype is DType.UINT8:  # in int8 the runtime leaves some Q/DQ patterns unfused, which rounds in other places
        for tensor, values in produced["QDQ"].items():
            np.testing.assert_array_equal(produced["QOperator"][tensor], values, err_msg=tensor)


def test_cell_is_the_kernel_that_the_matrix_names(case):
    found, tuned, folder = case
    candidate = candidate_of(found, tuned)
    row = matrix.ROWS[found.kind]
    outcome = next(op for op in tuned.build(candidate).report.ops if op.name == "op")
    assert not outcome.is_float, outcome.reason
    paths = {name: saved(tuned, candidate, name, folder) for name in STATIC}
    written = [node.op_type for node in onnx.load(str(paths["QOperator"])).graph.node if node.name == "op"]
    fused = fused_types(paths["QDQ"], folder)
    if row.role in (Role.ANCHOR, Role.COMPANION) and row.qdq != "same op on codes":
        assert written[0] in row.qoperator.split(" or ")
        assert set(row.qdq.split(" or ")) & set(fused)
    elif found.kind not in ("Relu", "Clip"):
        assert written == [found.kind]
    if found.kind != "Identity":  # removed, which leaves the pair of codes behind the graph output c0
        fusion = guard.count_fusions(paths["QDQ"])
        assert (fusion.unfused, fusion.lost) == (0, 0)


def fused_types(path, folder):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


@pytest.mark.parametrize("quant_format", STATIC)
def test_cell_equals_the_stock_tool(case, quant_format):
    found, tuned, folder = case
    # The stock tool quantizes the results of all products.
    candidate = Candidate.of(
        {name: replace(config, output=config.activation) for name, config in candidate_of(found, tuned).ops.items()}
    )
    built = tuned.build(candidate)
    kept = [op.name for op in built.report.ops if op.is_float]
    types = sorted({op.type for op in built.report.ops if not op.is_float} | {"Relu", "Clip"})
    path = graphs.stock(
        tuned.float_model(folder),
        tuned.feeds,
        folder,
        op_types=types,
        exclude=kept,
        quant_format=QuantFormat.QDQ if quant_format == "QDQ" else QuantFormat.QOperator,
    )
    ours, theirs = outputs(saved(tuned, candidate, quant_format, folder), tuned.feeds[0]), outputs(path, tuned.feeds[0])
    if quant_format not in found.differs:
        for tensor, values in theirs.items():
            np.testing.assert_array_equal(ours[tensor], values, err_msg=tensor)
    else:
        step = (
            max(np.abs(ours[name]).max() for name in ("c0", "y")) / 64
        )  # of the wider range, seen from both sides of zero
        np.testing.assert_allclose(ours["y"], theirs["y"], atol=step)
    if quant_format == "QOperator":  # and back: their file as a Q/DQ graph computes the same
        back = qoperator.to_qdq(onnx.load(str(path)))
        onnx.checker.check_model(back, full_check=True)
        assert {item.domain for item in back.opset_import} == {""}
        for tensor, values in zip(theirs, graphs.run(back, tuned.feeds[0]), strict=True):
            np.testing.assert_array_equal(values, theirs[tensor], err_msg=tensor)


def test_files_are_clean_and_go_there_and_back(case):
    found, tuned, folder = case
    candidate = candidate_of(found, tuned)
    (feed,) = tuned.feeds[:1]
    qdq, qop = (onnx.load(str(saved(tuned, candidate, name, folder))) for name in STATIC)
    for proto in (qdq, qop):
        onnx.checker.check_model(proto)
    assert {item.domain for item in qdq.opset_import} == {""}, "a reader without contrib ops can load it"
    back = qoperator.to_qdq(qop)
    onnx.checker.check_model(back, full_check=True)
    assert {item.domain for item in back.opset_import} == {""}
    assert not any(node.domain for node in back.graph.node)
    for one, two in zip(graphs.run(back, feed), graphs.run(qdq, feed), strict=True):
        np.testing.assert_array_equal(one, two)


def unary(kind, shape=(2, 8, 6, 6), opset=20, **constants):
    attributes = {name: constants.pop(name) for name in list(constants) if not isinstance(constants[name], np.ndarray)}
    node = helper.make_node(kind, ["c", *constants], ["y"], "op", **attributes)
    conv = helper.make_node("Conv", ["x", "w"], ["c"], "first")
    return graph_of(
        [conv, node], weights(w=(shape[1], 4, 1, 1)) | constants, {"x": [shape[0], 4, *shape[2:]]}, opset=opset
    )


def binary(kind):
    nodes = [helper.make_node("Conv", ["x", f"w{i}"], [f"c{i}"], f"first{i}") for i in (0, 1)]
    nodes.append(helper.make_node(kind, ["c0", "c1"], ["y"], "op"))
    return graph_of(nodes, weights(w0=(8, 4, 1, 1), w1=(8, 4, 1, 1)), {"x": [2, 4, 6, 6]})


def body(kind):
    def part(name):
        value = helper.make_tensor_value_info(name, FLOAT, None)
        return helper.make_graph([helper.make_node("Neg", ["c"], [name])], name, [], [value])

    conv = helper.make_node("Conv", ["x", "w"], ["c"], "first")
    node = helper.make_node(kind, ["yes"], ["y"], "op", then_branch=part("t"), else_branch=part("e"))
    return graph_of([conv, node], weights(w=(8, 4, 1, 1)) | {"yes": np.array(True)}, {"x": [2, 4, 6, 6]})


def loop():
    state = helper.make_tensor_value_info("s", FLOAT, None)
    inputs = [
        helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
        helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
        state,
    ]
    nodes = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Conv", ["s", "v"], ["t"])]
    results = [
        helper.make_tensor_value_info("on", onnx.TensorProto.BOOL, []),
        helper.make_tensor_value_info("t", FLOAT, None),
    ]
    graph = helper.make_graph(nodes, "body", inputs, results)
    made = [
        helper.make_node("Conv", ["x", "w"], ["c"], "first"),
        helper.make_node("Loop", ["n", "yes", "c"], ["y"], "op", body=graph),
    ]
    return graph_of(
        made, weights(w=(8, 4, 1, 1), v=(8, 8, 1, 1)) | {"n": np.array(2), "yes": np.array(True)}, {"x": [2, 4, 6, 6]}
    )


def recurrent(kind, gates):
    node = helper.make_node(kind, ["x", "w", "r"], ["y"], "op", hidden_size=8)
    return graph_of([node], weights(w=(1, gates * 8, 6), r=(1, gates * 8, 8)), {"x": [5, 2, 6]})


EIGHT = np.ones(8, np.float32)
FLOATS = {
    "ConvTranspose": unary("ConvTranspose", k=weights(k=(8, 4, 3, 3))["k"]),
    "BatchNormalization": graph_of(
        [helper.make_node("BatchNormalization", ["x", "s", "s", "s", "s"], ["y"], "op")],
        {"s": EIGHT},
        {"x": [2, 8, 6, 6]},
    ),
    "If": body("If"),
    "Loop": loop(),
    "LSTM": recurrent("LSTM", 4),
    "GRU": recurrent("GRU", 3),
    "LayerNormalization": unary("LayerNormalization", s=np.ones(6, np.float32)),
    "InstanceNormalization": unary("InstanceNormalization", s=EIGHT, b=EIGHT),
    "ReduceMean": unary("ReduceMean", a=ints(1)),
    "PRelu": unary("PRelu", s=np.full((8, 1, 1), 0.1, np.float32)),
    "SpaceToDepth": unary("SpaceToDepth", blocksize=2),
    "GatherND": unary("GatherND", i=ints([0, 1])),
    "Resize": unary("Resize", r=np.zeros(0, np.float32), s=np.array([1, 1, 2, 2], np.float32), mode="linear"),
    **{
        kind: unary(kind)
        for kind in ("Gelu", "Tanh", "HardSwish", "HardSigmoid", "Erf", "Sqrt", "Elu", "Exp", "Abs", "Neg")
    },
    **{kind: binary(kind) for kind in ("Sub", "Div", "Pow", "Max", "Min")},
}


@pytest.mark.parametrize("kind", sorted(FLOATS))
def test_float_cell_stays_float_and_says_why(kind, tmp_path):
    source = FLOATS[kind]
    hold = model.load(source, processor=graphs.VNNI)
    kernel = hold.kernels["op"]
    assert kernel.role is Role.NEVER
    assert kernel.why
    if kind != "Resize":  # by its mode
        assert matrix.ROWS[kind].role is Role.NEVER
    feeds = graphs.batches(source)
    if kind in ("Sqrt", "Pow", "LSTM", "GRU"):  # NaN of negative values; no anchor
        return
    tuned = Tuned(source, feeds, tmp_path)
    outcome = next(op for op in tuned.build().report.ops if op.name == "op")
    assert outcome.is_float
    assert outcome.reason


def test_every_row_of_the_matrix_is_a_case_or_a_documented_float():
    static = {kind for kind, row in matrix.ROWS.items() if row.qdq}
    assert static == {case.kind for case in CASES.values()}
    assert static == {kind for kind, row in matrix.ROWS.items() if row.qoperator}
    assert all(row.measured for row in matrix.ROWS.values())
    untried = {"Scan", "GroupNormalization", "TopK"}  # as Loop, as InstanceNormalization, as GatherND
    untried |= {kind for kind in matrix.ROWS if kind.startswith("com.microsoft.")}  # in test_stock_suite
    assert set(matrix.ROWS) - static - untried <= set(FLOATS)


def test_every_kernel_rule_has_a_row():
    assert set(kernels._TABLE) | set(kernels._WHY_NEVER) <= {*matrix.ROWS, "QuantizeLinear", "DequantizeLinear"}


def test_matrix_of_a_model_names_kernels_and_reasons():
    header, *rows = matrix.tabulate(model.load(graphs.residual_net(), processor=graphs.VNNI))
    assert header[:5] == ("op type", "ops", "role", "QDQ", "QOperator")
    found = {row[0]: row for row in rows}
    assert found["Conv"][1:5] == ("5", "anchor", "QLinearConv", "QLinearConv")
    assert found["Add"][3] == "QLinearAdd"
    _, *rows = matrix.tabulate(model.load(CASES["softmax"].model, processor=graphs.VNNI))
    (softmax,) = (row for row in rows if row[0] == "Softmax")
    assert softmax[3] == "on request: QLinearSoftmax"
    assert "five times slower" in softmax[-1]
    _, *rows = matrix.tabulate(model.load(FLOATS["Tanh"], processor=graphs.VNNI))
    (tanh,) = (row for row in rows if row[0] == "Tanh")
    assert tanh[3:5] == ("float", "float")
    assert "not fused" in tanh[-1]
