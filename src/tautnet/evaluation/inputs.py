"""Files that a trained model is given, as batches in raw units: images, tables, arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from tautnet.data.formats.decoding import SUFFIXES, fitted, in_threads, is_image, open_image, pixels
from tautnet.data.formats.images import size_text
from tautnet.errors import ConfigError
from tautnet.evaluation import arrays, tables
from tautnet.evaluation.writing import note
from tautnet.trained import Trained

Item = TypeVar("Item")
_VALUES_AT_ONCE, _SAMPLES_AT_ONCE = 2**22, 256


@dataclass(frozen=True)
class Chunk:
    """Some samples.

    Attributes:
        origins: file and, of tables and arrays, the row from 1 that each comes from.
        raw: (N, *input_shape) float64 in raw units.
    """

    origins: Sequence[tuple[Path, int | None]]
    raw: Tensor


class Inputs:
    """What is in files, for one network.

    Images become gray or RGB as the network takes them, pixel values count from 0 to 1. Tables are read as by
    ``TableFile``. Of ``.npy`` and ``.npz`` see ``arrays.open_array``.

    Args:
        files: images, folders of images (those in folders below too), tables, arrays.
        trained: the network with its preparation.
        resize: bring images to the network's size, shorter side first, then the centre cut out; always done where the
            data of the run were sized so.

    Raises:
        ConfigError: a file that is not there, of a kind that the network does not take, or whose columns or shape do
            not fit. Iterating may raise it too, at content that cannot be used.
    """

    def __init__(self, files: Sequence[Path], trained: Trained, resize: bool) -> None:
        self.trained, self.shape = trained, trained.model.input_shape
        self.resize = resize or trained.settings["data"].get("image_size") is not None
        self.any_size = trained.model.task == "denoising"
        self._images = len(self.shape) == 3 and self.shape[0] in (1, 3)
        if resize and (self.any_size or not self._images):
            raise ConfigError(f"--resize: the network takes {self._taken()}")
        if self.resize and self.shape[-2:] != self.shape[-1:] * 2:
            raise ConfigError(f"--resize: to squares alone; the network takes {size_text(self.shape)}")
        self._pieces = [piece for file in files for piece in self._opened(file)]

    def __iter__(self) -> Iterator[Chunk]:
        """In the order of the files; neighbouring images together."""
        size = 1 if self.any_size else max(1, min(_SAMPLES_AT_ONCE, _VALUES_AT_ONCE // prod(self.shape)))
        images: list[Path] = []
        for piece in self._pieces:
            if isinstance(piece, Path):
                images.append(piece)
            if images and (len(images) == size or not isinstance(piece, Path)):
                yield self._decoded(images)
                images = []
            if isinstance(piece, tables.TableFile):
                yield from _of_table(piece, size)
            elif isinstance(piece, arrays.ArrayFile):
                yield from _of_array(piece, size)
        if images:
            yield self._decoded(images)

    @property
    def images(self) -> list[Path]:
        """Those among the files and in the folders."""
        return [piece for piece in self._pieces if isinstance(piece, Path)]

    def _opened(self, file: Path) -> list[Path] | list[tables.TableFile] | list[arrays.ArrayFile]:
        if not file.exists():
            raise ConfigError(f"{file}: no such file or folder")
        suffix = file.suffix.lower()
        if file.is_dir() or suffix in SUFFIXES:
            if not self._images:
                raise ConfigError(f"{file}: the network takes {self._taken()}, no images")
            return _images_of(file)
        if self.any_size:
            raise ConfigError(f"{file}: the network takes images: a folder of them, or {', '.join(SUFFIXES)}")
        if suffix in arrays.SUFFIXES:
            return [arrays.ArrayFile(file, self.shape)]
        if not tables.is_table(file):
            accepted = ", ".join((*SUFFIXES, *tables.SUFFIXES, *arrays.SUFFIXES))
            raise ConfigError(f"{file}: of unknown kind; accepted are folders of images and {accepted}")
        if len(self.shape) != 1:
            raise ConfigError(f"{file}: the network takes {self._taken()}, no tables")
        table = tables.TableFile(file, self.trained.preparation.columns, self.shape[0])
        if table.ignored:
            note(f"{file}: not asked for: {tables.listed(table.ignored)}")
        return [table]

    def _taken(self) -> str:
        if self._images:
            return "gray images of any size" if self.any_size else f"images of {size_text(self.shape)}"
        return f"{self.shape[0]} numbers" if len(self.shape) == 1 else f"arrays of shape {self.shape}"

    def _decoded(self, paths: Sequence[Path]) -> Chunk:
        try:
            images = in_threads(self._pixels, paths, chunk=16)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return Chunk([(path, None) for path in paths], torch.stack(images).double() / 255)

    def _pixels(self, path: Path) -> Tensor:
        """(C, H, W) uint8."""
        channels, height, width = self.shape
        image = open_image(path, str(path)).convert("L" if channels == 1 else "RGB")
        if self.resize and not self.any_size:
            image = fitted(image, height)
        values = torch.from_numpy(pixels(image).copy())
        values = values[None] if values.dim() == 2 else values.movedim(2, 0)
        if not self.any_size and values.shape[1:] != (height, width):
            found = size_text(values.shape)
            raise ConfigError(f"{path}: {found}, the network takes {size_text(self.shape)}; --resize brings it there")
        return values


def _images_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if is_image(file))
    if not found:
        raise ConfigError(f"{path}: no images in this folder or below; expected {', '.join(SUFFIXES)}")
    return found


def _of_table(table: tables.TableFile, size: int) -> Iterator[Chunk]:
    rows = enumerate((values for values, _ in table.rows()), 1)
    for piece in pieces(rows, size):
        values = torch.tensor([values for _, values in piece], dtype=torch.float64)
        yield Chunk([(table.path, number) for number, _ in piece], values)


def _of_array(array: arrays.ArrayFile, size: int) -> Iterator[Chunk]:
    for start in range(0, len(array), size):
        raw = array.raw(slice(start, start + size))
        yield Chunk([(array.path, start + i + 1) for i in range(len(raw))], raw)


def pieces(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """``size`` items at a time."""
    piece: list[Item] = []
    for item in items:
        piece.append(item)
        if len(piece) == size:
            yield piece
            piece = []
    if piece:
        yield piece
