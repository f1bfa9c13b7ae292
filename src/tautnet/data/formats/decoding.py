"""Compressed images to arrays, many at a time."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tautnet.data.formats.files import one_line
from tautnet.data.formats.images import size_text

if TYPE_CHECKING:
    from PIL.Image import Image

Item = TypeVar("Item")
Result = TypeVar("Result")
Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # (H, W) gray, (H, W, 3) RGB

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
# What is decoded, whatever a file is called. Pillow knows more, and hands some of it to programs: PostScript, for one.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
MAX_PIXELS = 2**26  # of one image; more of them would fit into a small file that says nothing else
_GRAY = {"1", "L", "LA"}
_HIGH_DEPTH = {"I", "F"}


def open_image(source: Path | bytes, name: str) -> Image:
    """Decode one image to 8-bit gray (mode L) or RGB; palettes become RGB, transparency is left out.

    Args:
        source: a file or its content.
        name: of the image, to begin messages with.

    Raises:
        ValueError: it cannot be decoded, has more than 8 bits a channel or too many pixels.
    """
    from PIL import Image

    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise ValueError(f"{file.width}x{file.height} pixels, at most {MAX_PIXELS}")
            file.load()
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise ValueError(f"{' '.join(name.split())}: not a readable image ({one_line(error)})") from error
    if file.mode.partition(";")[0] in _HIGH_DEPTH:
        raise ValueError(f"{name}: more than 8 bits a channel (Pillow mode {file.mode}), expected 8")
    if file.mode in ("L", "RGB"):
        return file
    image = file.convert("RGBA") if file.mode == "P" else file  # or Pillow warns about dropped transparency
    return image.convert("L" if image.mode in _GRAY else "RGB")


def fitted(image: Image, side: int) -> Image:
    """Scale the shorter side to ``side`` pixels (bilinear with antialiasing) and cut out the centre."""
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)


def pixels(image: Image) -> Pixels:
    """(H, W) or (H, W, 3)."""
    return np.asarray(image, np.uint8)


def is_image(path: Path) -> bool:
    """A visible file with one of the accepted suffixes, in either case."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], chunk: int = 64) -> list[Result]:
    """Map over ``items``, ``chunk`` at a time in a thread each; the first error in their order is raised."""

    def results(start: int) -> list[Result]:
        return [function(item) for item in items[start : start + chunk]]

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(chain.from_iterable(pool.map(results, range(0, len(items), chunk))))


def stacked(images: Sequence[Pixels], names: Callable[[int], str]) -> Tensor:
    """One tensor (N, C, H, W) of images of one size and mode.

    Args:
        images: at least one.
        names: the name of the image with an index, to begin messages with.

    Raises:
        ValueError: an image that differs from the first.
    """
    shape = images[0].shape
    odd = next(_differing(images, shape), None)
    if odd is not None:
        found, first = (size_text(_shape_CHW(images[i])) for i in (odd, 0))
        raise ValueError(f"{names(odd)}: an image of {found}, but {first} in {names(0)}")
    stack = torch.from_numpy(np.stack(images))
    return stack[:, None] if stack.ndim == 3 else stack.movedim(3, 1).contiguous()


def _differing(images: Sequence[Pixels], shape: tuple[int, ...]) -> Iterator[int]:
    return (i for i, image in enumerate(images) if image.shape != shape)


def _shape_CHW(image: Pixels) -> tuple[int, int, int]:
    return (1 if image.ndim == 2 else 3, image.shape[0], image.shape[1])
