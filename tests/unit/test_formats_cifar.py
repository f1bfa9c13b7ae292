"""CIFAR in its binary, pickled and parquet forms."""

import os
import pickle
import re

import numpy as np
import pytest
from data_files import (
    assert_equal,
    make_arrays,
    python2_pickle,
    refused,
    write_cifar10_binary,
    write_cifar10_python,
    write_cifar100_binary,
    write_cifar100_python,
    write_cifar_parquet,
)

from tautnet.data.formats.cifar import read_cifar10, read_cifar100
from tautnet.data.formats.pickles import read_pickled_batch


@pytest.mark.parametrize("folder", ["", "cifar-10-batches-bin"])
def test_cifar10_binary(tmp_path, folder):
    expected = write_cifar10_binary(tmp_path / folder, 20, 10)
    read = read_cifar10(tmp_path)
    assert_equal(read, expected)
    assert read.classes[0] == "airplane"


@pytest.mark.parametrize("python2", [False, True])
@pytest.mark.parametrize("folder", ["", "cifar-10-batches-py"])
def test_cifar10_python(tmp_path, folder, python2):
    expected = write_cifar10_python(tmp_path / folder, 20, 10, python2)
    assert_equal(read_cifar10(tmp_path), expected)


@pytest.mark.parametrize("folder", ["", "data", "plain_text"])
@pytest.mark.parametrize("image", ["img", "image"])
def test_cifar10_parquet(tmp_path, folder, image):
    pytest.importorskip("pyarrow")
    expected = write_cifar_parquet(tmp_path / folder, 20, 10, num_shards=3, image=image)
    assert_equal(read_cifar10(tmp_path), expected)


@pytest.mark.parametrize("folder", ["", "cifar-100-binary"])
def test_cifar100_binary(tmp_path, folder):
    expected = write_cifar100_binary(tmp_path / folder, 200, 100)
    read = read_cifar100(tmp_path)
    assert_equal(read, expected)
    assert len(set(read.classes)) == 100
    assert list(read.classes) == sorted(read.classes)


@pytest.mark.parametrize("python2", [False, True])
def test_cifar100_python(tmp_path, python2):
    expected = write_cifar100_python(tmp_path / "cifar-100-python", 200, 100, python2)
    assert_equal(read_cifar100(tmp_path), expected)


def test_cifar100_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    expected = write_cifar_parquet(tmp_path / "cifar100", 100, 100, num_classes=100)
    assert_equal(read_cifar100(tmp_path), expected)


@pytest.mark.parametrize(("read", "name"), [(read_cifar10, "data_batch_1.bin"), (read_cifar100, "train.bin")])
def test_nothing_there(tmp_path, read, name):
    with refused(tmp_path, "not found", name, "train-*.parquet"):
        read(tmp_path)
    with refused(tmp_path / "none", "no such folder", name):
        read(tmp_path / "none")


def test_archive_is_to_be_unpacked(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    with refused(tmp_path / "cifar-10-python.tar.gz", "unpack"):
        read_cifar10(tmp_path)


@pytest.mark.parametrize(("write", "end"), [(write_cifar10_binary, ".bin"), (write_cifar10_python, "")])
def test_missing_batches_are_named(tmp_path, write, end):
    write(tmp_path, 20, 10)
    for name in ("data_batch_3", "test_batch"):
        (tmp_path / f"{name}{end}").unlink()
    with refused(tmp_path, f"data_batch_3{end}, test_batch{end} missing"):
        read_cifar10(tmp_path)


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c + b"\0", lambda c: b""], ids=["cut", "long", "empty"])
def test_binary_record_size(tmp_path, change):
    write_cifar10_binary(tmp_path, 20, 10)
    path = tmp_path / "data_batch_2.bin"
    path.write_bytes(change(path.read_bytes()))
    with refused(path, "bytes, expected records of 3073"):
        read_cifar10(tmp_path)


def test_binary_label_range(tmp_path):
    write_cifar10_binary(tmp_path, 20, 10)
    path = tmp_path / "test_batch.bin"
    content = bytearray(path.read_bytes())
    content[3073 * 4] = 10
    path.write_bytes(content)
    with refused(path, "label 10 in row 5", "0 to 9"):
        read_cifar10(tmp_path)


class _Canary:
    """Pickles into a call that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_hostile_pickle_is_not_obeyed(tmp_path):
    write_cifar10_python(tmp_path, 20, 10)
    path, canary = tmp_path / "data_batch_1", tmp_path / "canary"
    path.write_bytes(pickle.dumps({"labels": [0], "data": _Canary(canary)}))
    pickle.loads(path.read_bytes())
    assert canary.exists()  # the attack works on a reader that trusts
    canary.unlink()
    with refused(path, f"refused global {os.system.__module__}.system"):
        read_cifar10(tmp_path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x0bndarray.dot\x93.",
        b"cnumpy\nndarray\n((I1\ntS'O'\ntR.",
    ],
)
def test_other_globals_are_refused(tmp_path, content):
    path = tmp_path / "batch"
    path.write_bytes(content)
    with refused(path, "not a pickled batch"):
        read_pickled_batch(path, "labels")


ROWS = make_arrays(4, 0).train_x.reshape(4, -1)
BAD_BATCHES = {
    "list": ([1, 2], "holds a list"),
    "no data": ({"labels": [0] * 4}, "no entry data", "labels"),
    "no labels": ({"data": ROWS}, "no entry labels", "data"),
    "short rows": ({"data": ROWS[:, 1:], "labels": [0] * 4}, "(4, 3071)", "(N, 3072)"),
    "objects": ({"data": np.full((4, 3072), None), "labels": [0] * 4}, "data", "dtype |O8"),
    "records": ({"data": ROWS.view("u1,u1"), "labels": [0] * 4}, "data", "dtype |V2"),
    "int32": ({"data": ROWS.astype(np.int32), "labels": [0] * 4}, "int32", "uint8"),
    "count": ({"data": ROWS, "labels": [0] * 3}, "labels", "4 integers"),
    "text": ({"data": ROWS, "labels": ["0"] * 4}, "labels is neither an array nor a list of integers"),
    "truth values": ({"data": ROWS, "labels": [True] * 4}, "labels is neither an array nor a list of integers"),
    "no list": ({"data": ROWS, "labels": None}, "labels is neither an array nor a list of integers"),
}


@pytest.mark.parametrize("case", BAD_BATCHES.values(), ids=BAD_BATCHES.keys())
def test_pickled_content(tmp_path, case):
    batch, *words = case
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps(batch, protocol=4))
    with refused(path, *words):
        read_pickled_batch(path, "labels")


def test_pickled_label_range(tmp_path):
    write_cifar10_python(tmp_path, 20, 10)
    path = tmp_path / "data_batch_4"
    path.write_bytes(pickle.dumps({"data": ROWS, "labels": [0, 1, -1, 3]}, protocol=4))
    with refused(path, "label -1 in row 3"):
        read_cifar10(tmp_path)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_pickles_of_both_numpys(tmp_path, protocol, module):
    content = pickle.dumps({"data": ROWS, "labels": np.arange(4)}, protocol=protocol)
    if protocol < 4:  # there the module's name has its length in front
        content = re.sub(rb"numpy\._?core(?=\.multiarray)", module.encode(), content)
    path = tmp_path / "batch"
    path.write_bytes(content)
    images, labels = read_pickled_batch(path, "labels")
    assert np.array_equal(images.numpy().reshape(4, -1), ROWS)
    assert labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("change", [(b"\x04\x00\x00\x00", b"\x05\x00\x00\x00"), (b"u1", b"u4"), (b"u1", b"O8")])
def test_pickled_array_whose_state_does_not_fit(tmp_path, change):
    path = tmp_path / "batch"
    content = python2_pickle(ROWS, [0] * 4, "labels")
    assert change[0] in content
    path.write_bytes(content.replace(*change, 1))
    with refused(path, "data is"):
        read_pickled_batch(path, "labels")


def test_order_of_bytes_and_of_dimensions_in_a_pickle(tmp_path):
    path = tmp_path / "batch"
    labels = np.array([1, 2, 300, 4], ">i4")
    path.write_bytes(pickle.dumps({"data": np.asfortranarray(ROWS), "labels": labels}, protocol=4))
    images, read = read_pickled_batch(path, "labels")
    assert np.array_equal(images.numpy().reshape(4, -1), ROWS)
    assert read.tolist() == labels.tolist()


@pytest.mark.parametrize("keep", [0, 1, 20, -1])
@pytest.mark.parametrize("python2", [False, True])
def test_pickle_cut_off(tmp_path, keep, python2):
    write_cifar10_python(tmp_path, 20, 10, python2)
    path = tmp_path / "data_batch_5"
    path.write_bytes(path.read_bytes()[:keep])
    with refused(path, "" if keep else "empty"):
        read_cifar10(tmp_path)
