"""Labelled images of the public hub."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from tautnet.data import hub_access
from tautnet.data.augment import Augmentation
from tautnet.data.base import AbstractTensorData, Splits
from tautnet.data.formats.images import ImageArrays
from tautnet.data.image_parts import cached_images, check_image_size, check_val_fraction, image_splits
from tautnet.data.split import hold_out

ROWS = 1000  # decoded at a time


class HubImages(AbstractTensorData):
    """A set of labelled images of the hub that fits in memory as uint8.

    The image column and the class column are found by their kind. The part named test, or validation, is tested on; a
    set without one gives a seeded, stratified share of its training part. Decoded once and kept, see ``Images``.

    Args:
        path: name on the hub (owner/set), or a local folder in one of its formats: parquet, image folders, tar shards.
        subset: which of several configurations of the set.
        label: name of the class column; None finds it.
        image_size: side in pixels that images are brought to; None takes them as they are.
        batch_size: samples a batch.
        seed: of order and augmentation.
        shuffle: False keeps one training order.
        val_fraction: share of the training part, in (0, 1).
        test_fraction: share of all samples where the set has no test part.
        split_seed: of these shares.
        augmentation: of the training images; None for none.

    Shape:
        inputs (N, C, H, W) float32; targets as of ``Images``.

    Raises:
        ValueError: an argument out of range, or a set that cannot be used.
    """

    def __init__(
        self,
        path: str,
        subset: str | None = None,
        label: str | None = None,
        image_size: int | None = None,
        batch_size: int = 128,
        seed: int = 0,
        shuffle: bool = True,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        check_val_fraction(val_fraction)
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction={test_fraction}: between 0 and 1")
        check_image_size(image_size)
        self.path, self.subset, self.label, self.image_size = path, subset, label, image_size
        self.val_fraction, self.test_fraction, self.split_seed = val_fraction, test_fraction, split_seed
        self.augmentation = augmentation or Augmentation()
        super().__init__(batch_size, seed, shuffle)

    @property
    def num_outputs(self) -> int:
        """Number of classes."""
        return self._num_classes

    def load(self) -> Splits:
        """Open, decode or map, split, find the mean colour."""
        images = read_hub_images(
            self.path, self.subset, self.label, self.image_size, self.test_fraction, self.split_seed
        )
        splits, self._num_classes = image_splits(images, self.augmentation, self.val_fraction, self.split_seed)
        return splits


def read_hub_images(
    path: str,
    subset: str | None = None,
    label: str | None = None,
    image_size: int | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
) -> ImageArrays:
    """Decode a set of the hub, or map what was decoded before; the arguments are those of ``HubImages``.

    Raises:
        ValueError: a set that cannot be used.
    """
    try:
        parts = hub_access.open_parts(path, subset, streaming=False)
    except hub_access.HubError as error:
        raise ValueError(f"path={path}: {error}") from error
    if "train" not in parts:
        raise ValueError(f"path={path}: no part named train; there are {', '.join(parts)}")
    columns = hub_access.image_columns(parts["train"].features, path, label)
    test = hub_access.test_name(parts)
    wanted = {name: parts[name] for name in ("train", test) if name is not None}
    prints = [part._fingerprint for part in wanted.values()]
    key = sha256(repr((prints, columns, image_size, test_fraction, split_seed)).encode()).hexdigest()[:32]
    return cached_images(key, lambda: _read(wanted, columns, image_size, path, test_fraction, split_seed))


def _read(
    parts: Mapping[str, Any],
    columns: hub_access.ImageColumns,
    image_size: int | None,
    path: str,
    test_fraction: float,
    split_seed: int,
) -> ImageArrays:
    (train_x, train_y), *rest = (_decoded(part, columns, image_size, path) for part in parts.values())
    if rest:
        return ImageArrays(train_x, train_y, *rest[0], classes=None)
    indices, asked = torch.arange(len(train_y)).numpy(), f"test_fraction={test_fraction}"
    train, test = hold_out(indices, train_y.numpy(), test_fraction, split_seed, asked)
    return ImageArrays(train_x[train], train_y[train], train_x[test], train_y[test], classes=None)


def _decoded(part: Any, columns: hub_access.ImageColumns, image_size: int | None, path: str) -> tuple[Tensor, Tensor]:
    images, classes = [], []
    for rows in hub_access.undecoded(part, columns).iter(batch_size=ROWS):
        images.append(hub_access.decoded([image["bytes"] for image in rows[columns.image]], path, image_size))
        classes.append(hub_access.class_numbers(rows[columns.label], path))
    channels = max(chunk.shape[1] for chunk in images)  # gray pieces of a set that also has colours
    return torch.cat([chunk.expand(-1, channels, -1, -1) for chunk in images]), torch.cat(classes)
