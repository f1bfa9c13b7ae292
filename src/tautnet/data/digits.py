"""Handwritten digits that ship with scikit-learn."""

from __future__ import annotations

import numpy as np
import torch

from tautnet.data.base import AbstractTensorData, Part, Splits


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
        for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0.01 <= value <= 0.98:  # at least a sample of each class
                raise ValueError(f"{name}={value}: from 0.01 to 0.98")
        if not val_fraction + test_fraction <= 0.99:
            raise ValueError(f"val_fraction={val_fraction}: with test_fraction={test_fraction} at most 0.99")
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
        rest, test = _split(images, classes, self.test_fraction, self.split_seed)
        train, val = _split(*rest, self.val_fraction / (1 - self.test_fraction), self.split_seed)
        mean, deviation = train[0].mean(), train[0].std()
        return Splits(*(_as_tensors((x - mean) / deviation, y) for x, y in (train, val, test)))


Arrays = tuple[np.ndarray, np.ndarray]


def _split(x: np.ndarray, y: np.ndarray, fraction: float, seed: int) -> tuple[Arrays, Arrays]:
    from sklearn.model_selection import train_test_split

    x_rest, x_part, y_rest, y_part = train_test_split(x, y, test_size=fraction, stratify=y, random_state=seed)
    return (x_rest, y_rest), (x_part, y_part)


def _as_tensors(x: np.ndarray, y: np.ndarray) -> Part:
    return torch.from_numpy(x.astype(np.float32)).view(-1, 1, 8, 8), torch.from_numpy(y.astype(np.int64))
