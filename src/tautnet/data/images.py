"""Sets of labelled images that fit in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from tautnet.data.augment import Augmentation
from tautnet.data.base import AbstractTensorData, Splits
from tautnet.data.cache import fingerprint
from tautnet.data.formats.cifar import read_cifar10, read_cifar100
from tautnet.data.formats.folder import folder_classes, folder_images, read_folder
from tautnet.data.formats.idx import read_mnist
from tautnet.data.formats.images import ImageArrays
from tautnet.data.formats.npz import read_npz
from tautnet.data.hub import read_hub_images
from tautnet.data.image_parts import cached_images, check_image_size, check_val_fraction, image_splits

Format = Literal["mnist", "cifar10", "cifar100", "npz", "folder"]
_READERS: dict[Format, Callable[[Path], ImageArrays]] = {
    "mnist": read_mnist,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "npz": read_npz,
}
_FILES: dict[Format, str] = {
    "mnist": "train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k (or .gz)",
    "cifar10": "cifar-10-batches-py, cifar-10-batches-bin or train-*.parquet and test-*.parquet",
    "cifar100": "cifar-100-python, cifar-100-binary or train-*.parquet and test-*.parquet",
}


class Images(AbstractTensorData):
    """Images in memory as uint8, standardised by colour and augmented batch by batch on the training device.

    The validation part is a seeded, stratified share of the training part; what needs decoding (PNG, JPEG) is decoded
    once and kept below ``$XDG_CACHE_HOME/tautnet`` (``~/.cache/tautnet``), memory-mapped and checked by its hash.

    Args:
        format: of the files: ``mnist`` (idx, also gzipped), ``cifar10`` and ``cifar100`` (the python and binary
            versions, and the hub's parquet), ``npz`` (x_train, y_train, x_test, y_test), ``folder``
            (train/<class>/*.png and test/<class>/*.png).
        root: folder of the files, for ``npz`` the file; None fetches ``hub``.
        hub: name of the same set on the public hub.
        image_size: side in pixels that the images of a ``folder`` are brought to; None takes them as they are.
        batch_size: samples a batch.
        seed: of order and augmentation.
        shuffle: False keeps one training order.
        val_fraction: share of the training part, in (0, 1).
        split_seed: of that share, apart from ``seed`` so that seeds are compared on the same split.
        augmentation: of the training images; None for none.

    Shape:
        inputs (N, C, H, W) float32; targets (N,) int64, in training (N, K) float32 if the augmentation softens them.

    Raises:
        ValueError: an argument out of range, or a file that cannot be used.
    """

    def __init__(
        self,
        format: Format,
        root: str | None,
        hub: str | None = None,
        image_size: int | None = None,
        batch_size: int = 128,
        seed: int = 0,
        shuffle: bool = True,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        if format not in get_args(Format):
            raise ValueError(f"format={format}: one of {', '.join(get_args(Format))}")
        if image_size is not None and format != "folder":
            raise ValueError(f"image_size={image_size}: null, it is for format=folder")
        check_image_size(image_size)
        check_val_fraction(val_fraction)
        self.augmentation = augmentation or Augmentation()
        self.format, self.hub, self.image_size = format, hub, image_size
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.root = None if root is None else Path(root).expanduser()
        if self.root is None and hub is None:
            raise ValueError(f"root=None: a {'file' if format == 'npz' else 'folder'} is needed")
        if self.root is not None and not self.root.exists():
            raise ValueError(f"root={root}: no such {'file' if format == 'npz' else 'folder'}")
        super().__init__(batch_size, seed, shuffle)

    @property
    def num_outputs(self) -> int:
        """Number of classes."""
        return self._num_classes

    def load(self) -> Splits:
        """Read or map, split, find the mean colour."""
        images = self._read()
        if self.format == "folder" and self.root is not None:  # names are not in the cache
            images = images._replace(classes=folder_classes(self.root))
        splits, self._num_classes = image_splits(images, self.augmentation, self.val_fraction, self.split_seed)
        return splits

    def _read(self) -> ImageArrays:
        if self.root is None:
            return self._fetch()
        if self.format == "folder":
            key = fingerprint(f"folder {self.image_size}", self.root, folder_images(self.root))
            return cached_images(key, partial(read_folder, self.root, self.image_size))
        read = partial(_READERS[self.format], self.root)
        encoded = [path for pattern in ("*.parquet", "*/*.parquet") for path in self.root.glob(pattern)]
        return cached_images(fingerprint(self.format, self.root, encoded), read) if encoded else read()

    def _fetch(self) -> ImageArrays:
        assert self.hub is not None
        try:
            return read_hub_images(self.hub)
        except ValueError as error:
            files = _FILES[self.format]
            raise ValueError(f"root=None: {error}. Or put {files} into a folder and name it: root=<folder>") from error
