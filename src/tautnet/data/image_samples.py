"""Images as one uint8 tensor; batches are standardised and augmented as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tautnet.data.augment import Augmentation, Draws, cut_out, draw, mirror, mix, soft_targets, windows
from tautnet.data.loader import AbstractSamples, Batch, Fetch
from tautnet.data.preparation import Preparation


@dataclass(frozen=True)
class Colours:
    """Mean and deviation of each channel of the training images, in units of the uint8 values, (C,) each."""

    mean: Tensor
    deviation: Tensor

    @staticmethod
    def of(images_NCHW: Tensor) -> Colours:
        """Of uint8 images; a constant channel has deviation 1. Counted exactly, without a float copy."""
        counts_C256 = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images_NCHW.unbind(1)]).double()
        value = torch.arange(256, dtype=torch.float64)
        total = counts_C256.sum(1)
        mean = counts_C256 @ value / total
        variance = (counts_C256 @ value.square() / total - mean.square()).clamp(min=0)
        return Colours(mean, torch.where(variance > 0, variance.sqrt(), 1.0))

    def preparation(self, classes: Sequence[str] | None) -> Preparation:
        """What ``standardise`` does, for pixel values from 0 to 1."""
        return Preparation.of_pixels(self.mean, self.deviation, 255, classes)

    def to(self, device: torch.device) -> Colours:
        """Copy to a device."""
        return Colours(self.mean.to(device), self.deviation.to(device))

    def standardise(self, x_NCHW: Tensor) -> Tensor:
        """(x - mean) / deviation in the default floating dtype."""
        dtype = torch.get_default_dtype()
        mean, scale = (v.to(dtype).view(-1, 1, 1) for v in (self.mean, 1 / self.deviation))
        return x_NCHW.to(dtype).sub_(mean).mul_(scale)


class ImageSamples(AbstractSamples):
    """Labelled uint8 images.

    Args:
        images: (N, C, H, W) uint8, for training with ``augmentation.crop`` zero pixels on each side already.
        classes: (N,) int64.
        num_classes: K.
        colours: to standardise with.
        augmentation: what to change at random.

    Shape:
        batches (B, C, H, W) in the default dtype without the padding, and classes (B,) int64 or, with an augmentation
        that softens them, probabilities (B, K).
    """

    def __init__(
        self, images: Tensor, classes: Tensor, num_classes: int, colours: Colours, augmentation: Augmentation
    ) -> None:
        self.images, self.classes, self.num_classes = images.contiguous(), classes, num_classes
        self.colours, self.augmentation = colours, augmentation
        border = 2 * augmentation.crop
        self._size = (images.shape[2] - border, images.shape[3] - border)

    @staticmethod
    def padded(
        images: Tensor, classes: Tensor, num_classes: int, colours: Colours, augmentation: Augmentation
    ) -> ImageSamples:
        """From images without the padding that a random crop needs."""
        if augmentation.crop:
            images = F.pad(images, (augmentation.crop,) * 4)
        return ImageSamples(images, classes, num_classes, colours, augmentation)

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> ImageSamples:
        """Copy to a device."""
        colours = self.colours.to(device)
        return ImageSamples(
            self.images.to(device), self.classes.to(device), self.num_classes, colours, self.augmentation
        )

    @property
    def nbytes(self) -> int:
        """Bytes of images and classes."""
        return self.images.nbytes + self.classes.nbytes

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W) without padding."""
        return (self.images.shape[1], *self._size)

    def start_epoch(self, order: Tensor, rng: np.random.Generator) -> Fetch:
        """Draw the epoch's random numbers, all at once and on the CPU, and put them beside the images."""
        device = self.images.device
        draws = draw(self.augmentation, self._size, len(order), rng)
        draws = Draws(*(value.to(device) for value in vars(draws).values()))
        order = order.to(device)

        def fetch(positions: slice) -> Batch:
            x, y = self._augmented(order[positions], draws.at(positions))
            if not self.augmentation.mixes:
                return x, y
            following = torch.arange(positions.start + 1, positions.stop + 1, device=device) % len(order)
            other_x, other_y = self._augmented(order[following], draws.at(following))
            return mix(x, y, other_x, other_y, draws.at(positions))

        return fetch

    def _augmented(self, index: Tensor, draws: Draws) -> Batch:
        """Crop, flip, standardise, cut out; everything but mixing."""
        settings = self.augmentation
        if settings.crop:
            x = windows(self.images, index, draws.top, draws.left, self._size)
        else:
            x = self.images.index_select(0, index)
        if settings.flip:
            x = mirror(x, draws.flip)
        x = self.colours.standardise(x)
        if settings.cutout:
            x = cut_out(x, draws.centre, settings.cutout)
        y = self.classes[index]
        return x, soft_targets(y, self.num_classes, settings.label_smoothing) if settings.softens else y
