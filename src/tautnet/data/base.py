"""Data sets that fit in memory as tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import pytorch_lightning as pl
from torch import Tensor

from tautnet.data.loader import TensorLoader

Part = tuple[Tensor, Tensor]  # inputs (N, *), targets (N,)


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set."""

    train: Part
    val: Part
    test: Part


class AbstractTensorData(pl.LightningDataModule, ABC):
    """Training, validation and test loaders over tensors.

    Args:
        batch_size: samples a batch, at least 1 and at most the training part; the last, smaller training batch is left
            out.
        seed: of the training order; together with the epoch it decides every batch.
        shuffle: False keeps one training order, for looking at overfitting.

    Raises:
        ValueError: ``batch_size`` out of range.
    """

    def __init__(self, batch_size: int, seed: int, shuffle: bool) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: an integer of at least 1")
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.splits = self.load()
        if batch_size > len(self.splits.train[0]):
            raise ValueError(f"batch_size={batch_size}: at most the {len(self.splits.train[0])} training samples")

    @abstractmethod
    def load(self) -> Splits:
        """Read or make the data; called once, from the constructor."""

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Number of classes."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.splits.train[0].shape[1:])

    def train_dataloader(self) -> TensorLoader:
        """Training batches, in an order of their own each epoch."""
        return TensorLoader(*self.splits.train, self.batch_size, seed=self.seed, shuffle=self.shuffle, drop_last=True)

    def val_dataloader(self) -> TensorLoader:
        """Validation batches."""
        return self._evaluation_loader(self.splits.val)

    def test_dataloader(self) -> TensorLoader:
        """Test batches."""
        return self._evaluation_loader(self.splits.test)

    @staticmethod
    def _evaluation_loader(part: Part) -> TensorLoader:
        return TensorLoader(*part, batch_size=1024, shuffle=False, drop_last=False)
