"""Calibration against numpy on all activations at once."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason='the adapter needs its framework: pip install "neural-tune[onnxruntime]"')

import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from neural_tune.errors import AdapterError, DataError
from neural_tune_onnxruntime.calibrate import chunks_of, collect
from neural_tune_onnxruntime.capability import OBSERVERS

TENSORS = ("conv", "relu", "flat", "product", "log")
FLOAT = TensorProto.FLOAT


def graph(outputs, *, with_shapes=True, mixed=False):
    """conv -> relu -> flatten -> matmul, and a log that overflows where the product is not positive; `mixed`: over the batch."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(6, 3, 3, 3)).astype(np.float32),
        "m": rng.normal(size=(6 * 6 * 6, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("Flatten", ["relu"], ["flat"]),
        helper.make_node("MatMul", ["flat", "m"], ["product"]),
        helper.make_node("Sigmoid", ["product"], ["squashed"]),
        helper.make_node("Softmax", ["squashed"], ["abs"], axis=0)
        if mixed
        else helper.make_node("Abs", ["product"], ["abs"]),
        helper.make_node("Log", ["abs"], ["log"]),
        helper.make_node("ArgMax", ["product"], ["best"], axis=1),
        helper.make_node("Cast", ["conv"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["conv"], ["double"], to=TensorProto.DOUBLE),
    ]
    types = {"best": TensorProto.INT64, "half": TensorProto.FLOAT16, "double": TensorProto.DOUBLE}
    shape = ["N", 3, 8, 8] if with_shapes else None
    body = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info(name, types.get(name, FLOAT), None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


class Sessions:
    """Makes sessions and remembers which outputs were asked for."""

    def __init__(self, **options):
        self.asked = []
        self.runs = []
        self.rows = []
        self._options = options

    def __call__(self, names):
        self.asked.append(tuple(names))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        model = graph(names, **self._options).SerializeToString()
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return _Recorded(session, tuple(names), self)


class _Recorded:
    def __init__(self, session, names, record):
        self._session, self._names, self._record = session, names, record
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs

    def run(self, names, feeds):
        self._record.runs.append(self._names)
        self._record.rows.append(len(feeds["x"]) if "x" in feeds else 0)
        return self._session.run(names, feeds)


def make_batches(sizes, seed=1):
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(scale=scale, size=(size, 3, 8, 8)).astype(np.float32)} for size, scale in sizes]


BATCHES = make_batches([(4, 1.0), (4, 0.1), (2, 8.0), (7, 1.0)])


def everything(name, batches=BATCHES):
    session = Sessions()([name])
    return np.concatenate([session.run(None, batch)[0] for batch in batches])


def same(first, second):
    for name in first.tensors:
        one, other = first.of(name), second.of(name)
        assert (one.minimum, one.maximum, one.count, one.zeros) == (
            other.minimum,
            other.maximum,
            other.count,
            other.zeros,
        )
        assert (one.histogram.exponent, one.histogram.start) == (other.histogram.exponent, other.histogram.start)
        assert np.array_equal(one.histogram.counts, other.histogram.counts)
    return True


@pytest.mark.parametrize("name", TENSORS)
def test_statistics_are_those_of_all_activations_at_once(name):
    found = collect(Sessions(), TENSORS, BATCHES).of(name)
    values = everything(name)
    assert (np.float32(found.minimum), np.float32(found.maximum)) == (values.min(), values.max())
    assert (found.count, found.zeros) == (values.size, int(np.sum(values == 0)))
    expected, _ = np.histogram(values.astype(np.float64), bins=found.histogram.edges)
    assert np.array_equal(found.histogram.counts, expected)


def test_a_batch_is_pulled_once_and_only_when_the_one_before_is_done():
    sessions = Sessions()
    pulled = []

    def stream():
        for number, batch in enumerate(BATCHES):
            assert len(sessions.runs) == number
            pulled.append(number)
            yield batch

    assert collect(sessions, TENSORS, stream()).batches == len(BATCHES)
    assert pulled == [0, 1, 2, 3]
    assert sessions.asked == [TENSORS]
    assert sessions.runs == [TENSORS] * 4


def test_the_order_of_the_batches_changes_no_range():
    assert same(collect(Sessions(), TENSORS, BATCHES), collect(Sessions(), TENSORS, BATCHES[::-1]))


LARGE = 6 * 6 * 6 * 4  # bytes per sample of each of conv, relu and flat


def test_above_the_budget_a_batch_is_run_in_parts_with_the_same_statistics():
    whole = collect(Sessions(), TENSORS, BATCHES)
    sessions = Sessions()
    parts = collect(sessions, TENSORS, BATCHES, memory_budget=3 * 3 * LARGE)
    assert close(whole, parts)
    assert sessions.asked == [TENSORS, ("log",), TENSORS]
    assert sessions.runs == [("log",)] * 3 + [TENSORS] * 9
    assert sessions.rows == [4, 2, 2, *[2, 2], *[2, 2], 2, *[2, 2, 2, 1]]


def close(first, second):
    """A product over fewer rows may be summed in another order: equal to float32 rounding, and no value is lost."""
    for name in first.tensors:
        one, other = first.of(name), second.of(name)
        assert (one.count, one.zeros, one.histogram.count) == (other.count, other.zeros, other.histogram.count)
        assert (other.minimum, other.maximum) == pytest.approx((one.minimum, one.maximum), rel=1e-4)
    return True


def test_a_model_that_mixes_samples_is_never_cut_but_run_for_some_tensors_at_a_time():
    whole = collect(Sessions(mixed=True), TENSORS, BATCHES[::-1])
    sessions = Sessions(mixed=True)
    budget = 2 * 7 * LARGE  # two of the three large activations of the largest batch
    chunks = collect(sessions, TENSORS, BATCHES[::-1], memory_budget=budget)
    assert same(whole, chunks)
    tried = [("log",)] * 3
    assert sessions.runs == tried + [("conv", "relu"), ("flat", "product", "log")] * len(BATCHES)
    assert sessions.rows[3:] == [7, 7, 2, 2, 4, 4, 4, 4]


def test_a_single_sample_beyond_the_budget_is_run_for_some_tensors_at_a_time():
    sessions = Sessions()
    assert close(collect(Sessions(), TENSORS, BATCHES), collect(sessions, TENSORS, BATCHES, memory_budget=2 * LARGE))
    assert sessions.runs[3:] == [("conv", "relu"), ("flat", "product", "log")] * (4 + 4 + 2 + 7)
    assert set(sessions.rows[3:]) == {1}


def test_sizes_that_are_unknown_before_the_first_batch_are_measured_on_it():
    sessions = Sessions(with_shapes=False)
    tensors = ("conv", "relu", "flat", "abs", "product", "log", "half", "double")
    parts = collect(sessions, tensors, BATCHES[::-1], memory_budget=4000)
    assert same(collect(Sessions(), tensors, BATCHES), parts)
    # After the first batch every part keeps to the budget, or is a single tensor (6048 bytes in single precision).
    planned = [("conv",), ("relu",), ("flat",), ("abs", "product", "log", "half"), ("double",)]
    assert sessions.runs[-5 * (len(BATCHES) - 1) :] == planned * (len(BATCHES) - 1)


def test_a_batch_larger_than_the_first_makes_the_parts_smaller():
    sessions = Sessions()
    growing = make_batches([(1, 1.0), (8, 1.0), (8, 1.0)])
    collect(sessions, TENSORS, growing, memory_budget=15 * LARGE)
    assert sessions.runs == [TENSORS, TENSORS, *[("log",)] * 3, TENSORS, TENSORS]
    assert sessions.rows == [1, 8, *[8, 4, 4], 4, 4]


def test_parts_keep_the_order_and_the_budget():
    sizes = {"a": 4, "b": 4, "c": 3, "d": 20, "e": 1, "f": 1}
    assert chunks_of(sizes, 8) == (("a", "b"), ("c",), ("d",), ("e", "f"))
    assert chunks_of(sizes, 1000) == (("a", "b", "c", "d", "e", "f"),)
    assert chunks_of({}, 8) == ()


def test_other_float_types_are_observed_as_single_precision():
    found = collect(Sessions(), ("conv", "half", "double"), BATCHES)
    assert same_range(found, "double", "conv")
    half = everything("half")
    assert (found.of("half").minimum, found.of("half").maximum) == (float(half.min()), float(half.max()))


def same_range(found, first, second):
    return all(
        found.range_of(first, observer, symmetric=False, levels=256)
        == found.range_of(second, observer, symmetric=False, levels=256)
        for observer in OBSERVERS
    )


@pytest.mark.parametrize("batches", [[], iter(())])
def test_no_batch_is_an_error(batches):
    with pytest.raises(DataError, match="no batch"):
        collect(Sessions(), TENSORS, batches)


def test_an_activation_that_is_not_a_number_names_tensor_and_batch():
    bad = {"x": BATCHES[1]["x"].copy()}
    bad["x"][1, 2, 3, 4] = np.nan
    with pytest.raises(DataError, match=r"batch 3: tensor '(conv|flat)' holds \d+ NaN"):
        collect(Sessions(), ("conv", "flat"), [BATCHES[0], BATCHES[1], bad])


@pytest.mark.parametrize("first", [True, False])
def test_a_tensor_of_infinities_gets_no_range_and_the_others_keep_theirs(first):
    bad = {"x": np.zeros((1, 3, 8, 8), np.float32)}
    batches = [bad, BATCHES[0]] if first else [BATCHES[0], bad]
    stats = collect(Sessions(), TENSORS, batches)
    assert stats.infinite == {"log"}
    assert set(stats.tensors) == set(TENSORS) - {"log"}
    with pytest.raises(AdapterError, match="'log' took infinite values"):
        stats.of("log")


@pytest.mark.parametrize(
    "batch",
    [
        {"wrong": np.zeros((1, 3, 8, 8), np.float32)},
        {"x": np.zeros((1, 4, 8, 8), np.float32)},
        {"x": np.zeros((3, 8, 8), np.float32)},
        {"x": np.zeros((1, 3, 8, 8), np.float64)},
        {"x": np.full((1, 3, 8, 8), "text")},
    ],
)
def test_inputs_that_do_not_fit_name_the_batch(batch):
    with pytest.raises(DataError, match="batch 2 does not fit the model"):
        collect(Sessions(), TENSORS, [BATCHES[0], batch])


def test_integer_tensors_and_contradictory_names_are_refused():
    with pytest.raises(AdapterError, match=r"'best' \(tensor\(int64\)\)"):
        collect(Sessions(), ("conv", "best"), BATCHES)
    with pytest.raises(AdapterError, match="twice: conv"):
        collect(Sessions(), ("conv", "conv"), BATCHES)
