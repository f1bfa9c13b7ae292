"""From arrays of images to the parts of a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from tautnet.data.augment import Augmentation
from tautnet.data.base import Splits
from tautnet.data.cache import cached
from tautnet.data.formats.images import ImageArrays
from tautnet.data.image_samples import Colours, ImageSamples
from tautnet.data.split import hold_out

LARGEST_SIDE = 4096  # of an image, in pixels


def check_val_fraction(value: float) -> None:
    """Raise ValueError unless some of the training part is held out and some is left."""
    if not 0 < value < 1:
        raise ValueError(f"val_fraction={value}: between 0 and 1")


def check_image_size(value: int | None) -> None:
    """Raise ValueError unless it is None or a side that one would give an image."""
    if value is not None and not 1 <= value <= LARGEST_SIDE:
        raise ValueError(f"image_size={value}: an integer from 1 to {LARGEST_SIDE}")


def cached_images(key: str, read: Callable[[], ImageArrays]) -> ImageArrays:
    """The images under ``key`` in the cache."""
    tensors = ("train_x", "train_y", "test_x", "test_y")

    def read_tensors() -> dict[str, torch.Tensor]:
        images = read()
        return {name: getattr(images, name).contiguous() for name in tensors}

    stored = cached(key, read_tensors, _are_images)
    return ImageArrays(stored["train_x"], stored["train_y"], stored["test_x"], stored["test_y"], None)


def _are_images(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether both parts are uint8 images with as many classes from 0."""
    for part in ("train", "test"):
        x, y = tensors.get(f"{part}_x"), tensors.get(f"{part}_y")
        if x is None or y is None or (x.dtype, x.dim(), y.dtype, y.dim()) != (torch.uint8, 4, torch.int64, 1):
            return False
        if len(x) != len(y) or y.min() < 0:
            return False
    return True


def image_splits(
    images: ImageArrays, augmentation: Augmentation, val_fraction: float, split_seed: int
) -> tuple[Splits, int]:
    """Hold out the validation part; the splits and the number of classes.

    Raises:
        ValueError: images without pixels, a single class, more classes than images, or too few images to hold out.
    """
    num_classes, num_train = int(max(images.train_y.max(), images.test_y.max())) + 1, len(images.train_y)
    if 0 in images.train_x.shape:
        raise ValueError(f"images of shape {tuple(images.train_x.shape[1:])} have no pixels")
    if not 2 <= num_classes <= num_train:
        raise ValueError(
            f"labels up to {num_classes - 1} of {num_train} training images; two classes or more are needed"
        )
    indices = torch.arange(num_train).numpy()
    train, val = hold_out(indices, images.train_y.numpy(), val_fraction, split_seed, f"val_fraction={val_fraction}")
    train_x = images.train_x[train]
    colours = Colours.of(train_x)
    plain = Augmentation()
    return Splits(
        ImageSamples.padded(train_x, images.train_y[train], num_classes, colours, augmentation),
        ImageSamples(images.train_x[val], images.train_y[val], num_classes, colours, plain),
        ImageSamples(images.test_x, images.test_y, num_classes, colours, plain),
        preparation=colours.preparation(images.classes),
    ), num_classes
