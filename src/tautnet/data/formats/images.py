"""What the readers of image sets return, and the checks that they share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor


class ImageArrays(NamedTuple):
    """Labelled 8-bit images in two parts.

    Args:
        train_x: (N, C, H, W) uint8, C = 1 (gray) or 3 (RGB).
        train_y: (N,) int64, from 0.
        test_x: (M, C, H, W) uint8.
        test_y: (M,) int64.
        classes: names in the order of the labels, None where the files hold none.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...] | None


def check_count(images: Path | str, num_images: int, labels: Path | str, num_labels: int) -> None:
    """Raise ValueError unless there is one label for each image, and one image at least."""
    if num_images != num_labels:
        raise ValueError(f"{images}: {num_images} images, but {num_labels} labels in {labels}")
    if num_images == 0:
        raise ValueError(f"{images}: no images")


def check_labels(where: Path | str, labels_N: Tensor, num_classes: int | None = None) -> None:
    """Raise ValueError for a label below 0 or, with ``num_classes``, above ``num_classes`` - 1."""
    wrong = labels_N < 0
    if num_classes is not None:
        wrong |= labels_N >= num_classes
    if wrong.any():
        first = int(wrong.nonzero()[0])
        accepted = "0 and up" if num_classes is None else f"0 to {num_classes - 1}"
        raise ValueError(f"{where}: label {int(labels_N[first])} in row {first + 1}, expected {accepted}")


def check_same_size(train: Path | str, train_NCHW: Tensor, test: Path | str, test_NCHW: Tensor) -> None:
    """Raise ValueError unless training and test images have the same channels, height and width."""
    if train_NCHW.shape[1:] != test_NCHW.shape[1:]:
        raise ValueError(
            f"{test}: images of {size_text(test_NCHW.shape[1:])}, but {size_text(train_NCHW.shape[1:])} in {train}"
        )


def size_text(shape_CHW: Sequence[int]) -> str:
    """Like ``28x28 gray``."""
    channels, height, width = shape_CHW
    return f"{height}x{width} {'gray' if channels == 1 else 'RGB' if channels == 3 else f'{channels} channels'}"
