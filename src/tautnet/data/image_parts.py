"""From arrays of images to the parts of a data set."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tautnet.data.augment import Augmentation
from tautnet.data.base import Splits
from tautnet.data.cache import cached
from tautnet.data.formats.images import ImageArrays
from tautnet.data.image_samples import Colours, ImageSamples
from tautnet.data.split import hold_out


def check_val_fraction(value: float) -> None:
    """Raise ValueError unless some of the training part is held out and some is left."""
    if not 0 < value < 1:
        raise ValueError(f"val_fraction={value}: between 0 and 1")


def cached_images(key: str, read: Callable[[], ImageArrays]) -> ImageArrays:
    """The images under ``key`` in the cache."""
    tensors = ("train_x", "train_y", "test_x", "test_y")

    def read_tensors() -> dict[str, torch.Tensor]:
        images = read()
        return {name: getattr(images, name).contiguous() for name in tensors}

    stored = cached(key, read_tensors)
    return ImageArrays(stored["train_x"], stored["train_y"], stored["test_x"], stored["test_y"], None)


def image_splits(
    images: ImageArrays, augmentation: Augmentation, val_fraction: float, split_seed: int
) -> tuple[Splits, int]:
    """Hold out the validation part; the splits and the number of classes."""
    num_classes = int(max(images.train_y.max(), images.test_y.max())) + 1
    train, val = hold_out(torch.arange(len(images.train_y)).numpy(), images.train_y.numpy(), val_fraction, split_seed)
    train_x = images.train_x[train]
    colours = Colours.of(train_x)
    plain = Augmentation()
    return Splits(
        ImageSamples.padded(train_x, images.train_y[train], num_classes, colours, augmentation),
        ImageSamples(images.train_x[val], images.train_y[val], num_classes, colours, plain),
        ImageSamples(images.test_x, images.test_y, num_classes, colours, plain),
    ), num_classes
