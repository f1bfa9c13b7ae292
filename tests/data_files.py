"""Small files in the true formats of the standard data sets, written for tests, and where the real ones are.

Every writer of a data set returns what a reader has to give back: ``Arrays``. Images are seeded noise around a value
that depends on the class, so that a network can learn them; the labels run through all classes in turn.
"""

import csv
import gzip
import os
import pickle
import re
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("TAUTNET_DATA", ROOT.parent / "shared" / "data"))  # the full sets, where they are at hand


class Arrays(NamedTuple):
    """Images (N, C, H, W) uint8 and labels (N,) int64 of both parts."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def refused(path: Path, *words: str):
    """Expect a ValueError of one line that begins with the path and holds the words in this order."""
    return pytest.raises(
        ValueError, match=rf"\A{re.escape(str(path))}[^\n]*" + "[^\n]*".join(map(re.escape, words)) + r"[^\n]*\Z"
    )


def assert_equal(read, expected: Arrays) -> None:
    """Every value and type of what a reader gave back."""
    for got, wanted, dtype in zip(read, expected, [torch.uint8, torch.int64] * 2, strict=False):
        assert got.dtype == dtype
        assert got.is_contiguous()
        assert np.array_equal(got.numpy(), wanted)


def make_arrays(n_train, n_test, num_classes=10, shape=(3, 32, 32), seed=0) -> Arrays:
    """Random images with their labels."""
    rng = np.random.default_rng(seed)
    parts = []
    for count in (n_train, n_test):
        labels = np.arange(count) % num_classes
        base = (labels * 200 // num_classes).reshape(-1, 1, 1, 1)
        parts += [(base + rng.integers(0, 56, (count, *shape))).astype(np.uint8), labels]
    return Arrays(*parts)


# -- MNIST


def idx_bytes(values: np.ndarray) -> bytes:
    """uint8 values as the content of an idx file."""
    return struct.pack(f">I{values.ndim}I", 0x0800 | values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def write_idx(path: Path, values: np.ndarray, zipped: bool = False) -> None:
    """One idx file of uint8 values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(idx_bytes(values)) if zipped else idx_bytes(values))


def write_mnist(root: Path, n_train: int, n_test: int, zipped: bool = True, side: int = 28) -> Arrays:
    """The four files of MNIST."""
    arrays = make_arrays(n_train, n_test, shape=(1, side, side))
    end = ".gz" if zipped else ""
    for part, images, labels in (("train", *arrays[:2]), ("t10k", *arrays[2:])):
        write_idx(root / f"{part}-images-idx3-ubyte{end}", images[:, 0], zipped)
        write_idx(root / f"{part}-labels-idx1-ubyte{end}", labels, zipped)
    return arrays


# -- CIFAR


def batch_names(num_classes: int) -> list[str]:
    """Files of the training part, and last of the test part."""
    return [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"] if num_classes == 10 else ["train", "test"]


def batches(arrays: Arrays, num_classes: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rows (N, 3072) and labels by the name of their file."""
    names = batch_names(num_classes)
    train = zip(*(np.array_split(values, len(names) - 1) for values in arrays[:2]), strict=True)
    return {name: (x.reshape(-1, 3072), y) for name, (x, y) in zip(names, [*train, arrays[2:]], strict=True)}


def python2_pickle(rows: np.ndarray, labels: list[int], key: str) -> bytes:
    """What Python 2 and an old NumPy write (protocol 2), opcode by opcode: text is made of bytes."""

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text("|") + b"NNN" + number(-1) + number(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R"
    array += b"(K\x01" + number(rows.shape[0]) + number(rows.shape[1]) + b"\x86" + dtype + b"\x89"
    array += b"T" + struct.pack("<i", rows.size) + rows.tobytes() + b"tb"
    entries = text(key) + b"](" + b"".join(map(number, labels)) + b"e" + text("data") + array
    return b"\x80\x02}(" + entries + b"u."


def _write_cifar_python(root: Path, n_train: int, n_test: int, num_classes: int, python2: bool) -> Arrays:
    arrays = make_arrays(n_train, n_test, num_classes)
    key = "labels" if num_classes == 10 else "fine_labels"
    root.mkdir(parents=True, exist_ok=True)
    for name, (rows, labels) in batches(arrays, num_classes).items():
        batch = {"batch_label": name, key: labels.tolist(), "data": rows, "filenames": ["a.png"] * len(rows)}
        content = python2_pickle(rows, labels.tolist(), key) if python2 else pickle.dumps(batch, protocol=4)
        (root / name).write_bytes(content)
    return arrays


def write_cifar10_python(root: Path, n_train: int, n_test: int, python2: bool = False) -> Arrays:
    """Five pickled training batches and a test batch."""
    return _write_cifar_python(root, n_train, n_test, 10, python2)


def write_cifar100_python(root: Path, n_train: int, n_test: int, python2: bool = False) -> Arrays:
    """The pickled files train and test."""
    return _write_cifar_python(root, n_train, n_test, 100, python2)


def _write_cifar_binary(root: Path, n_train: int, n_test: int, num_classes: int) -> Arrays:
    arrays = make_arrays(n_train, n_test, num_classes)
    root.mkdir(parents=True, exist_ok=True)
    for name, (rows, labels) in batches(arrays, num_classes).items():
        before = [labels // 5, labels] if num_classes == 100 else [labels]
        records = np.concatenate([np.stack(before, 1).astype(np.uint8), rows], 1)
        (root / f"{name}.bin").write_bytes(records.tobytes())
    return arrays


def write_cifar10_binary(root: Path, n_train: int, n_test: int) -> Arrays:
    """Records of 3073 bytes in six files."""
    return _write_cifar_binary(root, n_train, n_test, 10)


def write_cifar100_binary(root: Path, n_train: int, n_test: int) -> Arrays:
    """Records of 3074 bytes, coarse and fine label first, in two files."""
    return _write_cifar_binary(root, n_train, n_test, 100)


def png(image: np.ndarray) -> bytes:
    """(C, H, W) uint8 as the content of a PNG file."""
    from io import BytesIO

    from PIL import Image

    content = BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, 2)).save(content, "PNG")
    return content.getvalue()


def write_image_table(path: Path, contents: list[bytes | None], labels, image="img", label="label") -> None:
    """One parquet file with a struct of bytes and path for each image, as dataset hubs write it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": content, "path": None} for content in contents], kind)
    pq.write_table(pa.table({image: images, label: pa.array(labels)}), path)


def write_cifar_parquet(
    root: Path, n_train: int, n_test: int, num_classes: int = 10, num_shards: int = 2, image: str = "img"
) -> Arrays:
    """The training part in ``num_shards`` parquet files and the test part in one."""
    arrays = make_arrays(n_train, n_test, num_classes)
    label = "label" if num_classes == 10 else "fine_label"
    shards = zip(*(np.array_split(values, num_shards) for values in arrays[:2]), strict=True)
    files = {f"train-{i:05d}-of-{num_shards:05d}": part for i, part in enumerate(shards)}
    for name, (x, y) in {**files, "test-00000-of-00001": arrays[2:]}.items():
        write_image_table(root / f"{name}.parquet", [png(row) for row in x], y.tolist(), image, label)
    return arrays


# -- other images


def write_npz(path: Path, n_train: int, n_test: int, num_classes: int = 10, shape=(3, 32, 32), names=None) -> Arrays:
    """One archive of four arrays, by default with the names of Keras; images stay (N, C, H, W)."""
    arrays = make_arrays(n_train, n_test, num_classes, shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **dict(zip(names or ("x_train", "y_train", "x_test", "y_test"), arrays, strict=True)))
    return arrays


def write_image(path: Path, image: np.ndarray) -> None:
    """(C, H, W) uint8 as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(image))


def write_image_folder(
    root: Path, n_train: int, n_test: int, classes=("cat", "dog"), shape=(3, 16, 16), parts=("train", "test")
) -> Arrays:
    """PNG files below root/<part>/<class>; the arrays are in the order of a reader: class by class, then by name."""
    arrays = make_arrays(n_train, n_test, len(classes), shape)
    sorted_parts = []
    for part, x, y in zip(parts, (arrays.train_x, arrays.test_x), (arrays.train_y, arrays.test_y), strict=True):
        for i, (image, label) in enumerate(zip(x, y, strict=True)):
            write_image(root / part / classes[label] / f"{i:04d}.png", image)
        order = np.argsort(y, kind="stable")
        sorted_parts += [x[order], y[order]]
    return Arrays(*sorted_parts)


def write_gray_images(folder: Path, sizes=((20, 30), (30, 20)), seed: int = 0) -> list[np.ndarray]:
    """Gray PNG files, (H, W) each, in the order of their names."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    for i, image in enumerate(images):
        write_image(folder / f"{i:04d}.png", image[None])
    return images


# -- tables


def write_csv(path: Path, columns: dict[str, list]) -> None:
    """A header line and one line a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def write_table_parquet(path: Path, columns: dict[str, list]) -> None:
    """The same as a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
