"""Image files sorted into folders, one a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tautnet.data.formats.decoding import SUFFIXES, Pixels, fitted, in_threads, is_image, open_image, pixels, stacked
from tautnet.data.formats.files import missing
from tautnet.data.formats.images import ImageArrays


def read_folder(root: Path, image_size: int | None = None) -> ImageArrays:
    """Read ``root/train/<class>/*`` and ``root/test/<class>/*``; ``val`` stands in for a ``test`` that is missing.

    Classes are the folder names in sorted order. Suffixes: png, jpg, jpeg, bmp; other files and hidden ones are left
    out. The images are gray if every file is, else RGB.

    Args:
        root: folder.
        image_size: scale the shorter side to this many pixels (bilinear with antialiasing) and cut out the centre; None
            takes images as they are.

    Raises:
        ValueError: a folder is missing or has no images, classes differ between the parts, an image cannot be decoded,
            or sizes differ without ``image_size``.
    """
    root = Path(root)
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size={image_size}: an integer of at least 1, or null")
    train, test = _part_folders(root)
    classes = _classes(train)
    if _classes(test) != classes:
        odd = sorted(set(_classes(test)) ^ set(classes))
        raise ValueError(f"{root}: classes in only one of {train.name} and {test.name}: {', '.join(odd[:20])}")
    groups = [_images(part / name) for part in (train, test) for name in classes]
    images = _decoded([path for group in groups for path in group], image_size)
    labels = torch.tensor([i % len(classes) for i, group in enumerate(groups) for _ in group])
    num_train = sum(map(len, groups[: len(classes)]))
    return ImageArrays(images[:num_train], labels[:num_train], images[num_train:], labels[num_train:], classes)


def folder_images(root: Path) -> list[Path]:
    """The files that ``read_folder`` reads, in its order.

    Raises:
        ValueError: a folder is missing or has no images.
    """
    return [path for part in _part_folders(root) for name in _classes(part) for path in _images(part / name)]


def folder_classes(root: Path) -> tuple[str, ...]:
    """Names of the classes in the order of their labels.

    Raises:
        ValueError: a folder is missing or has no classes.
    """
    return _classes(_part_folders(root)[0])


def _part_folders(root: Path) -> tuple[Path, Path]:
    """Of training and test part."""
    train = root / "train"
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if not train.is_dir() or test is None:
        raise missing(root, "the folders train and test (or val), with one folder a class")
    return train, test


def _classes(part: Path) -> tuple[str, ...]:
    names = tuple(sorted(path.name for path in part.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if not names:
        raise ValueError(f"{part}: no folders in it, expected one for each class")
    return names


def _images(folder: Path) -> list[Path]:
    """The image files of one class, in the order of their names."""
    paths = sorted(path for path in folder.iterdir() if is_image(path))
    if not paths:
        raise ValueError(f"{folder}: no images; expected files with {', '.join(SUFFIXES)}")
    return paths


def _decoded(paths: list[Path], image_size: int | None) -> Tensor:
    """(N, C, H, W)."""
    images = in_threads(lambda path: _read(path, image_size), paths, chunk=16)
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2) for image in images]
    try:
        return stacked(images, lambda i: str(paths[i]))
    except ValueError as error:
        raise ValueError(f"{error}; image_size makes them equal") from error


def _read(path: Path, image_size: int | None) -> Pixels:
    image = open_image(path, str(path))
    return pixels(image if image_size is None else fitted(image, image_size))
