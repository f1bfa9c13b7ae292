"""Gray images of any size, as denoising uses them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tautnet.data.formats.decoding import SUFFIXES, Pixels, in_threads, is_image, open_image, pixels
from tautnet.data.formats.files import missing


def read_gray_images(folder: Path) -> list[Tensor]:
    """Read all images of a folder in the order of their names; colour becomes luma (ITU-R 601, by Pillow).

    Suffixes: png, jpg, jpeg, bmp; other files, hidden ones and folders below are left out.

    Args:
        folder: of the files.

    Returns:
        (H, W) uint8 each; sizes may differ.

    Raises:
        ValueError: the folder is missing or has no images, or one cannot be decoded.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.iterdir() if is_image(path)) if folder.is_dir() else []
    if not paths:
        raise missing(folder, f"images with {', '.join(SUFFIXES)}")
    return [torch.from_numpy(image.copy()) for image in in_threads(_read, paths, chunk=4)]


def _read(path: Path) -> Pixels:
    return pixels(open_image(path, str(path)).convert("L"))
