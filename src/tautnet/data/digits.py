"""Handwritten digits that ship with scikit-learn."""

from __future__ import annotations

import numpy as np
import torch

from tautnet.data.base import AbstractTensorData, Splits
from tautnet.data.loader import TensorSamples
from tautnet.data.preparation import Preparation
from tautnet.data.split import check_fractions, three_parts


class Digits(AbstractTensorData):
    """1797 gray 8x8 images of ten digits, split by class, standardised by the training part's mean and deviation.

    Source: the test part of the UCI set "Optical recognition of handwritten digits" (Alpaydin, Kaynak 1998), through
    ``sklearn.datasets.load_digits``.

    Args:
        batch_size: samples a batch.
        seed: of the training order.
        shuffle: False keeps one training order.
        val_fraction: share of all samples for validation, in (0, 1).
        test_fraction: share of all samples for the test, in (0, 1); the two leave something to train on.
        split_seed: of the split, apart from ``seed`` so that seeds are compared on the same split.

    Shape:
        inputs (N, 1, 8, 8) float32, targets (N,) int64.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        batch_size: int = 64,
        seed: int = 0,
        shuffle: bool = True,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 0,
    ) -> None:
        check_fractions(val_fraction, test_fraction)
        self.val_fraction, self.test_fraction, self.split_seed = val_fraction, test_fraction, split_seed
        super().__init__(batch_size, seed, shuffle)

    @property
    def num_outputs(self) -> int:
        """Ten digits."""
        return 10

    def load(self) -> Splits:
        """Read, split, standardise."""
        from sklearn.datasets import load_digits  # slow to import: bad arguments are answered before

        images, classes = load_digits(return_X_y=True)
        parts = three_parts(len(images), classes, self.val_fraction, self.test_fraction, self.split_seed)
        mean, deviation = images[parts[0]].mean(), images[parts[0]].std()
        samples = (_as_samples((images[i] - mean) / deviation, classes[i]) for i in parts)
        # Pixels are counts from 0 to 16.
        return Splits(*samples, preparation=Preparation([mean / 16], [deviation / 16]))


def _as_samples(x: np.ndarray, y: np.ndarray) -> TensorSamples:
    images = torch.from_numpy(x.astype(np.float32)).view(-1, 1, 8, 8)
    return TensorSamples(images, torch.from_numpy(y.astype(np.int64)))
