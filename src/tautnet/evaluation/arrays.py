"""Arrays of NumPy that a trained model is given."""

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
from tautnet.errors import ConfigError

SUFFIXES = (".npy", ".npz")
NAMES = ("x", "x_test", "test_x")  # of the array in an archive of several
FARTHEST = 1.0  # of a pixel from the range 0 to 1: perturbed images leave it a little, other units a lot
_MAGIC = b"\x93NUMPY"
_UNREADABLE = (
    *(OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError),
    *(MemoryError, RuntimeError, SyntaxError, tokenize.TokenError),  # hostile headers, encrypted members
)


class ArrayFile:
    """Samples in a ``.npy`` file, or in the only array of an ``.npz`` archive or the one named x, x_test or test_x.

    Values are in raw units: images are uint8 of 0 to 255, or floats of 0 to 1; the columns of tables have their own
    units. Gray images may lack the dimension of the channel, or have it last, as may others. Objects, which would have
    to be unpickled, are refused.

    Args:
        path: of the file.
        shape: of one sample.

    Raises:
        ConfigError: a file that cannot be read, or whose array has another shape or type.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path, self.shape = path, shape
        values = _read(path)
        if values.dtype.kind not in "uifb":
            raise ConfigError(f"{path}: an array of {values.dtype}; numbers are needed")
        self._are_pixels = len(shape) == 3 and values.dtype == np.uint8
        if len(shape) == 3 and values.dtype.kind != "f" and not self._are_pixels:
            raise ConfigError(f"{path}: {values.dtype}; images are uint8 of 0 to 255, or floats of 0 to 1")
        self._values = self._shaped(values)

    def __len__(self) -> int:
        return len(self._values)

    def raw(self, rows: slice) -> Tensor:
        """Some samples, (N, *shape) float64.

        Raises:
            ConfigError: a value that is not finite, or a float that is no pixel.
        """
        x = torch.from_numpy(np.array(self._values[rows], np.float64))
        wrong = ~x.isfinite()
        if len(self.shape) == 3 and not self._are_pixels:
            wrong |= (x - 0.5).abs() > 0.5 + FARTHEST
        if wrong.any():
            place = [int(index) for index in wrong.nonzero()[0]]
            where = f"{self.path}: row {rows.start + place[0] + 1}: {float(x[tuple(place)]):g} at {place[1:]}"
            needed = "a finite number is" if len(self.shape) != 3 else "pixels as floats of 0 to 1 are"
            raise ConfigError(f"{where}; {needed} needed")
        return x / 255 if self._are_pixels else x

    def _shaped(self, values: Any) -> Any:
        """(N, *shape), as a view."""
        shape = self.shape
        if values.shape == shape:  # a single sample
            return values[None]
        if values.shape[1:] == shape:
            return values
        if len(shape) == 3 and values.shape[1:] == (*shape[1:], shape[0]):
            return np.moveaxis(values, 3, 1)
        if len(shape) == 3 and shape[0] == 1 and values.shape[1:] == shape[1:]:
            return values[:, None]
        needed = ", ".join(map(str, shape))
        raise ConfigError(f"{self.path}: an array of shape {values.shape}; the network takes (samples, {needed})")


def _read(path: Path) -> Any:
    try:
        if path.suffix.lower() == ".npy":
            return _mapped(path)
        if not zipfile.is_zipfile(path):
            raise ConfigError(f"{path}: not an .npz archive, or cut off")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            names = archive.files
            name = names[0] if len(names) == 1 else next((name for name in NAMES if name in names), None)
            if name is None:
                raise ConfigError(f"{path}: {', '.join(names) or 'no arrays'}; one array, or {' or '.join(NAMES)}")
            return archive[name]
    except ConfigError:
        raise
    except _UNREADABLE as error:
        raise ConfigError(f"{path}: not a readable array ({one_line(error)})") from error


def _mapped(path: Path) -> Any:
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:  # NumPy would look for an archive or a pickle in it
            raise ConfigError(f"{path}: not an .npy file")
    return np.load(path, mmap_mode="r", allow_pickle=False)
