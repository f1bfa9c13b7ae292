"""Gray images with Gaussian noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tautnet.data.augment import mirror, windows
from tautnet.data.base import AbstractTensorData, Splits
from tautnet.data.formats.gray import read_gray_images
from tautnet.data.loader import AbstractSamples, Batch, Fetch, TensorLoader
from tautnet.data.noise import normal_at
from tautnet.factories import Task


class PatchSamples(AbstractSamples):
    """Random square patches of gray images, mirrored and turned at random, clean and with noise.

    Each epoch draws every image ``patches`` times.

    Args:
        images: (N, 1, H, W) uint8, all of one size.
        side: of a patch in pixels, at most the image's.
        patches: drawn from each image in an epoch.
        sigma: deviation of the noise, in units of the uint8 values.

    Shape:
        batches of noisy and clean patches, (B, 1, side, side) float32 both, in units of 255.
    """

    def __init__(self, images: Tensor, side: int, patches: int, sigma: float) -> None:
        self.images, self.side, self.patches, self.sigma = images, side, patches, sigma

    def __len__(self) -> int:
        return len(self.images) * self.patches

    def to(self, device: torch.device) -> PatchSamples:
        """Copy to a device."""
        return PatchSamples(self.images.to(device), self.side, self.patches, self.sigma)

    @property
    def nbytes(self) -> int:
        """Bytes of the images."""
        return self.images.nbytes

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of a patch."""
        return (1, self.side, self.side)

    def start_epoch(self, order: Tensor, rng: np.random.Generator) -> Fetch:
        """Draw places, turns and the numbers of the noise."""
        device = self.images.device
        height, width = self.images.shape[2:]
        count = len(order)
        top, left, flip, turned = (
            torch.from_numpy(rng.integers(0, most, count)).to(device)
            for most in (height - self.side + 1, width - self.side + 1, 2, 2)
        )
        index = (order % len(self.images)).to(device)
        seed = int(rng.integers(2**62))

        def fetch(positions: slice) -> Batch:
            size = (self.side, self.side)
            x = mirror(windows(self.images, index[positions], top[positions], left[positions], size), flip[positions])
            x = torch.where(turned[positions].view(-1, 1, 1, 1) > 0, x.transpose(2, 3), x)
            clean = x.to(torch.get_default_dtype()) / 255
            places = torch.arange(positions.start, positions.stop, device=device)
            return clean + self.sigma / 255 * normal_at(places, seed, self.side**2).view_as(clean), clean

        return fetch


class NoisyImages(AbstractSamples):
    """Whole images of any size with noise that is the same in every epoch, for evaluation; one image a batch.

    Args:
        images: (H, W) uint8 each.
        sigma: deviation of the noise, in units of the uint8 values.
    """

    def __init__(self, images: list[Tensor], sigma: float) -> None:
        self.images, self.sigma = images, sigma

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> NoisyImages:
        """Copy to a device."""
        return NoisyImages([image.to(device) for image in self.images], self.sigma)

    @property
    def nbytes(self) -> int:
        """Bytes of the images."""
        return sum(image.nbytes for image in self.images)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of the first image."""
        return (1, *self.images[0].shape)

    def start_epoch(self, order: Tensor, rng: np.random.Generator) -> Fetch:
        """The noise depends on the image alone."""

        def fetch(positions: slice) -> Batch:
            (index,) = order[positions].tolist()
            image = self.images[index]
            clean = (image.to(torch.get_default_dtype()) / 255)[None, None]
            place = torch.tensor([index], device=image.device)
            return clean + self.sigma / 255 * normal_at(place, 0, clean.numel()).view_as(clean), clean

        return fetch


class Denoising(AbstractTensorData):
    """Gray images to be freed from Gaussian noise: random patches to train, whole images to validate and test.

    Source: the set-up of Zhang, Zuo, Chen, Meng, Zhang (2017): noise levels 15, 25 or 50 of 255, patches of 40 pixels
    and batches of 128. Difference: patches are drawn at random instead of cut once on a grid.

    Args:
        root: folder of the training images (png, jpg, bmp), all of one size.
        test_root: folder of the test images, of any size.
        sigma: deviation of the noise, in units of the 8-bit values, above 0, at most 255.
        batch_size: patches a batch.
        seed: of order, patches and noise.
        shuffle: False keeps one training order.
        patch_size: side of a training patch in pixels.
        patches_per_image: drawn in an epoch, at least 1.
        num_val: training images that validate instead, at least 1.
        split_seed: chooses them.

    Shape:
        noisy and clean images, (N, 1, H, W) float32 in units of 255 both.

    Raises:
        ValueError: an argument out of range, or a folder that cannot be used.
    """

    def __init__(
        self,
        root: str,
        test_root: str,
        sigma: float = 25.0,
        batch_size: int = 128,
        seed: int = 0,
        shuffle: bool = True,
        patch_size: int = 40,
        patches_per_image: int = 64,
        num_val: int = 20,
        split_seed: int = 0,
    ) -> None:
        if not 0 < sigma <= 255:
            raise ValueError(f"sigma={sigma}: above 0, at most 255")
        for name, value in (
            ("patch_size", patch_size),
            ("patches_per_image", patches_per_image),
            ("num_val", num_val),
        ):
            if not 1 <= value <= 10**6:
                raise ValueError(f"{name}={value}: an integer from 1 to 1000000")
        self.root, self.test_root, self.sigma = Path(root).expanduser(), Path(test_root).expanduser(), sigma
        self.patch_size, self.patches_per_image = patch_size, patches_per_image
        self.num_val, self.split_seed = num_val, split_seed
        super().__init__(batch_size, seed, shuffle)

    @property
    def task(self) -> Task:
        """Clean images from noisy ones."""
        return "denoising"

    @property
    def num_outputs(self) -> int:
        """One channel."""
        return 1

    def load(self) -> Splits:
        """Read both folders, hold out some training images."""
        images, test = read_gray_images(self.root), read_gray_images(self.test_root)
        shape = images[0].shape
        if any(image.shape != shape for image in images):
            raise ValueError(f"root={self.root}: images of several sizes; training needs one size")
        if self.patch_size > min(shape):
            raise ValueError(f"patch_size={self.patch_size}: at most {min(shape)}, the side of the training images")
        if self.num_val >= len(images):
            raise ValueError(f"num_val={self.num_val}: below {len(images)}, the number of images in {self.root}")
        generator = torch.Generator().manual_seed(self.split_seed)
        mixed = [images[i] for i in torch.randperm(len(images), generator=generator).tolist()]
        train = torch.stack(mixed[self.num_val :]).unsqueeze(1)
        return Splits(
            PatchSamples(train, self.patch_size, self.patches_per_image, self.sigma),
            NoisyImages(mixed[: self.num_val], self.sigma),
            NoisyImages(test, self.sigma),
        )

    def _evaluation_loader(self, samples: AbstractSamples) -> TensorLoader:
        return self._shared(samples, self.place()[1])  # one image a process
