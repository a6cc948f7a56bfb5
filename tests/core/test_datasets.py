"""Datasets and transforms of a job: arrays come out as numpy says, and mistakes are named."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from neural_tune.callables import import_callable
from neural_tune.datasets import BatchLoader, Factory, dataset
from neural_tune.errors import ConfigError, DataError
from neural_tune.transforms import TRANSFORMS, transforms

X = np.arange(7 * 4 * 3, dtype=np.uint8).reshape(7, 4, 3)
Y = np.arange(7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one .npz of x, y, z and the same as .npy files."""
    np.savez(tmp_path / "all.npz", x=X, y=Y, z=X[:, 0].astype(np.int64))
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    return tmp_path


def load(spec: object, folder: Path, transform: object = None, batch_size: int = 3, *, drop_last: bool = False) -> list:
    """Return the batches of a dataset spec."""
    source = dataset(spec, folder)
    assert not isinstance(source, Factory)
    return list(BatchLoader(source, transforms(transform), batch_size, drop_last=drop_last))


def apply(transform: object, array: np.ndarray) -> np.ndarray:
    """Return what a list of transforms makes of a batch."""
    for step in transforms(transform):
        array = step.transform(array)
    return array


@pytest.mark.parametrize(
    "spec", [{"npz": {"path": "all.npz", "x": "x", "y": "y"}}, {"numpy": {"x": "x.npy", "y": "y.npy"}}]
)
def test_batches_hold_every_sample_once_and_in_order(spec: dict, folder: Path) -> None:
    batches = load(spec, folder)
    assert [len(x) for x, _ in batches] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), X)
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), Y)


def test_a_loader_starts_anew_each_time_and_knows_its_length(folder: Path) -> None:
    source = dataset({"npz": {"path": "all.npz", "x": "x"}}, folder)
    loader = BatchLoader(source, batch_size=2)
    assert len(loader) == len(list(loader)) == len(list(loader)) == 4


def test_without_labels_a_batch_is_a_tuple_of_the_inputs_alone(folder: Path) -> None:
    first = load({"npz": {"path": "all.npz", "x": "x"}}, folder)[0]
    assert len(first) == 1
    np.testing.assert_array_equal(first[0], X[:3])


def test_the_incomplete_last_batch_can_be_dropped(folder: Path) -> None:
    assert [len(x) for (x,) in load({"numpy": {"x": "x.npy"}}, folder, drop_last=True)] == [3, 3]


def test_several_inputs_come_as_a_tuple_or_by_name(folder: Path) -> None:
    by_order = load({"npz": {"path": "all.npz", "x": ["z", "x"], "y": "y"}}, folder)[0]
    by_name = load({"npz": {"path": "all.npz", "x": {"ids": "z", "image": "x"}, "y": "y"}}, folder)[0]
    np.testing.assert_array_equal(by_order[0][0], by_name[0]["ids"])
    np.testing.assert_array_equal(by_order[0][1], by_name[0]["image"])
    assert list(by_name[0]) == ["ids", "image"]


def test_a_transform_can_be_meant_for_one_input(folder: Path) -> None:
    spec = {"npz": {"path": "all.npz", "x": {"ids": "z", "image": "x"}}}
    ((batch,), *_) = load(spec, folder, {"Rescale": {"scale": 2, "inputs": ["image"]}})
    assert batch["ids"].dtype == np.int64
    np.testing.assert_array_equal(batch["image"], X[:3] * np.float32(2))


def test_numpy_files_are_mapped_and_never_unpickled(folder: Path) -> None:
    np.save(folder / "bad.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="no plain array can be read"):
        load({"numpy": {"x": "bad.npy"}}, folder)


def test_an_object_array_in_an_archive_is_refused(folder: Path) -> None:
    np.savez(folder / "bad.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match=r"bad\.npz\[x\]: no plain array"):
        load({"npz": {"path": "bad.npz", "x": "x"}}, folder)


def test_arrays_of_different_lengths_are_refused(folder: Path) -> None:
    np.save(folder / "short.npy", Y[:5])
    with pytest.raises(DataError, match=r"disagree about the number of samples \(x: 7, the labels: 5\)"):
        load({"numpy": {"x": "x.npy", "y": "short.npy"}}, folder)


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        ({"Cast": {"dtype": "float32"}}, X.astype(np.float32)),
        ({"Rescale": {"shift": -83, "scale": 0.5}}, (X.astype(np.float32) - 83) * 0.5),
        ({"Normalize": {"mean": 10, "std": 4}}, (X.astype(np.float32) - 10) / 4),
        (
            {"Normalize": {"mean": [1, 2, 3], "std": [4, 5, 6]}},
            (X.astype(np.float32) - [1, 2, 3]) / np.float32([4, 5, 6]),
        ),
        (
            {"Normalize": {"mean": [1, 2, 3, 4], "std": 2}},
            (X.astype(np.float32) - np.float32([[1], [2], [3], [4]])) / 2,
        ),
        ({"Transpose": {"perm": [1, 0]}}, X.transpose(0, 2, 1)),
        ({"Reshape": {"shape": [-1]}}, X.reshape(7, 12)),
        ({"ExpandDims": {"axis": 0}}, X[:, None]),
        ({"ExpandDims": {"axis": -1}}, X[..., None]),
        ({"ExpandDims": {}}, X[:, None]),
        ([{"Rescale": {"scale": 2}}, {"Rescale": {"scale": 3, "shift": 1}}], (X.astype(np.float32) * 2 + 1) * 3),
        (None, X),
    ],
)
def test_a_transform_computes_what_numpy_does(transform: object, expected: np.ndarray) -> None:
    found = apply(transform, X)
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    assert found.dtype in (np.float32, np.uint8)


def test_transforms_run_in_the_order_in_which_they_are_written() -> None:
    first = apply({"Rescale": {"scale": 2}, "Normalize": {"mean": 1, "std": 1}}, X)
    second = apply({"Normalize": {"mean": 1, "std": 1}, "Rescale": {"scale": 2}}, X)
    np.testing.assert_array_equal(first, X.astype(np.float32) * 2 - 1)
    np.testing.assert_array_equal(second, (X.astype(np.float32) - 1) * 2)


def test_float64_stays_float64() -> None:
    assert apply({"Rescale": {"scale": 0.1}}, X.astype(np.float64)).dtype == np.float64


@pytest.mark.parametrize("name", TRANSFORMS)
def test_no_transform_changes_the_batch_it_is_given(name: str) -> None:
    options = {
        "Cast": {"dtype": "float32"},
        "Normalize": {"mean": 1, "std": 2},
        "Rescale": {"scale": 2},
        "Transpose": {"perm": [1, 0]},
        "Reshape": {"shape": [12]},
        "ExpandDims": {},
        "Resize": {"size": 3},
        "CenterCrop": {"size": [2, 3]},
        "ResizeCropImagenet": {"height": 2, "width": 2, "resize_side": 3},
    }
    images = name in ("Resize", "CenterCrop", "ResizeCropImagenet")
    for dtype in (np.uint8, np.float32):
        given = X.astype(dtype)[..., None] if images else X.astype(dtype)
        batch = given.copy()
        apply({name: options[name]}, batch)
        np.testing.assert_array_equal(batch, given)


def test_an_ambiguous_channel_axis_asks_for_its_name() -> None:
    square = np.zeros((2, 3, 3), np.float32)
    with pytest.raises(DataError, match="expected one axis of length 3; name it with axis"):
        apply({"Normalize": {"mean": [1, 2, 3], "std": 1}}, square)
    found = apply({"Normalize": {"mean": [1, 2, 3], "std": 1, "axis": 0}}, square)
    np.testing.assert_array_equal(found[0, :, 0], [-1, -2, -3])


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"Transpose": {"perm": [0, 1, 2]}}, "Transpose: found samples of shape [4, 3], expected 3 axes"),
        (
            {"Reshape": {"shape": [5, -1]}},
            "Reshape: found samples of shape [4, 3], which cannot take the shape [5, -1]",
        ),
        ({"ExpandDims": {"axis": 5}}, "ExpandDims: found samples of shape [4, 3], which have no place for axis 5"),
        ({"Normalize": {"mean": [1, 2], "std": 1}}, "found samples of shape [4, 3] and 2 channels"),
    ],
)
def test_data_that_does_not_fit_a_transform_is_a_data_error(transform: dict, message: str) -> None:
    with pytest.raises(DataError) as caught:
        apply(transform, X)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            {"Reshpae": {"shape": [3]}},
            "Reshpae: there is no such transform (did you mean 'Reshape'?); there are Cast, Normalize",
        ),
        ({"normalise": {}}, "normalise: there is no such transform (did you mean 'Normalize'?)"),
        ({"Cast": {"dtype": "flaot32"}}, "Cast.dtype: found 'flaot32', expected a number format"),
        ({"Cast": {}}, "Cast.dtype: missing"),
        ({"Cast": "float32"}, "Cast: found 'float32', expected a mapping of options"),
        ({"Rescale": {"scale": "x"}}, "Rescale.scale: found 'x', expected a number"),
        ({"Rescale": {"scale": 1, "shfit": 2}}, "Rescale.shfit: unknown key (did you mean 'shift'?)"),
        ({"Normalize": {"mean": 0, "std": 0}}, "Normalize.std: found 0, expected numbers other than 0"),
        ({"Normalize": {"mean": [1, 2], "std": [1]}}, "found lengths [1, 2]"),
        ({"Transpose": {"perm": [0, 0]}}, "Transpose.perm: found [0, 0], expected a permutation of 0 to 1"),
        ({"Reshape": {"shape": [-1, -1]}}, "Reshape.shape: found [-1, -1]"),
        ({"ExpandDims": {"axis": "last"}}, "ExpandDims.axis"),
        ({"Cast": {"dtype": "int8", "inputs": "x"}}, "Cast.inputs: found 'x', expected a list of input names"),
        (["Cast"], "Cast.dtype: missing"),
        ([3], "found 3, expected a mapping from transform to options"),
        ({"Resize": {"size": 0}}, "Resize.size: found 0, expected a length in pixels, or height and width"),
        (
            {"Resize": {"size": 8, "interpolation": "linear"}},
            "Resize.interpolation: found 'linear' (did you mean 'bilinear'?)",
        ),
        ({"no_such_module:f": {}}, "no_such_module:f.callable: found 'no_such_module:f', but there is no module"),
        ({"math:floor": {"every": 2}}, "math:floor.every: unknown key; expected per_sample, args, inputs"),
    ],
)
def test_a_wrong_transform_is_named(transform: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        transforms(transform)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"npz": {"path": "no.npz", "x": "x"}}, "npz.path: found 'no.npz', but there is no file"),
        ({"npz": {"path": "x.npy", "x": "x"}}, "npz.path: found 'x.npy', which is no .npz archive"),
        ({"npz": {"path": "all.npz", "x": "w"}}, "npz.x: found 'w', expected an array of all.npz: x, y, z"),
        ({"npz": {"path": "all.npz"}}, "npz.x: missing"),
        ({"npz": {"path": "all.npz", "x": ["x", "x"]}}, "npz.x[1]: found 'x' for the second time"),
        ({"npz": {"path": "all.npz", "x": []}}, "npz.x: found [], expected at least one array"),
        ({"npz": "all.npz"}, "npz: found 'all.npz', expected a mapping of options"),
        ({"numpy": {"x": "x.npy", "labels": "y.npy"}}, "numpy.labels: unknown key; expected x, y"),
        ({"numpy": {"x": 3}}, "numpy.x: found 3, expected a file name"),
        (
            {"COCO": {"root": "."}},
            "COCO: there is no such dataset; there are npz, numpy, image_folder, csv, cifar10, mnist",
        ),
        ({"ImageFolder": {"root": "none"}}, "ImageFolder.path: found 'none', but there is no folder"),
        ({"image_folder": {"path": ".", "mode": "rgb"}}, "image_folder.mode: found 'rgb'"),
        ({"mnist": {"path": ".", "split": "val"}}, "mnist.split: found 'val', expected train or test"),
        ({"mnist": {"path": "."}}, "mnist.path: found no t10k-images-idx3-ubyte[.gz] and t10k-labels-idx1-ubyte[.gz]"),
        ({"cifar10": {"path": "."}}, "cifar10.path: found no test batches (*.bin) of CIFAR-10"),
        ({"tfrecord": {"path": "*.tfrecord"}}, "tfrecord.path: found '*.tfrecord', but no such file"),
        ({"dummy": {"shape": [0, 3]}}, "dummy.shape: found [0, 3], expected a list of lengths"),
        ({"csv": {"path": "x.npy"}}, "csv.path: "),
        ({"npy": {}}, "npy: there is no such dataset (did you mean 'numpy'?)"),
        ({"npz": {}, "numpy": {}}, "expected one kind of dataset"),
        (
            {"factory": {"callable": "nowhere_at_all:f"}},
            "factory.callable: found 'nowhere_at_all:f', but there is no module",
        ),
        ({"factory": {"callable": "json:lods"}}, "but json has no 'lods' (did you mean 'loads'?)"),
        ({"factory": {"callable": "json:__doc__"}}, "which is a str, expected something to call"),
        ({"factory": {"callable": "json"}}, "found 'json', expected \"package.module:callable\""),
        ({"factory": {"callable": "json:loads", "args": [1]}}, "factory.args: found [1], expected a mapping"),
    ],
)
def test_a_wrong_dataset_is_named(spec: dict, message: str, folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        dataset(spec, folder)
    assert message in str(caught.value)


def test_every_misplaced_array_is_reported_at_once(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        dataset({"npz": {"path": "all.npz", "x": {"a": "v", "b": "w"}, "y": "u"}}, folder)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["npz.x.a", "npz.x.b", "npz.y"]


def test_a_module_beside_the_job_is_found_and_the_path_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "nt_beside_job.py").write_text("def make(n=2):\n    return [[n]] * n\n")
    before = list(sys.path)
    made = dataset({"factory": {"callable": "nt_beside_job:make", "args": {"n": 3}}}, tmp_path)
    assert sys.path == before
    assert isinstance(made, Factory)
    assert made() == [[3], [3], [3]]


def test_what_a_module_raises_when_imported_propagates(tmp_path: Path) -> None:
    (tmp_path / "nt_breaks.py").write_text("import nt_not_there_either\n")
    with pytest.raises(ModuleNotFoundError, match="nt_not_there_either"):
        import_callable("nt_breaks:f", tmp_path)
    assert str(tmp_path) not in sys.path
