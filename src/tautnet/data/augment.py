"""Random changes to whole batches of images, on the device that holds them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST = 1024  # crop or cutout, in pixels


@dataclass(frozen=True)
class Augmentation:
    """What happens to training images; every setting at its default does nothing.

    Args:
        crop: zero pixels put around an image before a window of its own size is cut out at random, 0 to 1024.
        flip: mirror every second image, left to right.
        cutout: side of a square of mean colour at a random place, clipped at the border, 0 to 1024 (DeVries, Taylor
            2017).
        mixup: alpha of the Beta(alpha, alpha) share of another image and its label, 0 for none (Zhang et al. 2018).
        cutmix: alpha of the Beta(alpha, alpha) share of the area that another image fills with a box, 0 for none (Yun
            et al. 2019). With mixup too, each image gets one of the two at random.
        label_smoothing: share of the target spread over all classes, in [0, 1).

    Differences from the sources of mixup and cutmix: shares are drawn for each image instead of each batch, and the
    other image is the next one in the epoch's random order, so that batches may be shared among processes.

    Raises:
        ValueError: a value out of range.
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{field.name}={value}: a finite number of at least 0")
        for name, value in (("crop", self.crop), ("cutout", self.cutout)):
            if value > LARGEST:
                raise ValueError(f"{name}={value}: at most {LARGEST}")
        if self.label_smoothing >= 1:
            raise ValueError(f"label_smoothing={self.label_smoothing}: from 0 to below 1")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def softens(self) -> bool:
        """Whether targets become probabilities."""
        return self.mixes or self.label_smoothing > 0


@dataclass(frozen=True)
class Draws:
    """Everything random for the samples of an epoch, (N,) each and in its order."""

    top: Tensor  # of the window in the padded image
    left: Tensor
    flip: Tensor  # 0 or 1
    centre: Tensor  # (N, 2) of the cutout, in pixels
    share: Tensor  # of the image itself in the mixture
    box: Tensor  # bool: mixed by a box
    box_centre: Tensor  # (N, 2), in shares of height and width

    def at(self, positions: slice | Tensor) -> Draws:
        """Those of some positions."""
        return Draws(*(getattr(self, field.name)[positions] for field in fields(self)))


def draw(settings: Augmentation, size: tuple[int, int], count: int, rng: np.random.Generator) -> Draws:
    """Draw for ``count`` images of ``size`` (height, width)."""
    top, left = rng.integers(0, 2 * settings.crop + 1, (2, count))
    flip = rng.integers(0, 2, count) if settings.flip else np.zeros(count, np.int64)
    centre = rng.integers(0, size, (count, 2))
    box = rng.random(count) < 0.5 if settings.mixup > 0 else np.ones(count, bool)
    share = np.ones(count)
    if settings.mixup > 0:
        share = rng.beta(settings.mixup, settings.mixup, count)
    if settings.cutmix > 0:
        share = np.where(box, rng.beta(settings.cutmix, settings.cutmix, count), share)
    else:
        box = np.zeros(count, bool)
    arrays = (top, left, flip, centre, share.astype(np.float32), box, rng.random((count, 2), np.float32))
    return Draws(*map(torch.from_numpy, arrays))


def windows(padded_NCHW: Tensor, index_B: Tensor, top_B: Tensor, left_B: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut the window of ``size`` at (top, left) out of each indexed image, shape (B, C, *size).

    Rows of a window are contiguous pieces of the flat images: one gather of rows instead of one of pixels.
    """
    _, C, H, W = padded_NCHW.shape
    height, width = size
    flat = padded_NCHW.view(-1)
    pieces = flat.as_strided((flat.numel() - width + 1, width), (1, 1))  # every run of ``width`` pixels
    corner_B = (index_B * (C * H) + top_B) * W + left_B
    channel, row = (torch.arange(count, device=flat.device) for count in (C, height))
    rows = (channel.view(-1, 1) * (H * W) + row * W).flatten()  # from the corner of a window
    starts = corner_B.view(-1, 1) + rows
    return pieces.index_select(0, starts.flatten()).view(-1, C, height, width)


def mirror(x_NCHW: Tensor, flip_N: Tensor) -> Tensor:
    """Mirror the images whose ``flip`` is 1: by a gather among both versions, faster than a masked choice."""
    N = len(x_NCHW)
    both = torch.cat([x_NCHW, x_NCHW.flip(-1)])
    return both.index_select(0, torch.arange(N, device=x_NCHW.device) + N * flip_N)


def inside_box(size: tuple[int, int], low_N2: Tensor, high_N2: Tensor) -> Tensor:
    """Whether each pixel lies in [low, high) in both directions, shape (N, 1, H, W)."""
    inside = []
    for axis, length in enumerate(size):
        pixel = torch.arange(length, device=low_N2.device)
        inside.append((pixel >= low_N2[:, axis, None]) & (pixel < high_N2[:, axis, None]))
    return (inside[0][:, :, None] & inside[1][:, None, :]).unsqueeze(1)


def cut_out(x_NCHW: Tensor, centre_N2: Tensor, side: int) -> Tensor:
    """Set a square around each centre to 0, which is the mean colour of standardised images."""
    low = centre_N2 - side // 2
    return x_NCHW * ~inside_box((x_NCHW.shape[2], x_NCHW.shape[3]), low, low + side)


def mix(x_NCHW: Tensor, y_NK: Tensor, other_x: Tensor, other_y: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Mixup, or cutmix where ``draws.box``; the labels by the share of pixels that each image really has."""
    size = (x_NCHW.shape[2], x_NCHW.shape[3])
    lengths = torch.tensor(size, device=x_NCHW.device)
    side = ((1 - draws.share).sqrt().view(-1, 1) * lengths).round()
    low = (draws.box_centre * lengths - side / 2).round()
    covered = inside_box(size, low, low + side)
    box = draws.box.view(-1, 1, 1, 1)
    share = torch.where(draws.box, 1 - covered.to(x_NCHW.dtype).mean((1, 2, 3)), draws.share.to(x_NCHW.dtype))
    weight = torch.where(box, (~covered).to(x_NCHW.dtype), share.view(-1, 1, 1, 1))
    return torch.lerp(other_x, x_NCHW, weight), torch.lerp(other_y, y_NK, share.view(-1, 1).to(y_NK.dtype))


def soft_targets(classes_N: Tensor, num_classes: int, label_smoothing: float) -> Tensor:
    """(1 - s) one-hot + s / K, shape (N, K)."""
    one_hot = F.one_hot(classes_N, num_classes).to(torch.get_default_dtype())
    return one_hot * (1 - label_smoothing) + label_smoothing / num_classes
