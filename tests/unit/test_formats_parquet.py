"""Images in parquet files, alone and as hubs keep CIFAR."""

import shutil
import sys

import numpy as np
import pytest
from data_files import REAL, make_arrays, png, refused, write_cifar_parquet, write_image_table

from tautnet.data.formats.cifar import read_cifar10, read_cifar100
from tautnet.data.formats.parquet import parquet_columns, read_image_parquet


@pytest.fixture
def hub(tmp_path):
    pytest.importorskip("pyarrow")
    write_cifar_parquet(tmp_path, 20, 10)
    return tmp_path


def test_missing_shard_is_named(hub):
    (hub / "train-00000-of-00002.parquet").unlink()
    with refused(hub, "train-00001-of-00002.parquet missing, number 0"):
        read_cifar10(hub)


def test_missing_part_is_named(hub):
    (hub / "test-00000-of-00001.parquet").unlink()
    with refused(hub, "test-*.parquet"):
        read_cifar10(hub)


@pytest.mark.parametrize("change", [lambda c: b"", lambda c: c[:-1], lambda c: c[: len(c) // 2], lambda c: b"PAR1" * 9])
def test_damaged_parquet(hub, change):
    path = hub / "test-00000-of-00001.parquet"
    path.write_bytes(change(path.read_bytes()))
    with refused(path, "parquet"):
        read_cifar10(hub)


def test_damaged_parquet_pages(hub):
    path = hub / "test-00000-of-00001.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 200 + content[204:])
    with refused(path, "parquet"):
        read_cifar10(hub)


def test_parquet_columns(hub):
    path = hub / "train-00000-of-00002.parquet"
    assert parquet_columns(path) == ("img", "label")
    with refused(path, "columns img, label", "fine_label"):
        read_cifar100(hub)
    with refused(path, "0 columns named labels"):
        read_image_parquet([path], "img", "labels")


def test_parquet_images(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "x.parquet"
    gray, colour = make_arrays(3, 0, shape=(1, 4, 5)).train_x, make_arrays(3, 0, shape=(3, 4, 5)).train_x
    write_image_table(path, [png(image) for image in gray], [0, 1, 2])
    assert np.array_equal(read_image_parquet([path], "img", "label")[0].numpy(), gray)
    for contents, words in (
        ([png(gray[0]), png(gray[1]), png(colour[0])], ("row 3: an image of 4x5 RGB, but 4x5 gray", "row 1")),
        ([png(gray[0]), png(gray[1][:, :3]), png(gray[0])], ("row 2: an image of 3x5 gray",)),
        ([png(gray[0]), None, png(gray[0])], ("row 2", "no image bytes")),
        ([png(gray[0]), b"", png(gray[0])], ("row 2: not a readable image",)),
        ([png(gray[0]), png(gray[1])[:-30], png(gray[0])], ("row 2: not a readable image",)),
    ):
        write_image_table(path, contents, [0, 1, 2])
        with refused(path, *words):
            read_image_parquet([path], "img", "label")


def test_parquet_labels(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "x.parquet"
    images = [png(image) for image in make_arrays(3, 0, shape=(1, 4, 5)).train_x]
    for labels, words in (
        ([0, -1, 1], ("label -1 in row 2",)),
        ([0, None, 1], ("missing",)),
        ([0.0, 1.0, 2.0], ("double", "integers")),
        (["a", "b", "c"], ("string", "integers")),
    ):
        write_image_table(path, images, labels)
        with refused(path, "column label", *words):
            read_image_parquet([path], "img", "label")


def test_parquet_of_other_sizes_or_labels(hub):
    path = hub / "test-00000-of-00001.parquet"
    write_image_table(path, [png(image) for image in make_arrays(2, 0, shape=(3, 28, 28)).train_x], [0, 1])
    with refused(hub, "28x28 RGB", "32x32 RGB"):
        read_cifar10(hub)
    write_image_table(path, [png(image) for image in make_arrays(2, 0).train_x], [0, 10])
    with refused(hub, "label 10", "0 to 9"):
        read_cifar10(hub)


def test_parquet_without_rows_or_files(tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match="at least one"):
        read_image_parquet([], "img", "label")
    with refused(tmp_path / "none", "no such file"):
        read_image_parquet([tmp_path / "none"], "img", "label")


def test_pyarrow_not_installed(tmp_path, monkeypatch):
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1")
    shutil.copy(tmp_path / "train-0.parquet", tmp_path / "test-0.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with refused(tmp_path, "needs pyarrow; pip install 'tautnet[data]'"):
        read_cifar10(tmp_path)


@pytest.mark.skipif(not (REAL / "cifar-10").is_dir(), reason="the real CIFAR-10 is not at hand")
def test_real_cifar10_test_part():
    pytest.importorskip("pyarrow")
    images, labels = read_image_parquet([REAL / "cifar-10" / "test-00000-of-00001.parquet"], "img", "label")
    assert images.shape == (10_000, 3, 32, 32)
    assert labels.bincount().tolist() == [1000] * 10
