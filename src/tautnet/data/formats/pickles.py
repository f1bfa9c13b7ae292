"""The pickled batches of CIFAR's python version, read without trusting them."""

from __future__ import annotations

import pickle
import re
import struct
from io import BytesIO
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tautnet.data.formats.files import one_line

Array = np.ndarray[Any, Any]
ROW = 3 * 32 * 32
_UNREADABLE = (
    *(pickle.UnpicklingError, EOFError, OverflowError, MemoryError, RecursionError, struct.error),
    *(AssertionError, AttributeError, IndexError, KeyError, NotImplementedError, TypeError, ValueError),
)


def read_pickled_batch(path: Path, label_key: str) -> tuple[Tensor, Tensor]:
    """Read one batch of 32x32 RGB images.

    A pickle can name any function of any module and have it called, and NumPy's own functions for pickles trust their
    arguments. So the few names that arrays need are answered by records of what was said about an array, which is then
    made here; every other name is refused. Batches pickled by Python 2 and 3 and by NumPy 1 and 2 are read; protocol 5
    of pickle stores arrays by another function and is refused.

    Source: Krizhevsky (2009), the python version of CIFAR-10 and CIFAR-100: a dict with ``data``, (N, 3072) uint8, the
    channels one after the other, and a list of labels.

    Args:
        path: of the file.
        label_key: of the labels: ``labels``, ``fine_labels`` or ``coarse_labels``.

    Returns:
        Images (N, 3, 32, 32) uint8 and labels (N,) int64.

    Raises:
        ValueError: the file cannot be read or names anything else, or its content is not such a batch.
    """
    batch = _load(path)
    if not isinstance(batch, dict):
        raise ValueError(f"{path}: holds a {type(batch).__name__}, expected a dict with data and {label_key}")
    batch = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    for key in ("data", label_key):
        if key not in batch:
            raise ValueError(f"{path}: no entry {key}; there are {', '.join(map(repr, batch))}")
    rows = _array(path, "data", batch["data"])
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != ROW:
        raise ValueError(f"{path}: data is {rows.dtype} of {rows.shape}, expected uint8 of (N, {ROW})")
    labels = _array(path, label_key, batch[label_key])
    if labels.shape != rows.shape[:1]:
        raise ValueError(f"{path}: {label_key} has shape {labels.shape}, expected {len(rows)} integers")
    return torch.from_numpy(rows.reshape(-1, 3, 32, 32).copy()), torch.from_numpy(labels.astype(np.int64))


def _load(path: Path) -> Any:
    content = path.read_bytes()
    if not content:
        raise ValueError(f"{path}: empty file, expected a pickled batch")
    try:
        return _ArrayUnpickler(BytesIO(content), encoding="bytes").load()
    except _UNREADABLE as error:
        raise ValueError(f"{path}: not a pickled batch, or cut off ({one_line(error)})") from error


@final
class _Record:
    """What a pickle says about an array or a dtype: the arguments it was made with and the state set on it."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


@final
class _ArrayUnpickler(pickle._Unpickler):  # the one in Python: damaged files bring the one in C to unsafe states
    """Admits what arrays are made of, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # Python 3 writes bytes as text for Python 2
            return lambda text, _: text.encode("latin1")  # of its own: a pickle can set attributes of what it names
        if (module, name) not in _ADMITTED:
            raise ValueError(f"refused global {module}.{name}")
        return _ADMITTED[module, name]


_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _Record,
    ("numpy._core.multiarray", "_reconstruct"): _Record,
    ("numpy", "ndarray"): None,  # an argument of the former only, not to be called
    ("numpy", "dtype"): _Record,
}


def _array(path: Path, key: str, value: Any) -> Array:
    """Integers, from a list of them or from the record of an array."""
    if isinstance(value, list) and all(type(item) is int and abs(item) < 2**31 for item in value):
        return np.array(value, np.int64)
    if not isinstance(value, _Record):
        raise ValueError(f"{path}: {key} is neither an array nor a list of integers")
    try:
        return _recorded(value)
    except _UNREADABLE as error:
        raise ValueError(f"{path}: {key} is no array of integers ({one_line(error)})") from error


def _recorded(array: _Record) -> Array:
    """From NumPy's states: (version, shape, dtype, column-major, bytes) of arrays, (version, order, ...) of dtypes."""
    _, shape, dtype, column_major, content = array.state
    kind, order = (_text(value) for value in (dtype.arguments[0], dtype.state[1]))
    if not re.fullmatch("[<>|=][iu][1248]", order + kind):
        raise ValueError(f"dtype {order}{kind}")
    values = np.frombuffer(content, np.dtype(order + kind))
    return values.reshape(shape, order="F" if column_major else "C")


def _text(value: str | bytes) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value
