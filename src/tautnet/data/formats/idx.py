"""The idx files of MNIST and of the data sets that copy its format."""

from __future__ import annotations

import gzip
import zlib
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from tautnet.data.formats.files import find_file, missing, one_line
from tautnet.data.formats.images import ImageArrays, check_count, check_labels, check_same_size

NUM_DIMENSIONS = {2051: 3, 2049: 1}  # magic number of unsigned bytes: images, labels
FOLDERS = ("", "raw", "MNIST/raw", "FashionMNIST/raw")
NUM_CLASSES = 10


def read_mnist(root: Path) -> ImageArrays:
    """Read MNIST, Fashion-MNIST or another set of four files with their names.

    The files ``{train,t10k}-{images-idx3,labels-idx1}-ubyte``, also with ``.idx`` for ``-idx`` and with ``.gz``, are
    looked for in ``root``, ``root/raw``, ``root/MNIST/raw`` and ``root/FashionMNIST/raw``.

    Source: LeCun, Cortes, Burges, the MNIST database; Xiao, Rasul, Vollgraf (2017) for Fashion-MNIST.

    Args:
        root: folder.

    Raises:
        ValueError: a file is missing or not what it should be.
    """
    root = Path(root)
    train_x, train_y = _read_part(root, "train")
    test_x, test_y = _read_part(root, "t10k")
    check_same_size(f"{root}: training part", train_x, f"{root}: test part", test_x)
    return ImageArrays(train_x, train_y, test_x, test_y, None)


def read_idx(path: Path) -> Tensor:
    """Read one idx file of unsigned bytes, plain or gzip; its content decides, not its name.

    Layout: magic number, one size for each dimension, all big-endian 32-bit integers; then the values.

    Source: LeCun, Cortes, Burges, the MNIST database. Difference: only magic numbers 2051 (images) and 2049 (labels).

    Args:
        path: of the file.

    Shape:
        (N, H, W) for images, (N,) for labels, uint8.

    Raises:
        ValueError: the file is missing, empty, cut off, too long, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(2)
        file.seek(0)
        if not start:
            raise ValueError(f"{path}: empty file, expected an idx file")
        if start != b"\x1f\x8b":
            return _read_open(path, file)
        try:
            with gzip.open(file) as unpacked:
                return _read_open(path, unpacked)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged or cut off gzip file ({one_line(error)})") from error


def _read_open(path: Path, file: IO[bytes] | gzip.GzipFile) -> Tensor:
    """Read no more than the header says and one byte: a small file can unpack to any size."""
    content = file.read(4)
    magic = int.from_bytes(content, "big")
    if len(content) < 4 or magic not in NUM_DIMENSIONS:
        found = f"magic number {magic}" if len(content) >= 4 else f"{len(content)} bytes"
        raise ValueError(f"{path}: {found}, expected an idx file with magic number 2051 (images) or 2049 (labels)")
    header = 4 + 4 * NUM_DIMENSIONS[magic]
    content = file.read(header - 4)
    if len(content) < header - 4:
        raise ValueError(f"{path}: cut off after {4 + len(content)} bytes, its header takes {header}")
    sizes = [int.from_bytes(content[i : i + 4], "big") for i in range(0, header - 4, 4)]
    values = _read_at_most(file, prod(sizes) + 1)
    if len(values) != prod(sizes):
        found = f"{'at least ' if len(values) > prod(sizes) else ''}{header + len(values)} bytes"
        sizes_text = "x".join(map(str, sizes))
        raise ValueError(f"{path}: {found}, expected {header + prod(sizes)} for {sizes_text} values and the header")
    return torch.from_numpy(np.frombuffer(values, np.uint8).reshape(sizes).copy())


def _read_at_most(file: IO[bytes] | gzip.GzipFile, size: int) -> bytes:
    """Up to ``size`` bytes, in pieces: what a header announces is not asked for at once."""
    pieces = []
    while size > 0 and (piece := file.read(min(size, 2**24))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _read_part(root: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, H, W) and labels (N,)."""
    image_path, image_NHW = _read_kind(root, part, "images", 3)
    label_path, label_N = _read_kind(root, part, "labels", 1)
    check_count(image_path, len(image_NHW), label_path, len(label_N))
    if image_NHW.numel() == 0:
        raise ValueError(f"{image_path}: images of {image_NHW.shape[1]}x{image_NHW.shape[2]} pixels")
    labels = label_N.long()
    check_labels(label_path, labels, NUM_CLASSES)
    return image_NHW[:, None], labels


def _read_kind(root: Path, part: str, kind: str, num_dimensions: int) -> tuple[Path, Tensor]:
    """Find and read one of the four files."""
    names = [f"{part}-{kind}{mark}idx{num_dimensions}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    path = find_file((root / folder for folder in FOLDERS), names)
    if path is None:
        raise missing(root, f"{names[0]} or {names[1]}, also below raw, MNIST/raw or FashionMNIST/raw")
    values = read_idx(path)
    if values.ndim != num_dimensions:
        raise ValueError(f"{path}: an idx file of {values.ndim} dimension(s), expected {kind} with {num_dimensions}")
    return path, values
