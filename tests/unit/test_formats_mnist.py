"""idx files and the sets made of them."""

import gzip
import shutil

import numpy as np
import pytest
import torch
from data_files import REAL, assert_equal, idx_bytes, refused, write_idx, write_mnist

from tautnet.data.formats.idx import read_idx, read_mnist

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("values", [IMAGES, IMAGES[:, 0, 0]], ids=["images", "labels"])
def test_idx_round_trip_whatever_the_name(tmp_path, values, zipped):
    path = tmp_path / ("plain" if zipped else "not_zipped.gz")
    write_idx(path, values, zipped)
    assert torch.equal(read_idx(path), torch.from_numpy(values))


GOOD = idx_bytes(IMAGES)
BAD = {
    "empty": (b"", "empty"),
    "short magic": (GOOD[:3], "3 bytes"),
    "wrong magic": (b"\x89PNG" + GOOD[4:], "magic number"),
    "two dimensions": (idx_bytes(IMAGES[0]), "magic number 2050"),
    "floats": (b"\x00\x00\x0d\x03" + GOOD[4:], "magic number 3331"),
    "header cut off": (GOOD[:15], "15 bytes"),
    "values cut off": (GOOD[:-1], "39 bytes, expected 40"),
    "too long": (GOOD + b"\x00", "41 bytes, expected 40"),
    "absurd sizes": (GOOD[:4] + b"\xff" * 12, "bytes, expected"),
    "gzip cut off": (gzip.compress(GOOD)[:-9], "gzip"),
    "gzip header only": (gzip.compress(GOOD)[:5], "gzip"),
    "gzip damaged": (gzip.compress(GOOD)[:-8] + b"\x00" * 8, "gzip"),
    "gzip of nothing": (gzip.compress(b""), "0 bytes"),
}


@pytest.mark.parametrize(("content", "word"), BAD.values(), ids=BAD.keys())
def test_idx_damage(tmp_path, content, word):
    path = tmp_path / "some-file"
    path.write_bytes(content)
    with refused(path, word):
        read_idx(path)


def test_idx_missing(tmp_path):
    with refused(tmp_path / "none", "no such file"):
        read_idx(tmp_path / "none")


@pytest.mark.parametrize("folder", ["", "raw", "MNIST/raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_round_trip(tmp_path, folder, zipped):
    expected = write_mnist(tmp_path / folder, 30, 20, zipped)
    read = read_mnist(tmp_path)
    assert read.classes is None
    assert_equal(read, expected)


def test_mnist_names_with_a_dot(tmp_path):
    write_mnist(tmp_path, 10, 10, zipped=False)
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert len(read_mnist(tmp_path).test_x) == 10


def test_mnist_missing_files_name_folder_and_accepted_names(tmp_path):
    with refused(tmp_path / "none", "no such folder", "train-images-idx3-ubyte"):
        read_mnist(tmp_path / "none")
    write_mnist(tmp_path, 10, 10)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with refused(tmp_path, "t10k-labels-idx1-ubyte", "t10k-labels-idx1-ubyte.gz"):
        read_mnist(tmp_path)


def test_mnist_counts_name_both_files(tmp_path):
    write_mnist(tmp_path, 10, 10)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(9), zipped=True)
    images, labels = (tmp_path / f"train-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    with refused(images, "10 images, but 9 labels", str(labels)):
        read_mnist(tmp_path)


def test_mnist_without_images(tmp_path):
    write_mnist(tmp_path, 10, 0)
    with refused(tmp_path, "no images"):
        read_mnist(tmp_path)


def test_mnist_label_out_of_range(tmp_path):
    write_mnist(tmp_path, 10, 10)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    write_idx(path, np.array([0, 1, 2, 10, 4, 5, 6, 7, 8, 9]), zipped=True)
    with refused(path, "label 10 in row 4", "0 to 9"):
        read_mnist(tmp_path)


def test_mnist_sizes_of_the_parts(tmp_path):
    write_mnist(tmp_path, 10, 10)
    write_mnist(tmp_path / "other", 10, 10, side=27)
    name = "t10k-images-idx3-ubyte.gz"
    shutil.copy(tmp_path / "other" / name, tmp_path / name)
    with refused(tmp_path, "27x27 gray", "28x28 gray"):
        read_mnist(tmp_path)


def test_mnist_swapped_files(tmp_path):
    write_mnist(tmp_path, 10, 10)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    shutil.copy(tmp_path / "train-labels-idx1-ubyte.gz", path)
    with refused(path, "1 dimension(s)", "images"):
        read_mnist(tmp_path)


@pytest.mark.skipif(not (REAL / "fashion-mnist").is_dir(), reason="the real Fashion-MNIST is not at hand")
def test_real_fashion_mnist():
    read = read_mnist(REAL / "fashion-mnist")
    assert read.train_x.shape == (60_000, 1, 28, 28)
    assert read.test_x.shape == (10_000, 1, 28, 28)
    assert read.train_y.bincount().tolist() == [6000] * 10
    assert read.test_y.bincount().tolist() == [1000] * 10
