"""Files of the wide world: what was written by their own tools comes back sample by sample, and damage is named."""

from __future__ import annotations

import gzip
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from neural_tune import data_files
from neural_tune.datasets import BatchLoader, Factory, dataset
from neural_tune.errors import ConfigError, DataError, PluginError
from neural_tune.transforms import transforms

RNG = np.random.default_rng(0)


def batches(spec: dict, folder: Path, transform: object = None, size: int = 4) -> list:
    """Return the batches of a dataset spec."""
    source = dataset(spec, folder)
    assert not isinstance(source, Factory)
    return list(BatchLoader(source, transforms(transform, folder), size))


def joined(found: list) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and labels of all batches."""
    return np.concatenate([batch[0] for batch in found]), np.concatenate([batch[1] for batch in found])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two folders of images of different sizes."""
    pillow = pytest.importorskip("PIL.Image", reason="image files need: pip install pillow")
    for label, name in enumerate(("ant", "bee")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            array = np.full((20 + 4 * number, 30, 3), 40 * label + 10 * number, np.uint8)
            pillow.fromarray(array).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path


def test_an_image_folder_gives_labels_by_the_order_of_the_names_and_takes_incs_words(images: Path) -> None:
    x, y = joined(batches({"ImageFolder": {"root": "photos"}}, images, {"Resize": {"size": [8, 6]}}))
    assert (x.shape, x.dtype, y.tolist()) == ((6, 8, 6, 3), np.uint8, [0, 0, 0, 1, 1, 1])
    assert x[:, 0, 0, 0].tolist() == [0, 10, 20, 40, 50, 60]


def test_images_of_different_sizes_without_resize_are_refused_with_the_way_out(images: Path) -> None:
    with pytest.raises(DataError, match=r"samples of the shapes .*put Resize \(or CenterCrop\) first"):
        batches({"image_folder": {"path": "photos"}}, images, {"Cast": {"dtype": "float32"}})


def test_grey_images_have_one_channel(images: Path) -> None:
    x, _ = joined(batches({"image_folder": {"path": "photos", "mode": "L"}}, images, {"CenterCrop": {"size": 10}}))
    assert x.shape == (6, 10, 10, 1)


def test_a_file_that_is_no_image_is_named(images: Path) -> None:
    (images / "photos" / "ant" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png: no image can be read"):
        batches({"image_folder": {"path": "photos"}}, images, {"Resize": {"size": 4}})


def test_resize_and_crop_are_those_of_pillow(images: Path) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="image files need: pip install pillow")
    image = RNG.integers(0, 256, (37, 51, 3), dtype=np.uint8)
    step = transforms({"Resize": {"size": 24, "keep_ratio": True}, "CenterCrop": {"size": [16, 20]}})
    found = [image]
    for one in step:
        found = one.apply(found)
    oracle = np.asarray(pillow.fromarray(image).resize((33, 24), pillow.Resampling.BILINEAR))[4:20, 6:26]
    np.testing.assert_array_equal(found[0], oracle)


def test_resize_of_floats_keeps_their_type_and_range() -> None:
    pytest.importorskip("PIL.Image", reason="Resize needs: pip install pillow")
    batch = RNG.normal(size=(2, 8, 8, 5 - 1)).astype(np.float32)
    (step,) = transforms({"Resize": {"size": 8}})
    np.testing.assert_allclose(step.apply(batch), batch, atol=1e-6)


def test_resize_crop_imagenet_subtracts_the_mean_after_cropping() -> None:
    pytest.importorskip("PIL.Image", reason="Resize needs: pip install pillow")
    (step,) = transforms(
        {"ResizeCropImagenet": {"height": 4, "width": 4, "resize_side": 8, "mean_value": [1, 2, 3], "scale": 0.5}}
    )
    found = step.apply([np.full((20, 16, 3), 9, np.uint8)])[0]
    np.testing.assert_allclose(found, np.broadcast_to([4, 3.5, 3], (4, 4, 3)))


def test_a_table_of_numbers_gives_float_rows_and_whole_labels(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,kind\n1,2.5,0\n3,-4,1\n\n")
    x, y = joined(batches({"csv": {"path": "t.csv", "label": "kind"}}, tmp_path))
    np.testing.assert_array_equal(x, np.asarray([[1, 2.5], [3, -4]], np.float32))
    assert (y.dtype.kind, y.tolist()) == ("i", [0, 1])
    (only,) = batches({"csv": {"path": "t.csv", "features": ["b"]}}, tmp_path)
    assert only[0].tolist() == [[2.5], [-4.0]]


def test_a_table_of_image_files_reads_them(images: Path) -> None:
    (images / "list.csv").write_text("file,label\nphotos/ant/0.png,7\nphotos/bee/1.png,8\n")
    x, y = joined(
        batches({"csv": {"path": "list.csv", "image": "file", "label": "label"}}, images, {"Resize": {"size": 4}})
    )
    assert (x[:, 0, 0, 0].tolist(), y.tolist()) == ([0, 50], [7, 8])


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b\n1,2\n", {"label": "c"}, "csv.label: found 'c', expected a column of t.csv: a, b"),
        ("a,b\n1,2\n", {"features": ["z"], "label": "c"}, "csv.features[0]: found 'z'"),
        ("a,b\n1,2\n", {"features": ["a"], "image": "b"}, "csv: found both image and features"),
        ("", {}, "found an empty file"),
    ],
)
def test_a_wrong_column_is_named_when_the_job_is_read(text: str, options: dict, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ConfigError) as caught:
        dataset({"csv": {"path": "t.csv", **options}}, tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,x\n", "line 2: column 'b': found 'x', expected a number"),
        ("a,b\n1\n", "line 2: found 1 values, expected 2"),
    ],
)
def test_a_broken_line_of_a_table_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        batches({"csv": {"path": "t.csv"}}, tmp_path)
    assert message in str(caught.value)


def test_cifar10_of_the_binary_version_comes_as_images_with_channels_last(tmp_path: Path) -> None:
    pixels, labels = RNG.integers(0, 256, (5, 3, 32, 32), dtype=np.uint8), np.arange(5, dtype=np.uint8)
    records = np.concatenate([labels[:, None], pixels.reshape(5, -1)], axis=1)
    (tmp_path / "cifar-10-batches-bin").mkdir()
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(records.tobytes())
    x, y = joined(batches({"cifar10": {"path": "."}}, tmp_path))
    np.testing.assert_array_equal(x, pixels.transpose(0, 2, 3, 1))
    assert y.tolist() == [0, 1, 2, 3, 4]
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(records.tobytes()[:-1])
    with pytest.raises(DataError, match="expected records of 3073 bytes"):
        batches({"cifar10": {"path": "."}}, tmp_path)


def test_the_pickled_cifar10_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "test_batch").write_bytes(b"\x80\x04.")
    with pytest.raises(ConfigError, match="the pickled version for Python is refused"):
        dataset({"cifar10": {"path": "."}}, tmp_path)


@pytest.mark.parametrize("is_zipped", [False, True])
def test_mnist_files_come_with_a_channel_axis(is_zipped: bool, tmp_path: Path) -> None:
    pixels, labels = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8), np.arange(6, dtype=np.uint8)
    for name, array in zip(data_files.MNIST_FILES["train"], (pixels, labels), strict=True):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(length.to_bytes(4, "big") for length in array.shape)
        data = header + array.tobytes()
        (tmp_path / (f"{name}.gz" if is_zipped else name)).write_bytes(gzip.compress(data) if is_zipped else data)
    x, y = joined(batches({"MNIST": {"root": ".", "split": "train"}}, tmp_path))
    np.testing.assert_array_equal(x[..., 0], pixels)
    assert (x.shape, y.tolist()) == ((6, 28, 28, 1), [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\x01\x02", "found no idx header"), (b"\0\0\x08\x01\0\0\0\x09ab", "found 2 bytes of data")],
)
def test_a_damaged_idx_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match=message):
        data_files.idx(tmp_path / "x")


@pytest.mark.slow
def test_tfrecords_written_by_tensorflow_come_back(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow", reason='TFRecord files need: pip install "neural-tune[tensorflow]"')
    values = RNG.normal(size=(3, 2, 2)).astype(np.float32)
    pixels = RNG.integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)

    def example(row: int) -> bytes:
        feature = {
            "raw": tf.train.Feature(bytes_list=tf.train.BytesList(value=[values[row].tobytes()])),
            "floats": tf.train.Feature(float_list=tf.train.FloatList(value=values[row].ravel())),
            "image/encoded": tf.train.Feature(
                bytes_list=tf.train.BytesList(value=[tf.io.encode_png(pixels[row]).numpy()])
            ),
            "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[row + 1])),
        }
        return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()

    with tf.io.TFRecordWriter(str(tmp_path / "part-0.tfrecord")) as writer:
        for row in range(3):
            writer.write(example(row))
    x, y = joined(batches({"ImageRecord": {"root": "part-*", "label_offset": -1}}, tmp_path))
    np.testing.assert_array_equal(x, pixels)
    assert y.tolist() == [0, 1, 2]
    for feature in ("raw", "floats"):
        x, _ = joined(batches({"tfrecord": {"path": "part-0.tfrecord", "x": feature, "shape": [2, 2]}}, tmp_path))
        np.testing.assert_array_equal(x, values)
    with pytest.raises(DataError, match="a record has no feature 'pixels', expected one of floats, image/class/label"):
        batches({"tfrecord": {"path": "part-0.tfrecord", "x": "pixels"}}, tmp_path)


def test_a_missing_library_is_named_with_the_pip_command(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (images / "a.tfrecord").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(
        PluginError, match=r'needs tensorflow, which is not installed: pip install "neural-tune\[tensorflow\]"'
    ):
        batches({"tfrecord": {"path": "a.tfrecord"}}, images)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PluginError, match='needs datasets, which is not installed: pip install "datasets"'):
        batches({"hf_disk": {"path": "photos", "x": "image"}}, images)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs: pip install datasets")
def test_a_folder_of_hugging_face_datasets_gives_its_columns_as_they_were_declared(tmp_path: Path) -> None:
    import datasets

    table = {"ids": [[1, 2], [3, 4], [5, 6]], "mask": [[1, 1]] * 3, "map": [np.ones((2, 2))] * 3, "label": [0, 1, 0]}
    features = datasets.Features(
        {
            "ids": datasets.List(datasets.Value("int32")),
            "mask": datasets.List(datasets.Value("int64")),
            "map": datasets.Array2D((2, 2), "float32"),
            "label": datasets.ClassLabel(num_classes=2),
        }
    )
    stored = datasets.Dataset.from_dict(table, features=features)
    datasets.DatasetDict({"test": stored}).save_to_disk(str(tmp_path / "stored"))
    columns = {"input_ids": "ids", "attention": "mask", "map": "map"}
    (batch,) = batches({"hf_disk": {"path": "stored", "x": columns, "y": "label"}}, tmp_path)
    assert batch[0]["input_ids"].tolist() == table["ids"]
    assert [batch[0][name].dtype for name in columns] == [np.int32, np.int64, np.float32]
    assert batch[1].tolist() == table["label"]
    datasets.DatasetDict({"train": stored, "test": stored}).save_to_disk(str(tmp_path / "split"))
    with pytest.raises(DataError, match="found the splits train, test, expected one of them as split"):
        batches({"hf_disk": {"path": "split", "x": "ids"}}, tmp_path)
    with pytest.raises(DataError, match="found no split 'val', expected one of train, test"):
        batches({"hf_disk": {"path": "split", "split": "val", "x": "ids"}}, tmp_path)
    with pytest.raises(DataError, match="found no column 'idz', expected one of ids, mask, map, label"):
        batches({"hf_disk": {"path": "stored", "x": "idz"}}, tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs: pip install datasets")
def test_images_of_hugging_face_datasets_are_decoded_and_other_folders_refused(images: Path) -> None:
    import datasets
    from PIL import Image

    pictures = [Image.fromarray(np.full((4, 5 + place), 7 * place, np.uint8)) for place in range(3)]  # grey
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = {"image": pictures, "label": [3, 2, 1]}
    datasets.Dataset.from_dict(table, features=features).save_to_disk(str(images / "stored"))
    spec = {"hf_disk": {"path": "stored", "x": "image", "y": "label"}}
    ((x, y),) = batches(spec, images, {"Resize": {"size": [2, 2]}})
    assert (x.shape, x.dtype, y.tolist()) == ((3, 2, 2, 3), np.uint8, [3, 2, 1])
    assert x[:, 0, 0, 0].tolist() == [0, 7, 14]
    with pytest.raises(DataError, match="photos: found no dataset that save_to_disk wrote"):
        batches({"hf_disk": {"path": "photos", "x": "image"}}, images)


def test_made_up_numbers_are_the_same_every_time_and_have_labels_when_asked(tmp_path: Path) -> None:
    spec = {"dummy_v2": {"input_shape": [5, 3], "low": 0, "high": 2, "dtype": "int64", "label": True, "classes": 4}}
    first, second = (joined(batches(spec, tmp_path)) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    assert (first[0].shape, first[0].dtype) == ((5, 3), np.int64)
    assert set(first[0].ravel().tolist()) <= {0, 1}
    assert set(first[1].tolist()) <= {0, 1, 2, 3}
    assert len(batches({"dummy": {"shape": [3, 2]}}, tmp_path)[0]) == 1


def test_a_callable_of_the_users_own_transforms_batches_or_samples(tmp_path: Path) -> None:
    (tmp_path / "nt_steps.py").write_text(
        "def plus(batch, by=1):\n    return batch + by\n\n\ndef short(sample):\n    return sample[:1]\n"
    )
    spec = {"dummy": {"shape": [3, 2], "dtype": "int64", "low": 0, "high": 1}}
    ((x,),) = batches(spec, tmp_path, {"nt_steps:plus": {"args": {"by": 5}}, "nt_steps:short": {"per_sample": True}})
    assert x.tolist() == [[5], [5], [5]]


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs: pip install torchvision")
def test_a_transform_of_torchvision_takes_images_one_by_one(images: Path) -> None:
    x, _ = joined(batches({"image_folder": {"path": "photos"}}, images, {"torchvision.Resize": {"size": [6, 5]}}))
    assert x.shape == (6, 6, 5, 3)
    scaled = {"torchvision.Resize": {"size": [6, 5]}, "torchvision.ToDtype": {"dtype": "float32", "scale": True}}
    x, _ = joined(batches({"image_folder": {"path": "photos"}}, images, scaled))
    assert (x.dtype, x.max() <= 1) == (np.float32, True)
    with pytest.raises(DataError, match=r"transform torchvision\.Normalize: Input tensor should be a float tensor"):
        batches({"image_folder": {"path": "photos"}}, images, {"torchvision.Normalize": {"mean": [0.5], "std": [0.5]}})


def test_torchvision_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    with pytest.raises(PluginError, match="needs torchvision, which is not installed"):
        transforms({"torchvision.Resize": {"size": 6}})
