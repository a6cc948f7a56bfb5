from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator

import numpy as np
import pytest

from neural_tune.errors import ConfigError, DataError
from neural_tune.evaluation import ArrayLoader, CalibrationStream, as_loader, batch_length, split_batch, to_numpy
from neural_tune.evaluation.data import content_digest

X = np.arange(12.0, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 0, 1])


def test_a_pair_is_inputs_and_labels() -> None:
    for pair in ((X, Y), [X, Y]):
        inputs, labels = split_batch(pair, ("x",))
        assert inputs is X
        assert labels is Y


def test_an_array_alone_is_inputs_without_labels() -> None:
    assert split_batch(X, ("x",)) == (X, None) or split_batch(X, ("x",))[0] is X
    assert split_batch((X,), ("x",))[0] is X


def test_a_list_of_rows_is_one_array_wherever_inputs_stand() -> None:
    rows = [[1.0, 2.0], [3.0, 4.0]]
    for batch in (rows, (rows,), (rows, Y[:2])):
        inputs, _ = split_batch(batch, ("x",))
        assert isinstance(inputs, np.ndarray)  # an adapter would take a list for a sequence of inputs
        assert np.array_equal(inputs, rows)
    named = split_batch({"a": rows, "labels": [0, 1]}, ("a",))[0]["a"]  # type: ignore[index]
    assert np.array_equal(named, rows)
    assert isinstance(named, np.ndarray)
    (streamed,) = CalibrationStream([rows], 2, ("x",))
    assert isinstance(streamed, np.ndarray)
    with pytest.raises(DataError, match="ragged"):
        split_batch([[1.0, 2.0], [3.0]], ("x",))


def test_two_arrays_for_a_model_with_two_inputs_are_both_inputs() -> None:
    inputs, labels = split_batch((X, X), ("a", "b"))
    assert isinstance(inputs, tuple)
    assert inputs[1] is X
    assert labels is None


def test_nested_inputs_of_a_model_with_two_inputs_come_with_labels() -> None:
    for first in ((X, X), {"a": X, "b": X}):
        inputs, labels = split_batch((first, Y), ("a", "b"))
        assert inputs is first
        assert labels is Y


def test_flat_batches_of_several_inputs_end_with_the_labels() -> None:
    inputs, labels = split_batch([X, X, Y], ("a", "b"))
    assert isinstance(inputs, tuple)
    assert len(inputs) == 2
    assert labels is Y
    inputs, labels = split_batch([X, X, X], ("a", "b", "c"))
    assert isinstance(inputs, tuple)
    assert len(inputs) == 3
    assert labels is None


def test_labels_leave_a_mapping_unless_the_model_has_an_input_of_that_name() -> None:
    batch = UserDict({"input_ids": X, "labels": Y})  # like a Hugging Face BatchEncoding
    inputs, labels = split_batch(batch, ("input_ids",))
    assert inputs == {"input_ids": X}
    assert labels is Y
    inputs, labels = split_batch(batch, ("input_ids", "labels"))
    assert set(inputs) == {"input_ids", "labels"}  # type: ignore[call-overload]
    assert labels is None
    assert split_batch({"x": X, "label": Y})[1] is Y


def test_a_batch_of_a_wrong_form_is_refused_with_what_was_found() -> None:
    with pytest.raises(DataError, match=r"a batch of 3 members .*model has 1 input\(s\) \(x\)"):
        split_batch((X, Y, Y), ("x",))
    with pytest.raises(DataError, match="batch of type NoneType"):
        split_batch(None)
    with pytest.raises(DataError, match="batch of type str"):
        split_batch("images")
    with pytest.raises(DataError, match="without inputs"):
        split_batch({"labels": Y})


def test_to_numpy_keeps_arrays_and_refuses_what_is_no_number() -> None:
    assert to_numpy(X) is X
    assert to_numpy([[1, 2], [3, 4]]).shape == (2, 2)
    with pytest.raises(DataError, match="ragged"):
        to_numpy([[1, 2], [3]])
    with pytest.raises(DataError, match="expected numbers"):
        to_numpy({"a": 1})


def test_torch_tensors_become_numpy_also_with_gradient_and_in_bfloat16() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    assert np.array_equal(to_numpy(torch.from_numpy(X).requires_grad_()), X)
    assert to_numpy(torch.ones(2, dtype=torch.bfloat16)).dtype == np.float32


def test_batch_length_is_the_first_axis_of_every_member() -> None:
    assert batch_length(X) == 4
    assert batch_length((X, Y)) == 4
    assert batch_length({"a": X, "b": Y.tolist()}) == 4
    with pytest.raises(DataError, match="a has 4, b has 3"):
        batch_length({"a": X, "b": Y[:3]})
    with pytest.raises(DataError, match="single number"):
        batch_length(np.float32(1))


def test_a_digest_depends_on_content_names_shape_and_type() -> None:
    first = content_digest({"a": X})
    assert first == content_digest({"a": X.copy()})
    others = [{"b": X}, {"a": X.reshape(3, 4)}, {"a": X.astype(np.float64)}, {"a": X + 1}, X]
    assert first not in {content_digest(other) for other in others}


def test_calibration_stops_once_the_sampling_size_is_reached_and_never_cuts_a_batch() -> None:
    stream = CalibrationStream(as_loader((np.arange(40.0).reshape(20, 2), np.zeros(20)), 6), 14, ("x",))
    batches = list(stream)
    assert [len(batch) for batch in batches] == [6, 6, 6]  # type: ignore[arg-type]
    assert stream.samples == 18
    assert np.array_equal(np.concatenate(batches), np.arange(36.0).reshape(18, 2))  # type: ignore[arg-type]
    assert stream.notices == []  # a little more than asked for
    coarse = CalibrationStream(as_loader(np.arange(40.0).reshape(20, 2), 6), 7, ("x",))
    assert sum(batch_length(batch) for batch in coarse) == 12
    assert "7 samples were asked for, 12 are used" in coarse.notices[0]
    exact = CalibrationStream(as_loader(np.arange(40.0).reshape(20, 2), 6), 12, ("x",))
    assert sum(batch_length(batch) for batch in exact) == 12
    assert exact.notices == []
    assert stream.first_batch_digest == content_digest(batches[0])
    assert stream.first_inputs is not None


def test_calibration_reads_no_batch_it_does_not_need() -> None:
    served = []

    def batches() -> Iterator[np.ndarray]:
        for number in range(10):
            served.append(number)
            yield np.full((4, 1), float(number))

    assert sum(batch_length(batch) for batch in CalibrationStream(batches(), 8)) == 8
    assert served == [0, 1]


def test_calibration_data_is_read_once() -> None:
    stream = CalibrationStream([X], 4)
    assert len(list(stream)) == 1
    with pytest.raises(DataError, match="calibration data is read once per run"):
        list(stream)


def test_peeking_at_calibration_data_loses_nothing_of_a_generator() -> None:
    stream = CalibrationStream((X + step for step in range(3)), 12)
    assert stream.peek() == content_digest(X)
    assert np.array_equal(np.concatenate(list(stream)), np.concatenate([X, X + 1, X + 2]))  # type: ignore[arg-type]


def test_too_little_calibration_data_is_said_and_none_is_an_error() -> None:
    stream = CalibrationStream([X, X], 100)
    assert sum(batch_length(batch) for batch in stream) == 8
    assert "100 samples were asked for, the data has 8" in stream.notices[0]
    with pytest.raises(DataError, match="calibration data is empty"):
        list(CalibrationStream([], 10))
    with pytest.raises(DataError, match="calibration data is empty"):
        list(CalibrationStream([X[:0]], 10))
    for size in (0, -1, True, 2.5):
        with pytest.raises(ConfigError, match="sampling_size"):
            CalibrationStream([X], size)  # type: ignore[arg-type]


def test_calibration_takes_dict_and_tuple_batches_whole() -> None:
    for batch in ({"a": X, "b": Y}, ((X, Y), Y)):
        (whole,) = CalibrationStream([batch, batch], 3, ("a", "b"))
        assert batch_length(whole) == 4


def test_calibration_batches_outlive_a_loader_that_reuses_its_buffer() -> None:
    def numpy_batches() -> Iterator[object]:
        buffer = np.zeros((2, 1), np.float32)
        for number in range(3):
            buffer[:] = number
            yield {"x": buffer}

    stream = CalibrationStream(numpy_batches(), 6, ("x",))
    assert [batch["x"][0, 0] for batch in list(stream)] == [0, 1, 2]  # type: ignore[index]
    assert stream.first_inputs["x"][0, 0] == 0  # type: ignore[index]


def test_calibration_tensors_outlive_a_loader_that_reuses_its_buffer() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def batches() -> Iterator[object]:
        buffer = torch.zeros(2, 1)
        for number in range(3):
            yield buffer.fill_(number)

    assert [batch[0, 0] for batch in list(CalibrationStream(batches(), 6, ("x",)))] == [0, 1, 2]  # type: ignore[index]


def test_arrays_become_batches_with_a_ragged_end() -> None:
    loader = as_loader((X, Y), 3)
    assert isinstance(loader, ArrayLoader)
    assert len(loader) == 2
    assert [len(split_batch(batch)[1]) for batch in loader] == [3, 1]  # type: ignore[arg-type]
    assert [split_batch(batch)[0]["a"].shape for batch in as_loader({"a": X}, 3)] == [(3, 3), (1, 3)]  # type: ignore[index]
    assert [len(split_batch(batch)[0]) for batch in as_loader(X, 3)] == [3, 1]  # type: ignore[arg-type]
    with pytest.raises(DataError, match="x has 4 samples and y has 3"):
        as_loader((X, Y[:3]))
    with pytest.raises(ConfigError, match="batch_size"):
        as_loader(X, 0)


def test_a_one_shot_generator_is_refused_where_it_would_be_read_twice() -> None:
    def batches() -> Iterator[object]:
        yield X, Y

    with pytest.raises(DataError, match=r"one-shot generator.*Pass the generator function itself"):
        as_loader(batches())
    assert len(list(as_loader(batches(), once=True))) == 1
    again = as_loader(batches)
    assert len(list(again)) == len(list(again)) == 1


def test_what_is_no_data_is_refused() -> None:
    for wrong in ("data.npz", 3, None):
        with pytest.raises(DataError, match="expected an iterable of batches"):
            as_loader(wrong)
    with pytest.raises(DataError, match="data function returned a int"):
        list(as_loader(lambda: 3))


def test_a_torch_dataloader_passes_through() -> None:
    data = pytest.importorskip("torch.utils.data", reason="torch is not installed")
    torch = pytest.importorskip("torch")
    loader = data.DataLoader(data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), batch_size=3)
    assert as_loader(loader) is loader
    stream = CalibrationStream(loader, 4, ("x",))
    assert np.array_equal(np.concatenate([to_numpy(batch) for batch in stream]), X)
    inputs, labels = split_batch(next(iter(loader)), ("x",))
    assert batch_length(inputs) == batch_length(labels) == 3
