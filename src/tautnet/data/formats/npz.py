"""Images in NumPy's .npz archives."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tautnet.data.formats.files import one_line
from tautnet.data.formats.images import ImageArrays, check_count, check_labels, check_same_size

Array = np.ndarray[Any, Any]
NAMES = (("x_train", "y_train", "x_test", "y_test"), ("train_x", "train_y", "test_x", "test_y"))
_UNREADABLE = (
    *(OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError),
    *(MemoryError, RuntimeError, SyntaxError, tokenize.TokenError),  # hostile headers, encrypted members
)


def read_npz(path: Path) -> ImageArrays:
    """Read the arrays ``x_train, y_train, x_test, y_test`` (Keras) or ``train_x, train_y, test_x, test_y``.

    Images are uint8 of (N, H, W), (N, C, H, W) or (N, H, W, C) with C = 1 or 3: the dimension of that size is the
    channel. Floats are refused, for their scale is not known. Labels are integers from 0 of (N,) or (N, 1). Objects,
    which would have to be unpickled, are refused.

    Args:
        path: of the archive.

    Raises:
        ValueError: the file is missing or damaged, or an array is missing or of another kind.
    """
    path = Path(path)
    arrays = _arrays(path)
    x_train, y_train, x_test, y_test = next((names for names in NAMES if names[0] in arrays), NAMES[0])
    for name in (x_train, y_train, x_test, y_test):
        if name not in arrays:
            raise ValueError(f"{path}: no array {name}; there are {', '.join(arrays) or 'none'}")
    train, test = (_part(path, arrays, x, y) for x, y in ((x_train, y_train), (x_test, y_test)))
    check_same_size(f"{path}: {x_train}", train[0], f"{path}: {x_test}", test[0])
    return ImageArrays(*train, *test, None)


def _arrays(path: Path) -> dict[str, Array]:
    """The arrays that have one of the accepted names."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not an .npz archive, or cut off")
    wanted = {name for names in NAMES for name in names}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if name in wanted}
    except _UNREADABLE as error:
        raise ValueError(f"{path}: not a readable .npz archive ({one_line(error)})") from error


def _part(path: Path, arrays: dict[str, Array], x: str, y: str) -> tuple[Tensor, Tensor]:
    images = _images(f"{path}: {x}", arrays[x])
    labels = _labels(f"{path}: {y}", arrays[y])
    check_count(f"{path}: {x}", len(images), y, len(labels))
    check_labels(f"{path}: {y}", labels)
    return images, labels


def _images(where: str, values: Array) -> Tensor:
    """(N, C, H, W)."""
    if values.dtype != np.uint8:
        raise ValueError(f"{where} is {values.dtype}, expected uint8 images of 0 to 255")
    if values.ndim == 3:
        return torch.from_numpy(values)[:, None]
    channels = [axis for axis in (1, 3) if values.ndim == 4 and values.shape[axis] in (1, 3)]
    if len(channels) != 1:
        problem = (
            "the channel may be dimension 1 or 3" if channels else "expected (N, H, W), or a channel of size 1 or 3"
        )
        raise ValueError(f"{where} has shape {values.shape}: {problem}")
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, channels[0], 1)))


def _labels(where: str, values: Array) -> Tensor:
    """(N,)."""
    flat = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if flat.dtype.kind not in "iu" or flat.ndim != 1:
        raise ValueError(f"{where} is {values.dtype} of shape {values.shape}, expected integers of (N,)")
    return torch.from_numpy(flat.astype(np.int64))
